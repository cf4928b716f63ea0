"""Classifier-free guidance as in the public tools: interval, norm threshold, APG, rescale. Norms are per item, over valid frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.device import to_device
from ..errors import SA3Error
from ..timeline.durations import valid_mask


@dataclass(frozen=True)
class Guidance:
    """Settings of guidance, validated.

    cfg: scale, 1 = off. apg: 1 = only the part of the guidance orthogonal to the prediction (arXiv 2410.02416), 0 = standard guidance.
    rescale: 0 to 1, pulls the standard deviation back to the conditional prediction's (arXiv 2305.08891). norm_threshold: above 0 =
    upper limit of the norm of the guidance direction. start, end: noise levels between which guidance is active, both inclusive.
    """

    cfg: float = 1.0
    apg: float = 1.0
    rescale: float = 0.0
    norm_threshold: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        limits = {"apg": (0, 1), "rescale": (0, 1), "start": (0, 1), "end": (0, 1), "cfg": (0, 1000), "norm_threshold": (0, 1e9)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise SA3Error(f"Guidance {name} is {value}; expected {low} to {high}.")
        if self.start > self.end:
            raise SA3Error(f"The guidance interval starts at {self.start} and ends at {self.end}; expected start <= end.")

    def active(self, t: Tensor) -> Tensor:
        """Whether each item is guided at t (B,): (B,) bool."""
        return (t >= self.start) & (t <= self.end) & (self.cfg != 1)

    def apply(self, x: Tensor, t: Tensor, v_cond: Tensor, v_uncond: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """`combine` for the items whose t lies in the interval, v_cond for the others, so that an item is the same in any batch."""
        active = to_device(self.active(t), x.device)[:, None, None]
        return torch.where(active, self.combine(x, t, v_cond, v_uncond, lengths), v_cond)

    def combine(self, x: Tensor, t: Tensor, v_cond: Tensor, v_uncond: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Guided velocity (B, C, T) from the conditional and unconditional velocities at x, t (B,).

        lengths: valid frames per item, None = all. The direction d is a difference of denoised data; it is added to the velocity,
        v = v_cond - (cfg - 1) d / t, because denoised data would lose precision at small t.
        """
        dtype = v_cond.dtype
        v_cond, v_uncond, x = v_cond.float(), v_uncond.float(), x.float()
        time = to_device(t, x.device, torch.float32)[:, None, None]
        valid = valid_mask([x.shape[-1]] * len(x) if lengths is None else lengths, x.shape[-1])[:, None]
        valid = to_device(valid, x.device, x.dtype)
        diff = time * (v_uncond - v_cond)  # denoised_cond - denoised_uncond
        if self.norm_threshold > 0:
            norm = (diff * valid).square().sum((1, 2), keepdim=True).sqrt()
            diff = diff * (self.norm_threshold / norm.clamp(min=1e-12)).clamp(max=1)
        if self.apg > 0:
            denoised = (x - time * v_cond) * valid
            along = (diff * denoised).sum((1, 2), keepdim=True) / denoised.square().sum((1, 2), keepdim=True).clamp(min=1e-12)
            diff = diff - self.apg * along * denoised
        v = v_cond - (self.cfg - 1) * diff / time
        if self.rescale > 0:
            v = v * (1 - self.rescale + self.rescale * v_cond.std(1, keepdim=True) / v.std(1, keepdim=True).clamp(min=1e-12))
        return v.to(dtype)
