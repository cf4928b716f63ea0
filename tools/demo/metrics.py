"""Metrics of mono audio (N,) at `RATE`: brightness, noisiness, onsets, level."""

import itertools

import torch
from torch import Tensor

from .corpus import RATE

SIZE = 2048
BEAT = 0.06  # seconds; tolerance of an onset on a beat


def mono(audio: Tensor) -> Tensor:
    """The mean of the channels, (C, N) -> (N,)."""
    return audio.float().mean(0)


def _power(x: Tensor) -> Tensor:
    """Mean power spectrum (SIZE / 2 + 1,) of the frames within 40 dB of the loudest."""
    x = torch.nn.functional.pad(x, (0, max(0, SIZE - len(x))))
    power = torch.fft.rfft(x.unfold(0, SIZE, SIZE // 4) * torch.hann_window(SIZE)).abs().square()  # (frames, bins)
    level = power.sum(1)
    return power[level >= 1e-4 * level.max()].mean(0)


def centroid(x: Tensor) -> float:
    """Spectral centroid: the power-weighted mean frequency in Hz."""
    power = _power(x)
    return float((power * torch.fft.rfftfreq(SIZE, 1 / RATE)).sum() / power.sum().clamp_min(1e-20))


def flatness(x: Tensor, low: float = 50.0, high: float = 8000.0) -> float:
    """Spectral flatness: geometric / arithmetic mean of the power between two frequencies; 1 for white noise, near 0 for a tone."""
    hz = torch.fft.rfftfreq(SIZE, 1 / RATE)
    power = _power(x)[(hz >= low) & (hz <= high)]
    return float((power + 1e-12 * power.max()).log().mean().exp() / power.mean().clamp_min(1e-20))


def onsets(x: Tensor, threshold: float = 0.3, apart: float = 0.12) -> list[float]:
    """Onset times in seconds: peaks of the level's rise over 12 ms above `threshold` times the largest, at least `apart` seconds apart."""
    hop = 256
    level = x.unfold(0, 4 * hop, hop).square().mean(1).sqrt()
    rise = (level[2:] - level[:-2]).clamp_min(0)
    times, limit = [], threshold * float(rise.max()) if len(rise) else 0.0
    for i in torch.argsort(rise, descending=True).tolist():
        if float(rise[i]) < max(limit, 1e-4):
            break
        time = (i + 1) * hop / RATE + 2 * hop / RATE
        if all(abs(time - other) >= apart for other in times):
            times.append(time)
    return sorted(times)


def spacing(x: Tensor) -> float:
    """Median distance between neighbouring onsets in seconds; nan with fewer than three."""
    times = onsets(x)
    if len(times) < 3:
        return float("nan")
    return float(torch.tensor(times).diff().median())


def keeps_time(x: Tensor, period: float, tolerance: float = BEAT) -> bool:
    """Whether the onsets form a steady rhythm with the given period in seconds: at most one in four is missing or misplaced."""
    times = onsets(x)
    on_time = sum(abs(b - a - period) <= tolerance for a, b in itertools.pairwise(times))
    expected = len(x) / RATE / period - 1  # intervals between hits, when the first hit is anywhere within a period
    return on_time >= max(1, 0.75 * (len(times) - 1), 0.75 * (int(expected) - 1))


def level_db(x: Tensor) -> float:
    """Root mean square in dB of full scale."""
    return float(10 * torch.log10(x.square().mean().clamp_min(1e-12)))
