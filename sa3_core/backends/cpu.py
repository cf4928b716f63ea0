"""CPUs: oneDNN's matrix products, row counts that suit them, and activations that fit into reused memory."""

import functools
import platform
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Backend

REUSED_BLOCK = 32 * 2**20  # bytes; glibc returns larger blocks to the kernel, which maps and clears every page of the next allocation
ROWS_MULTIPLE = 8
CONTEXT_MULTIPLE = 8  # limits the number of row counts, each of which torch.compile needs a graph for
GROUP_ROWS = 512  # activations of this many rows stay in the caches; oneDNN computes them as two of its largest tiles
SHORT = 40  # queries and keys, up to which explicit scores are faster than a fused kernel


class CPU(Backend):
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not prefers_onednn(weight, bias):
            return F.linear(x, weight, bias)
        return onednn_linear(x, weight, bias)

    def rms_norm(self, x: Tensor, eps: float) -> Tensor:
        # a quarter of the time of F.rms_norm
        return x * (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps).rsqrt()

    def multiplies(self, dtype: torch.dtype) -> bool:
        """Whether the processor multiplies natively in this 16-bit type."""
        name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
        supported = getattr(torch.ops.mkldnn, name, None) if name and torch.backends.mkldnn.is_available() else None
        return supported is not None and bool(supported())

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def attend_difference(self, q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Tensor | None:
        """One product with v instead of two, for the short chunks of SAME-S."""
        if q.dtype != torch.float32 or max(q.shape[2], k.shape[2]) > SHORT:
            return None
        return (_probabilities(q, k) - _probabilities(q2, k2)) @ v

    def distinct_rows(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Each run of equal rows (B, n, D) as one row (B, m, D), with the log of its length (B, m); -inf for padding rows.

        Softmax over r equal keys equals softmax over one of them with log r added to its score. A prompt's padding, some 240 rows of the
        learned vector, becomes one row.
        """
        batch, n, width = rows.shape
        begins = F.pad((rows[:, 1:] != rows[:, :-1]).any(-1), (1, 0), value=True)
        run = begins.long().cumsum(1) - 1  # (B, n): the run that each row belongs to
        m = -(-(int(run.max()) + 1) // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
        if m >= n:
            return rows, None
        dtype = torch.promote_types(rows.dtype, torch.float32)
        first = torch.zeros(batch, m, dtype=torch.long)
        first.scatter_reduce_(1, run, torch.arange(n).expand(batch, n), "amin", include_self=False)
        lengths = torch.zeros(batch, m, dtype=dtype).scatter_add_(1, run, torch.ones(batch, n, dtype=dtype))
        return rows.gather(1, first[..., None].expand(-1, -1, width)), lengths.log()

    def padded_rows(self, tokens: int) -> int:
        """The next multiple of eight above `tokens`; always greater, so that one compiled graph serves all lengths.

        oneDNN splits rows into equal tiles: 451 rows (30 s), 11 times 41, take 1.4 times as long as 456.
        """
        return (tokens // ROWS_MULTIPLE + 1) * ROWS_MULTIPLE

    def items_at_once(self, batch: int, size: int) -> int:
        return max(1, (REUSED_BLOCK - 1) // size)

    def groups(self, items: int, rows: int) -> int:
        return -(-items // max(1, GROUP_ROWS // rows))


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    q = q.contiguous() * q.shape[-1] ** -0.5
    return (q @ k.contiguous().transpose(-2, -1)).softmax(-1)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) W^T + bias -> (..., out) by oneDNN, rounded once."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def prefers_onednn(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's product with this weight is faster than torch's. Depends on the processor only, so results are reproducible.

    In bfloat16 torch also calls oneDNN, but copies the bias into all rows and accumulates onto them; in float32 it calls MKL.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bias is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and mkl_is_slow()


@functools.cache
def mkl_is_slow() -> bool:
    """Whether this is an AMD processor with AVX-512, where MKL uses AVX2."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    """The operating system's description of the processor; contains the vendor's name."""
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return platform.processor()
