"""Checks, sample rate and channels of waveforms."""

import math

import torch
from torch import Tensor

from ..backends.ambient import float32_default, independent
from ..errors import SA3Error

SHORTEST = 256  # samples, one patch of SAME
RATES = (1000, 768_000)  # Hz, lowest and highest accepted sample rate
ZEROS, ROLLOFF = 6, 0.99  # torchaudio's default kernel: zero crossings per side, cutoff relative to the Nyquist frequency
LARGEST_KERNEL = 1 << 22  # entries of torchaudio's table; rates with a small gcd would need billions


def check_tensor(name: str, x, integers: bool = False) -> None:
    """Raise SA3Error unless x is a dense tensor of real numbers. integers: whether integers and booleans are numbers too."""
    found = ""
    if not isinstance(x, Tensor):
        found = type(x).__name__
    elif x.is_nested or x.layout != torch.strided:
        found = "a nested tensor" if x.is_nested else f"a {x.layout} tensor".replace("torch.", "")
    elif x.is_meta:
        found = "a meta tensor without values"
    elif x.is_complex() or not (integers or x.is_floating_point()) or (x.is_floating_point() and x.itemsize < 2):
        found = f"a tensor of {x.dtype}"
    if found:
        raise SA3Error(f"{name} is {found}; expected a dense tensor of {'real' if integers else 'floating-point'} numbers.")


def check_clip(name: str, waveform: Tensor, rate: int) -> None:
    """Raise SA3Error for a waveform that is not finite floating-point (..., C, N), too short, or at an unusable sample rate (Hz)."""
    if not isinstance(waveform, Tensor) or waveform.dim() < 2 or 0 in waveform.shape[:-1]:
        found = tuple(waveform.shape) if isinstance(waveform, Tensor) else type(waveform).__name__
        raise SA3Error(f"{name} has shape {found}; expected (channels, samples).")
    if isinstance(rate, bool) or not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        raise SA3Error(f"{name} has a sample rate of {rate}; expected a whole number of Hz from {RATES[0]} to {RATES[1]}.")
    check_tensor(name, waveform, integers=True)
    if not waveform.is_floating_point():
        raise SA3Error(f"{name} holds {waveform.dtype} samples; expected floating point between -1 and 1.")
    if waveform.shape[-1] < SHORTEST:
        raise SA3Error(f"{name} is {waveform.shape[-1]} samples long; expected at least {SHORTEST}.")
    check_finite(name, waveform)


@independent
def to_model(name: str, rate: int, waveform: Tensor, model_rate: int, channels: int) -> Tensor:
    """A clip (N,) or (..., C, N) resampled to (..., channels, N'), float32. Mono is copied to all channels.

    Raises SA3Error for other channel counts than 1 and `channels`.
    """
    try:
        waveform = torch.as_tensor(waveform)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SA3Error(f"{name} holds {type(waveform).__name__}; expected a waveform (channels, samples).") from error
    waveform = waveform[None] if waveform.dim() == 1 else waveform
    check_clip(name, waveform, rate)
    if waveform.shape[-2] == 1:
        waveform = waveform.expand(*waveform.shape[:-2], channels, -1)
    if waveform.shape[-2] != channels:
        raise SA3Error(f"{name} has {waveform.shape[-2]} channels; this model takes 1 or {channels}. Choose how to map them first.")
    return resample(waveform.float(), rate, model_rate)


def repeated(batch: Tensor, items: int) -> Tensor:
    """A batch (B, ...) repeated in turn, as a batch of `items`, a multiple of B. One item is expanded, not copied."""
    if len(batch) == 1:
        return batch.expand(items, *batch.shape[1:])
    return batch if len(batch) == items else batch.repeat(items // len(batch), *[1] * (batch.dim() - 1))


def check_finite(name: str, waveform: Tensor) -> None:
    if not bool(torch.isfinite(waveform.float()).all()):
        raise SA3Error(f"{name} contains NaN or infinite samples; expected finite audio.")


@independent
def fit_channels(waveform: Tensor, channels: int) -> tuple[Tensor, list[str]]:
    """Audio (B, c, N) as (B, channels, N), and a sentence about a change. To mono: the mean; else the channels are repeated in turn."""
    found = waveform.shape[1]
    if found == channels:
        return waveform, []
    if channels == 1:
        return waveform.mean(1, keepdim=True), [f"The {found} generated channels were averaged to mono."]
    return waveform[:, torch.arange(channels) % found], [f"The {found} generated channels were repeated in turn to fill {channels}."]


@independent
def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Audio (..., N) resampled from `rate` to `target` Hz by a windowed sinc (torchaudio's default kernel): (..., ceil(N target / rate)).

    Each row is computed alone, so that it does not depend on the others.
    """
    if rate == target:
        return waveform
    if rate * target // math.gcd(rate, target) ** 2 > LARGEST_KERNEL:
        return _resample_directly(waveform, rate, target)
    try:
        from torchaudio.functional import resample as sinc
    except (ImportError, OSError):  # not installed, or built for another torch
        return _resample_directly(waveform, rate, target)
    length = resampled_length(waveform.shape[-1], rate, target)
    if waveform.numel() == 0:
        return waveform.new_empty(*waveform.shape[:-1], length)
    spare = (32 + (length >> 20)) * max(1, rate // target)  # torchaudio computes the length in float32, so it can be too short
    with float32_default():  # torchaudio creates its filter table in the default dtype
        rows = [sinc(torch.nn.functional.pad(row, (0, spare)), rate, target)[:length] for row in waveform.reshape(-1, waveform.shape[-1])]
    return torch.stack(rows).view(*waveform.shape[:-1], length)


def resampled_length(samples: int, rate: int, target: int) -> int:
    return -(-samples * target // rate)


def _resample_directly(waveform: Tensor, rate: int, target: int) -> Tensor:
    """The same filter without a table of all phases: y(n) = sum_k x(k) h(k - n rate / target).

    h(t) = s sinc(s t) cos^2(pi s t / 2 ZEROS) for |s t| < ZEROS, s = ROLLOFF min(rate, target) / rate. Positions are integer
    fractions of `target`, so they stay exact in long clips.
    """
    scale = ROLLOFF * min(rate, target) / rate
    width = math.ceil(ZEROS / scale)
    padded = torch.nn.functional.pad(waveform, (width, width + 1))
    taps = torch.arange(2 * width + 2, device=waveform.device)
    length, block = resampled_length(waveform.shape[-1], rate, target), max(1, (1 << 20) // len(taps))
    out = waveform.new_empty(*waveform.shape[:-1], length)
    for start in range(0, length, block):
        positions = torch.arange(start, min(start + block, length), device=waveform.device) * rate
        first, rest = positions // target, (positions % target).double() / target  # the sample before, and the distance to it
        t = (scale * (taps[None] - width - rest[:, None])).clamp(-ZEROS, ZEROS)  # (block, taps)
        kernel = scale * torch.special.sinc(t) * torch.cos(t * (math.pi / 2 / ZEROS)).square()
        pieces = padded[..., first[:, None] + taps[None]]  # (..., block, taps)
        out[..., start : start + block] = (pieces * kernel.to(waveform.dtype)).sum(-1)
    return out
