"""Windows of a continuation beyond the model's longest clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..config import ModelConfig
from ..errors import SA3Error
from .splicing import seam_at

DRIFT_DB = 10.0  # change of level against the recording from which the report remarks on it
HOLE_SECONDS, HOLE_RMS, HOLE_STEP = 1.0, 1e-3, 0.05  # a hole: so long below -60 dBFS RMS, in steps of 50 ms


@dataclass(frozen=True)
class Window:
    """One pass, in samples at the model's rate."""

    context: int  # samples of the existing tail that condition the pass
    new: int  # samples that it adds

    @property
    def samples(self) -> int:
        return self.context + self.new


def windows(config: ModelConfig, given: int, added: int, context: float, longest: float = 0.0) -> list[Window]:
    """Passes that extend a clip of `given` samples by `added`, in parts of equal size.

    context: seconds of the tail that condition a pass; less in the first pass of a short clip. longest: seconds of a pass, 0 = the
    model's longest.
    """
    rate, spf = config.sample_rate, config.same.samples_per_frame
    limit = config.max_seconds
    span = limit if longest == 0 else longest
    shortest = spf / rate
    if not 2 * shortest <= span <= limit:
        raise SA3Error(
            f"A window of {span:g} s does not fit this model; expected {2 * shortest:.2f} to {limit:.1f} s, or 0 for the longest."
        )
    if not shortest <= context <= span / 2:
        found = f"The context is {context:g} s; expected {shortest:.2f} s to half the window, {span / 2:g} s"
        raise SA3Error(f"{found}. Change the context{' or lengthen the window' * (context > span / 2)}.")
    if added < 1:
        raise SA3Error(f"The continuation has {added} samples; expected more than 0 seconds.")
    room = int(span * rate) - int(context * rate)
    passes = -(-added // room)
    ends = [added * i // passes for i in range(passes + 1)]
    return [Window(min(given + start, int(context * rate)), end - start) for start, end in pairwise(ends)]


def report(clip: Tensor, edges: Sequence[int], rate: int) -> str:
    """Level and join of each window of an extended clip (C, N), and remarks on drift and holes. edges: the samples at which the windows
    begin, and the end of the last one; the recording comes before the first."""
    lines, before = [], _level(clip[:, max(0, edges[0] - (edges[1] - edges[0])) : edges[0]])
    spans = list(pairwise(edges))
    for i, (start, end) in enumerate(spans, 1):
        name = f"window {i} of {len(spans)}, {start / rate:.3f} to {end / rate:.3f} s"
        lines.append(f"{name}: {_level(clip[:, start:end]):.1f} dBFS RMS; join at {seam_at(clip, start, rate)}")
    drift = _level(clip[:, spans[-1][0] : spans[-1][1]]) - before
    if math.isfinite(before) and abs(drift) >= DRIFT_DB:
        lines.append(f"The last window is {abs(drift):.1f} dB {'louder' if drift > 0 else 'quieter'} than the recording's end.")
    return "\n".join([*lines, *(f"Near silence for {end - start:.1f} s at {start:.1f} s." for start, end in _holes(clip, edges[0], rate))])


def _level(clip: Tensor) -> float:
    """RMS in dBFS; -inf for silence."""
    power = float(clip.double().square().mean()) if clip.numel() else 0.0
    return 10 * math.log10(power) if power > 0 else -math.inf


def _holes(clip: Tensor, start: int, rate: int) -> list[tuple[float, float]]:
    """Beginning and end, in seconds, of stretches of near silence from a sample on."""
    size = max(1, round(HOLE_STEP * rate))
    steps = clip[:, start : start + (clip.shape[1] - start) // size * size].float().unflatten(1, (-1, size))
    quiet = (steps.square().mean((0, 2)).sqrt() < HOLE_RMS).tolist()
    holes, first = [], None
    for i, silent in enumerate([*quiet, False]):
        if silent and first is None:
            first = i
        elif not silent and first is not None:
            if (i - first) * size >= HOLE_SECONDS * rate:
                holes.append(((start + first * size) / rate, (start + i * size) / rate))
            first = None
    return holes
