"""Nodes that load a model and make it ready."""

import torch

from ..sa3_core import run_record
from ..sa3_core.checkpoints.checkpoint import open_checkpoint
from ..sa3_core.checkpoints.detect import OBJECTIVES, TEXT_SUBFOLDER
from ..sa3_core.checkpoints.tensors import DTYPES
from ..sa3_core.errors import SA3Error
from .comfyui import folders
from .comfyui.clip import load_clip
from .comfyui.compiled import compiled_model, fastest_model, graphs_model
from .comfyui.live_preview import attach_autoencoder
from .comfyui.model import load_model
from .comfyui.progress import LARGE, Progress, show_status, warn
from .comfyui.schema import io, schema
from .comfyui.vae import load_vae

DTYPE_TIP = (
    "Number format. auto: on a GPU fp16, on a CPU fp32. fp32 is exact; fp16 takes half the memory and is several times as fast on a GPU; "
    "bf16 erred about eight times as much as fp16 in measurements. The text encoder never computes in fp16, whose range it leaves: it is "
    "bf16 on a GPU that has it, else fp32."
)
SAME_DTYPE_TIP = (
    "Number format. auto: fp16 on a GPU, which stays 55 dB or more from fp32, and fp32 on a CPU. bf16 erred about eight times as much as "
    "fp16 in measurements."
)


def chosen(widget: str, choices: dict, name: str):
    """ComfyUI 0.3.75 does not check the choices of V3 nodes, so the API can send anything."""
    if name not in choices:
        raise SA3Error(f"{widget} is '{name}'; choose one of {', '.join(choices)}.")
    return choices[name]


def dtype_of(name: str) -> torch.dtype | None:
    return chosen("dtype", {"auto": None, **DTYPES}, name)


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_ModelLoader",
            display_name="SA3 Model Loader",
            description="Loads a Stable Audio 3 model: transformer, text encoder and autoencoder. Takes the official releases, 16-bit "
            "mirrors of them, and the single files repackaged for ComfyUI.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[folders.AUTO, *folders.VARIANTS, *folders.DEMOS],
                    default=folders.AUTO,
                    tooltip="Which release to use. auto takes the first one found in ComfyUI's model folders, and the embedded demo "
                    "(a tiny model of tones, beats and noises) when there is none; demo-medium is one of the medium family. "
                    "-base models need about 50 steps and cfg 7.",
                ),
                io.Combo.Input(
                    "file",
                    options=[folders.BY_NAME, *sorted(folders.releases())],
                    default=folders.BY_NAME,
                    tooltip="A model by its place in the model folders. 'by name' lets the choice above find it, so a shared graph "
                    "works on every machine.",
                ),
                io.Combo.Input("dtype", options=["auto", *DTYPES], default="auto", tooltip=DTYPE_TIP),
                io.Combo.Input(
                    "text_encoder",
                    options=[folders.AUTO, *sorted(folders.text_encoders())],
                    default=folders.AUTO,
                    tooltip="The T5Gemma text encoder. auto takes the folder beside the weights, else the one in ComfyUI's text_encoders "
                    "folder, else the one in the Hugging Face cache.",
                ),
                io.Combo.Input(
                    "objective",
                    options=list(OBJECTIVES),
                    default="auto",
                    optional=True,
                    tooltip="Only for a file without a model_config.json: whether it is a base model. auto goes by the word 'base' in its "
                    "name, since the weights do not tell.",
                ),
            ],
            outputs=[io.Model.Output("MODEL"), io.Clip.Output("CLIP"), io.Vae.Output("VAE")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, model, file, dtype, text_encoder, objective="auto"):
        place = folders.find_release(model, file)
        beside = [] if place.is_dir() else [place.parent / TEXT_SUBFOLDER]
        return folders.state_of(place, *beside, *folders.text_encoders().values())

    @classmethod
    def execute(cls, model, file, dtype, text_encoder, objective="auto") -> io.NodeOutput:
        watch = run_record.Stopwatch()
        opened = open_checkpoint(folders.find_release(model, file), objective)
        if opened.config.dit is None:
            raise SA3Error(f"{opened.path} is a standalone autoencoder; load it with SA3_AutoencoderLoader.")
        encoder, bar = folders.find_text_encoder(text_encoder, opened), Progress(1)
        if opened.tensors.path.stat().st_size > LARGE:
            show_status(f"reading {opened.name}")
        watch.lap("open")
        clip = load_clip(encoder, opened.config.conditioning, dtype_of(dtype))
        watch.lap("text encoder")
        patcher = load_model(opened, dtype_of(dtype))
        watch.lap("transformer")
        vae = load_vae(opened, dtype_of(dtype))
        watch.lap("autoencoder")
        attach_autoencoder(patcher, vae)
        bar.finish()
        kinds = {"text_encoder_dtype": clip.dtype, "autoencoder_dtype": vae.vae_dtype}
        patcher.model.sa3_loaded = run_record.load_record(opened, patcher.model.get_dtype(), patcher.load_device, watch, **kinds)
        if dtype == "fp16" and clip.dtype != torch.float16:
            name = str(clip.dtype).removeprefix("torch.")
            warn(f"The text encoder computes in {name}: its activations leave the range of fp16.")
        return io.NodeOutput(patcher, clip, vae)


class AutoencoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_AutoencoderLoader",
            display_name="SA3 Autoencoder Loader",
            description="Loads SAME alone, for encoding and decoding: a standalone release, or the one inside a generative file.",
            inputs=[
                io.Combo.Input(
                    "autoencoder",
                    options=[*folders.AUTOENCODERS, *folders.DEMOS],
                    default=folders.AUTOENCODERS[0],
                    tooltip="SAME-S belongs to the small models, SAME-L to medium. A standalone file is preferred; else it is taken out of "
                    "a generative model on disk. demo, demo-medium: those of the embedded tiny models.",
                ),
                io.Combo.Input(
                    "file",
                    options=[folders.BY_NAME, *sorted(folders.autoencoders())],
                    default=folders.BY_NAME,
                    tooltip="A file by its place in the model folders. 'by name' lets the choice above find it.",
                ),
                io.Combo.Input("dtype", options=["auto", *DTYPES], default="auto", tooltip=SAME_DTYPE_TIP),
            ],
            outputs=[io.Vae.Output("VAE")],
        )

    @classmethod
    def fingerprint_inputs(cls, autoencoder, file, dtype):
        return folders.state_of(folders.find_autoencoder(autoencoder, file))

    @classmethod
    def execute(cls, autoencoder, file, dtype) -> io.NodeOutput:
        opened = open_checkpoint(folders.find_autoencoder(autoencoder, file), autoencoder=True)
        return io.NodeOutput(load_vae(opened, dtype_of(dtype)))


WAIT = {"in background": False, "before first run": True}
HOW = {"auto": fastest_model, "torch.compile": compiled_model, "CUDA graphs": graphs_model}


class Compile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Compile",
            display_name="SA3 Compile",
            description="Makes the transformer faster, with CUDA graphs or torch.compile. Where that is not possible, the run is computed "
            "without it and says why.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader, with or without LoRAs."),
                io.Combo.Input(
                    "when",
                    options=list(WAIT),
                    default=next(iter(WAIT)),
                    tooltip="in background: the first run is computed eagerly and torch.compile works after it; later runs differ by "
                    "rounding. before first run: the first run waits for the compiler (10 s to minutes), and all runs give the same bytes.",
                ),
                io.Combo.Input(
                    "how",
                    options=list(HOW),
                    default=next(iter(HOW)),
                    optional=True,
                    tooltip="auto: CUDA graphs on an NVIDIA or AMD GPU, torch.compile elsewhere. torch.compile: fuses operations; needs a "
                    "C++ compiler (on a GPU: triton), and keeps its code on disk. CUDA graphs: the first step of each shape is recorded, "
                    "later steps replay it and give the same bytes; the weights stay on the GPU (medium: 3 GB in fp16).",
                ),
            ],
            outputs=[io.Model.Output("MODEL")],
        )

    @classmethod
    def execute(cls, model, when, how="auto") -> io.NodeOutput:
        return io.NodeOutput(chosen("how", HOW, how)(model, chosen("when", WAIT, when)))


NODES = [ModelLoader, AutoencoderLoader, Compile]
