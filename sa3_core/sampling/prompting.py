"""Prompts in the format of the training data (AudioSparx tags, then a description), and instructions for a language model."""

import re
from dataclasses import dataclass

from ..errors import SA3Error

MAX_TOKENS = 256  # longest prompt
BEATS_PER_BAR = 4


@dataclass(frozen=True)
class TrackType:
    tags: tuple[str, ...]  # labels of the training data
    word: str  # added to the description where the tags alone are ambiguous
    seconds: float  # default duration
    instruction: str  # task for a language model


TRACK_TYPES = {
    "music": TrackType(
        ("TrackType: Music", "VocalType: Instrumental"), "", 60.0,
        "Describe one instrumental piece of music. Name the style, three to five instruments with how each is played and how it sounds, "
        "the feeling, how the arrangement moves from its beginning to its end, and the character of the recording. No singers, lyrics, "
        "artists or song titles.",
    ),
    "sound effect": TrackType(
        ("TrackType: SFX",), "", 5.0,
        "Describe one sound event. Say exactly which object or machine sounds, of what material and size; what is done to it and how fast; "
        "how the sound begins, changes and dies away; how near the microphone is and what kind of room answers. No music, no story, "
        "nothing that cannot be heard.",
    ),
    "instrument loop": TrackType(
        ("TrackType: Instrument",), "loop", 8.0,
        "Describe one instrument, or one kit, that plays a short figure meant to repeat. Say how it is played, the rhythm or the line, the "
        "tone, the effects on it and where it was recorded. The level and density stay even from the first beat to the last: no intro, "
        "no build-up, no ending. Nothing else plays.",
    ),
    "ambience": TrackType(
        ("TrackType: SFX",), "ambience", 60.0,
        "Describe the steady background of one place. Say where it is, the hour and the weather; what is heard near, what far away; what "
        "goes on all the time and what comes by now and then; how wide and how reverberant it is. No foreground event, no melody, "
        "no speech that can be understood.",
    ),
}  # fmt: skip
INSTRUCTION = (
    "You write prompts for a model that turns text into sound. {task} The clip lasts {seconds:g} seconds; put no more into it than fits. "
    "Keep every fact of the draft below and invent what is missing. Begin with exactly these labels: {tags}. Go on in plain English, "
    "60 to 120 words, one paragraph. Answer with the prompt alone: no quotation marks, no list, no remark.\n\nDraft: {draft}"
)
LONGEST_ANSWER = 20_000  # characters of a language model's answer that are parsed
FENCE = re.compile(r"^```[^\n]*\n(.*?)\n?```\s*$", re.S)
THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.S | re.I)
MARKS = re.compile(r"^[ \t]*(?:#{1,6}|[-*+>]|\d{1,3}[.)])[ \t]+", re.M)  # Markdown headings, bullets, quotations
LABEL = re.compile(r"^(?:(?:final|rewritten|improved)\s+)?prompt\s*:\s*", re.I)
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」", "`": "`"}


@dataclass(frozen=True)
class Written:
    prompt: str
    seconds: float
    instruction: str


def split_list(text: str) -> list[str]:
    """The parts of a text, separated by commas, semicolons or new lines."""
    return [part.strip() for part in re.split(r"[,;\n、，；]", text) if part.strip()]


def write(
    track_type: str, genre: str = "", instruments: str = "", mood: str = "", bpm: float = 0.0, key: str = "", seconds: float = 0.0,
    extra: str = "",
) -> Written:  # fmt: skip
    """A prompt, its duration, and an instruction for a language model to rewrite the prompt.

    track_type: a key of TRACK_TYPES. seconds: 0 = the type's default; a loop with a bpm is rounded to whole 4/4 bars.
    """
    if track_type not in TRACK_TYPES:
        raise SA3Error(f"The track type is '{track_type}'; expected one of: {', '.join(TRACK_TYPES)}.")
    kind = TRACK_TYPES[track_type]
    length = seconds or kind.seconds
    if track_type == "instrument loop" and bpm:
        bar = BEATS_PER_BAR * 60 / bpm
        length = max(1, round(length / bar)) * bar
    labels = [f"Genre: {name}" for name in split_list(genre)]
    if split_list(instruments):
        labels.append(f"Instruments: {', '.join(split_list(instruments))}")
    facts = [*split_list(mood), kind.word, f"{bpm:g} BPM" if bpm else "", key.strip(), single_line(extra)]
    prompt = ", ".join(filter(None, [*kind.tags, *labels, *facts]))
    instruction = INSTRUCTION.format(task=kind.instruction, seconds=round(length, 2), tags=", ".join(kind.tags), draft=prompt)
    return Written(prompt, length, instruction)


def single_line(text: str) -> str:
    """The text with every run of white space replaced by one space."""
    return " ".join(text.split())


def clean(text: str) -> str:
    """The prompt in a language model's answer: one line without reasoning, code fence, Markdown, label and enclosing quotation marks."""
    text = THOUGHT.sub("", text[:LONGEST_ANSWER]).strip()
    fenced = FENCE.match(text)
    text = MARKS.sub("", fenced[1] if fenced else text)
    text = single_line(text.replace("**", "").replace("__", ""))
    while True:
        bare = LABEL.sub("", text).strip()
        if len(bare) > 1 and QUOTES.get(bare[0]) == bare[-1] and bare.count(bare[0]) <= 2:
            bare = bare[1:-1].strip()
        if bare == text:
            return text
        text = bare


def estimated_tokens(text: str) -> int:
    """Approximate number of tokens: one per 4 ASCII characters, one per other character."""
    ascii_count = sum(char.isascii() for char in text)
    return -(-ascii_count // 4) + len(text) - ascii_count
