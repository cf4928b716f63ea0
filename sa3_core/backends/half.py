"""Norms, rotations and gates in 16 bits by torch's operations, for GPUs without Triton, for torch.compile and for gradients.

They are limited by memory bandwidth: float32 would double their time. The functions are those of `fused`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.rotary import apply_rotary, rotate, scaled_tables


def rms_norm(x: Tensor, gain: Tensor, shift: Tensor | None, eps: float) -> Tensor:
    if shift is None:
        return F.rms_norm(x, x.shape[-1:], gain.to(x.dtype), eps)
    return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], None, eps), gain)


def dynamic_tanh(x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.mul(x, alpha, out=torch.empty_like(x, dtype=dtype))
    return torch.addcmul(beta.to(dtype), y.tanh_(), gamma.to(dtype))


def queries_keys(parts: Tensor, table: tuple[Tensor, Tensor], norms: tuple, eps: float | None) -> list[tuple[Tensor, Tensor]]:
    def both(name: str) -> Tensor:
        return torch.stack([getattr(norm, name).to(parts.device, torch.float32) for norm in norms])

    cos, sin = (part.to(parts.dtype) for part in scaled_tables(table, both("gamma")))
    start = alpha = None
    if eps is None:
        start = rotate(both("beta").expand(1, parts.shape[1], 2, -1), table)[0][:, :, None].to(parts.dtype)  # (N, 2, 1, D)
        alpha = both("alpha")[:, :, None].to(parts.dtype)
    pairs = []
    for pair in (parts[:, :, :2], parts[:, :, 3:])[: parts.shape[2] // 2]:
        unit = (pair * alpha).tanh() if eps is None else F.rms_norm(pair, pair.shape[-1:], None, eps)
        pairs.append(tuple(part.transpose(1, 2) for part in apply_rotary(unit, cos, sin, start).unbind(2)))
    return pairs


def gated(x: Tensor, sine: bool) -> Tensor:
    value, g = x.chunk(2, dim=-1)
    gate = torch.sin(torch.pi * (g - 2 * torch.round(g / 2))) if sine else F.silu(g)  # pi times a large g would be rounded
    return value * gate if torch.is_grad_enabled() else gate.mul_(value)
