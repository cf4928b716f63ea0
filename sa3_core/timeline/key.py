"""Key of a recording: its pitch classes compared with the profiles of the 24 major and minor keys.

Profiles: Temperley, "Music and Probability" (2007), from the Kostka-Payne corpus. Pitch classes from spectral peaks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio.waveform import check_clip, resample
from ..backends.ambient import independent

NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MAJOR = (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400)
MINOR = (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330)
RATE, SIZE, HOP = 11025, 8192, 4096  # Hz, samples
LOWEST, HIGHEST = 60.0, 2000.0  # Hz
SHORTEST, LONGEST = 2.0, 120.0  # seconds needed and used
DISTINCT = 0.05  # lead in correlation over the second key that counts as certain
SOUNDING = 3  # pitch classes that a key needs


@independent
def find_key(clip: Tensor, rate: int) -> tuple[str, float] | None:
    """("A minor", confidence from 0 to 1) of a clip (C, N). None for silence, noise, and for less than SHORTEST seconds."""
    check_clip("The audio", clip, rate)
    clip = clip[:, : int(LONGEST * rate)]
    if clip.shape[-1] < SHORTEST * rate:
        return None
    chroma = pitch_classes(resample(clip.float().mean(0, keepdim=True), rate, RATE)[0])
    if chroma is None:
        return None
    profiles = torch.stack([torch.tensor(profile).roll(tonic) for profile in (MAJOR, MINOR) for tonic in range(12)])
    fits = _standard(profiles) @ _standard(chroma[None])[0] / 12
    (best, second), (index, _) = (part.tolist() for part in fits.topk(2))
    name = f"{NAMES[index % 12]} {('major', 'minor')[index // 12]}"
    return name, max(best, 0.0) * min((best - second) / DISTINCT, 1.0)


def pitch_classes(samples: Tensor) -> Tensor | None:
    """Strength (12,) of each pitch class, C first, from the spectral peaks of samples (N,) at RATE. None if too few sound."""
    frames = F.pad(samples, (0, SIZE)).unfold(0, SIZE, HOP) * torch.hann_window(SIZE)
    power = torch.fft.rfft(frames).abs().square().mean(0)
    frequency = torch.fft.rfftfreq(SIZE, 1 / RATE)
    around = F.avg_pool1d(power[None], 31, 1, 15, count_include_pad=False)[0]
    peak = (power[1:-1] > power[:-2]) & (power[1:-1] > power[2:]) & (power[1:-1] > 4 * around[1:-1])
    at = peak.nonzero()[:, 0] + 1
    at = at[(frequency[at] >= LOWEST) & (frequency[at] <= HIGHEST)]
    if not len(at):
        return None
    left, middle, right = (power[at + shift].clamp(min=1e-30).log() for shift in (-1, 0, 1))
    exact = (at + (left - right) / (2 * (left - 2 * middle + right)).clamp(max=-1e-9)) * RATE / SIZE  # vertex of a parabola
    note = 12 * (exact / 440).log2() + 9
    off = note - note.round()
    weight = power[at].sqrt() * (1 - 2 * off.abs())
    chroma = torch.zeros(12).index_add_(0, note.round().long() % 12, weight)
    return chroma if int((chroma > 0.05 * chroma.amax()).sum()) >= SOUNDING else None


def _standard(rows: Tensor) -> Tensor:
    """Rows with mean 0 and standard deviation 1."""
    rows = rows - rows.mean(-1, keepdim=True)
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-9)
