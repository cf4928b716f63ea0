"""The last steps before a sound is delivered: trim silence, fade, add a tail, set the level. Each only where it is asked for."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .loudness import NORMALIZE, normalized
from .waveform import check_clip

SEARCH = 0.005  # seconds around a cut in which a zero crossing is looked for


@dataclass(frozen=True)
class Finish:
    """trim: dBFS below which the ends are silence, None = keep them. Fades and tail in seconds. normalize: off, peak, loudness."""

    trim: float | None = None
    fade_in: float = 0.0
    fade_out: float = 0.0
    tail: float = 0.0
    normalize: str = NORMALIZE[0]
    target: float = -1.0


def finished(clip: Tensor, rate: int, steps: Finish) -> tuple[Tensor, dict]:
    """A clip (C, N) after the steps, and a record of what was done: seconds cut at each end, fades, tail, gain in dB. {} = nothing."""
    check_clip("The audio", clip, rate)
    done: dict = {}
    if steps.trim is not None:
        start, end = sounding(clip, rate, steps.trim)
        if (start, end) != (0, clip.shape[-1]):
            done["trimmed"] = {"start_s": start / rate, "end_s": (clip.shape[-1] - end) / rate}
            clip = clip[:, start:end]
    fades = fitting_fades(clip.shape[-1], round(steps.fade_in * rate), round(steps.fade_out * rate))
    if any(fades):
        done["fades"] = {"in_s": fades[0] / rate, "out_s": fades[1] / rate}
        clip = faded(clip, *fades)
    if steps.tail:
        done["tail_s"] = round(steps.tail * rate) / rate
        clip = torch.nn.functional.pad(clip, (0, round(steps.tail * rate)))
    if steps.normalize != NORMALIZE[0]:
        clip, gain = normalized(clip, rate, steps.normalize, steps.target)
        done["gain_db"] = gain
    return clip, done


def sounding(clip: Tensor, rate: int, floor: float) -> tuple[int, int]:
    """First sample, and the one after the last, of the part of a clip (C, N) above `floor` dBFS; all of it where nothing is.

    Both lie where the channels' sum is nearest to zero within SEARCH, so that the cut does not click.
    """
    loud = (clip.abs().amax(0) > 10 ** (floor / 20)).nonzero()
    if not len(loud):
        return 0, clip.shape[-1]
    reach, total = max(1, round(SEARCH * rate)), clip.sum(0).abs()
    first, last = int(loud[0]), int(loud[-1]) + 1
    before, after = total[max(0, first - reach) : first + 1], total[last - 1 : last + reach]
    start = first - int(before.flip(0).argmin()) if first else 0
    end = last + int(after.argmin()) if last < clip.shape[-1] else last
    return start, min(end, clip.shape[-1])


def fitting_fades(n: int, fade_in: int, fade_out: int) -> tuple[int, int]:
    """Fades that together fill at most n samples: longer ones are shortened in proportion."""
    total = fade_in + fade_out
    return (fade_in, fade_out) if total <= n else (n * fade_in // total, n * fade_out // total)


def faded(clip: Tensor, fade_in: int, fade_out: int) -> Tensor:
    """A clip (C, N) with raised-cosine fades of so many samples, as `fitting_fades` shortens them."""
    n = clip.shape[-1]
    fade_in, fade_out = fitting_fades(n, fade_in, fade_out)
    if not (fade_in or fade_out):
        return clip
    out = clip.clone()
    out[:, :fade_in] *= _rise(fade_in).to(clip)
    out[:, n - fade_out :] *= _rise(fade_out).flip(0).to(clip)
    return out


def _rise(count: int) -> Tensor:
    """Half a raised cosine from 0 to 1, without its ends (count,)."""
    return 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1))
