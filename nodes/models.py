"""Nodes that load models and speed them up."""

import torch

from ..sa3_core import run_record
from ..sa3_core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..sa3_core.checkpoints.detect import OBJECTIVES, TEXT_SUBFOLDER
from ..sa3_core.checkpoints.tensors import DTYPES
from ..sa3_core.errors import SA3Error
from ..sa3_core.pipeline import DEMOS
from .comfyui import folders
from .comfyui.acceleration import eager_model, graphs_model
from .comfyui.clip import load_clip
from .comfyui.live_preview import attach_autoencoder
from .comfyui.model import SA3Model, load_model
from .comfyui.progress import LARGE, Progress, show_status, warn
from .comfyui.schema import io, schema
from .comfyui.vae import load_vae

CHOICES = {"auto": None, **DTYPES}  # of dtype
DTYPE_TIP = (
    "Number format. auto: fp16 on a GPU, fp32 on a CPU. fp32 is exact. fp16 uses half the memory and is several times faster on a GPU. "
    "bf16 has about eight times the error of fp16. The text encoder overflows in fp16: it runs in bf16 on a GPU that supports it, "
    "else in fp32."
)
SAME_DTYPE_TIP = (
    "Number format. auto: fp16 on a GPU, with a signal-to-noise ratio of at least 55 dB against fp32; fp32 on a CPU. bf16 has about eight "
    "times the error of fp16."
)


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        model = (
            "Release to load. auto: the first one in ComfyUI's model folders, else the embedded demo (a tiny model of tones, beats and "
            "noises). demo-medium belongs to the medium family. -base models need about 50 steps and cfg 7."
        )
        text_encoder = (
            "The T5Gemma text encoder. auto: the folder next to the weights, else ComfyUI's text_encoders folder, else the Hugging Face "
            "cache."
        )
        encoders = [folders.AUTO, *sorted(folders.text_encoders())]
        file = "A model in ComfyUI's model folders. 'by name' finds the file from model, so a shared workflow works on every machine."
        objective = "For a file without model_config.json: whether it is a base model. auto: yes if its file name contains 'base'."
        return schema(
            "SA3_ModelLoader",
            display_name="SA3 Model Loader",
            advanced="dtype text_encoder objective",
            description="Loads a Stable Audio 3 model: transformer, text encoder and autoencoder. Reads the official releases, their "
            "16-bit mirrors and single files repackaged for ComfyUI.",
            inputs=[
                io.Combo.Input("model", options=[folders.AUTO, *folders.VARIANTS, *folders.DEMOS], default=folders.AUTO, tooltip=model),
                io.Combo.Input("file", options=[folders.BY_NAME, *sorted(folders.releases())], default=folders.BY_NAME, tooltip=file),
                io.Combo.Input("dtype", options=list(CHOICES), default="auto", tooltip=DTYPE_TIP),
                io.Combo.Input("text_encoder", options=encoders, default=folders.AUTO, tooltip=text_encoder),
                io.Combo.Input("objective", options=list(OBJECTIVES), default="auto", optional=True, tooltip=objective),
            ],
            outputs=[io.Model.Output("MODEL"), io.Clip.Output("CLIP"), io.Vae.Output("VAE")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, model, file, dtype, text_encoder, objective="auto"):
        release = folders.find_release(model, file)
        encoders = [] if release.is_dir() else [release.parent / TEXT_SUBFOLDER]
        return folders.fingerprint(release, *encoders, *folders.text_encoders().values())

    @classmethod
    def execute(cls, model, file, dtype, text_encoder, objective="auto") -> io.NodeOutput:
        watch = run_record.Stopwatch()
        opened = open_checkpoint(folders.find_release(model, file), objective)
        if opened.config.dit is None:
            raise SA3Error(f"{opened.path} is a standalone autoencoder; expected a full model. Load it with SA3_AutoencoderLoader.")
        encoder, bar = folders.find_text_encoder(text_encoder, opened), Progress(1)
        if opened.tensors.path.stat().st_size > LARGE:
            show_status(f"reading {opened.name}")
        watch.lap("open")
        clip = load_clip(encoder, opened.config.conditioning, CHOICES[dtype])
        watch.lap("text encoder")
        patcher = load_model(opened, CHOICES[dtype])
        watch.lap("transformer")
        vae = load_vae(opened, CHOICES[dtype])
        watch.lap("autoencoder")
        attach_autoencoder(patcher, vae)
        bar.finish()
        kinds = {"text_encoder_dtype": clip.dtype, "autoencoder_dtype": vae.vae_dtype}
        patcher.model.sa3_loaded = run_record.load_record(opened, patcher.model.get_dtype(), patcher.load_device, watch, **kinds)
        show_status(loaded_line(opened, patcher.model))
        if dtype == "fp16" and clip.dtype != torch.float16:
            name = str(clip.dtype).removeprefix("torch.")
            warn(f"The text encoder runs in {name}, not fp16: its activations exceed the range of fp16.")
        return io.NodeOutput(patcher, clip, vae)


def loaded_line(opened: Checkpoint, inner: SA3Model) -> str:
    """Name, number format and size of the loaded model, and what a demo is limited to; the button below offers the others."""
    name = opened.name.replace("_", "-").removeprefix("stable-audio-3-")
    dtype = {value: key for key, value in DTYPES.items()}.get(inner.get_dtype(), inner.get_dtype())
    if opened.path in DEMOS.values():
        return f"{name}, {dtype}: tones, beats and noises only"
    return f"{name}, {dtype}, {sum(weight.numel() for weight in inner.state_dict().values()) / 1e6:.0f} M parameters"


class AutoencoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        file = "A file in ComfyUI's model folders. 'by name' finds the file from autoencoder."
        autoencoder = (
            "SAME-S belongs to the small models, SAME-L to medium. A standalone file is preferred, else the autoencoder of a full model is "
            "loaded. demo, demo-medium: those of the embedded demo models."
        )
        names = [*folders.AUTOENCODERS, *folders.DEMOS]
        return schema(
            "SA3_AutoencoderLoader",
            display_name="SA3 Autoencoder Loader",
            advanced="dtype",
            description="Loads the SAME autoencoder alone, for encoding and decoding, from a standalone release or a full model.",
            inputs=[
                io.Combo.Input("autoencoder", options=names, default=names[0], tooltip=autoencoder),
                io.Combo.Input("file", options=[folders.BY_NAME, *sorted(folders.autoencoders())], default=folders.BY_NAME, tooltip=file),
                io.Combo.Input("dtype", options=list(CHOICES), default="auto", tooltip=SAME_DTYPE_TIP),
            ],
            outputs=[io.Vae.Output("VAE")],
        )

    @classmethod
    def fingerprint_inputs(cls, autoencoder, file, dtype):
        return folders.fingerprint(folders.find_autoencoder(autoencoder, file))

    @classmethod
    def execute(cls, autoencoder, file, dtype) -> io.NodeOutput:
        opened = open_checkpoint(folders.find_autoencoder(autoencoder, file), autoencoder=True)
        return io.NodeOutput(load_vae(opened, CHOICES[dtype]))


WHEN = ["in background", "before first run"]
HOW = {"auto": graphs_model, "torch.compile": eager_model, "CUDA graphs": graphs_model}


class Compile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        when = "Has no effect; kept for saved workflows. The first step of each shape is recorded in the run that needs it."
        how = (
            "auto, CUDA graphs: the first step of each shape is recorded and later steps replay it, with the same bytes; needs an NVIDIA "
            "or AMD GPU, on which the weights stay (medium: 3 GB in fp16). torch.compile: removed, runs eagerly; use ComfyUI's node "
            "TorchCompileModel instead of this one."
        )
        return schema(
            "SA3_Compile",
            display_name="SA3 Compile",
            advanced="how",
            description="Speeds up the transformer with CUDA graphs on an NVIDIA or AMD GPU. Elsewhere sampling runs eagerly, and the node "
            "shows the reason.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader, with or without LoRAs."),
                io.Combo.Input("when", options=WHEN, default=WHEN[0], optional=True, tooltip=when),
                io.Combo.Input("how", options=list(HOW), default=next(iter(HOW)), optional=True, tooltip=how),
            ],
            outputs=[io.Model.Output("MODEL")],
        )

    @classmethod
    def execute(cls, model, when="", how="auto") -> io.NodeOutput:
        return io.NodeOutput(HOW[how or "auto"](model))


NODES = [ModelLoader, AutoencoderLoader, Compile]
