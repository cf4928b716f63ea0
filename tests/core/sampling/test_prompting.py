"""Prompts from their parts, and prompts from a language model's answers."""

import pytest

from sa3_core import SA3Error
from sa3_core.sampling import prompting


def test_music():
    written = prompting.write("music", "Funk, Jazz", "Guitar;Bass", "warm", 96, "A minor", 40, "a guitar solo\nin the middle")
    assert written.prompt == (
        "TrackType: Music, VocalType: Instrumental, Genre: Funk, Genre: Jazz, Instruments: Guitar, Bass, warm, 96 BPM, A minor, "
        "a guitar solo in the middle"
    )
    assert written.seconds == 40


@pytest.mark.parametrize(
    ("kind", "prompt", "seconds"),
    [
        ("music", "TrackType: Music, VocalType: Instrumental", 60),
        ("sound effect", "TrackType: SFX", 5),
        ("instrument loop", "TrackType: Instrument, loop", 8),
        ("ambience", "TrackType: SFX, ambience", 60),
    ],
)
def test_defaults_per_track_type(kind, prompt, seconds):
    written = prompting.write(kind)
    assert (written.prompt, written.seconds) == (prompt, seconds)


@pytest.mark.parametrize(("bpm", "seconds", "expected"), [(120, 8, 8), (120, 9.5, 10), (100, 0, 7.2), (60, 0.5, 4), (0, 9.5, 9.5)])
def test_loops_are_whole_bars(bpm, seconds, expected):
    assert prompting.write("instrument loop", bpm=bpm, seconds=seconds).seconds == pytest.approx(expected)


def test_instructions_differ_and_hold_the_draft():
    all_written = [prompting.write(kind, extra="a red kettle", seconds=7) for kind in prompting.TRACK_TYPES]
    assert len({written.instruction for written in all_written}) == 4
    for written in all_written:
        assert written.prompt in written.instruction and "7 seconds" in written.instruction


def test_unknown_type():
    with pytest.raises(SA3Error, match="expected one of: music"):
        prompting.write("podcast")


@pytest.mark.parametrize(
    "answer",
    [
        "Rain on a tin roof, 90 BPM",
        '  "Rain on a tin roof, 90 BPM"\n',
        "```text\nRain on a tin roof,\n90 BPM\n```",
        "**Prompt:** Rain on a tin roof, 90 BPM",
        "<think>They want rain. \nTin?</think>\n“Rain on a tin roof, 90 BPM”",
        "# Rewritten prompt:\n\nRain on a tin   roof, 90 BPM",
        "- 'Prompt: Rain on a tin roof, 90 BPM'",
    ],
)
def test_answers_become_prompts(answer):
    assert prompting.clean(answer) == "Rain on a tin roof, 90 BPM"


def test_inner_quotation_marks_are_kept():
    text = '"Thud" of a drawer, then a "click"'
    assert prompting.clean(text) == text
    assert prompting.clean(" \n") == ""


def test_token_estimate():
    assert prompting.estimated_tokens("a" * 400) == 100
    assert prompting.estimated_tokens("雨の音") == 3
