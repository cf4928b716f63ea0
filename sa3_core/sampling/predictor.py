"""The guided velocity of a run, over conditions that are prepared once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import SA3Error
from ..models.conditioning import Condition
from ..models.conditions import Conditions, LocalInput
from ..models.dit import DiT
from .guidance import Guidance


class Predictor:
    """velocity(x, t) of a run: a network (x, t, conditions) -> velocity, with guidance where it is active.

    uncond: needed when guidance.cfg is not 1. lengths: valid frames per item, over which guidance computes norms; None = all.
    """

    def __init__(
        self, network: Callable[..., Tensor], cond: Conditions, uncond: Conditions | None = None, guidance: Guidance | None = None,
        lengths: Sequence[int] | None = None,
    ):  # fmt: skip
        self.network, self.cond, self.guidance, self.lengths = network, cond, guidance or Guidance(), lengths
        if self.guidance.cfg != 1 and uncond is None:
            raise SA3Error("Guidance needs an unconditional input.")
        self.joined = None if self.guidance.cfg == 1 else Conditions.join([cond, uncond])

    @classmethod
    def prepare(
        cls, dit: DiT, condition: Condition, local: LocalInput | Tensor | None, frames: int, lengths: Sequence[int] | None,
        guidance: Guidance, negative: Tensor | None = None, network: Callable[..., Tensor] | None = None,
    ) -> "Predictor":  # fmt: skip
        """A Predictor with the conditional context prepared, and the unconditional one if guidance is on.

        local, frames, lengths: as in `DiT.prepare`. negative (B, n, dim): unconditional context, None = zeros. network: replaces dit in
        the steps.
        """
        cond = dit.prepare(condition.cross_attn, condition.global_cond, local, frames, lengths, condition.adapters)
        uncond = None
        if guidance.cfg != 1:
            negative = torch.zeros_like(condition.cross_attn) if negative is None else negative
            uncond = dit.prepare(negative, condition.global_cond, cond.local, frames, lengths, condition.adapters)
        return cls(network or dit, cond, uncond, guidance, lengths)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity (B, C, T) at x (B, C, T) and t (B,) on the CPU, in x's dtype."""
        if self.joined is None or not bool(self.guidance.active(t).any()):
            return self.network(x, t, self.cond).to(x.dtype)
        return self.guidance.apply(x, t, *self.pair(x, t), self.lengths)

    def pair(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional velocity, (B, C, T) each, computed as one batch."""
        v_cond, v_uncond = self.network(torch.cat((x, x)), torch.cat((t, t)), self.joined).to(x.dtype).chunk(2)
        return v_cond, v_uncond
