"""Flow matching loss of the transformer and its random draws, as in the public trainer.

t = 0 is data, t = 1 is noise; x_t = (1 - t) z + t n; the network predicts n - z. Masks are True where audio is given.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.conditioning import Condition
from ..models.conditions import Conditions
from ..models.release import ConditionedDiT
from ..sampling.schedule import SHIFTS
from ..timeline.durations import valid_mask
from .trainer import Loss

TRUNCATION = 0.075  # lower bound of the truncated logit-normal, before t is flipped
SILENCE = 4.0  # mean seconds of silence kept after a clip
PROMPT_DROPOUT = 0.1  # probability of an all-zero cross-attention input
MASKS = (0.1, 0.8, 0.1)  # probabilities of random segments, nothing given, a given beginning
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels t of `fixed_noise_loss`


@dataclass(frozen=True)
class Batch:
    """latents (B, D, T), padded with silence; lengths: valid frames per item.

    durations: frames of the duration that each item is conditioned on, for the shift of t; None = lengths.
    """

    latents: Tensor
    lengths: Sequence[int]
    condition: Condition
    durations: Sequence[int] | None = None


def draw_times(n: int, generator: torch.Generator) -> Tensor:
    """n noise levels in (0, 1], float32 (n,), from a truncated logit-normal distribution."""
    low = _phi(torch.tensor(math.log(TRUNCATION / (1 - TRUNCATION))))
    u = low + (1 - low) * _phi(torch.randn(n, generator=generator))
    x = torch.sigmoid(math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-7, 1 - 1e-7)))
    return 1 - (x - TRUNCATION) / (1 - TRUNCATION)


def _phi(z: Tensor) -> Tensor:
    """The cumulative distribution function of the standard normal."""
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def extend_lengths(lengths: Sequence[int], mean_frames: float, frames: int, generator: torch.Generator) -> list[int]:
    """Valid frames plus exponentially distributed silence with a mean of `mean_frames`; at most `frames` in total."""
    extra = -mean_frames * torch.rand(len(lengths), generator=generator).clamp_min(1e-9).log()
    return [min(frames, n + int(more)) for n, more in zip(lengths, extra.tolist(), strict=True)]


def draw_masks(lengths: Sequence[int], frames: int, probabilities: Sequence[float], generator: torch.Generator) -> Tensor:
    """Inpainting masks (B, frames), True = given: random segments to generate, everything to generate, or a given beginning."""

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    given = torch.zeros(len(lengths), frames, dtype=torch.bool)
    for row, n in zip(given, lengths, strict=True):
        draw = float(torch.rand((), generator=generator))
        if draw < probabilities[0]:
            row[:n] = True
            count = integer(1, 10)
            for _ in range(count):
                length = integer(1, max(1, n // count))
                start = integer(0, n - length)
                row[start : start + length] = False
        elif draw >= probabilities[0] + probabilities[1]:
            row[: integer(0, n)] = True
    return given


def pair_noise(z: Tensor, noise: Tensor) -> Tensor:
    """The noise (B, ...) reordered to lie near the items of z (B, ...), by entropic optimal transport (arXiv 2407.03648).

    20 Sinkhorn iterations on log P = -C / mean(C), C the squared distances; then each item in turn takes its most probable unused noise.
    """
    cost = torch.cdist(z.flatten(1).float(), noise.flatten(1).float()).square()
    plan = -cost / cost.mean().clamp_min(1e-12)
    for _ in range(20):
        plan = plan - plan.logsumexp(1, keepdim=True)
        plan = plan - plan.logsumexp(0, keepdim=True)
    order, unused = [], list(range(len(noise)))
    for row in plan.tolist():
        order.append(max(unused, key=row.__getitem__))
        unused.remove(order[-1])
    return noise[order]


def training_loss(
    net: ConditionedDiT, batches: Callable[[torch.Generator], Batch], frame_rate: float, *, masks: Sequence[float] = MASKS,
    pairing: bool = True,
) -> Loss:  # fmt: skip
    """The loss of a `Trainer`. batches(generator) -> Batch; frame_rate: latent frames per second.

    masks: see MASKS. pairing: assign the noise of a batch to its items by optimal transport.
    """

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = batches(generator)
        z, durations = batch.latents, torch.tensor(list(batch.durations or batch.lengths), dtype=torch.float32)
        t = SHIFTS["full"](draw_times(len(z), generator), durations)  # longer clips are trained at higher noise
        noise = torch.randn(z.shape, generator=generator).to(z)
        noise = pair_noise(z, noise) if pairing and len(z) > 1 else noise
        lengths = extend_lengths(batch.lengths, SILENCE * frame_rate, z.shape[-1], generator)
        given = draw_masks(lengths, z.shape[-1], masks, generator)
        prompted = torch.rand(len(z), generator=generator) >= PROMPT_DROPOUT
        return flow_loss(net, z, noise, t, lengths, given, batch.condition, prompted)

    return loss


def flow_loss(
    net: ConditionedDiT, z: Tensor, noise: Tensor, t: Tensor, lengths: Sequence[int], given: Tensor, condition: Condition, prompted: Tensor
) -> dict[str, Tensor]:  # fmt: skip
    """The loss over generated and over given frames, and their sum, for given draws.

    z, noise (B, D, T); t (B,); given (B, T) bool; prompted (B,) bool: items whose prompt is not dropped. The mean over the items, each
    averaged over its valid frames (`lengths`).
    """
    level, given = t.to(z)[:, None, None], given.to(z.device)
    x = (1 - level) * z + level * noise
    cross = condition.cross_attn * prompted.to(condition.cross_attn)[:, None, None]
    inputs = prepare_inputs(net, z, given, replace(condition, cross_attn=cross), lengths)
    error = (net.dit(x, t, inputs) - (noise - z)).float().square().mean(1)[:, : inputs.frames]  # (B, frames)
    valid = valid_mask(lengths, inputs.frames).to(z.device)
    given = given[:, : inputs.frames]

    def mean(mask: Tensor) -> Tensor:
        return ((error * mask).sum(1) / (mask.sum(1) + 1e-8)).mean()

    generated, context = mean(valid & ~given), mean(valid & given)
    return {"loss": generated + context, "generated": generated, "context": context}


def prepare_inputs(net: ConditionedDiT, z: Tensor, given: Tensor, condition: Condition, lengths: Sequence[int]) -> Conditions:
    """The transformer's inputs: the condition, the mask `given` (B, T) and the given frames of z (B, D, T)."""
    local = local_input(z, given).to(condition.cross_attn)
    return net.dit.prepare(condition.cross_attn, condition.global_cond, local, z.shape[-1], lengths, condition.adapters)


def local_input(z: Tensor, given: Tensor) -> Tensor:
    """Mask and masked latents (B, D + 1, T) of z (B, D, T) and the frames that are given (B, T)."""
    known = given[:, None].to(z)
    return torch.cat((known, known * z), dim=1)


@torch.no_grad()
def fixed_noise_loss(net: ConditionedDiT, batch: Batch, seed: int) -> float:
    """The mean loss of a batch over LEVELS with the noise of `seed`, nothing given and no prompt dropped."""
    z, n = batch.latents, len(batch.latents)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(z)
    given, prompted = torch.zeros(n, z.shape[-1], dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    losses = [flow_loss(net, z, noise, torch.full((n,), level), batch.lengths, given, batch.condition, prompted) for level in LEVELS]
    return sum(float(loss["generated"]) for loss in losses) / len(LEVELS)
