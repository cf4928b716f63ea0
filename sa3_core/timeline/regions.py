"""Regions: pairs (start, end) in seconds, and their text form."""

import math
import re
from collections.abc import Sequence

from ..errors import SA3Error

Region = tuple[float, float]


def sample_span(region: Region, rate: int) -> tuple[int, int]:
    """Slice bounds of the samples wholly inside a region. A tolerance of 1/1000 sample absorbs decimal rounding."""
    return math.ceil(region[0] * rate - 1e-3), math.floor(region[1] * rate + 1e-3)


def check_pairs(regions) -> list[Region]:
    """Regions as floats. Raises SA3Error when the argument is not a sequence of (start, end)."""
    try:
        return [(float(start), float(end)) for start, end in regions]
    except (TypeError, ValueError) as error:
        raise SA3Error(f"The regions are {regions!r}; expected pairs (start, end) in seconds, for example [(1.5, 3)].") from error


def merge_regions(regions: Sequence[Region], duration: float | None = None) -> list[Region]:
    """Sorted regions in seconds with overlaps merged. Raises SA3Error for one outside [0, duration] or not ending after its start."""
    for start, end in regions:
        if not (math.isfinite(start) and math.isfinite(end)):
            raise SA3Error(f"The region {start}-{end} is not a pair of finite numbers of seconds.")
        if end <= start:
            raise SA3Error(f"The region {start:g}-{end:g} ends before it starts; expected start-end in seconds.")
        if start < 0 or (duration is not None and end > duration + 1e-9):
            limit = "" if duration is None else f" to {duration:g} s"
            raise SA3Error(f"The region {start:g}-{end:g} lies outside the clip; expected regions within 0{limit}.")
    merged: list[Region] = []
    for start, end in sorted(regions):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def parse_regions(text: str) -> list[Region]:
    """Regions from the nodes' text form: "1.5-3, 10-12.25" in seconds or "0:01.5-0:03", separated by commas, semicolons or new lines."""
    regions = []
    for word in region_words(text):
        try:
            start, end = (clock_seconds(part) for part in word.split("-"))
        except ValueError as error:
            raise SA3Error(
                f"The region '{word.strip()[:80]}' cannot be read; expected start-end in seconds, for example: 1.5-3, 10-12.25."
            ) from error
        regions.append((start, end))
    return regions


def region_words(text: str) -> list[str]:
    """The regions of a text, each as text."""
    return [word for word in re.split("[,;\n]", text.replace("–", "-")) if word.strip()]


def clock_seconds(text: str) -> float:
    """Seconds of a text "seconds", "minutes:seconds" or "hours:minutes:seconds"."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part.strip())
    return seconds


def format_regions(regions: Sequence[Region]) -> str:
    """The text form of regions, exact to the sample up to 192 kHz."""
    return ", ".join(f"{start:.9f}".rstrip("0").rstrip(".") + "-" + f"{end:.9f}".rstrip("0").rstrip(".") for start, end in regions)
