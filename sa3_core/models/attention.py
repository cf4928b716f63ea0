"""The one attention of the project, ``attend(q, k, v, *, window=None, key_mask=None)``, exact on every device; differences of two."""

import functools
import inspect
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_BLOCK = 128  # queries per block; with a halo of 17 a block reads 1.27 keys for every query
WINDOW_BLOCKS_AT_ONCE = 64  # keeps the gathered keys of a long sequence to some tens of MB
# Devices on which torch's attention takes views for contiguous tensors (pytorch issues 163597, 181133), and rounds the softmax of long
# rows to 16 bits (190791). It also keeps all scores there, so queries go in parts.
CAREFUL = frozenset({"mps"})
CAREFUL_QUERIES = 1024
SCORES_AT_ONCE = 2**28  # bytes
SHORT = 40  # queries and keys; SAME-S has 34, whose scores a CPU is a little faster to write down


def attend(q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    q (B, H, N, D); k, v (B, H, M, D). `window`: a query sees only keys at distance <= window (N = M).
    `key_mask` (B, M), True = visible: hidden keys leave the softmax altogether; without a window also float32, added to the scores of
    each key. Returns (B, H, N, D).
    """
    if window is not None and q.shape[2] > window + 1:
        if key_mask is None and not torch.is_grad_enabled() and (kernel := _window_kernel(q.device, q.dtype)) is not None:
            return kernel(q, k, v, window)
        return _attend_window(q, k, v, window, key_mask)
    return _dense(q, k, v, None if key_mask is None else key_mask[:, None, None, :])


def attend_difference(q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
    """attend(q, k, v) - attend(q2, k2, v), the differential attention of SAME; the transformer has more tokens than are `SHORT`.

    Shapes and window as there.
    """
    if q.device.type == "cpu" and q.dtype == torch.float32 and window is None and max(q.shape[2], k.shape[2]) <= SHORT:
        return (_weights(q, k) - _weights(q2, k2)) @ v
    return attend(q, k, v, window=window) - attend(q2, k2, v, window=window)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    q = q.contiguous() * q.shape[-1] ** -0.5
    return (q @ k.contiguous().transpose(-2, -1)).softmax(-1)


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """mask: its last two axes are queries, or 1 for all of them, and keys."""
    careful = q.device.type in CAREFUL
    rows = CAREFUL_QUERIES if careful else _queries_at_once(q, k, v, mask)
    if rows >= q.shape[2] and not careful:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    dtype = q.dtype
    if careful:
        q, k, v = (part.float().contiguous() for part in (q, k, v))
    parts = []
    for start in range(0, q.shape[2], rows):
        some = slice(start, start + rows)
        seen = mask if mask is None or mask.shape[-2] == 1 else mask[..., some, :]
        parts.append(F.scaled_dot_product_attention(q[:, :, some].contiguous() if careful else q[:, :, some], k, v, attn_mask=seen))
    return torch.cat(parts, dim=2).to(dtype)


def _queries_at_once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> int:
    """As many as there are, or fewer where torch would hold the scores of all queries at once: on devices without a fused kernel."""
    scores = q.shape[0] * q.shape[1] * k.shape[2] * 4  # bytes for one query
    if q.device.type == "cpu" or q.shape[2] * scores <= SCORES_AT_ONCE or torch.compiler.is_compiling():
        return q.shape[2]
    return q.shape[2] if _is_fused(q, k, v, mask) else max(1, SCORES_AT_ONCE // scores)


def _is_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether torch has a kernel for these that never holds all scores."""
    cuda = torch.backends.cuda
    if q.device.type != "cuda":
        return False
    asked = cuda.SDPAParams(q, k, v, mask, 0.0, False, False)
    return cuda.can_use_flash_attention(asked) or cuda.can_use_efficient_attention(asked)


@functools.lru_cache(maxsize=16)
def _window_kernel(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor, int], Tensor] | None:
    """A fused kernel for windows, where this machine has one: torch's own, else that of the package flash-attn. None: exact blocks."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or torch.version.hip is not None:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    return next((kernel for kernel in map(windowed, (_torchs_varlen(), _flash_attns_varlen())) if kernel is not None), None)


def _torchs_varlen() -> Callable | None:
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        if "window_size" in inspect.signature(varlen_attn).parameters:
            return varlen_attn
    return None


def _flash_attns_varlen() -> Callable | None:
    with suppress(ImportError, OSError):
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func
    return None


def windowed(varlen: Callable | None) -> Callable[[Tensor, Tensor, Tensor, int], Tensor] | None:
    """attend(q, k, v, window) by a kernel for packed sequences: varlen(q, k, v, ends, ends, longest, longest, window_size=)."""
    if varlen is None:
        return None

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        batch, _, n, _ = q.shape
        ends = _ends(batch, n, q.device)
        packed = (part.transpose(1, 2).flatten(0, 1) for part in (q, k, v))  # (B N, H, D)
        out = varlen(*packed, ends, ends, n, n, window_size=(window, window))
        return out.unflatten(0, (batch, n)).transpose(1, 2)

    return attend


@functools.lru_cache(maxsize=16)
def _ends(batch: int, n: int, device: torch.device) -> Tensor:
    """Where each of `batch` sequences of n tokens begins, and the last one ends."""
    with torch.inference_mode(False):
        return torch.arange(0, (batch + 1) * n, n, dtype=torch.int32, device=device)


def _attend_window(q: Tensor, k: Tensor, v: Tensor, window: int, key_mask: Tensor | None) -> Tensor:
    """Blocks of queries against their own keys plus a halo of `window` on each side: N (block + 2 window), never N x N."""
    n, size = q.shape[2], WINDOW_BLOCK
    band_of = _band.__wrapped__ if torch.compiler.is_compiling() else _band  # what a compiler traces is no tensor to keep
    if n <= size + 2 * window:
        band = band_of(0, 1, n, 0, n, window, q.device)[0]
        band = band if key_mask is None else band & key_mask[:, None, None, :]
        return _dense(q, k, v, band)
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
        if key_mask is not None:
            seen = _blocks(key_mask[:, None, :, None].to(q.dtype), lo, hi, size + 2 * window, size) > 0
            mask = mask & seen.transpose(2, 3)
        o = _dense(q_blocks, k_blocks, v_blocks, mask)
        o = o.unflatten(0, (q.shape[0], blocks)).transpose(1, 2).flatten(2, 3)  # (B, H, blocks * size, D)
        out[:, :, start:stop] = o[:, :, : stop - start]
    return out


def _blocks(x: Tensor, lo: int, hi: int, size: int, step: int) -> Tensor:
    """Rows lo..hi of x (B, H, N, D), zeros outside, as overlapping blocks (B * blocks, H, size, D)."""
    n = x.shape[2]
    piece = F.pad(x[:, :, max(lo, 0) : min(hi, n)], (0, 0, max(-lo, 0), max(hi - n, 0)))
    return piece.unfold(2, size, step).permute(0, 2, 1, 4, 3).flatten(0, 1)


@functools.lru_cache(maxsize=16)  # all layers and chunks of a decode ask for the same ones
def _band(start: int, blocks: int, size: int, halo: int, n: int, window: int, device: torch.device) -> Tensor:
    """(blocks, size, size + 2 halo), True where a key exists and lies within `window` of the query, of n.

    Block b has the `size` queries from start + b size on, and keys from `halo` before to `halo` behind them. A row past the end keeps its
    own diagonal.
    """
    with torch.inference_mode(False):  # for training as well
        first = start + torch.arange(blocks, device=device)[:, None] * size
        rows, columns = first + torch.arange(size, device=device), first - halo + torch.arange(size + 2 * halo, device=device)
        near = (rows[..., :, None] - columns[..., None, :]).abs() <= window
        inside = ((columns >= 0) & (columns < n))[..., None, :]
        return near & (inside | (rows >= n)[..., :, None])
