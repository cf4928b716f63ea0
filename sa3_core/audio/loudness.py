"""Levels: loudness and true peak as ITU-R BS.1770-4 and EBU R128 measure them, and a gain or a limiter where one is asked for.

Everything is computed in float64 along the last dimension; waveforms are (C, N), full scale is 1.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SA3Error
from .waveform import check_clip, resample

ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU below the loudness of what passes the absolute gate
MOMENTARY, SHORT_TERM, HOP = 0.4, 3.0, 0.1  # seconds: windows of the norm, and how far apart they start
OVERSAMPLING = 4
RINGING = 0.5  # seconds after which the weighting's impulse response is below 1e-40
BLOCK = 1 << 19  # samples worked on at once
ATTACK, RELEASE = 0.005, 60.0  # of the limiter: seconds of look-ahead, dB per second
SURROUND = 10**0.15  # weight of the rear channels, +1.5 dB
FLOOR = -math.inf  # what silence measures


@dataclass(frozen=True)
class Levels:
    """What a clip measures. LUFS, dBTP and dBFS; -inf where there is nothing to measure."""

    integrated: float
    short_term: float  # loudest 3 s
    momentary: float  # loudest 0.4 s
    true_peak: float
    peak: float
    rms: float  # a full-scale sine has -3.01
    seconds: float

    @property
    def crest(self) -> float:
        """Peak over RMS in dB; 0 for silence."""
        return self.peak - self.rms if math.isfinite(self.rms) else 0.0

    def __str__(self) -> str:
        return (
            f"{db(self.integrated)} LUFS integrated, short-term max {db(self.short_term)} LUFS, momentary max "
            f"{db(self.momentary)} LUFS, true peak {db(self.true_peak)} dBTP, sample peak {db(self.peak)} dBFS, "
            f"RMS {db(self.rms)} dBFS, crest {self.crest:.1f} dB, {self.seconds:.3f} s"
        )


def measure(waveform: Tensor, rate: int) -> Levels:
    """All levels of a clip (C, N)."""
    check_clip("The audio", waveform, rate)
    blocks, windows = _powers(waveform, rate)
    return Levels(
        integrated=_gated(blocks),
        short_term=_loudness(windows.max()),
        momentary=_loudness(blocks.max()),
        true_peak=decibels(float(true_peaks(waveform).max())),
        peak=decibels(float(waveform.abs().max())),
        rms=decibels(float(waveform.double().square().mean().sqrt())),
        seconds=waveform.shape[-1] / rate,
    )


def integrated(waveform: Tensor, rate: int) -> float:
    """Integrated loudness of a clip (C, N) in LUFS, gated; -inf for silence. Shorter than 0.4 s: the mean over what there is."""
    check_clip("The audio", waveform, rate)
    return _gated(_powers(waveform, rate)[0])


def db(value: float) -> str:
    """A level in words."""
    return f"{value:.1f}" if math.isfinite(value) else "-inf"


def decibels(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else FLOOR


def k_weighting(frequency: Tensor, rate: int) -> Tensor:
    """Complex response of the norm's two filters at frequencies in Hz, for any rate.

    The norm gives coefficients for 48 kHz only. These are the analogue filters behind them (a shelf of +4 dB above 1682 Hz and a
    high pass at 38 Hz), through the bilinear transform at this rate; at 48 kHz they are the norm's to 1e-8.
    """
    z = torch.exp(-2j * torch.pi * frequency.double() / rate)  # one sample's delay
    k, q = math.tan(math.pi * 1681.974450955533 / rate), 0.7071752369554196
    high, middle = 10 ** (3.999843853973347 / 20), 10 ** (3.999843853973347 / 20 * 0.4996667741545416)
    shelf = (high + middle * k / q + k * k) + 2 * (k * k - high) * z + (high - middle * k / q + k * k) * z**2
    shelf = shelf / ((1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z**2)
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    scale = 1 + k / q + k * k
    return shelf * scale * (1 - z) ** 2 / (scale + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z**2)


def weighted(waveform: Tensor, rate: int) -> Tensor:
    """K-weighted samples (C, N), float64, as the recursive filters would give them."""
    ring = round(RINGING * rate)
    size = max(BLOCK, 1 << (4 * ring - 1).bit_length())
    step = size - 2 * ring  # behind a block room for its ringing, and for what the grid of frequencies folds back
    response = k_weighting(torch.fft.rfftfreq(size, 1 / rate, dtype=torch.float64), rate).to(waveform.device)
    out = torch.zeros(waveform.shape[0], waveform.shape[-1] + 2 * ring, dtype=torch.float64, device=waveform.device)
    for start in range(0, waveform.shape[-1], step):
        block = waveform[:, start : start + step].double()
        filtered = torch.fft.irfft(torch.fft.rfft(block, size) * response, size)[:, : block.shape[-1] + ring]
        out[:, start : start + filtered.shape[-1]] += filtered
    return out[:, : waveform.shape[-1]]


def channel_weights(channels: int) -> Tensor:
    """Of the norm: 1 for mono and front channels, +1.5 dB for the surrounds of 5.0 (L R C Ls Rs) and 5.1, 0 for its LFE."""
    if channels == 5:
        return torch.tensor([1, 1, 1, SURROUND, SURROUND], dtype=torch.float64)
    if channels == 6:
        return torch.tensor([1, 1, 1, 0, SURROUND, SURROUND], dtype=torch.float64)
    return torch.ones(channels, dtype=torch.float64)


def _powers(waveform: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Weighted power of every window of 0.4 s and of 3 s, each 0.1 s after the last; a shorter clip is one window."""
    power = channel_weights(waveform.shape[0]).to(waveform.device) @ weighted(waveform, rate).square()
    total = F.pad(power.cumsum(0), (1, 0))
    return tuple(_window_means(total, round(seconds * rate), rate) for seconds in (MOMENTARY, SHORT_TERM))


def _window_means(total: Tensor, width: int, rate: int) -> Tensor:
    length = total.numel() - 1
    width = min(width, length)
    count = int((length - width) / (HOP * rate)) + 1
    starts = (torch.arange(count, device=total.device) * HOP * rate).round().long()
    return ((total[starts + width] - total[starts]) / width).clamp(min=0)


def _gated(blocks: Tensor) -> float:
    heard = blocks[blocks > 10 ** ((ABSOLUTE_GATE + 0.691) / 10)]
    if not heard.numel():
        return FLOOR
    return _loudness(heard[heard > heard.mean() * 10 ** (RELATIVE_GATE / 10)].mean())


def _loudness(power: Tensor) -> float:
    return -0.691 + 10 * math.log10(float(power)) if float(power) > 0 else FLOOR


def true_peaks(waveform: Tensor) -> Tensor:
    """Per sample the largest magnitude (N,) of any channel (C, N) there and up to the next sample, oversampled four times."""
    edge = 64  # samples of context that a block's interpolation sees on either side
    length, parts = waveform.shape[-1], []
    padded = F.pad(waveform.double(), (edge, edge))
    for start in range(0, length, BLOCK):
        piece = padded[:, start : start + BLOCK + 2 * edge]
        fine = resample(piece, 1, OVERSAMPLING)[:, edge * OVERSAMPLING : -edge * OVERSAMPLING]
        parts.append(fine.abs().amax(0).unflatten(0, (-1, OVERSAMPLING)).amax(-1))
    return torch.maximum(torch.cat(parts), waveform.double().abs().amax(0))


def limit(waveform: Tensor, rate: int, ceiling: float) -> Tensor:
    """A clip (C, N) whose true peak stays at or below `ceiling` dBTP.

    The gain, the same for all channels, starts to fall 5 ms before a peak, is down when it comes, and recovers by 60 dB a second.
    Where nothing has to be turned down every sample stays as it is; a clip below the ceiling is returned itself.
    """
    check_clip("The audio", waveform, rate)
    highest = 10 ** (ceiling / 20)
    out, gain = waveform, torch.ones(waveform.shape[-1], dtype=torch.float64, device=waveform.device)
    for _ in range(8):  # a moving gain moves the peaks between samples a little, so a second look may find a rest
        peaks = true_peaks(out)
        if bool(peaks.max() <= highest):
            return out
        # Always a hair below, or the rest would shrink for ever without vanishing.
        gain = gain * _smooth(torch.where(peaks > highest, 0.9999 * highest / peaks, 1.0), rate)
        out = torch.where(gain < 1, waveform.double() * gain, waveform.double()).to(waveform.dtype)
    return out * min(1.0, 0.9999 * highest / float(true_peaks(out).max()))


def _smooth(wanted: Tensor, rate: int) -> Tensor:
    """A smooth gain (N,) that is nowhere above the wanted one and is 1 where no reduction is near."""
    falling = torch.arange(wanted.numel(), dtype=torch.float64, device=wanted.device) * (RELEASE / rate)
    released = torch.cummin(20 * wanted.log10() - falling, 0).values + falling  # in dB, recovering at a steady rate
    reach = max(1, round(ATTACK * rate))
    held = -F.max_pool1d(F.pad(-released.clamp(max=0), (reach, reach), value=-math.inf)[None], 2 * reach + 1, 1)[0]
    kernel = torch.hann_window(2 * reach + 3, periodic=False, dtype=torch.float64, device=wanted.device)[1:-1]
    # A mean of values each of which is at most the wanted one, so the mean is too.
    mean = F.conv1d(F.pad(held[None, None], (reach, reach), mode="replicate"), (kernel / kernel.sum())[None, None])[0, 0]
    return torch.where(mean > -1e-9, 1.0, 10 ** (mean / 20))


NORMALIZE = ("off", "peak", "loudness")


def normalized(waveform: Tensor, rate: int, kind: str, target: float) -> tuple[Tensor, float]:
    """A clip (C, N) at `target` (dBTP for peak, LUFS for loudness) by one gain, and that gain in dB. Silence stays silence."""
    if kind not in NORMALIZE:
        raise SA3Error(f"normalize is '{kind}'; choose one of {', '.join(NORMALIZE)}.")
    if kind == "off":
        return waveform, 0.0
    check_clip("The audio", waveform, rate)
    found = integrated(waveform, rate) if kind == "loudness" else decibels(float(true_peaks(waveform).max()))
    if not math.isfinite(found):
        return waveform, 0.0
    gain = target - found
    return (waveform.double() * 10 ** (gain / 20)).to(waveform.dtype), gain
