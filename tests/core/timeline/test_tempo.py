"""Positions and lengths in bars and beats: exact to the sample, in every notation."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from sa3_core.errors import SA3Error
from sa3_core.timeline.tempo import Tempo, key_name, midi_note, tempo_in


def test_bars_are_exact_at_any_tempo():
    rng = random.Random(1)
    for _ in range(10_000):
        bpm, beats, rate = rng.uniform(20, 400), rng.randrange(1, 4001), rng.choice((8000, 44100, 48000, 192000))
        exact = Fraction(beats) * 60 * rate / Fraction(bpm)
        assert abs(Tempo(bpm).samples(beats, rate) - exact) <= Fraction(1, 2)


def test_a_thousand_bars_do_not_drift():
    for bpm in (97.3, 122.0, 140.01, 173.9999):
        tempo = Tempo(bpm, 4, offset=0.125)
        starts = [tempo.position(4 * bar, 44100) for bar in range(1001)]
        exact = [Fraction(1, 8) * 44100 + Fraction(240 * bar) * 44100 / Fraction(bpm) for bar in range(1001)]
        assert all(abs(start - true) <= Fraction(1, 2) for start, true in zip(starts, exact, strict=True))


@pytest.mark.parametrize(("text", "beats"), [("8 bars", 32), ("1 bar", 4), ("2 bars 3 beats", 11), ("6 beats", 6), ("0.5 bars", 2)])
def test_lengths(text: str, beats: int):
    assert Tempo(120).beats(text) == beats


@pytest.mark.parametrize("text", ["", "8", "bars", "1:30", "eight bars", "8 bars and more"])
def test_other_texts_are_no_lengths_in_bars(text: str):
    assert Tempo(120).beats(text) is None


def test_positions_count_from_one():
    tempo = Tempo(120, beats_per_bar=3)
    assert [tempo.beat_at(text) for text in ("1", "1.1", "1.3", "2.1", "3.2.3")] == [0, 0, 2, 3, Fraction(15, 2)]


@pytest.mark.parametrize("text", ["0.1", "1.0", "1.4", "1.1.5", "x", "", "-1.1"])
def test_positions_outside_of_a_bar_are_refused(text: str):
    with pytest.raises(SA3Error, match=r"expected bar.beat, counted from 1, with at most 3 beats"):
        Tempo(120, beats_per_bar=3).beat_at(text)


def test_regions_in_bars_and_seconds():
    tempo = Tempo(120, offset=0.5)
    assert tempo.regions("3.1-5.1 bars, 1.5-3; bars 1-2\n1:00-1:01") == [(4.5, 8.5), (1.5, 3.0), (0.5, 2.5), (60.0, 61.0)]


@pytest.mark.parametrize(
    ("text", "bpm", "beats", "key"),
    [
        ("TrackType: Music, Genre: house, 122 BPM, A minor", 122, 4, "A minor"),
        ("waltz in F# major, 3/4, 90bpm", 90, 3, "F# major"),
        ("BPM: 97.5, Bb min", 97.5, 4, "A# minor"),
        ("a minor third at 80 bpm", 80, 4, ""),
    ],
)
def test_the_tempo_of_a_prompt(text: str, bpm: float, beats: int, key: str):
    assert tempo_in(text) == Tempo(bpm, beats, key)


@pytest.mark.parametrize("text", ["", "rain", "5000 BPM", "120 beats"])
def test_a_prompt_without_a_tempo(text: str):
    assert tempo_in(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [("Am", "A minor"), ("a moll", "A minor"), ("C", "C major"), ("Db", "C# major"), ("F sharp minor", "F# minor"), ("g♭ dur", "F# major")],
)
def test_key_names(text: str, name: str):
    assert key_name(text) == name


def test_root_notes():
    assert [midi_note(key) for key in ("", "C major", "A minor", "B major")] == [60, 60, 69, 71]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"bpm": 0}, "The tempo is 0 BPM"),
        ({"bpm": float("nan")}, "The tempo is nan BPM"),
        ({"bpm": "120"}, "The tempo is 120 BPM"),
        ({"bpm": 120, "beats_per_bar": 0}, "A bar has 0 beats"),
        ({"bpm": 120, "key": "H minor"}, "The key is 'H minor'"),
        ({"bpm": 120, "offset": float("inf")}, "The first downbeat is at inf s"),
    ],
)
def test_bad_values_are_refused(values: dict, sentence: str):
    with pytest.raises(SA3Error, match=sentence):
        Tempo(**values)
