"""Inputs that several nodes share."""

from ..sa3_core.errors import SA3Error
from ..sa3_core.sampling.samplers import SAMPLERS
from ..sa3_core.timeline.durations import PADDING_SECONDS
from ..sa3_core.timeline.tempo import Tempo
from .comfyui.live_preview import MODES
from .comfyui.schema import SEED, io
from .comfyui.vae import CHUNK, OVERLAP

GUIDANCE = io.Custom("SA3_GUIDANCE")
TEMPO = io.Custom("SA3_TEMPO")


def read_tempo(value) -> Tempo:
    """The value of a TEMPO socket. Raises SA3Error for another."""
    if not isinstance(value, Tempo):
        raise SA3Error(f"tempo is {type(value).__name__}; expected the TEMPO of SA3 Tempo.")
    return value


def number(name: str, default: float, low: float, high: float, step: float, tooltip: str, **options) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, **options)


def count(name: str, default: int, low: int, high: int, tooltip: str, **options) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=low, max=high, tooltip=tooltip, **options)


def noise_level_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """One end of an interval of noise levels, 0 (the last step) to 1 (the first)."""
    return number(name, default, 0.0, 1.0, 0.01, tooltip)


def padding_input() -> io.Float.Input:
    tooltip = "Headroom in seconds, generated after the clip and cut off, so that endings can ring out. The official tools use 6."
    return number("padding", PADDING_SECONDS, 0.0, 30.0, 0.5, tooltip)


def copies_input() -> io.Int.Input:
    return count("batch_size", 1, 1, 64, "Number of variations to sample from the same latents.", optional=True)


def chunk_inputs() -> list:
    size = "Latent frames (93 ms each) processed at once. Smaller chunks use less memory; the result is the same."
    return [
        count("chunk_size", CHUNK, 16, 4096, size, step=2),
        count("overlap", OVERLAP, 0, 512, "Latent frames shared by neighbouring chunks. With 32 the joins are exact.", step=2),
    ]


def sampling_inputs(seed: str) -> list:
    """seed, steps, sampler and cfg, with a tooltip for the seed."""
    options = ["auto", *SAMPLERS]
    sampler = "auto = the checkpoint's default: pingpong for post-trained models, euler for -base."
    scale = "Guidance scale. 0 = the checkpoint's default: 1 (off) for post-trained models, 7 for -base."
    return [
        io.Int.Input("seed", default=0, **SEED, tooltip=seed),
        count("steps", 0, 0, 1000, "Sampling steps. 0 = the checkpoint's default: 8 for post-trained models, 50 for -base."),
        io.Combo.Input("sampler", options=options, default="auto", tooltip=sampler),
        number("cfg", 0.0, 0.0, 30.0, 0.1, scale),
    ]


def negative_input() -> io.Conditioning.Input:
    return io.Conditioning.Input("negative", optional=True, tooltip="What to avoid. Has an effect only when cfg is not 1.")


def guidance_input() -> GUIDANCE.Input:
    return GUIDANCE.Input("guidance", optional=True, tooltip="Settings from SA3 Guidance: APG, interval, rescale, threshold.")


def preview_input() -> io.Combo.Input:
    tooltip = (
        "Show a rough spectrogram while sampling; takes at most 4 % more time. auto: only if ComfyUI's live previews are on. "
        "The result is the same."
    )
    return io.Combo.Input("preview", options=list(MODES), default=MODES[0], optional=True, tooltip=tooltip)
