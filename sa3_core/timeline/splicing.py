"""Putting generated audio back into a recording: outside the regions nothing changes, not even a bit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..audio import waveform
from ..backends.ambient import independent
from ..errors import SA3Error
from .regions import Region, merge_regions, sample_span

LEVEL_WINDOW = 0.05  # seconds on either side of a seam over which levels are compared
MATCH_WINDOW = 0.5  # seconds outside a region over which original and re-synthesis are compared for a level match
MATCH_LIMIT = 4.0  # a level match never changes the level by more than this factor (12 dB)


@dataclass(frozen=True)
class Seam:
    """One edge of a region: the step between the two samples at it, the largest step nearby, and the change of level across it."""

    seconds: float
    jump: float
    usual_jump: float
    level_db: float

    def __str__(self) -> str:
        step = f"sample step {self.jump:.4f} (largest nearby {self.usual_jump:.4f})"
        return f"{self.seconds:.3f} s: {step}, level change {self.level_db:+.1f} dB"


@dataclass(frozen=True)
class SpliceReport:
    seams: list[Seam]
    gains: list[float]  # per region, what the level match multiplied by
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        gains = [f"region {i + 1}: level matched by {20 * math.log10(g):+.1f} dB" for i, g in enumerate(self.gains) if g != 1]
        return "\n".join([*map(str, self.seams), *gains, *self.notes])


@independent
def splice(
    original: Tensor,
    generated: Tensor,
    regions: Sequence[Region],
    sample_rate: int,
    generated_rate: int = 44100,
    crossfade: float = 0.02,
    match_level: bool = False,
) -> tuple[Tensor, SpliceReport]:
    """Replace `regions` (seconds) of original (B, C, N) by generated (B, c, n); the result has the original's shape and type.

    The original lies on the output's time line already (silence where a continuation goes). generated may be at another rate and
    is resampled; its channels are fitted to the original's. The cross-fade (seconds, equal power, 0 = none) lies inside the region.
    Where the original is digital silence inside the fade there is nothing to fade from: the generated sound is then bent to start
    at the original's last sample instead. Every sample outside the regions is bit-identical.
    """
    if original.dim() != 3 or generated.dim() != 3:
        raise SA3Error(f"Splice takes (batch, channels, samples); got {tuple(original.shape)} and {tuple(generated.shape)}.")
    if generated.shape[0] not in (1, original.shape[0]):
        raise SA3Error(f"The generated audio has {generated.shape[0]} items, the original {original.shape[0]}; give one, or one per item.")
    if not math.isfinite(crossfade) or crossfade < 0:
        raise SA3Error(f"The cross-fade is {crossfade} s; expected 0 or more.")
    waveform.check_finite("The generated audio", generated)
    n = original.shape[-1]
    merged = merge_regions(regions, n / sample_rate)
    notes = []
    fitted, note = waveform.fit_channels(generated.float(), original.shape[1])
    notes += note
    fitted = waveform.resample(fitted, generated_rate, sample_rate).to(original.device)
    fitted = fitted.expand(original.shape[0], -1, -1)
    spans = [(a, min(b, n)) for a, b in (sample_span(region, sample_rate) for region in merged) if b > a]
    if spans and fitted.shape[-1] < spans[-1][1] - 1:
        raise SA3Error(
            f"The generated audio is {fitted.shape[-1] / sample_rate:.3f} s long, "
            f"but the last region ends at {spans[-1][1] / sample_rate:.3f} s."
        )
    fitted = torch.nn.functional.pad(fitted, (0, max(0, n - fitted.shape[-1])))[..., :n]
    out, seams, gains = original.clone(), [], []
    for a, b in spans:
        gain = _level_gain(original, fitted, a, b, sample_rate) if match_level else 1.0
        gains.append(gain)
        out[..., a:b] = _filled(original, fitted[..., a - 1 if a else 0 : b + 1] * gain, a, b, int(crossfade * sample_rate)).to(out.dtype)
    for a, b in spans:
        seams += [_seam(out, edge, sample_rate) for edge in (a, b) if 0 < edge < n]
    return out, SpliceReport(seams, gains, notes)


def _filled(original: Tensor, piece: Tensor, a: int, b: int, fade: int) -> Tensor:
    """The new samples a..b. `piece` holds them with one more sample on each side where the clip has one."""
    n, lead = original.shape[-1], 1 if a else 0
    new = piece[..., lead : lead + b - a].clone()
    fade = min(fade, (b - a) // 2)
    if fade == 0:
        return new
    # Strictly inside: neither edge sample is purely one side, so no step of the fade is spent on a copy.
    phase = (torch.arange(fade, device=new.device, dtype=new.dtype) + 0.5) / fade * (math.pi / 2)
    rise, fall = phase.sin(), phase.cos()
    if a > 0:
        old = original[..., a : a + fade].to(new.dtype)
        if bool(old.any()):
            new[..., :fade] = old * fall + new[..., :fade] * rise
        else:
            step = original[..., a - 1 : a].to(new.dtype) - piece[..., :1]
            new[..., :fade] += step * fall.square()
    if b < n:
        old = original[..., b - fade : b].to(new.dtype)
        if bool(old.any()):
            new[..., -fade:] = old * rise + new[..., -fade:] * fall
        else:
            step = original[..., b : b + 1].to(new.dtype) - piece[..., -1:]
            new[..., -fade:] += step * rise.square()
    return new


def _level_gain(original: Tensor, fitted: Tensor, a: int, b: int, rate: int) -> float:
    """Original's level over the re-synthesis' level, both measured outside the region, where they mean the same sound."""
    width = int(MATCH_WINDOW * rate)
    sides = [slice(max(0, a - width), a), slice(b, b + width)]
    there = torch.cat([original[..., s].float() for s in sides], dim=-1)
    here = torch.cat([fitted[..., s] for s in sides], dim=-1)
    if there.numel() == 0 or not bool(there.any()) or not bool(here.any()):
        return 1.0
    gain = float(there.square().mean().sqrt() / here.square().mean().sqrt())
    return min(MATCH_LIMIT, max(1 / MATCH_LIMIT, gain))


def _seam(out: Tensor, edge: int, rate: int) -> Seam:
    width = max(1, int(LEVEL_WINDOW * rate))
    before, after = out[..., max(0, edge - width) : edge].float(), out[..., edge : edge + width].float()
    steps = [part.diff(dim=-1).abs().max() for part in (before, after) if part.shape[-1] > 1]
    level = 10 * torch.log10((after.square().mean() + 1e-12) / (before.square().mean() + 1e-12))
    jump = (out[..., edge].float() - out[..., edge - 1].float()).abs().max()
    return Seam(edge / rate, float(jump), float(max(steps, default=0.0)), float(level))


def wrap_jump(clip: Tensor) -> tuple[float, float]:
    """Of a loop (B, C, N): the step from its last sample to its first, and the largest step inside."""
    clip = clip.float()
    return float((clip[..., 0] - clip[..., -1]).abs().max()), float(clip.diff(dim=-1).abs().max())
