"""A few hundred of the damaged files, each time the same ones. The long sweep: python tests/fuzz/fuzz.py --count 10000."""

import random
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.extend(str(path) for path in (HERE, HERE.parents[1], HERE.parent / "core") if str(path) not in sys.path)

import fuzz
import fuzz_mutations
from fuzz_targets import FAULTS, TARGETS

SEED = 3

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and memory are read the Linux way")


@linux
def test_damaged_files_work_or_are_refused():
    results = fuzz.sweep(500, SEED)
    assert not fuzz.failed(results), "\n".join(f"--seed {SEED} --case {one['number']}: {one['why']}" for one in fuzz.failed(results))
    outcomes = [one["outcome"] for one in results]
    assert outcomes.count("loaded") > 50 and outcomes.count("refused") > 200  # neither only rubbish nor only harmless changes
    assert len({one["target"] for one in results}) == len(TARGETS)


@linux
def test_the_sweep_notices_what_must_not_be(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 2.0)
    found = {one["target"]: one["outcome"] for one in fuzz.sweep(len(FAULTS), SEED, "faults")}
    assert found == FAULTS


def test_json_too_deep_for_a_change_is_damaged_as_bytes(monkeypatch):
    def too_deep(rng, value):
        raise RecursionError

    monkeypatch.setattr(fuzz_mutations, "damage_value", too_deep)
    assert len({fuzz_mutations.damage_json(random.Random(seed), b"[[1]]") for seed in range(40)}) > 10
