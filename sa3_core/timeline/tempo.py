"""Tempo: positions and lengths in bars and beats, exact to the sample, from numbers, from a prompt or from a recording."""

import re
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from ..audio.wav_chunks import Studio
from ..errors import SA3Error
from .key import NAMES, find_key
from .regions import Region, parse_regions, region_words
from .rhythm import find_beat

LIMITS = (10.0, 1000.0)  # beats per minute
SURE = 0.6  # confidence from which on a detected tempo or key is reported
FLATS = {"DB": "C#", "EB": "D#", "GB": "F#", "AB": "G#", "BB": "A#", "CB": "B", "FB": "E", "E#": "F", "B#": "C"}
BPM_IN_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*-?\s*bpm\b|\bbpm\s*[:=]?\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
SIGN, MODE = r"\s?(#|♯|b|♭|(?i:[- ]?sharp|[- ]?flat))?\s?-?", "(?i:major|minor|maj|min|dur|moll)"
KEY_IN_TEXT = re.compile(rf"\b([A-G]){SIGN}{MODE}\b")  # not "a minor third"
KEY = re.compile(rf"([A-Ga-g]){SIGN}({MODE}|m)?")
METER_IN_TEXT = re.compile(r"\b(\d{1,2})/(?:2|4|8)\b")
LENGTH = re.compile(r"\s*(?:(\d+(?:\.\d+)?)\s*bars?)?\s*(?:(\d+(?:\.\d+)?)\s*beats?)?\s*", re.IGNORECASE)
IN_BARS = re.compile(r"\s*(?:bars?\s+([\d.]+)\s*-\s*([\d.]+)|([\d.]+)\s*-\s*([\d.]+)\s*bars?)\s*", re.IGNORECASE)
POSITION = re.compile(r"(\d+)(?:\.(\d+)(?:\.(\d+))?)?")
TICKS = 4  # sixteenths of a quarter note: the third number of a position


@dataclass(frozen=True)
class Tempo:
    """bpm: beats per minute. offset: seconds of the first downbeat. key: "A minor", or "" if unknown."""

    bpm: float
    beats_per_bar: int = 4
    key: str = ""
    offset: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.bpm, bool) or not isinstance(self.bpm, (int, float)) or not LIMITS[0] <= self.bpm <= LIMITS[1]:
            raise SA3Error(f"The tempo is {str(self.bpm)[:80]} BPM; expected {LIMITS[0]:g} to {LIMITS[1]:g} beats per minute.")
        if isinstance(self.beats_per_bar, bool) or not isinstance(self.beats_per_bar, int) or not 1 <= self.beats_per_bar <= 32:
            raise SA3Error(f"A bar has {str(self.beats_per_bar)[:80]} beats; expected a whole number from 1 to 32.")
        if not isinstance(self.offset, (int, float)) or not -86400 <= self.offset <= 86400:
            raise SA3Error(f"The first downbeat is at {str(self.offset)[:80]} s; expected a number of seconds.")
        object.__setattr__(self, "key", key_name(self.key))

    def samples(self, beats: float | Fraction, rate: int) -> int:
        """The length of `beats` in samples, rounded once: bars add up without drift."""
        return round(self._seconds(beats) * rate)

    def position(self, beats: float | Fraction, rate: int) -> int:
        """The sample at which a beat starts; beat 0 is the first downbeat."""
        return round((Fraction(self.offset) + self._seconds(beats)) * rate)

    def seconds(self, beats: float | Fraction) -> float:
        """The length of `beats` in seconds."""
        return float(self._seconds(beats))

    def _seconds(self, beats: float | Fraction) -> Fraction:
        return Fraction(beats) * 60 / Fraction(self.bpm)

    def beats(self, text: str) -> Fraction | None:
        """The length of a text "8 bars", "2 bars 3 beats" or "6 beats" in beats; None if it is no such text."""
        found = LENGTH.fullmatch(text)
        if found is None or not any(found.groups()):
            return None
        bars, beats = (Fraction(part or 0) for part in found.groups())
        return bars * self.beats_per_bar + beats

    def beat_at(self, text: str) -> Fraction:
        """The beat of a position "bar", "bar.beat" or "bar.beat.sixteenth", each counted from 1; "3.1" is beat 8 of 4/4."""
        found = POSITION.fullmatch(text.strip())
        bar, beat, tick = (int(part or 1) for part in found.groups()) if found else (0, 0, 0)
        if bar < 1 or not 1 <= beat <= self.beats_per_bar or not 1 <= tick <= TICKS:
            raise SA3Error(
                f"The position '{text.strip()[:80]}' is not in the bars; expected bar.beat, counted from 1, with at most "
                f"{self.beats_per_bar} beats, for example 3.1."
            )
        return Fraction((bar - 1) * self.beats_per_bar + beat - 1) + Fraction(tick - 1, TICKS)

    def regions(self, text: str) -> list[Region]:
        """Regions in seconds of a text in which "3.1-5.1 bars" and seconds may be mixed."""
        found = []
        for word in region_words(text):
            bars = IN_BARS.fullmatch(word)
            if bars is None:
                found += parse_regions(word)
            else:
                edges = (self.beat_at(part) for part in bars.groups() if part)
                found.append(tuple(self.offset + self.seconds(beat) for beat in edges))
        return found

    def __str__(self) -> str:
        start = f"first downbeat at {self.offset:.3f} s" if self.offset else ""
        parts = [f"{self.bpm:.6g} BPM", f"{self.beats_per_bar}/4", self.key, start]
        return ", ".join(filter(None, parts))


def key_name(text: str) -> str:
    """A key as "A minor" or "C# major", from texts such as "Am", "a moll", "Db" or "F sharp minor"; "" of an empty text."""
    if not isinstance(text, str) or not text.strip():
        return ""
    found = KEY.fullmatch(text.strip())
    if found is None:
        raise SA3Error(f"The key is '{text.strip()[:80]}'; expected a note and major or minor, for example: A minor, F# major.")
    note, sign, mode = found.groups()
    sign = (sign or "").strip(" -").lower()
    note = note.upper() + ("#" if sign in ("#", "♯", "sharp") else "B" if sign else "")
    mode = "minor" if mode and (mode == "m" or mode.lower() in ("minor", "min", "moll")) else "major"
    return f"{FLATS.get(note, note)} {mode}"


def tempo_in(text: str, beats_per_bar: int = 4) -> Tempo | None:
    """The tempo that a prompt names ("122 BPM, A minor, 3/4"); None without one. beats_per_bar: where it names no meter."""
    found = BPM_IN_TEXT.search(text)
    bpm = float(found[1] or found[2]) if found else 0.0
    if not LIMITS[0] <= bpm <= LIMITS[1]:
        return None
    key, meter = KEY_IN_TEXT.search(text), METER_IN_TEXT.search(text)
    beats = int(meter[1]) if meter and 1 <= int(meter[1]) <= 32 else beats_per_bar
    return Tempo(bpm, beats, key_name(key[0]) if key else "")


@dataclass(frozen=True)
class Detected:
    """tempo: None where the recording does not show one. confidence of tempo and key: 0 to 1. bpm: the best guess, sure or not."""

    tempo: Tempo | None
    confidence: float
    bpm: float | None
    key_confidence: float


def detect(clip: Tensor, rate: int, beats_per_bar: int = 4) -> Detected:
    """The tempo, first beat and key of a recording (C, N); what is not clear is left out instead of guessed."""
    beat, key = find_beat(clip, rate), find_key(clip, rate)
    name, key_confidence = key or ("", 0.0)
    if beat is None:
        return Detected(None, 0.0, None, key_confidence)
    known = name if key_confidence >= SURE else ""
    tempo = Tempo(round(beat.bpm, 3), beats_per_bar, known, beat.first) if beat.confidence >= SURE else None
    return Detected(tempo, beat.confidence, beat.bpm, key_confidence)


def studio_of(tempo: Tempo, samples: int, rate: int, title: str = "") -> Studio:
    """What samplers and DAWs read from a clip of this tempo: a loop over all of it if it is a whole number of beats, within a sample."""
    beats = round(samples * tempo.bpm / (60 * rate))
    loop = (0, samples) if beats and abs(tempo.samples(beats, rate) - samples) <= 1 else None
    root = midi_note(tempo.key) if tempo.key else None
    return Studio(title, tempo.bpm, max(1, beats), tempo.beats_per_bar, tempo.key, root, loop)


def midi_note(key: str) -> int:
    """The MIDI note of a key's tonic in the octave of middle C, 60 to 71; 60 for an unknown key."""
    return 60 + (NAMES.index(key.split()[0]) if key else 0)
