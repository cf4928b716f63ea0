"""The interface between the networks and a device, with torch's own operations as defaults."""

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_LIMIT = 2**28  # bytes of attention scores in memory at a time where torch has no fused kernel


class Backend:
    """The defaults, for devices without a subclass."""

    pins = False  # whether copies from pinned memory are non-blocking

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) W^T + bias -> (..., out)."""
        return F.linear(x, weight, bias)

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """ "same" convolution of x (B, C, T) with weight (out, C, odd kernel)."""
        return F.conv1d(x, weight, bias, padding=(weight.shape[-1] - 1) // 2)

    def rms_norm(self, x: Tensor, eps: float) -> Tensor:
        """x / rms(x) over the last axis, float32."""
        return F.rms_norm(x, x.shape[-1:], None, eps)

    def kernels(self, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
        """The device's own norms, rotations and gates for this dtype, with the functions of `half`; None = the models' own, in float32."""
        return None

    def has_bfloat16(self) -> bool:
        """Whether bfloat16 is a native type."""
        return False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(D)) v of q (B, H, N, D), k, v (B, H, M, D). mask: broadcasts to (B, H, N, M), boolean or added to scores."""
        return self.attend_in_parts(q, k, v, mask, self.queries_at_once(q, k))

    def attend_lengths(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        """`attend` to the first `lengths` (B,) keys of each item. Queries beyond them get any finite result."""
        visible = torch.arange(k.shape[2], device=k.device) < lengths[:, None]
        return self.attend(q, k, v, visible[:, None, None])

    def attend_difference(self, q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Tensor | None:
        """The difference of two attentions without a mask in one pass, or None if there is no such kernel."""
        return None

    def window_kernel(self, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor, int], Tensor] | None:
        """A fused kernel (q, k, v, window) -> attention within the window, or None."""
        return None

    def queries_at_once(self, q: Tensor, k: Tensor) -> int:
        """Number of queries whose scores fit into `SCORES_LIMIT`."""
        if torch.compiler.is_compiling():
            return q.shape[2]
        return max(1, SCORES_LIMIT // max(1, q.shape[0] * q.shape[1] * k.shape[2] * 4))

    @staticmethod
    def attend_in_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, size: int) -> Tensor:
        """`attend` for `size` queries at a time, which bounds the memory of the scores."""
        if size >= q.shape[2]:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        parts = []
        for start in range(0, q.shape[2], size):
            some = slice(start, start + size)
            visible = mask if mask is None or mask.shape[-2] == 1 else mask[..., some, :]
            parts.append(F.scaled_dot_product_attention(q[:, :, some].contiguous(), k, v, attn_mask=visible))
        return torch.cat(parts, dim=2)

    def distinct_rows(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The context rows (B, m, D) that represent `rows` (B, n, D), and the bias (B, m) of their attention scores; None = zeros."""
        return rows, None

    def padded_rows(self, tokens: int) -> int:
        """Number of rows that the transformer computes for this number of tokens."""
        return tokens

    def items_at_once(self, batch: int, size: int) -> int:
        """Number of items of a batch to compute together. size: bytes of the largest activation of one item."""
        return batch

    def groups(self, items: int, rows: int) -> int:
        """Number of groups to split `items` sequences of `rows` rows into."""
        return 1

    def memory(self, device: torch.device) -> int | None:
        """Bytes of the device; None where several chunks of audio at once gain nothing."""
        return None
