"""Attention, exact on every device: full, of items of different lengths, within a window, and the difference of two."""

import functools

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..backends.device import backend_of

WINDOW_BLOCK = 128  # queries per block; with a window of 17, a block reads 1.27 keys per query
WINDOW_BLOCKS_AT_ONCE = 64  # limits the gathered keys of a long sequence to some tens of MB


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, bias: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:  # fmt: skip
    """softmax(q k^T / sqrt(D)) v.

    q (B, H, N, D); k, v (B, H, M, D) -> (B, H, N, D). One of, or none: window, a query attends to keys at distance <= window (N = M);
    bias (B, M), added to the scores of each key; lengths (B,), an item attends to its first so many keys.
    """
    backend = backend_of(q.device)
    if lengths is not None:
        return backend.attend_lengths(q, k, v, lengths)
    if window is None or q.shape[2] <= window + 1:
        return backend.attend(q, k, v, None if bias is None else bias[:, None, None, :])
    if not torch.is_grad_enabled() and (kernel := backend.window_kernel(q.device, q.dtype)) is not None:
        return kernel(q, k, v, window)
    return _attend_window(q, k, v, window)


def attend_difference(q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
    """attend(q, k, v) - attend(q2, k2, v). Shapes and window as in `attend`."""
    if window is None and (difference := backend_of(q.device).attend_difference(q, k, q2, k2, v)) is not None:
        return difference
    return attend(q, k, v, window=window) - attend(q2, k2, v, window=window)


def _attend_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """`attend` by blocks of queries, each over its own keys and `window` more on both sides: memory N (block + 2 window)."""
    n, size, backend = q.shape[2], WINDOW_BLOCK, backend_of(q.device)
    band_of = _band.__wrapped__ if torch.compiler.is_compiling() else _band  # a traced tensor cannot be cached
    if n <= size + 2 * window:
        return backend.attend(q, k, v, band_of(0, 1, n, 0, n, window, q.device)[0])
    out = torch.empty_like(q)
    span = size * WINDOW_BLOCKS_AT_ONCE
    for start in range(0, n, span):
        stop = min(start + span, n)
        blocks = -(-(stop - start) // size)
        lo, hi = start - window, start + blocks * size + window
        k_blocks = _blocks(k, lo, hi, size + 2 * window, size)
        v_blocks = _blocks(v, lo, hi, size + 2 * window, size)
        q_blocks = _blocks(q, start, start + blocks * size, size, size)
        mask = band_of(start, blocks, size, window, n, window, q.device)
        mask = mask[None, :, None].expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1)
        o = rearrange(backend.attend(q_blocks, k_blocks, v_blocks, mask), "(b k) h n d -> b h (k n) d", k=blocks)
        out[:, :, start:stop] = o[:, :, : stop - start]
    return out


def _blocks(x: Tensor, lo: int, hi: int, size: int, step: int) -> Tensor:
    """Rows lo..hi of x (B, H, N, D), zero-padded, as overlapping blocks (B * blocks, H, size, D)."""
    n = x.shape[2]
    piece = F.pad(x[:, :, max(lo, 0) : min(hi, n)], (0, 0, max(-lo, 0), max(hi - n, 0)))
    return rearrange(piece.unfold(2, size, step), "b h k d n -> (b k) h n d")


@functools.lru_cache(maxsize=16)  # shared by all layers and chunks of a decode
def _band(start: int, blocks: int, size: int, halo: int, n: int, window: int, device: torch.device) -> Tensor:
    """Mask (blocks, size, size + 2 halo), True where the key is one of n and within `window` of the query.

    Block b has the `size` queries from start + b size on, and keys from `halo` before to `halo` after them. Queries beyond n see keys
    beyond n, so that no row of the softmax is empty.
    """
    with torch.inference_mode(False):  # training uses the cached mask too
        first = start + torch.arange(blocks, device=device)[:, None] * size
        rows, columns = first + torch.arange(size, device=device), first - halo + torch.arange(size + 2 * halo, device=device)
        near = (rows[..., :, None] - columns[..., None, :]).abs() <= window
        inside = ((columns >= 0) & (columns < n))[..., None, :]
        return near & (inside | (rows >= n)[..., :, None])
