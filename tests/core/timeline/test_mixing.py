"""Spotting lists, and sounds on a time line: the mix is linear, pan keeps power, stems sum to the mix bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from sa3_core.errors import SA3Error
from sa3_core.timeline.cue_sheet import Cue, parse_time, read_cues
from sa3_core.timeline.mixing import length_of, mix, stem

RATE = 1000
SHEET = """time; prompt; seconds; gain; pan; fade
# doors
0:01.5; a door slams; 2; -6 dB; -0.5; 0.01/0.5

00:00:02:12; steps on gravel, slow; 48f
3.25;rain
"""


def test_a_spotting_list():
    assert read_cues(SHEET, fps=24) == [
        Cue(1.5, "a door slams", 2.0, -6.0, -0.5, 0.01, 0.5),
        Cue(2.5, "steps on gravel, slow", 2.0),
        Cue(3.25, "rain", 3.0),
    ]


@pytest.mark.parametrize(
    ("text", "fps", "seconds"),
    [("90", 25, 90), ("1:30", 25, 90), ("1:00:00.25", 25, 3600.25), ("12f", 24, 0.5), ("01:00:00:12", 25, 3600.48),
     ("00:00:10:00", 30000 / 1001, 10.01)],
)  # fmt: skip
def test_times(text: str, fps: float, seconds: float):
    assert math.isclose(parse_time(text, fps), seconds, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("x; a door", "the time 'x' cannot be read"),
        ("1", "expected time; prompt"),
        ("1; ", "at least time and prompt"),
        ("1; a; 0", "the duration is 0 s"),
        ("1; a; 1; loud", "gain is 'loud'"),
        ("1; a; 1; 0; 2", "pan is '2'; expected a number from -1 to 1"),
        ("1; a; 1; 0; 0; 1/2/3", "fade has more than two parts"),
        ("1; a; 1; 0; 0; 0; 0", "it has 7 columns"),
        ("00:00:01:25; a", "frame 25 does not exist at 25 frames per second"),
        ("1; a; 1; nan", "gain is 'nan'"),
    ],
)
def test_a_bad_row_is_named(row: str, sentence: str):
    with pytest.raises(SA3Error, match=r"Row 2 of the cue sheet") as caught:
        read_cues("0; fine\n" + row)
    assert sentence in str(caught.value)


def test_an_empty_list_is_refused():
    with pytest.raises(SA3Error, match="has no rows"):
        read_cues("# nothing\n")


def sounds(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, generator=generator) for n in lengths]


def test_a_cue_without_settings_is_the_sound_itself():
    (clip,) = sounds(700)
    out = stem(clip, Cue(0.3, "", 0.7), RATE, 1200)
    assert torch.equal(out[:, 300:1000], clip) and not out[:, :300].any() and not out[:, 1000:].any()


def test_stems_sum_to_the_mix():
    cues = [Cue(0.1, "", 1.0, -3.0, 0.3, 0.1, 0.2), Cue(0.4, "", 0.5, 2.0, -1.0), Cue(0.9, "", 2.0)]
    stems = [stem(clip, cue, RATE, length_of(cues, RATE)) for clip, cue in zip(sounds(1000, 600, 900), cues, strict=True)]
    total = torch.zeros_like(stems[0])
    for one in stems:
        total = total + one
    assert torch.equal(mix(stems), total) and total.shape[-1] == 2900


def test_the_mix_is_linear():
    (a, b), cue = sounds(800, 800), Cue(0.2, "", 0.8, -4.0, 0.6, 0.05, 0.1)
    both = stem(2 * a + b, cue, RATE, 1100)
    assert torch.allclose(both, 2 * stem(a, cue, RATE, 1100) + stem(b, cue, RATE, 1100), atol=1e-6)


@pytest.mark.parametrize("pan", [-1.0, -0.4, 0.0, 0.25, 1.0])
def test_pan_keeps_power(pan: float):
    mono = torch.ones(1, 500)
    left, right = stem(mono, Cue(0.0, "", 0.5, 0.0, pan), RATE, 500)[:, 100].tolist()
    assert math.isclose(left**2 + right**2, 2.0, rel_tol=1e-6)
    assert (right > left) == (pan > 0) or pan == 0


def test_what_lies_beyond_the_ends_is_cut_off():
    (clip,) = sounds(500)
    assert torch.equal(stem(clip, Cue(0.8, "", 0.5), RATE, 1000)[:, 800:], clip[:, :200])
    assert not stem(clip, Cue(2.0, "", 0.5), RATE, 1000).any()


def test_more_than_two_channels_are_refused():
    with pytest.raises(SA3Error, match="6 channels"):
        stem(torch.zeros(6, 500), Cue(0, "", 1), RATE, 500)
