"""Post-training, the warm-up stage of the public recipe: a student reaches in one step where the guided path of its teacher ends.

A path is the teacher's way from noise to data under guidance, by an ODE sampler. The network's formula stays: it predicts a velocity v,
and x_t - t v is compared with the end of the path on which x_t lies. What comes out samples in few steps, without guidance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sa3_core.models.conditioning import Condition
from sa3_core.models.release import Generator, Predictor
from sa3_core.sampling import samplers, schedule
from sa3_core.sampling.guidance import Guidance
from sa3_core.training.flow import Batch, prepare_inputs


@dataclass(frozen=True)
class Paths:
    """P paths of S states. states (P, S, D, T) at times (P, S), ends (P, D, T); lengths (P,): valid frames.

    What the transformer was told: cross_attn (P, n, C), global_cond (P, C), and given (P, T): frames known from latents (P, D, T).
    """

    states: Tensor
    times: Tensor
    ends: Tensor
    lengths: Tensor
    cross_attn: Tensor
    global_cond: Tensor
    given: Tensor
    latents: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def pick(self, items: Sequence[int]) -> "Paths":
        """Some of the paths."""
        rows = list(items)
        return Paths(*(getattr(self, field.name)[rows] for field in fields(Paths)))

    @staticmethod
    def join(parts: Sequence["Paths"]) -> "Paths":
        return Paths(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Paths)))


@torch.no_grad()
def follow(
    teacher: Generator, batch: Batch, lengths: Sequence[int], given: Tensor, guidance: Guidance, steps: int, generator: torch.Generator,
    sampler: str = "dpmpp",
) -> Paths:  # fmt: skip
    """The teacher's paths to the items of a batch. lengths: frames to generate per item; given (B, T): frames known from the batch."""
    z, condition = batch.latents, batch.condition
    options = dict(teacher.config.schedule)
    sigmas = schedule.build(options.pop("kind"), steps, 1.0, torch.tensor(list(batch.shift_lengths)), **options).expand(len(z), -1)
    cond = prepare_inputs(teacher, z, given, condition, lengths)
    blank = teacher.conditioner.unconditional(len(z), condition.cross_attn)
    uncond = prepare_inputs(teacher, z, given, replace(condition, cross_attn=blank), lengths)
    velocity, states = Predictor(teacher.dit, cond, uncond, guidance, lengths), []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return velocity(x, t)

    ends = samplers.sample(sampler, recorded, torch.randn(z.shape, generator=generator).to(z), sigmas)
    return Paths(
        torch.stack(states, 1), sigmas[:, : len(states)], ends, torch.tensor(list(lengths)),
        condition.cross_attn, condition.global_cond, given, z,
    )  # fmt: skip


def loss(student: Generator, banks: Callable[[torch.Generator], tuple[Paths, int]]) -> Callable:
    """The loss of one step for `loop.Trainer`. banks(generator) -> paths, and how many of them make a batch."""

    def step_loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        paths, count = banks(generator)
        items = torch.randint(len(paths), (count,), generator=generator)
        places = torch.randint(paths.states.shape[1], (count,), generator=generator)
        return distil_loss(student, paths, items, places)

    return step_loss


def distil_loss(student: Generator, paths: Paths, items: Tensor, places: Tensor) -> dict[str, Tensor]:
    """Squared distance of x_t - t v from the path's end, over t: early states, where much is open, count more but do not drown the rest.

    items, places (B,): which paths, and which of their states. Every item counts alike; frames that were given cost as little as
    they differ.
    """
    x, t = paths.states[items, places].float(), paths.times[items, places]
    lengths = paths.lengths[items].tolist()
    known, given = paths.latents[items].float(), paths.given[items]
    inputs = prepare_inputs(student, known, given, Condition(paths.cross_attn[items], paths.global_cond[items]), lengths)
    level = t.to(x)[:, None, None]
    made = x - level * student.dit(x, t, inputs).float()
    error = ((made - paths.ends[items].float()).square() / level).mean(1)  # (B, T)
    valid = torch.arange(x.shape[-1])[None] < torch.tensor(lengths)[:, None]
    return {"loss": ((error * valid).sum(1) / valid.sum(1)).mean()}
