"""Fourier features of scalars, and tables of rotary position embeddings."""

import math

import torch
from torch import Tensor

from ..backends.device import to_device

FOURIER_DIM, FOURIER_MIN, FOURIER_MAX = 256, 0.5, 10000.0
ROTARY_THETA = 10000.0


def expo_features(u: Tensor) -> Tensor:
    """Exponential Fourier features of scalars u (...,) -> (..., 256) in float32.

    Phases reach 63,000 rad: another order of multiplication, or float64 frequencies, changes the result by up to 5e-3.
    """
    ramp = torch.linspace(0, 1, FOURIER_DIM // 2, dtype=torch.float32)
    freqs = torch.exp(ramp * (math.log(FOURIER_MAX) - math.log(FOURIER_MIN)) + math.log(FOURIER_MIN)).to(u.device)
    args = u.float()[..., None] * freqs * 2 * math.pi
    return torch.cat((args.cos(), args.sin()), dim=-1)


def rotary_table(n: int, dim: int, head_dim: int, device) -> tuple[Tensor, Tensor]:
    """cos (n, head_dim) and sin (n, dim) of positions 0..n-1 for `rotary.rotate`, float32. Channels beyond `dim` are not rotated.

    Not read from checkpoints: the frequencies in 16-bit files are rounded.
    """
    inv_freq = 1.0 / ROTARY_THETA ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(n, dtype=torch.float32)[:, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    table = torch.cat((cos, cos, torch.ones(n, head_dim - dim, dtype=torch.float32)), dim=1), torch.cat((-sin, sin), dim=1)
    return tuple(to_device(part, device) for part in table)
