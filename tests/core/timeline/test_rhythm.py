"""Tempo, first beat and key of generated recordings, 60 to 200 beats per minute: right, or reported as uncertain."""

from __future__ import annotations

import os
import random

import pytest
import rhythm_support as sounds
import torch
from rhythm_support import RATE
from torch import Tensor

from sa3_core.audio.waveform import resample
from sa3_core.errors import SA3Error
from sa3_core.timeline.key import NAMES, find_key
from sa3_core.timeline.rhythm import find_beat
from sa3_core.timeline.tempo import SURE, detect

CASES = 400 if os.environ.get("SA3_LONG") else 60


def recording(rng: random.Random) -> tuple[float, float, Tensor]:
    """(beats per minute, seconds of the first beat, samples)."""
    bpm, seconds, first, seed = rng.uniform(60, 200), rng.choice((8, 12)), rng.uniform(0, 0.3), rng.randrange(1 << 30)
    kind = rng.choice(("clicks", "melody", *sounds.PATTERNS))
    if kind == "clicks":
        return bpm, first, sounds.clicks(bpm, seconds, first)
    if kind == "melody":
        return bpm, first, sounds.melody(bpm, seconds, first, seed)
    return bpm, first, sounds.drums(bpm, seconds, first, kind, rng.choice((0.0, 0.5, 1.0)), rng.choice((0.0, 0.01, 0.05)), seed)


def test_tempi_and_first_beats_of_many_recordings():
    rng, wrong, unsure, late = random.Random(30), 0, 0, 0
    for _ in range(CASES):
        bpm, first, clip = recording(rng)
        beat, period = find_beat(clip[None], RATE), 60 / bpm
        if beat.confidence < SURE:
            unsure += 1
        elif abs(beat.bpm / bpm - 1) > 0.01:
            wrong += 1
        else:
            late += abs((beat.first - first + period / 2) % period - period / 2) > 0.02
    assert wrong <= 0.02 * CASES and late <= 0.05 * CASES and unsure <= 0.1 * CASES, (wrong, late, unsure)


@pytest.mark.parametrize("bpm", [60.0, 97.3, 128.0, 174.0, 200.0])
def test_a_tempo_is_exact_to_a_thousandth(bpm: float):
    beat = find_beat(sounds.clicks(bpm, 20.0, 0.1)[None], RATE)
    assert abs(beat.bpm / bpm - 1) < 1e-3 and beat.confidence > 0.9


def uneven(rng: random.Random, seconds: float = 12.0) -> Tensor:
    clip, at = torch.zeros(int(seconds * RATE)), 0.0
    while at < seconds:
        sounds.add(clip, sounds.kick(), at)
        at += rng.uniform(0.2, 0.9)
    return clip


WITHOUT_BEAT = {
    "noise": lambda: 0.1 * torch.randn(12 * RATE, generator=torch.Generator().manual_seed(0)),
    "tone": lambda: torch.sin(torch.arange(12 * RATE) * 0.03),
    "one hit": lambda: torch.nn.functional.pad(sounds.kick(), (0, 8 * RATE)),
    "uneven hits": lambda: uneven(random.Random(1)),
    "slower and slower": lambda: torch.cat([torch.nn.functional.pad(sounds.kick(), (0, round(9000 * 1.04**i))) for i in range(25)]),
}


@pytest.mark.parametrize("name", WITHOUT_BEAT)
def test_no_tempo_is_reported_where_there_is_none(name: str):
    found = detect(WITHOUT_BEAT[name]()[None], RATE)
    assert found.tempo is None and found.confidence < SURE


@pytest.mark.parametrize("seconds", [0.1, 2.9])
def test_short_or_silent_recordings_have_neither(seconds: float):
    assert find_beat(sounds.clicks(120.0, seconds, 0.0)[None], RATE) is None
    assert find_beat(torch.zeros(1, 10 * RATE), RATE) is None and find_key(torch.zeros(1, 10 * RATE), RATE) is None


def test_another_rate_and_more_channels_find_the_same():
    clip = sounds.drums(110.0, 10.0, 0.2, "rock")
    beats = [find_beat(clip[None], RATE), find_beat(clip.repeat(2, 1), RATE), find_beat(resample(clip[None], RATE, 22050), 22050)]
    assert all(abs(beat.bpm - 110) < 0.2 and abs(beat.first % (60 / 110) - 0.2) < 0.02 for beat in beats)


def test_bad_input_is_refused():
    with pytest.raises(SA3Error, match="NaN"):
        find_beat(torch.full((1, RATE * 5), torch.nan), RATE)


@pytest.mark.parametrize("minor", [False, True])
def test_keys(minor: bool):
    for tonic in range(12):
        name, confidence = find_key(sounds.song(tonic, minor, seed=tonic)[None], RATE)
        assert name == f"{NAMES[tonic]} {'minor' if minor else 'major'}" or confidence < SURE


def test_no_key_is_reported_for_noise_and_for_a_single_tone():
    noise = torch.randn(1, 10 * RATE, generator=torch.Generator().manual_seed(0))
    assert find_key(noise, RATE) is None and find_key(torch.sin(torch.arange(10 * RATE) * 0.05)[None], RATE) is None
