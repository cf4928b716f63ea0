"""One run: time line, draws, noise levels and sampler put together. The nodes and the pipeline share it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.ambient import independent
from ..backends.device import to_device
from ..config import ModelConfig
from ..errors import SA3Error
from ..timeline.durations import Lengths
from . import samplers, schedule
from .draws import Draws, check_seed


@dataclass(frozen=True)
class Plan:
    """What a run does, resolved: nothing here is left to a default."""

    lengths: Lengths
    sampler: str
    sigmas: Tensor  # (B, steps + 1)
    seed: int
    indices: tuple[int, ...]
    eta: float | None = None
    noise_level: float = 1.0

    @property
    def steps(self) -> int:
        return self.sigmas.shape[1] - 1

    def pick(self, items: Sequence[int]) -> "Plan":
        """The plan of some of the items: the same draws, levels and frames that they have in the whole batch."""
        rows = list(items)
        return replace(self, lengths=self.lengths.pick(rows), sigmas=self.sigmas[rows], indices=tuple(self.indices[i] for i in rows))


@independent
def plan(
    config: ModelConfig,
    lengths: Lengths,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    noise_level: float = 1.0,
    sigmas: Tensor | None = None,
    schedule_options: dict | None = None,
    eta: float | None = None,
    indices: Sequence[int] | None = None,
) -> Plan:
    """Fill in the checkpoint's own choices and check the rest. schedule_options: kind, mode and that family's parameters."""
    check_seed(seed)
    sampler = config.default_sampler if sampler in (None, "auto") else sampler
    if sampler not in samplers.SAMPLERS:
        raise SA3Error(f"Sampler '{sampler}' is unknown; choose one of {', '.join(samplers.SAMPLERS)}.")
    if sigmas is None:
        options = dict(schedule_options or config.schedule)
        if "kind" not in options:
            raise SA3Error(f"The schedule names no kind; choose one of {', '.join(schedule.SHIFTS)}.")
        steps = steps or config.default_steps
        sigmas = schedule.build(options.pop("kind"), steps, noise_level, torch.tensor(lengths.effective), **options)
    sigmas = check_sigmas(sigmas, len(lengths))
    indices = tuple(range(len(lengths)) if indices is None else indices)
    return Plan(lengths, sampler, sigmas, seed, indices, eta, float(sigmas[0, 0]))


def check_sigmas(sigmas: Tensor, batch: int) -> Tensor:
    sigmas = torch.as_tensor(sigmas, dtype=torch.float32).cpu()
    sigmas = sigmas.expand(batch, -1) if sigmas.dim() == 1 else sigmas
    if sigmas.dim() != 2 or sigmas.shape[0] != batch or sigmas.shape[1] < 2:
        raise SA3Error(f"SIGMAS have shape {tuple(sigmas.shape)}; expected (steps + 1,) or ({batch}, steps + 1), at least two points.")
    if not bool(torch.isfinite(sigmas).all()) or float(sigmas.max()) > 1 or float(sigmas.min()) < 0:
        raise SA3Error(f"SIGMAS run from {sigmas.max():.4g} to {sigmas.min():.4g}; Stable Audio 3 needs noise levels between 1 and 0.")
    if bool((sigmas[:, :-1] <= 0).any()):
        raise SA3Error("SIGMAS reach 0 before the last point; expected noise levels above 0 that end at 0.")
    return sigmas


@independent
def run(
    velocity: Callable[[Tensor, Tensor], Tensor],
    plan: Plan,
    *,
    channels: int,
    device=None,
    init: Tensor | None = None,
    initial_noise: Tensor | None = None,
    step_noise=None,
    callback=None,
) -> Tensor:
    """Sample latents (B, C, T), float32, zeros beyond each item's valid frames.

    velocity(x, t (B,) on the CPU). init: latents to start from, mixed with noise at the first level. initial_noise, step_noise:
    draws to use in place of the seed's. callback(step, total, denoised).
    """
    shape = (len(plan.lengths), channels, plan.lengths.frames)
    draws = Draws(plan.seed, channels, plan.lengths, plan.indices)
    first = draws() if initial_noise is None else _checked("initial_noise", initial_noise, shape)
    x = first.to(device, torch.float32)
    level = plan.sigmas[:, :1, None].to(x.device)
    if init is not None:
        init = _checked("The latents to start from", init, shape).to(x.device, torch.float32)
        x = (1 - level) * init + level * x
    elif bool((plan.sigmas[:, 0] < 1).any()):
        x = level * x
    pending = None
    if step_noise is not None:
        step_noise = list(step_noise)
        needed = samplers.draws_per_run(plan.sampler, plan.steps, plan.eta)
        if len(step_noise) < needed:
            raise SA3Error(f"step_noise has {len(step_noise)} draws; the sampler {plan.sampler} takes {needed}.")
        pending = iter([_checked("A draw of step_noise", draw, shape) for draw in step_noise])

    def noise(t: Tensor, t_next: Tensor) -> Tensor:
        drawn = draws() if pending is None else next(pending)
        return to_device(drawn, x.device, x.dtype)

    out = samplers.sample(plan.sampler, velocity, x, plan.sigmas, noise, plan.eta, callback)
    return hide_padding(out, plan.lengths)


def hide_padding(x: Tensor, lengths: Lengths) -> Tensor:
    """Zeros beyond the valid frames, which nothing ever computed in earnest."""
    if min(lengths.valid) == x.shape[-1]:
        return x
    valid = torch.arange(x.shape[-1])[None] < torch.tensor(lengths.valid)[:, None]
    return torch.where(to_device(valid[:, None], x.device), x, torch.zeros((), device=x.device, dtype=x.dtype))


def _checked(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    x = x.expand(shape[0], -1, -1) if x.dim() == 3 and x.shape[0] == 1 else x
    if tuple(x.shape) != shape:
        raise SA3Error(f"{name} has shape {tuple(x.shape)}; this run needs {shape} (batch, channels, frames).")
    if not bool(torch.isfinite(x).all()):
        raise SA3Error(f"{name} contains NaN or infinite values.")
    return x
