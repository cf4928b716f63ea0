"""Layers and functions of both networks. Shapes: h (B, N, width); heads (B, H, N, D)."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends.device import backend_of
from . import operations

Adapters = Mapping[nn.Module, Callable[[nn.Module, Tensor], Tensor]]  # layer -> adapter(layer, x), which replaces layer(x)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H * D)."""
    return x.transpose(1, 2).flatten(2)


def adapted(layer: nn.Module, x: Tensor, adapters: Adapters | None) -> Tensor:
    """layer(x), through the layer's adapter if it has one."""
    adapter = None if adapters is None else adapters.get(layer)
    return layer(x) if adapter is None else adapter(layer, x)


def adapted_sequence(layers: Iterable[nn.Module], x: Tensor, adapters: Adapters | None) -> Tensor:
    """nn.Sequential with adapters."""
    for layer in layers:
        x = adapted(layer, x, adapters)
    return x


def cast_to(parameter: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A parameter on x's device, in `dtype` (None = x's): a host may store it elsewhere, in another dtype."""
    return parameter.to(device=x.device, dtype=dtype or x.dtype)


def kernels_of(x: Tensor, dtype: torch.dtype | None = None) -> ModuleType | None:
    """The device's own norms, rotations and gates of x, with results in `dtype` (None = x's); None = those written here, in float32."""
    return backend_of(x.device).kernels(x.device, dtype or x.dtype)


def norm_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a norm's gain and shift for an input x."""
    return x.dtype if kernels_of(x) else torch.promote_types(x.dtype, torch.float32)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis, float32."""
    return backend_of(x.device).rms_norm(x, eps)


class RMSNorm(nn.Module):
    """x / rms(x) * gamma, computed in float32 and rounded once, or by the device's own kernels."""

    def __init__(self, dim: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if kernels := kernels_of(x):
            return kernels.rms_norm(x, cast_to(self.gamma, x), None, self.eps)
        return (unit_rms(x.float(), self.eps) * cast_to(self.gamma, x, torch.float32)).to(x.dtype)

    def modulated(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """x / rms(x) * gain + shift, both in `norm_dtype`. gain: gamma times the modulation."""
        if kernels := kernels_of(x):
            return kernels.rms_norm(x, gain, shift, self.eps)
        return torch.addcmul(shift, unit_rms(x.float(), self.eps), gain).to(x.dtype)


class DyT(nn.Module):
    """Dynamic tanh, gamma * tanh(alpha x) + beta, which replaces a norm (arXiv 2503.10622)."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
        self.gamma = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x in float32 -> the result in `dtype`."""
        if dtype == torch.float16 and not torch.is_grad_enabled() and (kernels := kernels_of(x, dtype)):
            return kernels.dynamic_tanh(x, *(part.to(x.device) for part in (self.alpha, self.gamma, self.beta)), dtype)
        # tanh(y) = 2 sigmoid(2 y) - 1: the sigmoid is faster, but too coarse in 16 bits
        gamma = cast_to(self.gamma, x)
        return torch.addcmul(cast_to(self.beta, x) - gamma, 2 * gamma, (x * (2 * cast_to(self.alpha, x))).sigmoid_()).to(dtype)


class GatedLinear(nn.Module):
    """value * gate(g), both from one Linear."""

    def __init__(self, dim: int, inner: int, gate, operations=operations, device=None, dtype=None):
        super().__init__()
        self.proj = operations.Linear(dim, 2 * inner, device=device, dtype=dtype)
        self.gate = gate

    def forward(self, x: Tensor, adapters: Adapters | None = None) -> Tensor:
        both = adapted(self.proj, x, adapters)
        if kernels := kernels_of(both):
            return kernels.gated(both, self.gate is sine_gate)
        value, g = both.chunk(2, dim=-1)
        gate = self.gate(g)
        return value * gate if torch.is_grad_enabled() else gate.mul_(value)  # in place: the largest activation


def sine_gate(g: Tensor) -> Tensor:
    return torch.sin(math.pi * g)


class FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int, gate=F.silu, operations=operations, device=None, dtype=None):
        super().__init__()
        self.ff = nn.Sequential(
            GatedLinear(dim, inner, gate, operations, device, dtype),
            nn.Identity(),
            operations.Linear(inner, dim, device=device, dtype=dtype),
        )

    def forward(self, x: Tensor, adapters: Adapters | None = None) -> Tensor:
        gated, _, out = self.ff
        return adapted(out, gated(x, adapters), adapters)


class WeightNormConv1d(nn.Module):
    """ "same" convolution whose weight is g * v / ||v||, with the norm over all axes but the first."""

    def __init__(self, channels: int, out_channels: int, kernel: int, device=None, dtype=None):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_channels, 1, 1, device=device, dtype=dtype))
        self.weight_v = nn.Parameter(torch.empty(out_channels, channels, kernel, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        v = cast_to(self.weight_v, x, torch.float32)
        weight = cast_to(self.weight_g, x, torch.float32) * v / v.flatten(1).norm(dim=1)[:, None, None]
        return backend_of(x.device).conv1d(x, weight.to(x.dtype), cast_to(self.bias, x))
