"""The last steps of a delivered sound: nothing changes unless it is asked for, and the record says what did."""

from __future__ import annotations

import math

import pytest
import torch

from sa3_core.audio.finish import Finish, faded, finished, sounding
from sa3_core.audio.loudness import true_peaks

RATE = 44100


def tone(seconds: float = 0.5, before: float = 0.3, after: float = 0.4) -> torch.Tensor:
    sound = 0.5 * torch.sin(2 * math.pi * 441 * torch.arange(int(seconds * RATE)) / RATE)
    return torch.nn.functional.pad(sound, (int(before * RATE), int(after * RATE))).repeat(2, 1)


def test_nothing_is_done_unless_asked_for():
    clip = tone()
    out, done = finished(clip, RATE, Finish())
    assert out is clip and done == {}


def test_silence_is_trimmed_at_zero_crossings():
    clip = tone() + 1e-4
    out, done = finished(clip, RATE, Finish(trim=-60.0))
    assert abs(out.shape[-1] - 0.5 * RATE) < 0.011 * RATE
    assert float(out[:, 0].abs().max()) < 0.04 and float(out[:, -1].abs().max()) < 0.04
    assert math.isclose(done["trimmed"]["start_s"], 0.3, abs_tol=0.006) and math.isclose(done["trimmed"]["end_s"], 0.4, abs_tol=0.006)


def test_the_kept_samples_are_unchanged():
    clip = tone()
    start, end = sounding(clip, RATE, -60.0)
    assert torch.equal(finished(clip, RATE, Finish(trim=-60.0))[0], clip[:, start:end])


@pytest.mark.parametrize("clip", [torch.zeros(2, 1000), torch.ones(2, 1000)], ids=["silence", "no silence"])
def test_a_clip_without_ends_to_trim_stays_whole(clip: torch.Tensor):
    out, done = finished(clip, RATE, Finish(trim=-60.0))
    assert out is clip and done == {}


def test_fades_rise_and_fall_without_a_step():
    out = faded(torch.ones(1, 1000), 100, 300)[0]
    assert bool((out[:100].diff() > 0).all()) and bool((out[700:].diff() < 0).all()) and bool((out[100:700] == 1).all())
    assert float(out[0]) < 1e-3 and float(out[-1]) < 1e-3


def test_fades_longer_than_the_clip_share_it():
    out = faded(torch.ones(1, 100), 300, 100)[0]
    assert int(out.argmax()) in (74, 75) and out.shape == (100,)


def test_tail_and_level():
    out, done = finished(tone(before=0, after=0), RATE, Finish(tail=0.25, normalize="peak", target=-1.0))
    assert out.shape[-1] == 22050 + 11025 and not out[:, 22050:].any()
    assert math.isclose(20 * math.log10(float(true_peaks(out).max())), -1.0, abs_tol=0.05)
    assert set(done) == {"tail_s", "gain_db"} and math.isclose(done["gain_db"], 5.0, abs_tol=0.1)
