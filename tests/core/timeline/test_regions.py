"""The text form of regions, against tests/data/regions.json, which tests/web/texts.test.mjs reads as well."""

import json
from pathlib import Path

import pytest

from sa3_core import SA3Error
from sa3_core.timeline.regions import format_regions, merge_regions, parse_regions

CASES = json.loads((Path(__file__).parents[2] / "data" / "regions.json").read_text(encoding="utf-8"))
MESSAGES = {"unreadable": "cannot be read", "backwards": "ends before it starts", "infinite": "finite numbers"}


@pytest.mark.parametrize("case", CASES["valid"], ids=lambda case: ascii(case["text"]))
def test_valid_texts(case):
    regions = merge_regions(parse_regions(case["text"]))
    assert regions == [tuple(region) for region in case["regions"]]
    assert format_regions(regions) == case["written"]


@pytest.mark.parametrize("case", CASES["invalid"], ids=lambda case: ascii(case["text"]))
def test_invalid_texts(case):
    with pytest.raises(SA3Error, match=MESSAGES[case["error"]]) as caught:
        merge_regions(parse_regions(case["text"]))
    if "word" in case:
        assert f"'{case['word']}'" in str(caught.value)
