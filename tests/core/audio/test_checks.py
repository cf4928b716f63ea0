"""Review of a batch: verdicts at their thresholds, seeds from run records, and the selection of items."""

import json
import math
from pathlib import Path

import pytest
import torch

from sa3_core import SA3Error
from sa3_core.audio.checks import parse_items, review, verdict
from sa3_core.run_record import item_records
from sa3_core.sampling.draws import item_seed

RATE = 44100
KEEP = json.loads((Path(__file__).parents[2] / "data" / "keep.json").read_text(encoding="utf-8"))
TONE = 0.5 * torch.sin(2 * math.pi * 220 * torch.arange(RATE) / RATE).expand(2, -1)


def sounding(share: float) -> torch.Tensor:
    """One second of audio, silent after `share` of it."""
    clip = TONE.clone()
    clip[:, round(share * RATE) :] = 0
    return clip


def beyond(samples: int) -> torch.Tensor:
    clip = TONE.clone()
    clip[:, :samples] = 1.2
    return clip


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (TONE, "ok"), (TONE * 0, "silent"), (TONE * 1e-4, "silent"), (TONE * 3e-4, "sparse"), (TONE * 4e-3, "ok"),
        (sounding(0.2), "sparse"), (sounding(0.3), "ok"), (beyond(4), "ok"), (beyond(5), "clipped"), (TONE * 3, "clipped"),
        (TONE * math.nan, "broken"), (TONE[:, :256], "ok"),
    ],
)  # fmt: skip
def test_verdicts(clip, expected):
    assert verdict(clip, RATE) == expected == review(clip, RATE).verdict


def test_a_review_as_text_and_as_json():
    item = review(TONE, RATE, seed=2**63)
    assert "seed 9223372036854775808" in str(item) and "1.000 s" in str(item) and str(item).endswith("ok")
    record = json.loads(json.dumps(item.record(), allow_nan=False))
    assert record["seed"] == "9223372036854775808" and record["peak"] == pytest.approx(-6.02, abs=0.01)
    assert json.dumps(review(TONE * 0, RATE).record(), allow_nan=False) and review(TONE * 0, RATE).record()["rms"] is None


@pytest.mark.parametrize("case", KEEP, ids=lambda case: f"{case['text']!a} of {case['count']}")
def test_items_to_keep(case):
    if case["items"] is None:
        with pytest.raises(SA3Error, match=r"^keep "):
            parse_items(case["text"], case["count"])
    else:
        assert parse_items(case["text"], case["count"]) == case["items"]


@pytest.mark.parametrize(("text", "words"), [("5", "item 5.*has 4"), ("0", "item 0"), ("3-2", "item 3-2"), ("2-9", "item 2-9")])
def test_items_that_do_not_exist(text, words):
    with pytest.raises(SA3Error, match=words):
        parse_items(text, 4)


@pytest.mark.parametrize("text", ["a", "1-", "-2", "1.5", "all, 2", "²"])
def test_an_invalid_number_is_refused(text):
    with pytest.raises(SA3Error, match="expected 'all', 'none', or numbers"):
        parse_items(text, 4)


def record(seed, *indices, **more):
    return json.dumps({"model": "m", "seed": seed, "batch_index": indices, **more})


def seeds(*texts):
    return [one["seed"] for one in item_records(texts)]


def test_seeds_come_from_the_records():
    assert seeds(record(7, 0, 1)) == [7, item_seed(7, 1)]
    assert seeds(record(7, 0), record(8, 3)) == seeds(f"[{record(7, 0)}, {record(8, 3)}]") == [7, item_seed(8, 3)]
    for texts in ([], ["nonsense"], ["[]"], ['{"seed": 1}'], [record(7, 0, 1), "{}"], ["[1]"], ['["a"]'], [record("x", 0)]):
        assert item_records(texts) == []


def test_the_record_of_an_item_is_that_of_a_run_of_it_alone():
    whole = record(7, 0, 2, seconds=[1.5, 3], prompt=["a", "b"], sigmas=[[1, 0.5, 0], [1, 0.25, 0]], steps=2)
    first, second = item_records([whole])
    assert {"model": "m", "steps": 2, "seconds": [1.5], "prompt": ["a"], "sigmas": [1, 0.5, 0], "seed": 7}.items() <= first.items()
    assert second["seconds"] == [3] and second["prompt"] == ["b"] and second["sigmas"] == [1, 0.25, 0] and second["batch_index"] == [0]
    assert second["batch"] == {"seed": 7, "index": 2, "items": 2}
    assert item_records([json.dumps([second, first])]) == [second, first]
    assert item_records([record(7, 0, 1, sigmas=[1, 0])])[1]["sigmas"] == [1, 0]  # common to the items
    assert "prompt" not in item_records([record(7, 0)])[0]
