"""Rotary position embeddings with the tables of `embeddings.rotary_table`."""

import torch
from torch import Tensor


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x (B, N, ..., D) in float32. Of the `dim` rotated channels, i is paired with i + dim / 2."""
    return apply_rotary(x, *(part.unflatten(0, (-1, *(1,) * (x.dim() - 3))) for part in table))  # (N, 1..., dim)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, start: Tensor | None = None) -> Tensor:
    """`rotate` with tables that broadcast over x, in their dtype. The result is added to `start`, if given."""
    dim, half = sin.shape[-1], sin.shape[-1] // 2
    out = x * cos if start is None else torch.addcmul(start, x, cos)
    out[..., :half].addcmul_(x[..., half:dim], sin[..., :half])
    out[..., half:dim].addcmul_(x[..., :half], sin[..., half:])
    return out


def scaled_tables(table: tuple[Tensor, Tensor], gains: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary tables (N, 2, 1, channels) that include the gains (2, D) of queries and keys: rotate(x * gain) in one pass."""
    cos, sin = table
    half = sin.shape[-1] // 2
    of_pair = torch.cat((gains[:, half : 2 * half], gains[:, :half]), dim=1)  # sin multiplies the paired channel
    return (cos[:, None] * gains)[:, :, None], (sin[:, None] * of_pair)[:, :, None]
