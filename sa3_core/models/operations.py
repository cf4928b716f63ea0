"""The layers of the networks, where a host brings none of its own. A layer computes in the type of its input."""

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
        if input.dtype != self.weight.dtype:
            return self._conv_forward(input, *_cast(self, input.dtype))
        return super().forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return backend_of(input.device).conv1d(input, weight, bias)


def _cast(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
