"""Norms, rotations and gates as Triton kernels: one pass over memory each. Computed in float32, rounded once. Needs the package triton."""

from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from torch import Tensor

ROW_BLOCK = 2048  # values per program


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit(do_not_specialize=["rows", "rows_per_item"])  # else another duration may compile again
def _rows_kernel(
    x, out, gain, shift, alpha, eps, rows, rows_per_item,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, GAIN_STEP: tl.constexpr, SHIFT_STEP: tl.constexpr,
    TANH: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """out = unit(x) * gain + shift, of rows of WIDTH values; unit(x) is x / rms(x) or tanh(alpha x). GAIN_STEP, SHIFT_STEP: values
    from one item's gain or shift to the next item's; 0 = shared."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None]
    inside = (row < rows) & (column < WIDTH)
    item = row // rows_per_item
    value = tl.load(x + row * WIDTH + column, inside, 0.0).to(tl.float32)
    if TANH:
        value = _tanh(value * tl.load(alpha).to(tl.float32))
    else:
        value *= tl.rsqrt(tl.sum(value * value, 1, keep_dims=True) / WIDTH + eps)
    value *= tl.load(gain + item * GAIN_STEP + column, inside, 0.0).to(tl.float32)
    if SHIFTED:
        value += tl.load(shift + item * SHIFT_STEP + column, inside, 0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, value.to(out.dtype.element_ty), inside)


@triton.jit
def _either(first, a, b, index, exists):
    """Values of a where `first`, else of b."""
    return tl.where(first, tl.load(a + index, exists, 0.0).to(tl.float32), tl.load(b + index, exists, 0.0).to(tl.float32))


@triton.jit(do_not_specialize=["rows", "tokens", "item_rows"])
def _heads_kernel(
    x, out, gain_q, gain_k, shift_q, shift_k, alpha_q, alpha_k, cos, sin, eps, rows, tokens, item_rows,
    HEADS: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, ROTATED: tl.constexpr,
    ROWS: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """Queries and keys, normed and rotated. x: STEP values per token, which are q, k, v and, if PARTS is 4, q2 and k2."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, COLUMNS)[None]
    exists = channel < DIM
    inside = (row < rows) & exists
    head, part, token = row % HEADS, (row // HEADS) % PARTS, (row // (HEADS * PARTS)) % tokens
    item = row // (HEADS * PARTS * tokens)
    start = x + (item * item_rows + token) * STEP + ((part + part // 2) * HEADS + head) * DIM  # values come after q and k
    half: tl.constexpr = ROTATED // 2
    pair = tl.where(channel < half, channel + half, tl.where(channel < ROTATED, channel - half, channel))
    value = tl.load(start + channel, inside, 0.0).to(tl.float32)
    other = tl.load(start + pair, inside, 0.0).to(tl.float32)
    is_key = part % 2 == 1
    if TANH:
        alpha = tl.where(is_key, tl.load(alpha_k).to(tl.float32), tl.load(alpha_q).to(tl.float32))
        value, other = _tanh(value * alpha), _tanh(other * alpha)
    else:
        scale = tl.rsqrt(tl.sum(value * value, 1, keep_dims=True) / DIM + eps)
        value, other = value * scale, other * scale
    value *= _either(is_key, gain_k, gain_q, channel, exists)
    other *= _either(is_key, gain_k, gain_q, pair, exists)
    if TANH:
        value += _either(is_key, shift_k, shift_q, channel, exists)
        other += _either(is_key, shift_k, shift_q, pair, exists)
    value *= tl.load(cos + token * DIM + channel, inside, 0.0)
    value += other * tl.load(sin + token * ROTATED + channel, inside & (channel < ROTATED), 0.0)
    tl.store(out + row * DIM + channel, value.to(out.dtype.element_ty), inside)


@triton.jit
def _gate_kernel(x, out, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, SINE: tl.constexpr):
    """out (rows, WIDTH) = value * gate(g) of x (rows, 2 WIDTH): value, g."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    value = tl.load(x + row * 2 * WIDTH + column, inside, 0.0).to(tl.float32)
    g = tl.load(x + row * 2 * WIDTH + WIDTH + column, inside, 0.0).to(tl.float32)
    if SINE:
        gate = tl.sin(3.141592653589793 * (g - 2 * tl.floor(0.5 * g + 0.5)))  # an argument of at most pi, where fast sines are accurate
    else:
        gate = g * tl.sigmoid(g)
    tl.store(out + row * WIDTH + column, (value * gate).to(out.dtype.element_ty), inside)


def rms_norm(x: Tensor, gain: Tensor, shift: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * gain + shift over the last axis. gain, shift: (width,), or (B, 1, width) for x (B, N, width)."""
    return _rows(x, gain, shift, x.dtype, eps=eps)


def dynamic_tanh(x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> Tensor:
    """gamma * tanh(alpha x) + beta in `dtype`."""
    return _rows(x, gamma, beta, dtype, alpha=alpha)


def _rows(x: Tensor, gain: Tensor, shift: Tensor | None, dtype: torch.dtype, alpha: Tensor | None = None, eps: float = 0.0) -> Tensor:
    x, width = x.contiguous(), x.shape[-1]
    gain, shift = (part if part is None or part.stride(-1) == 1 else part.contiguous() for part in (gain, shift))
    out, rows, columns = torch.empty_like(x, dtype=dtype), x.numel() // width, triton.next_power_of_2(width)
    size = max(1, ROW_BLOCK // columns)
    steps = [0 if part is None or part.numel() == width else part.stride(0) for part in (gain, shift)]
    with torch.cuda.device_of(x):
        _rows_kernel[(triton.cdiv(rows, size),)](
            x, out, gain, shift, alpha, eps, rows, rows // len(x) if any(steps) and rows else rows,
            WIDTH=width, COLUMNS=columns, ROWS=size, GAIN_STEP=steps[0], SHIFT_STEP=steps[1],
            TANH=alpha is not None, SHIFTED=shift is not None,
        )  # fmt: skip
    return out


def queries_keys(parts: Tensor, table: tuple[Tensor, Tensor], norms: tuple, eps: float | None) -> list[tuple[Tensor, Tensor]]:
    """Normed and rotated (q, k), and (q2, k2) when differential, (B, H, N, D) each, of parts (B, N, 3 or 5, H, D): q, k, v, q2, k2.

    table: from `rotary_table`. norms: two `RMSNorm`, or two `DyT` with eps None.
    """
    batch, tokens, count, heads, dim = parts.shape
    if parts.stride()[2:] != (heads * dim, dim, 1) or parts.stride(0) % max(1, parts.stride(1)):
        parts = parts.contiguous()
    cos, sin = table
    out = torch.empty(batch, tokens, count - 1, heads, dim, dtype=parts.dtype, device=parts.device)
    rows, columns = out.numel() // dim, triton.next_power_of_2(dim)
    size = max(1, ROW_BLOCK // columns)

    def both(name: str) -> list[Tensor | None]:
        return [None if name != "gamma" and eps is not None else getattr(norm, name).to(parts.device) for norm in norms]

    with torch.cuda.device_of(parts):
        _heads_kernel[(triton.cdiv(rows, size),)](
            parts, out, *both("gamma"), *both("beta"), *both("alpha"), cos, sin, eps or 0.0, rows, tokens,
            parts.stride(0) // parts.stride(1),
            HEADS=heads, PARTS=out.shape[2], STEP=parts.stride(1), DIM=dim, COLUMNS=columns, ROTATED=sin.shape[1],
            ROWS=size, TANH=eps is None,
        )  # fmt: skip
    q, k, *second = (part.transpose(1, 2) for part in out.unbind(2))
    return [(q, k), tuple(second)] if second else [(q, k)]


def gated(x: Tensor, sine: bool) -> Tensor:
    """value * silu(g), or value * sin(pi g), of x (..., 2 width): value, g."""
    x, width = x.contiguous(), x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    columns = min(1024, triton.next_power_of_2(width))
    with torch.cuda.device_of(x):
        _gate_kernel[(x.numel() // (2 * width), triton.cdiv(width, columns))](x, out, WIDTH=width, COLUMNS=columns, SINE=sine)
    return out


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Compile and run each kernel once. Raises what Triton raises where it does not work."""
    rows, heads = torch.ones(1, 1, 16, device=device, dtype=dtype), torch.ones(1, 1, 3, 1, 16, device=device, dtype=dtype)
    row, table = rows[0, 0], (torch.ones(1, 16, device=device), torch.ones(1, 8, device=device))
    rms_norm(rows, rows, rows, 1e-6)
    dynamic_tanh(rows.float(), row[:1], row, row, dtype)
    norm = SimpleNamespace(gamma=row, beta=row, alpha=row[:1])
    for eps in (1e-6, None):
        queries_keys(heads, table, (norm, norm), eps)
    for sine in (False, True):
        gated(rows, sine)
