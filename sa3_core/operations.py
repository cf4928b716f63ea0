"""The layers that the networks are built of, where a host names no others: torch's own, or on a CPU oneDNN's product where it is faster."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import Conv1d

__all__ = ["Conv1d", "Linear", "by_onednn", "linear"]


class Linear(nn.Linear):
    """torch's, where oneDNN is not faster."""

    def forward(self, input: Tensor) -> Tensor:
        plain = input.dtype != self.weight.dtype or torch.is_grad_enabled() or torch.compiler.is_compiling()
        return super().forward(input) if plain or not by_onednn(self.weight, self.bias) else linear(input, self.weight, self.bias)


def by_onednn(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `linear` is for this weight.

    In bfloat16 torch asks oneDNN itself, but copies a bias into all rows and adds the product to that; oneDNN adds it inside. In float32
    torch asks MKL.
    """
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bias is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and mkl_is_slow()


@functools.cache
def mkl_is_slow() -> bool:
    """Whether this is a processor of AMD with AVX-512, which MKL leaves to AVX2."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return known.get("cpu_name", "").startswith("AMD") and known.get("avx512_f", False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) W^T + bias -> (..., out) by oneDNN, rounded once."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
