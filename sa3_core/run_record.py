"""The record of a run as JSON values. Paths are reduced to a folder and file name, so that it contains no personal data."""

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import asdict

from . import __version__
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.releases import DOWNLOADED, LICENCE, variant_of
from .errors import SA3Error
from .files import parse_json, read_json
from .sampling.draws import item_seed
from .sampling.guidance import Guidance
from .sampling.runs import Plan


class Stopwatch:
    """Wall-clock seconds since creation, and per stage."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.perf_counter()
        self.stages[stage] = round(self.stages.get(stage, 0.0) + now - self.last, 3)
        self.last = now

    @property
    def elapsed(self) -> float:
        return round(time.perf_counter() - self.start, 3)


def load_record(opened: Checkpoint, dtype, device, watch: Stopwatch, **more_dtypes) -> dict:
    """The loaded checkpoint: variant, layout, file, provenance, dtypes, device and load times."""
    path = opened.tensors.path
    return {
        "variant": variant_of(opened.name) or opened.name,
        "layout": opened.layout,
        "file": f"{path.parent.name}/{path.name}",
        "fingerprint": opened.tensors.fingerprint(),
        **_provenance(path.parent / DOWNLOADED),
        **{key: str(value).removeprefix("torch.") for key, value in {"dtype": dtype, **more_dtypes}.items()},
        "device": str(device),
        "cache_hit": False,
        "load_elapsed_s": watch.elapsed,
        "load_stages_s": dict(watch.stages),
    }


def _provenance(file) -> dict:
    """Repository, revision and sha256 of a verified download; empty for other files."""
    try:
        values = read_json(file, "the record of a download")
        return {key: str(values[key]) for key in ("repository", "revision", "sha256")}
    except (SA3Error, KeyError, TypeError):
        return {}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def record(
    model: str, plan: Plan, guidance: Guidance, warnings: list[str], *, loaded: dict | None = None, loras=(), stages: dict | None = None,
    host: dict | None = None, **more,
) -> dict:  # fmt: skip
    """The record of a run. Sigmas are listed once, or per item where they differ.

    loaded: from `load_record`. loras: one dict per adapter. stages: seconds per stage. host: name -> version of host programs.
    """
    rows = [[round(value, 6) for value in row] for row in plan.sigmas.tolist()]
    return {
        "model": model,
        **(loaded or {}),
        "seed": plan.seed,
        "batch_index": list(plan.indices),
        "seconds": list(plan.lengths.seconds),
        "sampler": plan.sampler,
        "eta": plan.eta,
        "steps": plan.steps,
        "noise_level": round(plan.noise_level, 6),
        "sigmas": rows[0] if all(row == rows[0] for row in rows) else rows,
        "guidance": asdict(guidance),
        "loras": list(loras),
        "warnings": warnings,
        "stages_s": dict(stages or {}),
        "versions": {"pack": __version__, **{name: _version(name) for name in ("torch", "transformers")}, **(host or {})},
        "licence": LICENCE,
        **more,
    }


def item_seeds(records: Sequence[str], count: int) -> list[int | None]:
    """The seeds of `count` items from the run_info of their runs; None for each when the records are unreadable or of another count."""
    seeds: list[int] = []
    for text in records:
        try:
            record = parse_json(text, "run_info", "the run_info of SA3 Sampler")
            seeds += [item_seed(int(record["seed"]), int(index)) for index in record["batch_index"]]
        except (SA3Error, ValueError, TypeError, KeyError, OverflowError):
            return [None] * count
    return seeds if len(seeds) == count else [None] * count
