"""Durations in seconds, samples and latent frames, and masks of regions over frames."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.ambient import independent
from ..config import ModelConfig
from ..errors import SA3Error
from .regions import Region

MEDIUM_SECONDS = 380.0  # longest clip of the medium models
PADDING_SECONDS = 6.0  # hidden headroom after the clip, the public tools' default


@dataclass(frozen=True)
class Lengths:
    """Lengths of a batch, one entry per item.

    seconds, samples: requested duration. frames: T of the batch. own: T of the item in a batch of one. valid: frames that attention
    sees, headroom included; the rest is padding. effective: frames of the requested duration, which the schedule depends on.
    """

    seconds: tuple[float, ...]
    samples: tuple[int, ...]
    frames: int
    own: tuple[int, ...]
    valid: tuple[int, ...]
    effective: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seconds)

    def pick(self, items: Sequence[int]) -> "Lengths":
        """The lengths of some items, with the same T."""
        rows = ("seconds", "samples", "own", "valid", "effective")
        return replace(self, **{row: tuple(getattr(self, row)[i] for i in items) for row in rows})


def seconds_of(samples: int, rate: int) -> float:
    """A duration for which int(seconds * rate) == samples; `samples / rate` can be one sample short."""
    seconds = samples / rate
    return seconds if int(seconds * rate) == samples else math.nextafter(seconds, math.inf)


def check_seconds(seconds: Sequence[float], config: ModelConfig) -> None:
    for value in seconds:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise SA3Error(f"The duration is {str(value)[:80]}; expected a positive number of seconds.")
        if config.sample_size is not None and int(value * config.sample_rate) < 1:
            raise SA3Error(f"The duration is {value} s, shorter than one sample; expected at least {1 / config.sample_rate:.6f} s.")
        if config.sample_size is not None and value > config.max_seconds:
            raise SA3Error(
                f"The duration is {value:.2f} s; this model makes at most {config.max_seconds:.1f} s in one run. {longer(value, config)}"
            )


def longer(seconds: float, config: ModelConfig) -> str:
    """The ways to a duration beyond the longest clip of a model, as a sentence."""
    medium = ", use a medium model (up to 380 s)" if config.max_seconds < seconds <= MEDIUM_SECONDS else ""
    return f"Shorten it{medium}, or lengthen the result with SA3_Extend."


def check_padding(padding: float) -> None:
    if isinstance(padding, bool) or not isinstance(padding, (int, float)) or not 0 <= padding <= 86400:
        raise SA3Error(f"The padding is {padding} s; expected 0 or more.")


def lengths(config: ModelConfig, seconds: Sequence[float], padding: float = PADDING_SECONDS, frames: int | None = None) -> Lengths:
    """Lengths of items of `seconds`, each with `padding` seconds of headroom. frames: T of given latents; None computes it."""
    check_seconds(seconds, config)
    check_padding(padding)
    spf, rate = config.same.samples_per_frame, config.sample_rate
    own = [batch_frames(config, value, padding) for value in seconds]
    frames = max(own) if frames is None else frames
    own = tuple(min(n, frames) for n in own)
    samples = tuple(int(value * rate) for value in seconds)
    effective = tuple(-(-n // spf) for n in samples)
    for value, n in zip(seconds, effective, strict=True):
        if n > frames:
            raise SA3Error(
                f"The latents have {frames} frames ({frames * spf / rate:.2f} s), too few for {value:.2f} s; expected at least {n}. "
                "Sample an empty LATENT with SA3_Sampler, which fits it to the model."
            )
    headroom = int(padding * rate / spf)
    valid = tuple(min(n + headroom, limit) for n, limit in zip(effective, own, strict=True))
    return Lengths(tuple(seconds), samples, frames, own, valid, effective)


def batch_frames(config: ModelConfig, seconds: float, padding: float) -> int:
    """Latent frames of `seconds` plus headroom, rounded up to whole attention chunks, at most the model's sample_size."""
    spf = config.same.samples_per_frame
    frames = -(-int((seconds + padding) * config.sample_rate) // spf)
    frames = -(-frames // config.align) * config.align
    return frames if config.sample_size is None else min(frames, config.sample_size // spf)


def keep_mask(config: ModelConfig, regions: Sequence[Region], lengths: Lengths) -> Tensor:
    """Mask (B, 1, T): 1 = keep, 0 = generate (inside the regions and beyond each item's duration)."""
    return 1 - generate_mask(regions, lengths.samples, lengths.frames, config.same.samples_per_frame, config.sample_rate)


@independent
def generate_mask(regions: Sequence[Region], samples: Sequence[int], frames: int, samples_per_frame: int, rate: int) -> Tensor:
    """Mask (B, 1, frames): 1 = generate (inside the regions and beyond each item's `samples`), 0 = keep.

    Equals a mask at sample resolution, downsampled by nearest neighbour; a region that contains no frame's first sample marks the frame
    that it lies in.
    """
    at = torch.arange(frames) * samples_per_frame  # nearest neighbour takes the first sample of a frame
    mask = torch.zeros(len(samples), 1, frames, dtype=torch.float32)
    for start, end in regions:
        inside = (at >= int(start * rate)) & (at < int(end * rate))
        if not bool(inside.any()):
            inside = at == int(start * rate) // samples_per_frame * samples_per_frame
        mask[:, :, inside] = 1
    for item, end in enumerate(samples):
        mask[item, :, at >= end] = 1
    return mask


def valid_mask(valid: Sequence[int], frames: int) -> Tensor:
    """Mask (B, frames): True in the first valid[i] frames of item i."""
    return torch.arange(frames)[None] < torch.tensor(list(valid))[:, None]


def decode_frames(config: ModelConfig, lengths: Lengths, item: int) -> int:
    """Number of frames that an item's audio depends on: its duration and the decoder's receptive field after it."""
    frames = lengths.effective[item] + config.same.decoder.reach
    return min(lengths.own[item], -(-frames // config.align) * config.align)
