"""The layers that the networks are built of, where a host names no others: torch's own, or on a CPU oneDNN's product where it is faster.

A layer computes in the type of its input, whatever type its weight is stored in.
"""

import functools
import platform
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Conv1d", "Linear", "by_onednn", "linear"]


class Linear(nn.Linear):
    """torch's, where oneDNN is not faster."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != self.weight.dtype:
            return nn.functional.linear(input, *_cast(self, input.dtype))
        plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or not by_onednn(self.weight, self.bias)
        return super().forward(input) if plain else linear(input, self.weight, self.bias)


class Conv1d(nn.Conv1d):
    """torch's "same" convolution with an odd kernel, in exact float32 on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != self.weight.dtype:
            return self._conv_forward(input, *_cast(self, input.dtype))
        return super().forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv1d(input, weight, bias)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """ "same" convolution of x (B, C, T) with weight (out, C, odd kernel).

    In float32 on a GPU as a matrix product: cuDNN would round its inputs to TF32 by default, an error of 2e-4.
    """
    reach = (weight.shape[-1] - 1) // 2
    if x.device.type != "cuda" or x.dtype != torch.float32:
        return nn.functional.conv1d(x, weight, bias, padding=reach)
    pieces = nn.functional.pad(x, (reach, reach)).unfold(2, weight.shape[-1], 1).permute(0, 2, 1, 3).flatten(2)  # (B, T, C * kernel)
    return nn.functional.linear(pieces, weight.flatten(1), bias).transpose(1, 2)


def _cast(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)


def by_onednn(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's own product with this weight is faster than torch's: on a CPU, in float32 where MKL is slow.

    In bfloat16 torch calls oneDNN, but copies a bias into all rows and adds the product to that; oneDNN adds it inside.
    """
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bias is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and mkl_is_slow()


@functools.cache
def mkl_is_slow() -> bool:
    """Whether this is a processor of AMD with AVX-512, which MKL leaves to AVX2."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    """What the system tells of it, the vendor's name in it."""
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return platform.processor()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) W^T + bias -> (..., out) by oneDNN, rounded once."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
