"""Warnings about decoded audio."""

import math

import pytest
import torch

from sa3_core.sampling.hints import audio_warnings, flatness, prompt_warnings

TONE = 0.5 * torch.sin(2 * math.pi * 220 * torch.arange(44100) / 44100).expand(1, 2, -1)
NOISE = 0.1 * torch.randn(1, 2, 44100, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("audio", "word"),
    [(TONE * 0, "silent"), (TONE * float("nan"), "NaN"), (TONE * 4, "full scale"), (NOISE, "white noise")],
)
def test_a_fault_gives_one_warning(audio, word):
    (warning,) = audio_warnings(audio)
    assert word in warning


def test_ordinary_audio_gives_no_warning():
    assert audio_warnings(TONE) == [] and audio_warnings(TONE + 0.05 * NOISE) == []


def test_items_are_named_in_a_batch():
    assert "Item 2" in audio_warnings(torch.cat((TONE, TONE * 0)))[0]


def test_flatness_of_noise_and_of_a_tone():
    assert flatness(NOISE[0]) > 0.8 > 0.1 > flatness(TONE[0])


def test_an_empty_prompt_gives_a_warning():
    mask = torch.tensor([[True, False], [False, False]])
    assert prompt_warnings(mask[:1]) == []
    assert [prompt_warnings(one)[0].split(":")[0] for one in (mask, mask[1:])] == ["A prompt is empty", "The prompt is empty"]
