"""velocity(x, t) of one run: guidance around the transformer, over conditions prepared once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.conditioning import Condition
from ..models.conditions import Conditions, LocalInput
from ..models.dit import DiT
from .guidance import Guidance


class Predictor:
    """The network (x, t, conditions) -> velocity at the conditions of a run, guided where the guidance is active.

    lengths: valid frames per item, over which guidance takes its norms; None = all.
    """

    def __init__(
        self, network: Callable[..., Tensor], cond: Conditions, uncond: Conditions | None = None, guidance: Guidance | None = None,
        lengths: Sequence[int] | None = None,
    ):  # fmt: skip
        self.network, self.cond, self.guidance, self.lengths = network, cond, guidance or Guidance(), lengths
        self.both = None if uncond is None else Conditions.join([cond, uncond])

    @classmethod
    def prepare(
        cls, dit: DiT, condition: Condition, local: LocalInput | Tensor | None, frames: int, lengths: Sequence[int] | None,
        guidance: Guidance, negative: Tensor | None = None, network: Callable[..., Tensor] | None = None,
    ) -> "Predictor":  # fmt: skip
        """Prepare the conditional context, and with guidance the unconditional one.

        local, frames, lengths: as `DiT.prepare` has them. negative (B, n, dim): the unconditional context; None = zeros in every row.
        network: in place of dit in the steps.
        """
        cond = dit.prepare(condition.cross_attn, condition.global_cond, local, frames, lengths, condition.adapters)
        uncond = None
        if guidance.cfg != 1:
            negative = torch.zeros_like(condition.cross_attn) if negative is None else negative
            uncond = dit.prepare(negative, condition.global_cond, cond.local, frames, lengths, condition.adapters)
        return cls(network or dit, cond, uncond, guidance, lengths)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, T), t (B,) on the CPU -> velocity (B, C, T) in x's type."""
        if self.both is None or not bool(self.guidance.active(t).any()):
            return self.network(x, t, self.cond).to(x.dtype)
        return self.guidance.apply(x, t, *self.pair(x, t), self.lengths)

    def pair(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional velocity, computed as one batch."""
        v_cond, v_uncond = self.network(torch.cat((x, x)), torch.cat((t, t)), self.both).to(x.dtype).chunk(2)
        return v_cond, v_uncond
