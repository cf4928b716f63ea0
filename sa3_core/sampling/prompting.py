"""Prompts in the form of the models' training data (AudioSparx tags, then a description), and instructions for a language model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SA3Error

MAX_TOKENS = 256  # what the text encoder reads
BEATS_PER_BAR = 4


@dataclass(frozen=True)
class TrackType:
    tags: tuple[str, ...]  # how such items are labelled in the training data
    word: str  # said once in the description, where the label alone is not enough
    seconds: float  # when nothing is asked for
    instruction: str  # for a language model


TRACK_TYPES = {
    "music": TrackType(
        ("TrackType: Music", "VocalType: Instrumental"),
        "",
        60.0,
        "Describe one instrumental piece of music. Name the style, three to five instruments with how each is played and how it sounds, "
        "the feeling, how the arrangement moves from its beginning to its end, and the character of the recording. No singers, lyrics, "
        "artists or song titles.",
    ),
    "sound effect": TrackType(
        ("TrackType: SFX",),
        "",
        5.0,
        "Describe one sound event. Say exactly which object or machine sounds, of what material and size; what is done to it and how fast; "
        "how the sound begins, changes and dies away; how near the microphone is and what kind of room answers. No music, no story, "
        "nothing that cannot be heard.",
    ),
    "instrument loop": TrackType(
        ("TrackType: Instrument",),
        "loop",
        8.0,
        "Describe one instrument, or one kit, that plays a short figure meant to repeat. Say how it is played, the rhythm or the line, the "
        "tone, the effects on it and where it was recorded. The level and density stay even from the first beat to the last: no intro, "
        "no build-up, no ending. Nothing else plays.",
    ),
    "ambience": TrackType(
        ("TrackType: SFX",),
        "ambience",
        60.0,
        "Describe the steady background of one place. Say where it is, the hour and the weather; what is heard near, what far away; what "
        "goes on all the time and what comes by now and then; how wide and how reverberant it is. No foreground event, no melody, "
        "no speech that can be understood.",
    ),
}
FRAME = (
    "You write prompts for a model that turns text into sound. {task} The clip lasts {seconds:g} seconds; put no more into it than fits. "
    "Keep every fact of the draft below and invent what is missing. Begin with exactly these labels: {tags}. Go on in plain English, "
    "60 to 120 words, one paragraph. Answer with the prompt alone: no quotation marks, no list, no remark.\n\nDraft: {draft}"
)
LONGEST_ANSWER = 20_000  # characters that are looked at; 256 tokens are read in the end
FENCE = re.compile(r"^```[^\n]*\n(.*?)\n?```\s*$", re.S)
THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.S | re.I)
MARKS = re.compile(r"^[ \t]*(?:#{1,6}|[-*+>]|\d{1,3}[.)])[ \t]+", re.M)  # headings, bullets, quotations
LABEL = re.compile(r"^(?:(?:final|rewritten|improved)\s+)?prompt\s*:\s*", re.I)
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」", "`": "`"}


@dataclass(frozen=True)
class Written:
    prompt: str
    seconds: float
    instruction: str


def names(text: str) -> list[str]:
    """The parts of a list written with commas, semicolons or lines."""
    return [part.strip() for part in re.split(r"[,;\n、，；]", text) if part.strip()]


def loop_seconds(seconds: float, bpm: float) -> float:
    """The nearest length of whole 4/4 bars, one at least."""
    bar = BEATS_PER_BAR * 60 / bpm
    return max(1, round(seconds / bar)) * bar


def write(
    track_type: str,
    genre: str = "",
    instruments: str = "",
    mood: str = "",
    bpm: float = 0.0,
    key: str = "",
    seconds: float = 0.0,
    extra: str = "",
) -> Written:
    """A prompt, its duration in seconds (0 = usual for the type; loops get whole bars), and the instruction to have it rewritten.

    SA3Error for an unknown track type.
    """
    if track_type not in TRACK_TYPES:
        raise SA3Error(f"The track type is '{track_type}'; expected one of: {', '.join(TRACK_TYPES)}.")
    kind = TRACK_TYPES[track_type]
    length = seconds or kind.seconds
    if track_type == "instrument loop" and bpm:
        length = loop_seconds(length, bpm)
    labels = [f"Genre: {name}" for name in names(genre)]
    if names(instruments):
        labels.append(f"Instruments: {', '.join(names(instruments))}")
    facts = [*names(mood), kind.word, f"{bpm:g} BPM" if bpm else "", key.strip(), tidy(extra)]
    prompt = joined([*kind.tags, *labels, *facts])
    instruction = FRAME.format(task=kind.instruction, seconds=round(length, 2), tags=joined(kind.tags), draft=prompt)
    return Written(prompt, length, instruction)


def joined(parts: Sequence[str]) -> str:
    return ", ".join(part for part in parts if part)


def tidy(text: str) -> str:
    """One line, single spaces."""
    return " ".join(text.split())


def clean(text: str) -> str:
    """A language model's answer as a prompt: no thinking aloud, fences, quotation marks, markdown or label; one line."""
    text = THOUGHT.sub("", text[:LONGEST_ANSWER]).strip()
    fenced = FENCE.match(text)
    text = MARKS.sub("", fenced[1] if fenced else text)
    text = tidy(text.replace("**", "").replace("__", ""))
    while True:
        bare = LABEL.sub("", text).strip()
        if len(bare) > 1 and QUOTES.get(bare[0]) == bare[-1] and bare.count(bare[0]) <= 2:
            bare = bare[1:-1].strip()
        if bare == text:
            return text
        text = bare


def estimated_tokens(text: str) -> int:
    """About how many tokens a prompt has: 4 characters each in Latin script, one each elsewhere."""
    latin = sum(char.isascii() for char in text)
    return -(-latin // 4) + len(text) - latin
