"""NVIDIA's GPUs, and AMD's through ROCm: norms and gates in 16 bits, fused windowed attention, exact float32 convolutions."""

import functools
import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Backend

log = logging.getLogger("sa3")
HALF = (torch.float16, torch.bfloat16)


class CUDA(Backend):
    pins = True

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """In float32 as a matrix product: by default cuDNN rounds its inputs to TF32, an error of 2e-4."""
        if x.dtype != torch.float32:
            return super().conv1d(x, weight, bias)
        reach = (weight.shape[-1] - 1) // 2
        pieces = F.pad(x, (reach, reach)).unfold(2, weight.shape[-1], 1).permute(0, 2, 1, 3).flatten(2)  # (B, T, C * kernel)
        return F.linear(pieces, weight.flatten(1), bias).transpose(1, 2)

    def kernels(self, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
        """In 16 bits: `fused` where Triton works and no gradient is needed, else `half`."""
        if dtype not in HALF:
            return None
        from . import half

        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return half
        return fused_kernels(device, dtype) or half

    def has_bfloat16(self) -> bool:
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """In parts only where torch has no kernel that avoids storing all scores."""
        size = self.queries_at_once(q, k)
        if size < q.shape[2]:
            params = torch.backends.cuda.SDPAParams(q, k, v, mask, 0.0, False, False)
            if torch.backends.cuda.can_use_flash_attention(params) or torch.backends.cuda.can_use_efficient_attention(params):
                size = q.shape[2]
        return self.attend_in_parts(q, k, v, mask, size)

    def attend_lengths(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        """By a kernel for packed sequences: with a mask, torch uses a slower one. The rest of an item is a sequence of its own."""
        simple = torch.is_grad_enabled() or torch.compiler.is_compiling() or q.shape != k.shape
        kernel = None if simple else packed_kernel(q.device, q.dtype)
        if kernel is None:
            return super().attend_lengths(q, k, v, lengths)
        starts = _offsets(q.shape[0], q.shape[2], q.device)
        ends = torch.stack((starts[:-1], starts[:-1] + lengths), dim=1).flatten()
        return attend_packed(kernel, q, k, v, torch.cat((ends, starts[-1:])))

    def window_kernel(self, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor, int], Tensor] | None:
        kernel = packed_kernel(device, dtype)
        return None if kernel is None else functools.partial(attend_window, kernel)

    def memory(self, device: torch.device) -> int | None:
        return torch.cuda.get_device_properties(device).total_memory


@functools.lru_cache(maxsize=16)
def fused_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernels, if they can be compiled here: that needs the package triton, a C compiler and a GPU that it supports."""
    try:
        from . import fused

        fused.check(device, dtype)
    except torch.OutOfMemoryError:
        raise  # the next run checks again
    except Exception as error:  # compilers raise exceptions of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.info("Norms, rotations and gates in %s on %s are computed without Triton, which is slower: %s", dtype, device, reason)
        return None
    return fused


@functools.lru_cache(maxsize=16)
def packed_kernel(device: torch.device, dtype: torch.dtype) -> Callable | None:
    """Attention over packed sequences with a window, on Ampere or newer in 16 bits: torch's, else the package flash-attn's, else None.

    kernel(q, k, v (tokens, H, D), offsets, offsets, longest, longest, window_size=).
    """
    if dtype not in HALF or torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        if "window_size" in inspect.signature(varlen_attn).parameters:
            return varlen_attn
    with suppress(ImportError, OSError):
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func
    return None


def attend_packed(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int = -1) -> Tensor:
    """Attention of q, k, v (B, H, N, D) within sequences that begin at `offsets` of all B N tokens. window: -1 = none."""
    batch, _, n, _ = q.shape
    packed = (part.transpose(1, 2).flatten(0, 1) for part in (q, k, v))
    return kernel(*packed, offsets, offsets, n, n, window_size=(window, window)).unflatten(0, (batch, n)).transpose(1, 2)


def attend_window(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    return attend_packed(kernel, q, k, v, _offsets(q.shape[0], q.shape[2], q.device), window)


@functools.lru_cache(maxsize=16)
def _offsets(batch: int, n: int, device: torch.device) -> Tensor:
    """(batch + 1,): cumulative lengths of `batch` sequences of n tokens."""
    with torch.inference_mode(False):
        return torch.arange(0, (batch + 1) * n, n, dtype=torch.int32, device=device)
