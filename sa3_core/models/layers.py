"""The parts that both networks share. Shapes: h (B, N, width); heads (B, H, N, D)."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends.device import backend_of, to_device
from . import operations

Adapters = Mapping[nn.Module, Callable[[nn.Module, Tensor], Tensor]]  # a layer -> what computes its output, adapter(layer, x)

FOURIER_DIM = 256
FOURIER_MIN, FOURIER_MAX = 0.5, 10000.0


def expo_features(u: Tensor) -> Tensor:
    """Exponential Fourier features of scalars u (...,) -> (..., 256) in float32.

    Phases reach 63,000 rad: another order of the product, or frequencies in float64, changes the result by up to 5e-3.
    """
    ramp = torch.linspace(0, 1, FOURIER_DIM // 2, dtype=torch.float32)
    freqs = torch.exp(ramp * (math.log(FOURIER_MAX) - math.log(FOURIER_MIN)) + math.log(FOURIER_MIN)).to(u.device)
    args = u.float()[..., None] * freqs * 2 * math.pi
    return torch.cat((args.cos(), args.sin()), dim=-1)


def rotary_table(n: int, dim: int, head_dim: int, device=None, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos (n, head_dim), sin (n, dim) in float32 of positions 0..n-1, as `rotate` takes them: channels beyond `dim` stay as they are.

    Always recomputed: 16-bit checkpoints carry rounded frequencies.
    """
    inv_freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.arange(n, dtype=torch.float32)[:, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    table = torch.cat((cos, cos, torch.ones(n, head_dim - dim, dtype=torch.float32)), dim=1), torch.cat((-sin, sin), dim=1)
    return table if device is None else tuple(to_device(part, device) for part in table)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x (B, N, ..., D) in float32: channel i of the table's width is paired with the one half a width on."""
    return apply_rotary(x, *(part.unflatten(0, (-1, *(1,) * (x.dim() - 3))) for part in table))  # (N, 1..., width)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, start: Tensor | None = None) -> Tensor:
    """`rotate` with tables that broadcast over x, in their own type; added to `start`, if given."""
    width, half = sin.shape[-1], sin.shape[-1] // 2
    out = x * cos if start is None else torch.addcmul(start, x, cos)
    out[..., :half].addcmul_(x[..., half:width], sin[..., :half])
    out[..., half:width].addcmul_(x[..., :half], sin[..., half:])
    return out


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, N, H * D) -> (B, H, N, D)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def adapted(layer: nn.Module, x: Tensor, adapters: Adapters | None) -> Tensor:
    """layer(x), or what its adapter computes."""
    adapter = None if adapters is None else adapters.get(layer)
    return layer(x) if adapter is None else adapter(layer, x)


def in_turn(layers: Iterable[nn.Module], x: Tensor, adapters: Adapters | None) -> Tensor:
    """x through one layer after the other, each with its adapter."""
    for layer in layers:
        x = adapted(layer, x, adapters)
    return x


def cast_to(parameter: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A raw parameter on x's device, in `dtype` (None = x's): a host may keep it elsewhere, in its storage type."""
    return parameter.to(device=x.device, dtype=dtype or x.dtype)


def norms_in_half(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether norms and rotations of x are computed in 16 bits instead of float32. dtype: of their result; None = x's."""
    return backend_of(x.device).norms_in_half(dtype or x.dtype)


def norm_type(x: Tensor) -> torch.dtype:
    """The type of a norm's gain and shift for an input x."""
    return x.dtype if norms_in_half(x) else torch.promote_types(x.dtype, torch.float32)


def over_rms(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis, float32."""
    return backend_of(x.device).rms_norm(x, eps)


class RMSNorm(nn.Module):
    """x / rms(x) * gamma, computed in float32 and rounded once."""

    def __init__(self, dim: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if norms_in_half(x):
            return F.rms_norm(x, x.shape[-1:], cast_to(self.gamma, x), self.eps)
        return (over_rms(x.float(), self.eps) * cast_to(self.gamma, x, torch.float32)).to(x.dtype)

    def modulated(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """x / rms(x) * gain + shift, both in `norm_type`. gain: gamma times the modulation."""
        if norms_in_half(x):
            return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], None, self.eps), gain)
        return torch.addcmul(shift, over_rms(x.float(), self.eps), gain).to(x.dtype)


class DyT(nn.Module):
    """Dynamic tanh, gamma * tanh(alpha x) + beta, in place of a norm (arXiv 2503.10622)."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
        self.gamma = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x in float32; the result in `dtype`."""
        if dtype == torch.float16 and norms_in_half(x, dtype) and not torch.is_grad_enabled():
            y = torch.mul(x, cast_to(self.alpha, x), out=torch.empty_like(x, dtype=dtype)).tanh_()
            return torch.addcmul(cast_to(self.beta, y), y, cast_to(self.gamma, y))
        return self._exact(x).to(dtype)

    def _exact(self, x: Tensor) -> Tensor:
        # tanh(y) = 2 sigmoid(2 y) - 1: the faster function; in 16 bits the difference would be too coarse
        gamma = cast_to(self.gamma, x)
        return torch.addcmul(cast_to(self.beta, x) - gamma, 2 * gamma, (x * (2 * cast_to(self.alpha, x))).sigmoid_())


class GatedLinear(nn.Module):
    """value * gate(g) with (value, g) from one Linear."""

    def __init__(self, dim: int, inner: int, gate, operations=operations, device=None, dtype=None):
        super().__init__()
        self.proj = operations.Linear(dim, 2 * inner, device=device, dtype=dtype)
        self.gate = gate

    def forward(self, x: Tensor, adapters: Adapters | None = None) -> Tensor:
        value, g = adapted(self.proj, x, adapters).chunk(2, dim=-1)
        opened = self.gate(g)
        return value * opened if torch.is_grad_enabled() else opened.mul_(value)  # in place: the largest activation


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
    """Conv1d, "same" padding, with the weight stored as g * v / ||v|| (norm over all but dim 0)."""

    def __init__(self, channels: int, out_channels: int, kernel: int, device=None, dtype=None):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_channels, 1, 1, device=device, dtype=dtype))
        self.weight_v = nn.Parameter(torch.empty(out_channels, channels, kernel, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        if self.weight_v.device.type != "meta":
            nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        v = cast_to(self.weight_v, x, torch.float32)
        weight = cast_to(self.weight_g, x, torch.float32) * v / v.flatten(1).norm(dim=1)[:, None, None]
        return backend_of(x.device).conv1d(x, weight.to(x.dtype), cast_to(self.bias, x))
