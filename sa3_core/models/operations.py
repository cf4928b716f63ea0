"""The networks' layers, unless the host passes its own. A layer computes in the dtype of its input."""

import torch
from torch import Tensor, nn

from ..backends.device import backend_of

__all__ = ["Conv1d", "Linear"]


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != self.weight.dtype:
            return nn.functional.linear(input, *_cast(self, input.dtype))
        return backend_of(input.device).linear(input, self.weight, self.bias)


class Conv1d(nn.Conv1d):
    """ "same" convolution with an odd kernel."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = (self.weight, self.bias) if input.dtype == self.weight.dtype else _cast(self, input.dtype)
        return backend_of(input.device).conv1d(input, weight, bias)


def _cast(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
