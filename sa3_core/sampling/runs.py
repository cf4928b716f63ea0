"""A run from noise to latents, shared by the nodes and the pipeline: lengths, noise levels, draws and sampler."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..audio.waveform import check_tensor
from ..backends.ambient import independent
from ..backends.device import to_device
from ..config import ModelConfig
from ..errors import SA3Error
from ..timeline.durations import Lengths, valid_mask
from . import samplers, schedule
from .draws import Draws, check_seed


@dataclass(frozen=True)
class Plan:
    """The settings of a run, complete and validated.

    indices: per item, the index that selects its noise. eta: None = the sampler's default. noise_level: the first of item 0.
    """

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
        """The plan of some items, with the draws, noise levels and number of frames that they have in the whole batch."""
        rows = list(items)
        return replace(self, lengths=self.lengths.pick(rows), sigmas=self.sigmas[rows], indices=tuple(self.indices[i] for i in rows))


@independent
def plan(
    config: ModelConfig, lengths: Lengths, *, steps: int | None = None, sampler: str | None = None, seed: int = 0, noise_level: float = 1.0,
    sigmas: Tensor | None = None, schedule_options: dict | None = None, eta: float | None = None, indices: Sequence[int] | None = None,
) -> Plan:  # fmt: skip
    """The plan of a run; None stands for the checkpoint's default.

    sampler: also "auto". sigmas: replace steps, noise_level and schedule. schedule_options: kind, mode and the parameters of that kind.
    """
    check_seed(seed)
    sampler = config.default_sampler if sampler in (None, "auto") else sampler
    if not isinstance(sampler, str) or sampler not in samplers.SAMPLERS:
        raise SA3Error(f"Sampler '{sampler}' is unknown; choose one of {', '.join(samplers.SAMPLERS)}.")
    if sigmas is None:
        if not isinstance(schedule_options, (dict, type(None))):
            raise SA3Error(f"The schedule is {schedule_options!r}; expected a dict with kind, mode and parameters.")
        options = dict(schedule_options or config.schedule)
        if reserved := sorted({"steps", "sigma_max", "length"} & set(options)):
            raise SA3Error(f"The schedule has '{reserved[0]}', which the run sets; remove it.")
        if "kind" not in options:
            raise SA3Error(f"The schedule has no 'kind'; choose one of {', '.join(schedule.SHIFTS)}.")
        steps = steps or config.default_steps
        sigmas = schedule.build(options.pop("kind"), steps, noise_level, torch.tensor(lengths.effective), **options)
    sigmas = check_sigmas(sigmas, len(lengths))
    indices = tuple(range(len(lengths)) if indices is None else indices)
    return Plan(lengths, sampler, sigmas, seed, indices, eta, float(sigmas[0, 0]))


def check_sigmas(sigmas: Tensor, batch: int) -> Tensor:
    """Sigmas (steps + 1,) or (B, steps + 1) as (B, steps + 1), float32, on the CPU. Raises SA3Error when they are not valid."""
    sigmas = samplers.sigmas_per_item("SIGMAS", sigmas, batch, torch.float32)
    if float(sigmas.max()) > 1 or float(sigmas.min()) < 0:
        raise SA3Error(
            f"SIGMAS run from {sigmas.max():.4g} to {sigmas.min():.4g}; Stable Audio 3 needs noise levels between 1 and 0, "
            "as SA3_Schedule builds them."
        )
    if bool((sigmas[:, :-1] <= 0).any()):
        raise SA3Error("SIGMAS reach 0 before the last point; expected noise levels above 0 that end at 0.")
    return sigmas


@independent
def run(
    velocity: Callable[[Tensor, Tensor], Tensor], plan: Plan, *, channels: int, device=None, init: Tensor | None = None,
    initial_noise: Tensor | None = None, step_noise: Iterable[Tensor] | None = None, callback=None,
) -> Tensor:  # fmt: skip
    """Sampled latents (B, C, T), float32, zero beyond each item's valid frames.

    velocity(x, t (B,) on the CPU). init: latents to start from, mixed with noise at the first level. initial_noise, step_noise:
    replace the seed's draws. callback(step, total, denoised).
    """
    shape = (len(plan.lengths), channels, plan.lengths.frames)
    draws = Draws(plan.seed, channels, plan.lengths, plan.indices)
    first = draws() if initial_noise is None else _checked("initial_noise", initial_noise, shape)
    x = first.to(device, torch.float32)
    level = plan.sigmas[:, :1, None].to(x.device)
    x = level * x
    if init is not None:
        x = (1 - level) * _checked("The latents to start from", init, shape).to(x) + x

    def next_draw(t: Tensor, t_next: Tensor) -> Tensor:
        return to_device(draws(), x.device, x.dtype)

    noise = next_draw
    if step_noise is not None:
        noise = [to_device(_checked("A draw of step_noise", draw, shape), x.device, x.dtype) for draw in step_noise]
    out = samplers.sample(plan.sampler, velocity, x, plan.sigmas, noise, plan.eta, callback)
    padding = ~valid_mask(plan.lengths.valid, x.shape[-1])[:, None]
    return out.masked_fill(to_device(padding, x.device), 0)


def _checked(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x, or x (1, C, T) expanded to the batch. Raises SA3Error for another shape and for values that are not finite."""
    check_tensor(name, x)
    x = x.expand(shape[0], -1, -1) if x.dim() == 3 and x.shape[0] == 1 else x
    if tuple(x.shape) != shape:
        raise SA3Error(f"{name} has shape {tuple(x.shape)}; this run needs {shape} (batch, channels, frames).")
    if not bool(torch.isfinite(x).all()):
        raise SA3Error(f"{name} contains NaN or infinite values; expected finite latents.")
    return x
