"""Windows of a continuation beyond the model's longest clip."""

import random

import pytest
from core_support import config_dict

from sa3_core import SA3Error
from sa3_core.config import parse
from sa3_core.timeline.extend import windows


@pytest.mark.parametrize("case", range(40))
def test_windows_add_the_requested_samples_within_the_limit(case):
    rng = random.Random(case)
    config = parse(config_dict("small"))
    limit = config.max_seconds
    given, added = rng.randint(5000, 44100 * 30), rng.randint(1, 44100 * 1200)
    context, longest = rng.uniform(0.2, limit / 4), rng.choice([0.0, limit, limit * 0.75])
    parts = windows(config, given, added, context, longest)
    assert sum(part.new for part in parts) == added
    seen = given
    for part in parts:
        assert 0 < part.context == min(seen, int(context * config.sample_rate))
        assert part.samples <= int((longest or limit) * config.sample_rate)
        seen += part.new
    sizes = [part.new for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("context", "longest", "word"), [(0.0, 0, "context"), (60.0, 20, "context"), (5, 1e6, "window"), (5, -1, "window")]
)
def test_impossible_windows_are_named(context, longest, word):
    with pytest.raises(SA3Error, match=word):
        windows(parse(config_dict("small")), 44100, 44100, context, longest)
