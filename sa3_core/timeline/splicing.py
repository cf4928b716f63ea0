"""Paste generated audio into a recording; samples outside the regions stay bit-identical."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..audio import waveform
from ..audio.loudness import decibels
from ..backends.ambient import independent
from ..config import RATE
from ..errors import SA3Error
from .regions import Region, check_pairs, merge_regions, sample_span

LEVEL_WINDOW = 0.05  # seconds on either side of a seam over which levels are compared
FLUX_FRAMES = 4  # frames of LEVEL_WINDOW on either side of a seam whose spectra are compared
MATCH_WINDOW = 0.5  # seconds on either side of a region over which original and generated audio are compared for a level match
MATCH_LIMIT = 4.0  # largest factor of a level match (12 dB)


@dataclass(frozen=True)
class Seam:
    """One edge of a region."""

    seconds: float
    jump: float  # difference of the two samples at the edge
    usual_jump: float  # largest difference of neighbouring samples nearby
    level_db: float  # change of level across the edge
    flux: float  # change of the spectrum across the edge, 0 = the same to 1 = no common frequency
    usual_flux: float  # largest change between neighbouring frames nearby
    item: int = 0

    def __str__(self) -> str:
        step = f"sample step {self.jump:.4f} (largest nearby {self.usual_jump:.4f})"
        flux = f"spectral flux {self.flux:.2f} (largest nearby {self.usual_flux:.2f})"
        return f"{self.seconds:.3f} s: {step}, level change {self.level_db:+.1f} dB, {flux}"


@dataclass(frozen=True)
class SpliceReport:
    """What a splice did. seams: of all items, in their order."""

    seams: list[Seam]
    gains: list[list[float]]  # factors of the level match, per item and region
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [(seam.item, str(seam)) for seam in self.seams]
        for item, gains in enumerate(self.gains):
            matched = ((i, 20 * math.log10(gain)) for i, gain in enumerate(gains, 1) if gain != 1)
            lines += [(item, f"region {i}: level matched by {db:+.1f} dB") for i, db in matched]
        named = [f"item {item + 1}, {line}" if len(self.gains) > 1 else line for item, line in lines]
        return "\n".join([*named, *self.notes])

    def summary(self) -> str:
        """One line: the number of regions pasted, and the largest step between the samples at their edges in dBFS."""
        items, regions = len(self.gains), len(self.gains[0])
        line = f"{regions or 'no'} region{'s' * (regions != 1)} pasted" + f" in each of {items} items" * (items > 1)
        if not self.seams:
            return line
        step, usual = (decibels(max(steps)) for steps in zip(*((seam.jump, seam.usual_jump) for seam in self.seams), strict=True))
        return f"{line}, largest step at a join {step:.1f} dBFS (nearby {usual:.1f} dBFS)"


@independent
def splice(
    original: Tensor, generated: Tensor, regions: Sequence[Region], sample_rate: int, generated_rate: int = RATE, crossfade: float = 0.02,
    match_level: bool = False,
) -> tuple[Tensor, SpliceReport]:  # fmt: skip
    """Replace `regions` (seconds) of original (B, C, N) by generated (b, c, n): (max(B, b), C, N) in the original's dtype. The smaller
    batch is repeated in turn.

    Both start at time 0; the original is silent where a continuation goes. The generated audio is resampled to sample_rate and
    its channels are fitted to the original's. crossfade: seconds inside the region, equal power, 0 = none. Where the original is
    digital silence inside the fade, an offset that fades out joins the generated audio to the original's last sample instead.
    match_level: scale the generated audio of each region to the original's level around the region. An item is spliced as if alone.
    """
    waveform.check_tensor("The original", original)
    waveform.check_tensor("The generated audio", generated)
    if original.dim() != 3 or generated.dim() != 3 or 0 in (*original.shape[:2], *generated.shape[:2]):
        raise SA3Error(f"Splice takes (batch, channels, samples); got {tuple(original.shape)} and {tuple(generated.shape)}.")
    given, items = (original.shape[0], generated.shape[0]), max(original.shape[0], generated.shape[0])
    if items % given[0] or items % given[1]:
        raise SA3Error(f"The generated audio has {given[1]} items, the original {given[0]}; give one, or one per item.")
    original = waveform.repeated(original, items)
    for name, rate in {"sample_rate": sample_rate, "generated_rate": generated_rate}.items():
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise SA3Error(f"The {name} is {rate!r}; expected a whole number of Hz above 0.")
    if isinstance(crossfade, bool) or not isinstance(crossfade, (int, float)) or not 0 <= crossfade < math.inf:
        raise SA3Error(f"The cross-fade is {crossfade} s; expected 0 or more.")
    waveform.check_finite("The original", original)
    waveform.check_finite("The generated audio", generated)
    n = original.shape[-1]
    spans = [sample_span(region, sample_rate) for region in merge_regions(check_pairs(regions), n / sample_rate)]
    spans = [(a, min(b, n)) for a, b in spans if b > a]
    fitted, notes = waveform.fit_channels(generated.float(), original.shape[1])
    fitted = waveform.repeated(waveform.resample(fitted, generated_rate, sample_rate).to(original.device), items)
    if spans and fitted.shape[-1] < spans[-1][1] - 1:
        found, end = fitted.shape[-1] / sample_rate, spans[-1][1] / sample_rate
        raise SA3Error(f"The generated audio is {found:.3f} s long, but the last region ends at {end:.3f} s; generate a longer clip.")
    fitted = torch.nn.functional.pad(fitted, (0, max(0, n - fitted.shape[-1])))[..., :n]
    fade = int(min(crossfade, n / sample_rate) * sample_rate)
    out = original.clone(memory_format=torch.contiguous_format)
    gains: list[list[float]] = [[] for _ in out]
    for a, b in spans:
        for i, (before, new) in enumerate(zip(original, fitted, strict=True)):
            gain = _level_gain(before, new, a, b, sample_rate) if match_level else 1.0
            gains[i].append(gain)
            out[i, :, a:b] = _crossfaded(before, new[..., max(a - 1, 0) : b + 1] * gain, a, b, fade).to(out.dtype)
    edges = [edge for span in spans for edge in span if 0 < edge < n]
    if spans == [(0, n)]:
        notes = [*notes, "The whole clip was replaced."]
    if not spans:
        notes = [*notes, f"No region {'contains a whole sample' if regions else 'is given'}: nothing was changed."]
    return out, SpliceReport([seam_at(clip, edge, sample_rate, i) for i, clip in enumerate(out) for edge in edges], gains, notes)


def _crossfaded(original: Tensor, piece: Tensor, a: int, b: int, fade: int) -> Tensor:
    """Samples a..b (C, b - a) of the result. piece: the generated samples a..b, with one more on each side where the clip has one."""
    n, lead = original.shape[-1], 1 if a else 0
    new = piece[..., lead : lead + b - a].clone()
    fade = min(fade, (b - a) // 2)
    if fade == 0:
        return new
    # Half a sample inside the ends: the first and last sample of the fade are mixtures, not copies.
    phase = (torch.arange(fade, device=new.device, dtype=new.dtype) + 0.5) / fade * (math.pi / 2)
    rise, fall = phase.sin(), phase.cos()
    edges = []
    if a > 0:
        edges.append((slice(0, fade), a, original[..., a - 1 : a].to(new.dtype) - piece[..., :1], rise, fall))
    if b < n:
        edges.append((slice(-fade, None), b - fade, original[..., b : b + 1].to(new.dtype) - piece[..., -1:], fall, rise))
    for inside, start, step, fade_in, fade_out in edges:
        old = original[..., start : start + fade].to(new.dtype)
        new[..., inside] = old * fade_out + new[..., inside] * fade_in if bool(old.any()) else new[..., inside] + step * fade_out.square()
    return new


def _level_gain(original: Tensor, fitted: Tensor, a: int, b: int, rate: int) -> float:
    """RMS of the original over RMS of the generated audio, next to the region, where both hold the same sound."""
    width = int(MATCH_WINDOW * rate)
    before, after = slice(max(0, a - width), a), slice(b, b + width)
    kept, resynthesis = (torch.cat([audio[..., before], audio[..., after]], dim=-1).float() for audio in (original, fitted))
    if not bool(kept.any()) or not bool(resynthesis.any()):
        return 1.0
    gain = float(kept.square().mean().sqrt() / resynthesis.square().mean().sqrt())
    return min(MATCH_LIMIT, max(1 / MATCH_LIMIT, gain))


def seam_at(out: Tensor, edge: int, rate: int, item: int = 0) -> Seam:
    """The edge at a sample of a clip (C, N)."""
    width = max(1, int(LEVEL_WINDOW * rate))
    before, after = out[..., max(0, edge - width) : edge].float(), out[..., edge : edge + width].float()
    steps = [part.diff(dim=-1).abs().max() for part in (before, after) if part.shape[-1] > 1]
    level = 10 * torch.log10((after.square().mean() + 1e-12) / (before.square().mean() + 1e-12))
    jump = (out[..., edge].float() - out[..., edge - 1].float()).abs().max()
    earlier, later = min(FLUX_FRAMES, edge // width), min(FLUX_FRAMES, (out.shape[-1] - edge) // width)
    fluxes = _flux(out[..., edge - earlier * width : edge + later * width], width) if earlier + later > 1 else []
    flux = fluxes.pop(earlier - 1) if earlier and later else 0.0
    return Seam(edge / rate, float(jump), float(max(steps, default=0.0)), float(level), flux, max(fluxes, default=0.0), item)


def _flux(clip: Tensor, size: int) -> list[float]:
    """Spectral flux between neighbouring frames of `size` samples of a clip (C, N): half the L1 distance of normalised magnitudes."""
    frames = clip.float().unflatten(-1, (-1, size)) * torch.hann_window(size, device=clip.device)
    spectra = torch.fft.rfft(frames).abs().sum(0)
    spectra = spectra / spectra.sum(-1, keepdim=True).clamp(min=1e-12)
    return ((spectra[:-1] - spectra[1:]).abs().sum(-1) / (spectra[:-1] + spectra[1:]).sum(-1).clamp(min=1e-12)).tolist()


def wrap_jump(clip: Tensor) -> tuple[float, float]:
    """The step from the last sample of a loop (B, C, N) to its first, and the largest step of neighbouring samples inside."""
    clip = clip.float()
    return float((clip[..., 0] - clip[..., -1]).abs().max()), float(clip.diff(dim=-1).abs().max())
