"""Looking through a batch: what each item measures, what is likely wrong with it, which draw it was, and which items to keep."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SA3Error
from ..files import parse_json
from ..sampling.draws import item_seed
from ..sampling.hints import SILENT
from .loudness import FLOOR, Levels, db, measure

CLIPPED = 1e-4  # share of samples beyond full scale
STRETCH, HEARD, SPARSE = 0.05, 1e-3, 0.25  # seconds; RMS of a stretch with sound in it; share of such stretches


@dataclass(frozen=True)
class Item:
    """One item of a batch. seed: with it the Sampler makes this item alone; None where no record tells."""

    levels: Levels
    verdict: str
    seed: int | None = None

    def __str__(self) -> str:
        levels = self.levels
        parts = [
            f"{levels.seconds:.3f} s",
            f"{db(levels.integrated)} LUFS",
            f"RMS {db(levels.rms)} dBFS",
            f"true peak {db(levels.true_peak)} dBTP",
            self.verdict,
        ]
        return ", ".join(parts if self.seed is None else [f"seed {self.seed}", *parts])

    def record(self) -> dict:
        """Plain values for JSON; null where there is nothing to measure, the seed as text since browsers round large numbers."""
        values = {key: value if math.isfinite(value) else None for key, value in dataclasses.asdict(self.levels).items()}
        return {**values, "verdict": self.verdict, "seed": None if self.seed is None else str(self.seed)}


def review(clip: Tensor, rate: int, seed: int | None = None) -> Item:
    """Measure a clip (C, N) and judge it."""
    if not bool(torch.isfinite(clip).all()):
        return Item(Levels(*[FLOOR] * 6, seconds=clip.shape[-1] / rate), "broken", seed)
    return Item(measure(clip, rate), verdict(clip, rate), seed)


def verdict(clip: Tensor, rate: int) -> str:
    """Of a clip (C, N), the first that holds: broken (NaN or infinite samples), silent (no sample reaches -80 dBFS), clipped (more
    than 1 sample in 10,000 exceeds full scale), sparse (less than a quarter of its 50 ms stretches reach -60 dBFS RMS), ok."""
    if not bool(torch.isfinite(clip).all()):
        return "broken"
    if float(clip.abs().max()) < SILENT:
        return "silent"
    if float((clip.abs() > 1).float().mean()) > CLIPPED:
        return "clipped"
    size = max(1, min(round(STRETCH * rate), clip.shape[-1]))
    stretches = clip[:, : clip.shape[-1] // size * size].float().unflatten(1, (-1, size)).square().mean((0, 2)).sqrt()
    return "sparse" if float((stretches >= HEARD).float().mean()) < SPARSE else "ok"


def parse_items(text: str, count: int) -> list[int]:
    """Numbers of items from 0, ascending, of their text form: "all" (or nothing), "none", or "1, 3-4" counted from 1."""
    words = text.strip().lower()
    if words in ("", "all"):
        return list(range(count))
    if words == "none":
        return []
    found = set()
    for word in words.replace(";", ",").replace("\n", ",").replace("–", "-").split(","):
        first, dash, last = (part.strip() for part in word.partition("-"))
        if not word.strip():
            continue
        if not (first.isdecimal() and (last.isdecimal() if dash else True)) or len(word) > 40:
            raise SA3Error(f"keep has '{word.strip()[:80]}'; expected 'all', 'none', or numbers of items such as 1, 3-4.")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= count:
            wrong = f"{low}-{high}" if dash else f"{low}"
            raise SA3Error(f"keep names item {wrong}, but the batch has {count}, counted from 1; choose among these, or write 'all'.")
        found.update(range(low - 1, high))
    return sorted(found)


def item_seeds(records: Sequence[str], count: int) -> list[int | None]:
    """The seed of each of `count` items from the run_info of the runs that made them; None each where the numbers do not agree."""
    seeds: list[int] = []
    for text in records:
        try:
            record = parse_json(text, "run_info", "the run_info of SA3 Sampler")
            seeds += [item_seed(int(record["seed"]), int(index)) for index in record["batch_index"]]
        except (SA3Error, ValueError, TypeError, KeyError, OverflowError):
            return [None] * count
    return seeds if len(seeds) == count else [None] * count
