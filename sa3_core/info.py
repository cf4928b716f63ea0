"""The record of a run: what made this sound, in plain values."""

from dataclasses import asdict

from .guidance import Guidance
from .sampling import Plan


def record(model: str, plan: Plan, guidance: Guidance, warnings: list[str], **more) -> dict:
    """A JSON-ready dict. Noise levels are listed once, or per item where they differ."""
    rows = [[round(value, 6) for value in row] for row in plan.sigmas.tolist()]
    return {
        "model": model,
        "seed": plan.seed,
        "batch_index": list(plan.indices),
        "seconds": list(plan.lengths.seconds),
        "sampler": plan.sampler,
        "eta": plan.eta,
        "steps": plan.steps,
        "sigmas": rows[0] if all(row == rows[0] for row in rows) else rows,
        "guidance": asdict(guidance),
        "warnings": warnings,
        **more,
    }
