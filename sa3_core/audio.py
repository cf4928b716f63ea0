"""Waveforms in and out: rate, channels."""

import torch
from torch import Tensor

from .errors import SA3Error


def to_model(name: str, rate: int, waveform: Tensor, model_rate: int, channels: int) -> Tensor:
    """A clip (C, N) or (N,) at any rate as (channels, N') float32 at the model's rate; mono is doubled, more channels refused."""
    waveform = torch.as_tensor(waveform)
    waveform = waveform[None] if waveform.dim() == 1 else waveform
    if waveform.dim() != 2 or waveform.shape[1] < 1:
        raise SA3Error(f"{name} has shape {tuple(waveform.shape)}; expected (channels, samples) with at least one sample.")
    if isinstance(rate, bool) or int(rate) != rate or rate < 1:
        raise SA3Error(f"{name} has a sample rate of {rate}; expected a positive whole number of Hz.")
    if not waveform.is_floating_point():
        raise SA3Error(f"{name} holds {waveform.dtype} samples; expected floating point between -1 and 1.")
    if not bool(torch.isfinite(waveform).all()):
        raise SA3Error(f"{name} contains NaN or infinite samples.")
    if waveform.shape[0] == 1:
        waveform = waveform.expand(channels, -1)
    if waveform.shape[0] != channels:
        raise SA3Error(f"{name} has {waveform.shape[0]} channels; this model takes 1 or {channels}. Mix it down first.")
    return resample(waveform.float(), int(rate), model_rate)


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Band-limited resampling (windowed sinc, torchaudio's default kernel) along the last dimension."""
    if rate == target:
        return waveform
    from torchaudio.functional import resample as sinc

    return sinc(waveform, rate, target)
