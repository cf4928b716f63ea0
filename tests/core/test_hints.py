"""Doubts about a result: said when there is reason, silent otherwise."""

import math

import pytest
import torch

from sa3_core.sampling.hints import after, flatness

TONE = 0.5 * torch.sin(2 * math.pi * 220 * torch.arange(44100) / 44100).expand(1, 2, -1)
NOISE = 0.1 * torch.randn(1, 2, 44100, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("audio", "word"),
    [(TONE * 0, "silent"), (TONE * float("nan"), "NaN"), (TONE * 4, "full scale"), (NOISE, "white noise")],
)
def test_what_is_wrong_is_said_once(audio, word):
    (doubt,) = after(audio)
    assert word in doubt


def test_an_ordinary_sound_is_left_alone():
    assert after(TONE) == [] and after(TONE + 0.05 * NOISE) == []


def test_items_are_named_in_a_batch():
    assert "Item 2" in after(torch.cat((TONE, TONE * 0)))[0]


def test_flatness_tells_noise_from_tones():
    assert flatness(NOISE[0]) > 0.8 > 0.1 > flatness(TONE[0])
