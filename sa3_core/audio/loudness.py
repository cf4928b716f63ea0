"""Loudness and true peak after ITU-R BS.1770-4 and EBU R128; normalization and a limiter.

Waveforms are (C, N) with full scale 1. Levels are computed in float64.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SA3Error
from .waveform import check_clip, resample

ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU relative to the loudness above the absolute gate
MOMENTARY, SHORT_TERM, HOP = 0.4, 3.0, 0.1  # seconds: window lengths, hop
OVERSAMPLING = 4
RINGING = 0.5  # seconds after which the K-weighting's impulse response is below 1e-40
BLOCK = 1 << 19  # samples per FFT or oversampling block
ATTACK, RELEASE = 0.005, 60.0  # limiter: seconds of look-ahead, dB per second
SURROUND = 10**0.15  # weight of the surround channels, +1.5 dB
CHANNEL_WEIGHTS = {5: [1, 1, 1, SURROUND, SURROUND], 6: [1, 1, 1, 0, SURROUND, SURROUND]}  # L R C (LFE) Ls Rs; other layouts: all 1
FLOOR = -math.inf  # level of silence
NORMALIZE = ("off", "peak", "loudness")


@dataclass(frozen=True)
class Levels:
    """Levels of a clip; -inf for silence."""

    integrated: float  # LUFS
    short_term: float  # LUFS, loudest 3 s
    momentary: float  # LUFS, loudest 0.4 s
    true_peak: float  # dBTP
    peak: float  # dBFS
    rms: float  # dBFS; -3.01 for a full-scale sine
    seconds: float

    @property
    def crest(self) -> float:
        """Peak over RMS in dB; 0 for silence."""
        return self.peak - self.rms if math.isfinite(self.rms) else 0.0

    def __str__(self) -> str:
        return (
            f"{self.integrated:.1f} LUFS integrated, short-term max {self.short_term:.1f} LUFS, momentary max {self.momentary:.1f} LUFS, "
            f"true peak {self.true_peak:.1f} dBTP, sample peak {self.peak:.1f} dBFS, RMS {self.rms:.1f} dBFS, crest {self.crest:.1f} dB, "
            f"{self.seconds:.3f} s"
        )


def measure(waveform: Tensor, rate: int) -> Levels:
    """All levels of a clip (C, N). A clip shorter than a window counts as one window."""
    check_clip("The audio", waveform, rate)
    momentary, short_term = _window_powers(waveform, rate)
    return Levels(
        integrated=_gated(momentary),
        short_term=_loudness(short_term.max()),
        momentary=_loudness(momentary.max()),
        true_peak=decibels(float(true_peaks(waveform).max())),
        peak=decibels(float(waveform.abs().max())),
        rms=decibels(float(waveform.double().square().mean().sqrt())),
        seconds=waveform.shape[-1] / rate,
    )


def decibels(amplitude: float) -> float:
    """An amplitude in dB relative to full scale; -inf for 0."""
    return 20 * math.log10(amplitude) if amplitude > 0 else FLOOR


def k_weighting(frequency: Tensor, rate: int) -> Tensor:
    """Complex response of the K-weighting at frequencies in Hz, for any sample rate.

    BS.1770 gives coefficients for 48 kHz only. These are the underlying analogue filters (a shelf of +4 dB above 1682 Hz, a high pass
    at 38 Hz) after a bilinear transform; at 48 kHz they agree with the published coefficients to 1e-8.
    """
    z = torch.exp(-2j * torch.pi * frequency.double() / rate)  # a delay of one sample
    k, q = math.tan(math.pi * 1681.974450955533 / rate), 0.7071752369554196
    high, middle = 10 ** (3.999843853973347 / 20), 10 ** (3.999843853973347 / 20 * 0.4996667741545416)
    shelf = (high + middle * k / q + k * k) + 2 * (k * k - high) * z + (high - middle * k / q + k * k) * z**2
    shelf = shelf / ((1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z**2)
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    scale = 1 + k / q + k * k
    return shelf * scale * (1 - z) ** 2 / (scale + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z**2)


def weighted(waveform: Tensor, rate: int) -> Tensor:
    """K-weighted samples (C, N), float64, by overlap-add FFT convolution."""
    ring = round(RINGING * rate)
    size = max(BLOCK, 1 << (4 * ring - 1).bit_length())
    step = size - 2 * ring  # room for the ringing after the block, and for its time aliasing
    response = k_weighting(torch.fft.rfftfreq(size, 1 / rate, dtype=torch.float64), rate).to(waveform.device)
    out = torch.zeros(waveform.shape[0], waveform.shape[-1] + 2 * ring, dtype=torch.float64, device=waveform.device)
    for start in range(0, waveform.shape[-1], step):
        block = waveform[:, start : start + step].double()
        filtered = torch.fft.irfft(torch.fft.rfft(block, size) * response, size)[:, : block.shape[-1] + ring]
        out[:, start : start + filtered.shape[-1]] += filtered
    return out[:, : waveform.shape[-1]]


def _window_powers(waveform: Tensor, rate: int) -> list[Tensor]:
    """Mean weighted power of all windows of 0.4 s and of all windows of 3 s, every 0.1 s; a shorter clip is one window."""
    weights = CHANNEL_WEIGHTS.get(len(waveform), [1] * len(waveform))
    power = torch.tensor(weights, dtype=torch.float64, device=waveform.device) @ weighted(waveform, rate).square()
    total, powers = F.pad(power.cumsum(0), (1, 0)), []
    for seconds in (MOMENTARY, SHORT_TERM):
        width = min(round(seconds * rate), power.numel())
        count = int((power.numel() - width) / (HOP * rate)) + 1
        starts = (torch.arange(count, device=power.device) * HOP * rate).round().long()
        powers.append(((total[starts + width] - total[starts]) / width).clamp(min=0))
    return powers


def _gated(powers: Tensor) -> float:
    """Loudness of the windows above the absolute and the relative gate, in LUFS."""
    gated = powers[powers > 10 ** ((ABSOLUTE_GATE + 0.691) / 10)]
    if not gated.numel():
        return FLOOR
    return _loudness(gated[gated > gated.mean() * 10 ** (RELATIVE_GATE / 10)].mean())


def _loudness(power: Tensor) -> float:
    return -0.691 + 10 * math.log10(float(power)) if float(power) > 0 else FLOOR


def true_peaks(waveform: Tensor) -> Tensor:
    """Largest magnitude (N,) of any channel (C, N) from each sample up to the next, oversampled four times."""
    edge = 64  # samples of context on either side of a block
    length, parts = waveform.shape[-1], []
    padded = F.pad(waveform.double(), (edge, edge))
    for start in range(0, length, BLOCK):
        piece = padded[:, start : start + BLOCK + 2 * edge]
        fine = resample(piece, 1, OVERSAMPLING)[:, edge * OVERSAMPLING : -edge * OVERSAMPLING]
        parts.append(fine.abs().amax(0).unflatten(0, (-1, OVERSAMPLING)).amax(-1))
    return torch.maximum(torch.cat(parts), waveform.double().abs().amax(0))


def limit(waveform: Tensor, rate: int, ceiling: float) -> Tensor:
    """The clip (C, N) with its true peak limited to `ceiling` dBTP, by one gain for all channels.

    The gain falls within 5 ms before a peak and recovers at 60 dB per second. Samples without reduction stay bit-identical; a clip
    below the ceiling is returned itself.
    """
    check_clip("The audio", waveform, rate)
    highest = 10 ** (ceiling / 20)
    out, gain = waveform, torch.ones(waveform.shape[-1], dtype=torch.float64, device=waveform.device)
    for _ in range(8):  # a changing gain moves the peaks between samples, so some may remain after a pass
        peaks = true_peaks(out)
        if bool(peaks.max() <= highest):
            return out
        # 0.9999: aiming at the ceiling itself would converge without reaching it.
        gain = gain * _smooth(torch.where(peaks > highest, 0.9999 * highest / peaks, 1.0), rate)
        out = torch.where(gain < 1, waveform.double() * gain, waveform.double()).to(waveform.dtype)
    return out * min(1.0, 0.9999 * highest / float(true_peaks(out).max()))


def _smooth(gain: Tensor, rate: int) -> Tensor:
    """A smooth gain (N,), nowhere above `gain`, and 1 where no reduction is near."""
    recovery = torch.arange(gain.numel(), dtype=torch.float64, device=gain.device) * (RELEASE / rate)
    released = torch.cummin(20 * gain.log10() - recovery, 0).values + recovery  # dB
    reach = max(1, round(ATTACK * rate))
    held = -F.max_pool1d(F.pad(-released.clamp(max=0), (reach, reach), value=-math.inf)[None], 2 * reach + 1, 1)[0]
    kernel = torch.hann_window(2 * reach + 3, periodic=False, dtype=torch.float64, device=gain.device)[1:-1]
    # Every averaged value is at most the given gain, so the mean is too.
    mean = F.conv1d(F.pad(held[None, None], (reach, reach), mode="replicate"), (kernel / kernel.sum())[None, None])[0, 0]
    return torch.where(mean > -1e-9, 1.0, 10 ** (mean / 20))


def normalized(waveform: Tensor, rate: int, kind: str, target: float) -> tuple[Tensor, float]:
    """The clip (C, N) scaled to `target` (dBTP for peak, LUFS for loudness), and the gain in dB. Silence is returned unchanged."""
    if kind not in NORMALIZE:
        raise SA3Error(f"normalize is '{kind}'; choose one of {', '.join(NORMALIZE)}.")
    if kind == "off":
        return waveform, 0.0
    check_clip("The audio", waveform, rate)
    if kind == "loudness":
        level = _gated(_window_powers(waveform, rate)[0])
    else:
        level = decibels(float(true_peaks(waveform).max()))
    if not math.isfinite(level):
        return waveform, 0.0
    gain = target - level
    return (waveform.double() * 10 ** (gain / 20)).to(waveform.dtype), gain
