"""Durations in seconds, samples and latent frames; regions in seconds; splicing and extending audio."""

from .durations import PADDING_SECONDS, Lengths, decode_frames, keep_mask, lengths
from .regions import merge_regions
from .splicing import splice

__all__ = ["PADDING_SECONDS", "Lengths", "decode_frames", "keep_mask", "lengths", "merge_regions", "splice"]
