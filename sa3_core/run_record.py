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
from .sampling.draws import seed_alone
from .sampling.guidance import Guidance
from .sampling.runs import Plan

MOST_ITEMS = 4096  # of an untrusted record


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
    model: str, plan: Plan, guidance: Guidance, warnings: list[str], *, prompts: Sequence[str] = (), loaded: dict | None = None, loras=(),
    stages: dict | None = None, host: dict | None = None, **more,
) -> dict:  # fmt: skip
    """The record of a run. Sigmas are listed once, or per item where they differ.

    prompts: repeated in turn for the items; empty = unknown. loaded: from `load_record`. loras: one dict per adapter. stages: seconds
    per stage. host: name -> version of host programs.
    """
    rows = [[round(value, 6) for value in row] for row in plan.sigmas.tolist()]
    return {
        "model": model,
        **(loaded or {}),
        "seed": plan.seed,
        "batch_index": list(plan.indices),
        "seconds": list(plan.lengths.seconds),
        **({"prompt": [prompts[i % len(prompts)] for i in range(len(plan.lengths))]} if prompts else {}),
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


def item_records(texts: Sequence[str]) -> list[dict]:
    """The records of the items of runs, from their run_info: each as of a run of that item alone, and `batch`, where it comes from.

    A text holds a record or a list of records. Empty when one is unreadable.
    """
    items: list[dict] = []
    for text in texts:
        try:
            found = parse_json(text, "run_info", "the run_info of SA3 Sampler")
            for whole in found if isinstance(found, list) else [found]:
                items += [_item_record(whole, k) for k in range(min(len(whole["batch_index"]), MOST_ITEMS))]
        except (SA3Error, ValueError, TypeError, KeyError, OverflowError):
            return []
    return items


def _item_record(whole: dict, k: int) -> dict:
    indices = whole["batch_index"]
    seed, index = int(whole["seed"]), int(indices[k])
    own = {"seed": seed_alone(seed, index), "batch_index": [0]}
    for key in ("seconds", "prompt"):
        if isinstance(whole.get(key), list) and len(whole[key]) == len(indices):
            own[key] = [whole[key][k]]
    sigmas = whole.get("sigmas")
    if isinstance(sigmas, list) and len(sigmas) == len(indices) and isinstance(sigmas[k], list):
        own["sigmas"] = sigmas[k]
    if not isinstance(whole.get("batch"), dict):
        own["batch"] = {"seed": seed, "index": index, "items": len(indices)}
    return {**whole, **own}
