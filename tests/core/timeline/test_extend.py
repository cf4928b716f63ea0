"""Windows of a continuation beyond the model's longest clip."""

import random

import pytest
import torch
from core_support import config_dict

from sa3_core import SA3Error
from sa3_core.config import parse
from sa3_core.timeline.extend import report, windows


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
    ("context", "longest", "word"),
    [
        (0.0, 0, "context is 0 s; expected 0.09 s to half"),
        (60.0, 20, "context is 60 s.*, 10 s. Change the context or lengthen the window"),
        (5, 1e6, "window of 1e.06 s .*expected 0.19 to"),
        (5, -1, "window of -1 s"),
        (20, 0.01, "window of 0.01 s .*expected 0.19 to"),
    ],
)
def test_impossible_windows_are_named(context, longest, word):
    with pytest.raises(SA3Error, match=word):
        windows(parse(config_dict("small")), 44100, 44100, context, longest)


def test_the_report_names_windows_joins_drift_and_holes():
    rate, second = 1000, 1000
    clip = 0.1 * torch.randn(2, 10 * second, generator=torch.Generator().manual_seed(1))
    clip[:, 4 * second : 6 * second] = 0
    clip[:, 8 * second :] *= 0.1
    lines = report(clip, [2 * second, 5 * second, 8 * second, 10 * second], rate).splitlines()
    assert [line.split(";")[0] for line in lines[:3]] == [
        "window 1 of 3, 2.000 to 5.000 s: -21.9 dBFS RMS", "window 2 of 3, 5.000 to 8.000 s: -21.7 dBFS RMS",
        "window 3 of 3, 8.000 to 10.000 s: -40.0 dBFS RMS",
    ]  # fmt: skip
    assert all("join at" in line and "sample step" in line and "level change" in line for line in lines[:3])
    assert "level change -2" in lines[2] and all("spectral flux" in line for line in lines[:3])
    assert lines[3:] == ["The last window is 20.2 dB quieter than the recording's end.", "Near silence for 2.0 s at 4.0 s."]
    assert len(report(clip[:, : 4 * second], [2 * second, 4 * second], rate).splitlines()) == 1
