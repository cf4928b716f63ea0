"""The constants of a sampling run, which `DiT.prepare` computes and every step reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.device import backend_of, to_device
from .layers import Adapters


class Modulation(NamedTuple):
    """adaLN values of all layers in a step, (layers, B, 1, width) each: 1 for the self-attention, 2 for the feed-forward.

    A gain is gamma (1 + scale) of the norm before it; a gate is sigmoid(1 - g) of the released parameter g.
    """

    gain1: Tensor
    shift1: Tensor
    gate1: Tensor
    gain2: Tensor
    shift2: Tensor
    gate2: Tensor


@dataclass(frozen=True)
class LocalInput:
    """The local input, rows (b, 1 or frames, local_dim), and its embedding for each layer, (b, 1 or frames, width)."""

    rows: Tensor
    embeddings: list[Tensor]

    @staticmethod
    def join(inputs: Sequence["LocalInput"], batches: Sequence[int]) -> "LocalInput":
        """The local input of concatenated batches; the same object if all share it."""
        first = inputs[0]
        if all(other is first for other in inputs[1:]):
            return first

        def cat(parts: Sequence[Tensor]) -> Tensor:
            frames = max(part.shape[1] for part in parts)
            return torch.cat([part.expand(n, frames, -1) for part, n in zip(parts, batches, strict=True)])

        rows, *embeddings = map(cat, zip(*((one.rows, *one.embeddings) for one in inputs), strict=True))
        return LocalInput(rows, embeddings)

    def pick(self, items: Sequence[int]) -> "LocalInput":
        if len(self.rows) == 1:
            return self
        rows = row_index([i % len(self.rows) for i in items], self.rows.device)
        return LocalInput(self.rows[rows], [part[rows] for part in self.embeddings])


@dataclass
class StepCache:
    """Results that the steps of one run share."""

    modulations: dict[tuple[float, ...], Modulation] = field(default_factory=dict)  # by the times of a step
    parts: dict[tuple[int, ...], "Conditions"] = field(default_factory=dict)  # by items
    adapted: dict[tuple[float, ...], "Conditions"] = field(default_factory=dict)  # by the strengths of scheduled adapters
    scheduled: dict = field(default_factory=dict)  # scheduled adapters on the device; shared by picked and joined conditions


@dataclass(frozen=True)
class Conditions:
    """The constants of a run for B items. B may be a multiple of the local rows: guidance has two contexts and one local input.

    cross_attn (B, n, cond_dim), global_cond (B, cond_dim): the inputs. cross_kv: per layer (k, v) or (k, k2, v), (B, H, n, D) each.
    cross_bias (B, n): log of the number of context rows that each row represents, None = zeros. local: None = absent.
    global_embed (B, width). lengths (B,): valid tokens, memory included; None = all. frames: of the longest item.
    adapters: those in the forward pass, with which the tensors were computed. cache: never copied.
    """

    cross_attn: Tensor
    global_cond: Tensor
    cross_kv: list[tuple[Tensor, ...]]
    cross_bias: Tensor | None
    local: LocalInput | None
    global_embed: Tensor
    rotary: tuple[Tensor, Tensor]
    lengths: Tensor | None
    frames: int
    adapters: Adapters | None = None
    cache: StepCache = field(default_factory=StepCache)

    @staticmethod
    def join(inputs: Sequence["Conditions"]) -> "Conditions":
        """The conditions of several runs over the same lengths, as one batch."""
        first = inputs[0]
        if len(inputs) == 1:
            return first
        if any(one.cross_bias is not None for one in inputs):
            rows = max(one.cross_attn.shape[1] for one in inputs)
            inputs = [one._padded_to(rows) for one in inputs]
        return replace(
            first,
            cross_attn=torch.cat([one.cross_attn for one in inputs]),
            global_cond=torch.cat([one.global_cond for one in inputs]),
            cross_kv=[tuple(map(torch.cat, zip(*layer, strict=True))) for layer in zip(*(one.cross_kv for one in inputs), strict=True)],
            cross_bias=None if inputs[0].cross_bias is None else torch.cat([one.cross_bias for one in inputs]),
            local=None if first.local is None else LocalInput.join([one.local for one in inputs], [one.batch for one in inputs]),
            global_embed=torch.cat([one.global_embed for one in inputs]),
            lengths=None if first.lengths is None else torch.cat([one.lengths for one in inputs]),
            cache=StepCache(scheduled=first.cache.scheduled),
        )

    def _padded_to(self, rows: int) -> "Conditions":
        """The conditions with a context of this many rows; the new ones are hidden from attention."""
        more = rows - self.cross_attn.shape[1]
        bias = self.cross_bias
        if bias is None:
            bias = self.cross_attn.new_zeros(self.cross_attn.shape[:2], dtype=score_dtype(self.cross_attn))
        return replace(
            self,
            cross_attn=F.pad(self.cross_attn, (0, 0, 0, more)),
            cross_kv=[tuple(F.pad(part, (0, 0, 0, more)) for part in layer) for layer in self.cross_kv],
            cross_bias=F.pad(bias, (0, more), value=-torch.inf),
        )

    def pick(self, items: Sequence[int]) -> "Conditions":
        """The conditions of some items; views if they are consecutive."""
        rows = row_index(items, self.global_embed.device)
        return replace(
            self,
            cross_attn=self.cross_attn[rows],
            global_cond=self.global_cond[rows],
            cross_kv=[tuple(part[rows] for part in layer) for layer in self.cross_kv],
            cross_bias=None if self.cross_bias is None else self.cross_bias[rows],
            local=None if self.local is None else self.local.pick(items),
            global_embed=self.global_embed[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            cache=StepCache(scheduled=self.cache.scheduled),
        )

    def part(self, items: Sequence[int]) -> "Conditions":
        """`pick`, cached."""
        key = tuple(items)
        if key not in self.cache.parts:
            self.cache.parts[key] = self.pick(key)
        return self.cache.parts[key]

    @property
    def batch(self) -> int:
        return self.global_embed.shape[0]

    @property
    def rows(self) -> int:
        """Rows per item that the transformer computes, padding included."""
        return backend_of(self.rotary[0].device).padded_rows(len(self.rotary[0]))


def row_index(items: Sequence[int], device) -> slice | Tensor:
    """An index of items for tensors on a device; a slice if they are consecutive."""
    rows = list(items)
    consecutive = rows == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[0] + len(rows)) if consecutive else to_device(torch.tensor(rows), device)


def score_dtype(rows: Tensor) -> torch.dtype:
    """The dtype of a bias of attention scores: float32, or float64 in a float64 model, where torch misreads other dtypes."""
    return torch.promote_types(rows.dtype, torch.float32)
