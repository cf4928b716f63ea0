"""Nodes that load a release."""

import torch

from ..sa3_core.checkpoint import open_checkpoint
from ..sa3_core.errors import SA3Error
from .host import folders
from .host.clip import load_clip
from .host.model import load_model
from .host.schema import io, schema
from .host.vae import load_vae

DTYPES = {"auto": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_ModelLoader",
            display_name="SA3 Model Loader",
            description="Loads a Stable Audio 3 release: transformer, text encoder and autoencoder.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[folders.AUTO, *folders.VARIANTS, "demo"],
                    default=folders.AUTO,
                    tooltip="Which release to use. auto takes the first one found in ComfyUI's model folders, and the embedded demo "
                    "(random weights: it makes noise) when there is none. -base models need about 50 steps and cfg 7.",
                ),
                io.Combo.Input(
                    "file",
                    options=[folders.BY_NAME, *sorted(folders.releases())],
                    default=folders.BY_NAME,
                    tooltip="A release by its place in the model folders. 'by name' lets the choice above find it, so a shared graph "
                    "works on every machine.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Number format of the weights. auto: what this device computes best. fp32 is exact, the 16-bit formats "
                    "take half the memory.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=["auto"],
                    default="auto",
                    tooltip="The T5Gemma text encoder. auto takes the folder beside the weights.",
                ),
            ],
            outputs=[io.Model.Output("MODEL"), io.Clip.Output("CLIP"), io.Vae.Output("VAE")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, file, dtype, text_encoder):
        return folders.state_of(folders.find_release(model, file))

    @classmethod
    def execute(cls, model, file, dtype, text_encoder) -> io.NodeOutput:
        opened = open_checkpoint(folders.find_release(model, file))
        if opened.config.dit is None:
            raise SA3Error(f"{opened.path} is a standalone autoencoder; SA3_ModelLoader needs a generative release.")
        if opened.text_encoder is None:
            raise SA3Error(
                f"{opened.path} has no text encoder: expected the folder {opened.config.conditioning.text_subfolder} beside the weights."
            )
        clip = load_clip(opened.text_encoder, opened.config.conditioning.max_tokens, DTYPES[dtype])
        return io.NodeOutput(load_model(opened, DTYPES[dtype]), clip, load_vae(opened, DTYPES[dtype]))


NODES = [ModelLoader]
