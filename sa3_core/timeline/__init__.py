"""Durations in seconds, samples and latent frames; regions in seconds; splicing and extending audio."""

from .durations import (
    PADDING_SECONDS,
    Lengths,
    batch_frames,
    check_padding,
    check_seconds,
    decode_frames,
    generate_mask,
    keep_mask,
    lengths,
    seconds_of,
)
from .regions import Region, merge_regions
from .splicing import splice

__all__ = [
    "PADDING_SECONDS",
    "Lengths",
    "Region",
    "batch_frames",
    "check_padding",
    "check_seconds",
    "decode_frames",
    "generate_mask",
    "keep_mask",
    "lengths",
    "merge_regions",
    "seconds_of",
    "splice",
]
