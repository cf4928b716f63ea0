"""Sounds placed on a time line: gain, pan, fades, the stems and their sum."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..audio.finish import faded
from ..audio.waveform import check_clip
from ..errors import SA3Error
from .cue_sheet import Cue


def stem(clip: Tensor, cue: Cue, rate: int, length: int) -> Tensor:
    """A sound (1 or 2, N) alone on the time line: (2, length), silent before and after. Samples beyond the ends are cut off.

    At most `cue.seconds` are used. Pan keeps the sum of both channels' squared gains: cos and sin of a quarter turn, 0 dB in the middle.
    """
    check_clip("The sound", clip, rate)
    if clip.shape[-2] > 2:
        raise SA3Error(f"The sound has {clip.shape[-2]} channels; expected 1 or 2. Map them to stereo first.")
    sound = clip[:, : round(cue.seconds * rate)].float().expand(2, -1)
    angle, gain = (cue.pan + 1) * math.pi / 4, 10 ** (cue.gain / 20)
    sides = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64) * math.sqrt(2) * gain
    if cue.pan == 0:
        sides = torch.full((2,), gain, dtype=torch.float64)  # exactly; a cue without settings is the sound itself
    shaped = faded(sound * sides[:, None].to(sound), round(cue.fade_in * rate), round(cue.fade_out * rate))
    out, start = torch.zeros(2, length), round(cue.start * rate)
    first, last = max(0, -start), min(shaped.shape[-1], length - start)
    if last > first:
        out[:, start + first : start + last] = shaped[:, first:last]
    return out


def mix(stems: Sequence[Tensor]) -> Tensor:
    """The sum of stems (2, N), in their order: stems added in this order give the same bits."""
    total = torch.zeros_like(stems[0])
    for one in stems:
        total = total + one
    return total


def length_of(cues: Sequence[Cue], rate: int) -> int:
    """Samples until the last cue has ended."""
    return max(end_of(cue, rate) for cue in cues)


def end_of(cue: Cue, rate: int) -> int:
    """The sample after the last of a cue."""
    return round(cue.start * rate) + round(cue.seconds * rate)
