"""Review of a batch: levels, verdict and seed of each item, and the selection of items to keep."""

import dataclasses
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SA3Error
from .loudness import FLOOR, Levels, measure

CLIPPED = 1e-4  # largest share of samples beyond full scale
WINDOW, AUDIBLE, SPARSE = 0.05, 1e-3, 0.25  # seconds; RMS of a window with sound; smallest share of such windows
SILENT = 1e-4  # peak below which a clip counts as silent


@dataclass(frozen=True)
class Item:
    """One item of a batch. seed: reproduces this item as a batch of one; None when unknown."""

    levels: Levels
    verdict: str
    seed: int | None = None

    def __str__(self) -> str:
        levels = self.levels
        seed = "" if self.seed is None else f"seed {self.seed}, "
        return (
            f"{seed}{levels.seconds:.3f} s, {levels.integrated:.1f} LUFS, RMS {levels.rms:.1f} dBFS, "
            f"true peak {levels.true_peak:.1f} dBTP, {self.verdict}"
        )

    def record(self) -> dict:
        """The item for JSON. Infinite levels are null; the seed is text, since browsers round large numbers."""
        values = {key: value if math.isfinite(value) else None for key, value in dataclasses.asdict(self.levels).items()}
        return {**values, "verdict": self.verdict, "seed": None if self.seed is None else str(self.seed)}


def review(clip: Tensor, rate: int, seed: int | None = None) -> Item:
    """Levels and verdict of a clip (C, N)."""
    result = verdict(clip, rate)
    levels = Levels(*[FLOOR] * 6, seconds=clip.shape[-1] / rate) if result == "broken" else measure(clip, rate)
    return Item(levels, result, seed)


def verdict(clip: Tensor, rate: int) -> str:
    """The first of these that applies to a clip (C, N): broken (NaN or infinite samples), silent (no sample reaches -80 dBFS), clipped
    (more than 1 sample in 10,000 exceeds full scale), sparse (less than a quarter of the 50 ms windows reach -60 dBFS RMS), ok."""
    if not bool(torch.isfinite(clip).all()):
        return "broken"
    if float(clip.abs().max()) < SILENT:
        return "silent"
    if float((clip.abs() > 1).float().mean()) > CLIPPED:
        return "clipped"
    size = max(1, min(round(WINDOW * rate), clip.shape[-1]))
    rms = clip[:, : clip.shape[-1] // size * size].float().unflatten(1, (-1, size)).square().mean((0, 2)).sqrt()
    return "sparse" if float((rms >= AUDIBLE).float().mean()) < SPARSE else "ok"


def parse_items(text: str, count: int) -> list[int]:
    """Sorted indices (from 0) of a text: "all" or "" (every item), "none", or numbers and ranges counted from 1 such as "1, 3-4"."""
    words = text.strip().lower()
    if words in ("", "all"):
        return list(range(count))
    if words == "none":
        return []
    found = set()
    for word in filter(str.strip, re.split("[,;\n]", words.replace("–", "-"))):
        first, dash, last = (part.strip() for part in word.partition("-"))
        if not (first.isdecimal() and (last.isdecimal() if dash else True)) or len(word) > 40:
            raise SA3Error(f"keep has '{word.strip()[:80]}'; expected 'all', 'none', or numbers of items such as 1, 3-4.")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= count:
            item = f"{low}-{high}" if dash else f"{low}"
            raise SA3Error(f"keep names item {item}, but the batch has {count}, counted from 1; choose among these, or write 'all'.")
        found.update(range(low - 1, high))
    return sorted(found)
