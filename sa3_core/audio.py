"""Waveforms in and out: rate, channels."""

import torch
from torch import Tensor

from .errors import SA3Error

SHORTEST = 256  # samples; less than one patch holds no sound


def check_clip(name: str, waveform: Tensor, rate: int) -> None:
    """A waveform (..., C, N) with its rate, as something that can be worked on: raises SA3Error that names what is wrong."""
    if not isinstance(waveform, Tensor) or waveform.dim() < 2 or waveform.shape[-2] < 1:
        found = tuple(waveform.shape) if isinstance(waveform, Tensor) else type(waveform).__name__
        raise SA3Error(f"{name} has shape {found}; expected (channels, samples).")
    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
        raise SA3Error(f"{name} has a sample rate of {rate}; expected a positive whole number of Hz.")
    if not waveform.is_floating_point():
        raise SA3Error(f"{name} holds {waveform.dtype} samples; expected floating point between -1 and 1.")
    if waveform.shape[-1] < SHORTEST:
        raise SA3Error(f"{name} is {waveform.shape[-1]} samples long; expected at least {SHORTEST}.")
    check_finite(name, waveform)


def to_model(name: str, rate: int, waveform: Tensor, model_rate: int, channels: int) -> Tensor:
    """A clip (..., C, N) at any rate as (..., channels, N') float32 at the model's rate; mono is doubled, more channels refused."""
    waveform = torch.as_tensor(waveform)
    waveform = waveform[None] if waveform.dim() == 1 else waveform
    check_clip(name, waveform, rate)
    if waveform.shape[-2] == 1:
        waveform = waveform.expand(*waveform.shape[:-2], channels, -1)
    if waveform.shape[-2] != channels:
        raise SA3Error(f"{name} has {waveform.shape[-2]} channels; this model takes 1 or {channels}. Choose how to map them first.")
    return resample(waveform.float(), rate, model_rate)


def check_finite(name: str, waveform: Tensor) -> None:
    if not bool(torch.isfinite(waveform).all()):
        raise SA3Error(f"{name} contains NaN or infinite samples; expected finite audio.")


def fit_channels(waveform: Tensor, channels: int) -> tuple[Tensor, list[str]]:
    """Audio (B, c, N) as (B, channels, N), with a sentence about what was done. Down to mono: the mean. Up: left and right in turn."""
    found = waveform.shape[1]
    if found == channels:
        return waveform, []
    if channels == 1:
        return waveform.mean(1, keepdim=True), [f"The {found} generated channels were averaged to mono."]
    index = torch.arange(channels) % found
    return waveform[:, index], [f"The {found} generated channels were laid on {channels} in turn."]


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Band-limited resampling (windowed sinc, torchaudio's default kernel) along the last dimension."""
    if rate == target:
        return waveform
    from torchaudio.functional import resample as sinc

    return sinc(waveform, rate, target)
