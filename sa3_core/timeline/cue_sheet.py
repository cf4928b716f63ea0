"""A spotting list: rows `time; prompt; seconds; gain; pan; fade`, one sound each, for a film or a game."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from ..errors import SA3Error
from .regions import clock_seconds

COLUMNS = ("time", "prompt", "seconds", "gain", "pan", "fade")
USAGE = "; ".join(COLUMNS)
GAIN = (-100.0, 40.0)  # dB
LONGEST = 86400.0  # seconds
TIMECODE = re.compile(r"(\d+):(\d{1,2}):(\d{1,2})[:;](\d{1,3})")  # hours:minutes:seconds:frames
CLOCK = re.compile(r"(?:(?:\d+:)?\d+:)?\d+(?:\.\d+)?")
FRAMES = re.compile(r"(\d+)\s*f(?:rames?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Cue:
    """start, seconds: place on the time line. gain: dB. pan: -1 left to 1 right. fade_in, fade_out: seconds."""

    start: float
    prompt: str
    seconds: float
    gain: float = 0.0
    pan: float = 0.0
    fade_in: float = 0.0
    fade_out: float = 0.0


def read_cues(text: str, fps: float = 25.0, seconds: float = 3.0) -> list[Cue]:
    """The cues of a text, in its order. Empty lines and lines after # are skipped; columns after the prompt may be left out.

    Times: seconds, mm:ss.mmm, hh:mm:ss.mmm, frames ("48f") or timecode hh:mm:ss:ff at `fps`. seconds: the duration where none is given.
    fade: "0.1", or "0.1/0.5" for in and out. Raises SA3Error with the number of the row.
    """
    cues = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        columns = [part.strip() for part in line.split(";")]
        if [part.lower() for part in columns[:2]] == ["time", "prompt"]:
            continue  # a header
        try:
            cues.append(_cue(columns, fps, seconds))
        except ValueError as error:
            raise SA3Error(f"Row {number} of the cue sheet, '{line.strip()[:80]}': {error}") from error
    if not cues:
        raise SA3Error(f"The cue sheet has no rows; expected lines of the form {USAGE}, for example: 0:02.5; a door slams; 2.")
    return cues


def parse_time(text: str, fps: float = 25.0) -> float:
    """Seconds of a time; see `read_cues`. Raises ValueError."""
    if found := FRAMES.fullmatch(text):
        return float(Fraction(int(found[1])) / Fraction(fps))
    if found := TIMECODE.fullmatch(text):
        hours, minutes, whole, frames = map(int, found.groups())
        if frames >= fps:
            raise ValueError(f"frame {frames} does not exist at {fps:g} frames per second")
        # drop-frame rates count whole numbers of frames per second of timecode
        return float((Fraction((hours * 60 + minutes) * 60 + whole) * math.ceil(fps) + frames) / Fraction(fps))
    if CLOCK.fullmatch(text):
        return clock_seconds(text)
    raise ValueError(f"the time '{text[:40]}' cannot be read; expected seconds, mm:ss.mmm, 48f or hh:mm:ss:ff")


def _cue(columns: list[str], fps: float, seconds: float) -> Cue:
    if len(columns) < 2 or not columns[1]:
        raise ValueError(f"expected {USAGE}, at least time and prompt")
    if len(columns) > len(COLUMNS):
        raise ValueError(f"it has {len(columns)} columns; expected at most {len(COLUMNS)}: {USAGE}")
    time, prompt, *rest = columns
    values = dict(zip(COLUMNS[2:], rest, strict=False))
    length = parse_time(values["seconds"], fps) if values.get("seconds") else seconds
    if not 0 < length <= LONGEST:
        raise ValueError(f"the duration is {length:g} s; expected more than 0 and at most {LONGEST:g}")
    fades = [_number("fade", part, 0.0, LONGEST) for part in values.get("fade", "").split("/")]
    if len(fades) > 2:
        raise ValueError("fade has more than two parts; expected in/out, for example 0.1/0.5")
    gain, pan = _number("gain", values.get("gain", ""), *GAIN), _number("pan", values.get("pan", ""), -1.0, 1.0)
    return Cue(parse_time(time, fps), prompt, length, gain, pan, fades[0], fades[-1])


def _number(name: str, text: str, low: float, high: float) -> float:
    text = re.sub(r"\s*(db|s)$", "", text.strip(), flags=re.IGNORECASE) or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(f"{name} is '{text[:40]}'; expected a number from {low:g} to {high:g}")
    return value
