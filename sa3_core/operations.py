"""The layers that the networks are built of, where a host names no others: torch's own, but for products with a bias in bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn import Conv1d

__all__ = ["Conv1d", "Linear", "adds_bias", "linear"]


class Linear(nn.Linear):
    """torch's. Where oneDNN can, it adds the bias inside of the product; torch copies it into all rows, and adds the product to that."""

    def forward(self, input: Tensor) -> Tensor:
        plain = self.bias is None or input.dtype != self.weight.dtype or torch.is_grad_enabled() or torch.compiler.is_compiling()
        return super().forward(input) if plain or not adds_bias(self.weight) else linear(input, self.weight, self.bias)


def adds_bias(weight: Tensor) -> bool:
    """Whether `linear` is for this weight."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) W^T + bias -> (..., out) by oneDNN, rounded once."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
