"""Post-training, the warm-up stage of the public recipe: a student predicts in one step the end of its teacher's guided path.

A path is the teacher's ODE trajectory from noise to data under guidance. The student predicts a velocity v; x_t - t v is compared with the
end of the path of x_t. The student samples in few steps without guidance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sa3_core.models.conditioning import Condition
from sa3_core.models.release import ConditionedDiT
from sa3_core.sampling import samplers, schedule
from sa3_core.sampling.guidance import Guidance
from sa3_core.sampling.predictor import Predictor
from sa3_core.timeline.durations import valid_mask
from sa3_core.training.flow import Batch, local_input, prepare_inputs
from sa3_core.training.trainer import Loss


@dataclass(frozen=True)
class Paths:
    """P paths of S states. states (P, S, D, T) at times (P, S), ends (P, D, T); lengths (P,): valid frames.

    The conditions: cross_attn (P, n, C), global_cond (P, C), and given (P, T): the frames of latents (P, D, T) that are known.
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
        """The paths with the given indices."""
        rows = list(items)
        return Paths(*(getattr(self, field.name)[rows] for field in fields(Paths)))

    @staticmethod
    def join(parts: Sequence["Paths"]) -> "Paths":
        """The concatenation of several."""
        return Paths(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Paths)))


@torch.no_grad()
def sample_paths(
    teacher: ConditionedDiT, batch: Batch, lengths: Sequence[int], given: Tensor, guidance: Guidance, steps: int,
    generator: torch.Generator, sampler: str = "dpmpp",
) -> Paths:  # fmt: skip
    """The teacher's paths for the conditions of a batch. lengths: frames to generate per item; given (B, T): known frames of the batch."""
    z, condition = batch.latents, batch.condition
    options, frames = dict(teacher.config.schedule), torch.tensor(list(batch.durations or batch.lengths))
    sigmas = schedule.build(options.pop("kind"), steps, 1.0, frames, **options).expand(len(z), -1)
    velocity = Predictor.prepare(teacher.dit, condition, local_input(z, given).to(condition.cross_attn), z.shape[-1], lengths, guidance)
    states = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return velocity(x, t)

    ends = samplers.sample(sampler, recorded, torch.randn(z.shape, generator=generator).to(z), sigmas)
    return Paths(
        torch.stack(states, 1), sigmas[:, : len(states)], ends, torch.tensor(list(lengths)),
        condition.cross_attn, condition.global_cond, given, z,
    )  # fmt: skip


def training_loss(student: ConditionedDiT, paths: Callable[[torch.Generator], tuple[Paths, int]]) -> Loss:
    """The loss of a `Trainer`. paths(generator) -> (paths, batch size)."""

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        choice, count = paths(generator)
        items = torch.randint(len(choice), (count,), generator=generator)
        states = torch.randint(choice.states.shape[1], (count,), generator=generator)
        return distil_loss(student, choice, items, states)

    return loss


def distil_loss(student: ConditionedDiT, paths: Paths, items: Tensor, states: Tensor) -> dict[str, Tensor]:
    """Squared distance of x_t - t v from the end of the path, divided by t to limit the weight of early states.

    items, states (B,): indices of paths and of their states. The mean over the items, each averaged over its valid frames.
    """
    x, t = paths.states[items, states].float(), paths.times[items, states]
    lengths = paths.lengths[items].tolist()
    known, given = paths.latents[items].float(), paths.given[items]
    inputs = prepare_inputs(student, known, given, Condition(paths.cross_attn[items], paths.global_cond[items]), lengths)
    level = t.to(x)[:, None, None]
    predicted = x - level * student.dit(x, t, inputs).float()
    error = ((predicted - paths.ends[items].float()).square() / level).mean(1)  # (B, T)
    valid = valid_mask(lengths, x.shape[-1])
    return {"loss": ((error * valid).sum(1) / valid.sum(1)).mean()}
