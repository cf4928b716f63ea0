"""AUDIO sockets: ComfyUI's dicts, and what other packs hand over as one, checked and read."""

import math
import numbers
from collections.abc import Mapping

import comfy.model_management
from torch import Tensor

from ...sa3_core.audio.waveform import check_clip, check_tensor, to_model
from ...sa3_core.config import ModelConfig
from ...sa3_core.errors import SA3Error
from .progress import warn

ITEM = "sa3_item"  # key of an AUDIO with one clip of a batch: its index there


def open_audio(name: str, audio) -> tuple[Tensor, int]:
    """Waveform (B, C, N) and sample rate of an AUDIO, also of one that other packs read at its first use; the samples are not checked.

    (C, N) and (N,) are one item. A rate may be any number that is whole.
    """
    if audio is None:
        raise SA3Error(f"{name} is empty; the film or file that it comes from has no sound. Connect a recording.")
    if not isinstance(audio, Mapping):
        raise SA3Error(f"{name} is {type(audio).__name__}, not audio; connect Load Audio or another AUDIO output.")
    try:
        waveform, rate = audio["waveform"], audio["sample_rate"]
        if getattr(rate, "shape", None) == ():  # a tensor or an array of one number
            rate = rate.item()
    except KeyError as error:
        raise SA3Error(f"{name} has no {error}; connect Load Audio or another AUDIO output.") from error
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # of the pack that reads it
        reason = " ".join(str(error).split())[:200].encode("utf-8", "replace").decode() or type(error).__name__
        raise SA3Error(f"{name} cannot be read ({reason}); its file may have no sound. Load another file.") from error
    if isinstance(rate, numbers.Real) and not isinstance(rate, bool) and math.isfinite(rate) and rate == int(rate):
        rate = int(rate)
    check_tensor(name, waveform, integers=True)
    if waveform.device.type == "mps":
        waveform = waveform.cpu()  # it has no float64, in which levels are measured; with --gpu-only audio stays on it
    if waveform.dim() not in (1, 2, 3) or 0 in waveform.shape:
        raise SA3Error(f"{name} has shape {tuple(waveform.shape)}; expected (batch, channels, samples), at least one of each.")
    return waveform if waveform.dim() == 3 else waveform[(None,) * (3 - waveform.dim())], rate


def read_audio(name: str, audio) -> tuple[Tensor, int]:
    """Waveform (B, C, N) and sample rate of an AUDIO. Raises SA3Error with its name when it is not valid."""
    waveform, rate = open_audio(name, audio)
    check_clip(name, waveform, rate)
    return waveform, rate


def as_audio(audio, waveform: Tensor, rate: int) -> dict:
    """The AUDIO with what `open_audio` read from it; itself where that is what it holds."""
    if isinstance(audio, dict) and audio["waveform"] is waveform and type(audio["sample_rate"]) is int:
        return audio
    return {**(audio if isinstance(audio, dict) else {}), "waveform": waveform, "sample_rate": rate}


def read_clip(audio, config: ModelConfig, more_channels: str = "refuse") -> Tensor:
    """Waveform (B, C, N) of an AUDIO at the model's rate and channels. Raises SA3Error when it is invalid; says when it is silent.

    more_channels: what to do with more than two: refuse, first two, mix to mono.
    """
    waveform, rate = read_audio("The AUDIO", audio)
    if waveform.shape[1] > 2 and more_channels != "refuse":
        waveform = waveform[:, :2] if more_channels == "first two" else waveform.mean(1, keepdim=True)
    if not bool(waveform.any()):
        warn("The AUDIO is silent: every sample is 0.")
    return to_model("The AUDIO", rate, waveform, config.sample_rate, config.same.audio_channels)
