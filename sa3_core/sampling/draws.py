"""Gaussian noise of a run, and the seeds of its items."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import SA3Error
from ..timeline import Lengths

MAX_SEED = 2**64 - 1


class Draws:
    """The Gaussian draws of a run, computed on the CPU so that they are the same on every device.

    Item i has its own generator, seeded by (seed, index i), and draws at the length it would have alone: an item is the same in any
    batch. Item 0 uses torch's manual_seed(seed), the public reference's stream for a single item.
    """

    def __init__(self, seed: int, channels: int, lengths: Lengths, indices: Sequence[int] | None = None):
        check_seed(seed)
        self.channels, self.lengths = channels, lengths
        indices = range(len(lengths)) if indices is None else indices
        self.generators = [torch.Generator().manual_seed(item_seed(seed, index)) for index in indices]

    def __call__(self) -> Tensor:
        """The next draw, (B, C, T), float32; zeros beyond an item's own length."""
        out = torch.zeros(len(self.lengths), self.channels, self.lengths.frames, dtype=torch.float32)
        for i, (generator, own) in enumerate(zip(self.generators, self.lengths.own, strict=True)):
            out[i, :, :own] = torch.randn(1, self.channels, own, generator=generator, dtype=torch.float32)[0]
        return out


def check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise SA3Error(f"The seed is {seed}; expected a whole number from 0 to {MAX_SEED}.")


def item_seed(seed: int, index: int) -> int:
    """The seed of item `index` of a batch: the batch's own for item 0, a hash of both, of 32 bits, for the others.

    torch's CPU generator reads the low 32 bits of a seed, so more would not change a draw.
    """
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[4:8], "big")


def seed_alone(seed: int, index: int) -> int:
    """The seed with which item `index` has the same draws as a batch of one; below 2^53, so that JavaScript holds it exactly."""
    own = item_seed(seed, index)
    return own if own < 2**53 else own % 2**32
