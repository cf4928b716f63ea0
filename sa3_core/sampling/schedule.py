"""Noise levels t of a run: steps + 1 points from sigma_max down to 0, shifted as in Stable Diffusion 3 and Flux."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..backends.ambient import independent
from ..errors import SA3Error

Shift = Callable[[Tensor, Tensor], Tensor]


@independent
def build(kind: str, steps: int, sigma_max: float = 1.0, length=None, mode: str = "scaled", **params) -> Tensor:
    """Noise levels, float32: (steps + 1,) for a scalar `length` in latent frames, (B, steps + 1) for a tensor of B lengths.

    kind: identity, logsnr, flux or full, with its `params`. mode: "scaled" shifts linspace(1, 0) and multiplies by sigma_max;
    "reference" shifts linspace(sigma_max, 0) and sets the first point, as the public code does: the second can exceed it. Raises SA3Error
    for parameters with which the levels do not fall.
    """
    if not isinstance(kind, str) or kind not in SHIFTS:
        raise SA3Error(f"Schedule '{kind}' is unknown; choose one of {', '.join(SHIFTS)}.")
    if mode not in ("scaled", "reference"):
        raise SA3Error(f"Schedule mode '{mode}' is unknown; choose scaled or reference.")
    if isinstance(steps, bool) or not isinstance(steps, (int, float)) or not 1 <= steps < 1e6 or int(steps) != steps:
        raise SA3Error(f"The number of steps is {steps}; expected a whole number from 1 to 999999.")
    if not isinstance(sigma_max, (int, float)) or not 0 < sigma_max <= 1:
        raise SA3Error(f"The noise level is {sigma_max}; expected more than 0 and at most 1.")
    defaults = parameters(kind)
    unknown = sorted(set(params) - set(defaults))
    if unknown:
        raise SA3Error(f"Schedule '{kind}' has no parameter '{unknown[0]}'; it takes {', '.join(defaults) or 'none'}.")
    if kind != "identity" and length is None:
        raise SA3Error(f"Schedule '{kind}' depends on the length; give `length` in latent frames.")
    for name, value in params.items():
        if not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise SA3Error(f"Schedule parameter {name} is {value!r}; expected a finite number.")
        if value <= 0 and ("length" in name or "alpha" in name):
            raise SA3Error(f"Schedule parameter {name} is {value}; expected more than 0.")
    values = {**defaults, **params}
    if kind == "full" and values["min_length"] >= values["max_length"]:
        raise SA3Error(f"Schedule full: min_length is {values['min_length']}; expected less than max_length, {values['max_length']}.")
    per_item = isinstance(length, Tensor) and length.dim() > 0
    try:
        lengths = torch.as_tensor(1.0 if length is None else length, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SA3Error(f"The length is {length!r}; expected a number of latent frames, or a tensor of them.") from error
    if lengths.dim() > 1 or not len(lengths.reshape(-1)) or not bool(torch.isfinite(lengths).all()):
        raise SA3Error(f"The length is {length!r}; expected a finite number of latent frames, or a tensor of them.")
    lengths = lengths.clamp(min=1).reshape(-1, 1)
    grid = torch.linspace(sigma_max if mode == "reference" else 1.0, 0, int(steps) + 1, dtype=torch.float32)
    # Row by row, because vectorised kernels do not guarantee the same bits for an item alone and in a batch.
    t = torch.cat([SHIFTS[kind](grid, row, **params).reshape(1, -1) for row in lengths[:, None]])
    if mode == "scaled":
        t[:, 0] = 1.0
        t = t * sigma_max
    t[:, 0], t[:, -1] = sigma_max, 0.0
    if rise := first_rise(t):
        step, before, after = rise
        raise SA3Error(
            f"Schedule {kind} with these parameters does not fall: level {step} of {int(steps)} is {after:.7g}, after {before:.7g}. "
            "Use fewer steps, or parameters closer to the defaults."
        )
    return t if per_item else t[0]


def first_rise(sigmas: Tensor) -> tuple[int, float, float] | None:
    """The first step at which levels (B, steps + 1) do not fall, and the levels before and after it.

    The first step may rise, as in the public code, but not repeat its level.
    """
    bad = sigmas.diff(dim=1) >= 0
    bad[:, 0] = sigmas[:, 1] == sigmas[:, 0]
    if not bool(bad.any()):
        return None
    item, step = bad.nonzero()[0].tolist()
    return step + 1, float(sigmas[item, step]), float(sigmas[item, step + 1])


def _identity(t: Tensor, length: Tensor) -> Tensor:
    """Uniform in t."""
    return t


def _logsnr(t: Tensor, length: Tensor, *, anchor_length=2000, anchor_logsnr=-6.2, rate=0.0, logsnr_end=2.0) -> Tensor:
    """Uniform in log-SNR, from a start that decreases by `rate` per doubling of the length to a fixed end."""
    start = anchor_logsnr - rate * torch.log2(length / anchor_length)
    shifted = torch.sigmoid(-(logsnr_end - t * (logsnr_end - start)))
    return torch.where(t <= 0, 0.0, torch.where(t >= 1, 1.0, shifted))


def _flux(t: Tensor, length: Tensor, *, min_length=256, max_length=4096, alpha_min=6.93, alpha_max=6.93) -> Tensor:
    """a t / (1 + (a - 1) t), where ln a is linear in ln length."""
    low, high = math.log(min_length), math.log(max_length)
    share = (torch.log(length.clamp(min_length, max_length)) - low) / (high - low) if high > low else torch.zeros_like(length)
    alpha = torch.exp(math.log(alpha_min) + share * (math.log(alpha_max) - math.log(alpha_min)))
    return alpha * t / (1 + (alpha - 1) * t)


def _full(t: Tensor, length: Tensor, *, base_shift=0.5, max_shift=1.15, min_length=256, max_length=4096, use_sine=False) -> Tensor:
    """logit t shifted by an amount that is linear in the length, optionally warped with a quarter sine."""
    share = (length.clamp(min_length, max_length) - min_length) / (max_length - min_length)
    mu = -(base_shift + (max_shift - base_shift) * share)
    shifted = 1 - torch.exp(mu) / (torch.exp(mu) + (1 / (1 - t) - 1))
    return torch.sin(shifted * math.pi / 2) if use_sine else shifted


SHIFTS: dict[str, Shift] = {"identity": _identity, "logsnr": _logsnr, "flux": _flux, "full": _full}


def parameters(kind: str) -> dict:
    """Parameter -> default value of a kind of schedule."""
    return SHIFTS[kind].__kwdefaults__ or {}
