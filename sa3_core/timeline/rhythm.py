"""Tempo and first beat of a recording, from the growth of its level in several frequency bands.

Onset strength (spectral flux per band), its autocorrelation under a prior over tempi, an octave check on the low bands, a refinement on
distant beats, and the phase of a comb. After Ellis, "Beat tracking by dynamic programming" (2007), and Scheirer (1998).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio.waveform import check_clip
from ..backends.ambient import independent

FRAME_RATE = 200  # onset strengths per second
WINDOW = 0.023  # seconds per FFT, rounded to a power of two in samples
BANDS = (20.0, 120.0, 300.0, 800.0, 2000.0, 5000.0, 16000.0)  # Hz, edges
LOW_BANDS = 4  # with kick and snare, without cymbals
SLOWEST, FASTEST = 50.0, 220.0  # beats per minute
USUAL, SPREAD = 115.0, 1.0  # the prior: its centre in beats per minute, its standard deviation in octaves
SHORTEST, LONGEST = 3.0, 120.0  # seconds of audio that are needed and used
EVEN, MARGIN = 0.9, 0.08  # half beats at least this strong relative to beats are the beats; distance at which that is certain
CLEAR = 0.5  # similarity of beats that counts as certain
MULTIPLES, ODD_MULTIPLES = (1, 2, 3, 4, 8), (1, 3, 5)
REFINEMENTS = ((0.006, (1, 2, 3, 4, 6, 8)), (0.003, (4, 8, 12, 16)), (0.002, (8, 16, 24, 32)))  # relative search range, beats compared
SILENCE = 1e-5  # amplitude


@dataclass(frozen=True)
class Beat:
    """bpm: beats per minute. first: seconds of the first beat. confidence: 0 to 1."""

    bpm: float
    first: float
    confidence: float


@independent
def find_beat(clip: Tensor, rate: int) -> Beat | None:
    """The tempo of a clip (C, N), from SLOWEST to FASTEST. None for silence and for less than SHORTEST seconds.

    The confidence is low where beats do not repeat, or where the octave (60 or 120 per minute) is a matter of taste.
    """
    check_clip("The audio", clip, rate)
    clip = clip[:, : int(LONGEST * rate)]
    if clip.shape[-1] < SHORTEST * rate or not bool((clip.abs() > SILENCE).any()):
        return None
    bands = accents(onset_strength(clip, rate).double())
    similarity = autocorrelation(bands)
    tempi = SLOWEST * 2 ** torch.arange(0, math.log2(FASTEST / SLOWEST), 0.003, dtype=torch.float64)
    prior = torch.exp(-0.5 * ((tempi / USUAL).log2() / SPREAD).square())
    bpm = float(tempi[(_mean_at(similarity, tempi, MULTIPLES) * prior).argmax()])
    bpm, clear = _octave(autocorrelation(bands[:LOW_BANDS].sum(0, keepdim=True)), bpm)
    for reach, multiples in REFINEMENTS:
        if multiples[1] * 60 / bpm * FRAME_RATE < 0.75 * len(similarity):
            tempi = bpm * (1 + reach * torch.linspace(-1, 1, 81, dtype=torch.float64))
            bpm = float(tempi[_mean_at(similarity, tempi, multiples).argmax()])
    repeats = float(_mean_at(similarity, torch.tensor([bpm], dtype=torch.float64), MULTIPLES))
    return Beat(bpm, _first_beat(bands.sum(0), bpm), min(max(repeats / CLEAR, 0.0), 1.0) * clear)


def onset_strength(clip: Tensor, rate: int) -> Tensor:
    """Growth of the log power in each of BANDS (bands, F) of a clip (C, N), FRAME_RATE values per second."""
    size = 1 << max(6, round(math.log2(WINDOW * rate)))
    padded = F.pad(clip.float().mean(0), (size // 2, size))
    starts = (torch.arange(max(2, clip.shape[-1] * FRAME_RATE // rate), dtype=torch.float64) * (rate / FRAME_RATE)).round().long()
    window, within = torch.hann_window(size), torch.arange(size)
    bins, edges = torch.fft.rfftfreq(size, 1 / rate), torch.tensor(BANDS)[:, None]
    band = ((bins >= edges[:-1]) & (bins < edges[1:])).float()
    spectra = [band @ torch.fft.rfft(padded[block[:, None] + within] * window).abs().square().T for block in starts.split(2048)]
    power = torch.cat(spectra, 1)
    floor = 1e-4 * power.amax(1, keepdim=True) + 1e-6 * power.amax() + 1e-18
    return F.pad((power / floor + 1).log().diff(dim=1), (1, 0)).clamp(min=0)


def accents(bands: Tensor) -> Tensor:
    """Onset strengths (bands, F) without slow changes, each band with RMS 1."""
    slow = F.avg_pool1d(bands[None], FRAME_RATE // 2 + 1, 1, FRAME_RATE // 4, count_include_pad=False)[0]
    sharp = (bands - slow).clamp(min=0)
    return sharp / sharp.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9)


def autocorrelation(bands: Tensor) -> Tensor:
    """The mean autocorrelation (F,) of bands (bands, F), 1 at lag 0, with the same weight at every lag."""
    bands = F.avg_pool1d(bands[None], 5, 1, 2)[0]  # beats need not fall on a frame
    bands = bands - bands.mean(1, keepdim=True)
    n = bands.shape[-1]
    products = torch.fft.irfft(torch.fft.rfft(bands, 2 * n).abs().square())[:, :n].sum(0)
    return products / products[0].clamp(min=1e-12) * n / (n - torch.arange(n))


def _mean_at(similarity: Tensor, tempi: Tensor, multiples: tuple[int, ...]) -> Tensor:
    """The mean similarity at multiples of the beat, for each tempo; without lags that few beats confirm."""
    total, count = torch.zeros_like(tempi), torch.zeros_like(tempi)
    for multiple in multiples:
        lag = multiple * 60 * FRAME_RATE / tempi
        inside = lag < 0.75 * len(similarity)
        total += inside * _value_at(similarity, lag)
        count += inside
    return total / count.clamp(min=1)


def _value_at(curve: Tensor, position: Tensor) -> Tensor:
    """A curve between its samples, by linear interpolation."""
    low = position.floor().clamp(max=len(curve) - 2).long()
    return torch.lerp(curve[low], curve[low + 1], (position - low).clamp(max=1))


def _octave(similarity: Tensor, bpm: float) -> tuple[float, float]:
    """The octave of a tempo, and how clear the choice is, 0 to 1: the fastest one whose beats are about as alike as every second one."""
    bpm *= 2 ** math.floor(math.log2(FASTEST / bpm))
    clear = 1.0
    while bpm / 2 >= SLOWEST:
        beats = torch.tensor([bpm, bpm / 2], dtype=torch.float64)
        alike, half = _mean_at(similarity, beats, ODD_MULTIPLES).clamp(min=1e-3).tolist()
        clear = min(clear, abs(alike / half - EVEN) / MARGIN)
        if alike / half >= EVEN:
            break
        bpm /= 2
    return bpm, clear


def _first_beat(curve: Tensor, bpm: float) -> float:
    """Seconds of the first beat: where a comb with the period of the tempo gathers the most onsets."""
    period = 60 * FRAME_RATE / bpm
    curve = F.avg_pool1d(curve[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    phases = torch.arange(0, period, 0.5, dtype=torch.float64)
    beats = torch.arange(max(1, int(len(curve) / period) - 1)) * period
    return float(phases[_value_at(curve, phases[:, None] + beats).mean(1).argmax()]) / FRAME_RATE
