"""Flow matching of the transformer, as the public code trains it: one step's draws, and its loss.

t = 0 is data, t = 1 is noise; x_t = (1 - t) z + t n; the network predicts n - z. Masks here are True where audio is given.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import SA3Error
from ..models.conditioning import Condition
from ..models.dit import DiTInputs
from ..models.release import Generator
from ..sampling.schedule import SHIFTS

TRUNCATION = 0.075  # of the logit-normal draw, before it is flipped
TIMES = ("uniform", "logit_normal", "trunc_logit_normal", "log_snr", "log_snr_uniform")


@dataclass(frozen=True)
class FlowSettings:
    """times: how t is drawn (TIMES). masks: chances of random segments, nothing given, a given beginning.

    base_shift, max_shift: of logit(t), from min_length to max_length frames. silence: mean seconds of silence left behind the clip.
    context_weight: of the loss over given frames. prompt_dropout: chance that the whole cross-attention input is zero.
    pairing: noises go to the items of a batch by optimal transport.
    """

    times: str = "trunc_logit_normal"
    masks: tuple[float, float, float] = (0.1, 0.8, 0.1)
    base_shift: float = 0.5
    max_shift: float = 1.15
    min_length: int = 256
    max_length: int = 4096
    silence: float = 4.0
    context_weight: float = 1.0
    prompt_dropout: float = 0.1
    pairing: bool = False

    def __post_init__(self):
        if self.times not in TIMES:
            raise SA3Error(f"times is '{self.times}', expected one of {', '.join(TIMES)}.")
        if len(self.masks) != 3 or min(self.masks) < 0 or abs(sum(self.masks) - 1) > 1e-6:
            raise SA3Error(f"masks are {self.masks}, expected three chances that sum to 1: segments, full, causal.")


@dataclass(frozen=True)
class Batch:
    """latents (B, D, T), silence behind the clips; lengths: valid frames per item; condition: what the transformer is told.

    effective: frames of the duration that each item is told, by which times are shifted; None = lengths.
    """

    latents: Tensor
    lengths: Sequence[int]
    condition: Condition
    effective: Sequence[int] | None = None


def draw_times(name: str, n: int, generator: torch.Generator) -> Tensor:
    """n noise levels in (0, 1], float32."""
    if name == "uniform":
        seed = int(torch.randint(2**31, (), generator=generator))
        return torch.quasirandom.SobolEngine(1, scramble=True, seed=seed).draw(n)[:, 0]
    z = torch.randn(n, generator=generator)
    if name == "logit_normal":
        return torch.sigmoid(z)
    if name == "trunc_logit_normal":
        low = _phi(torch.tensor(math.log(TRUNCATION / (1 - TRUNCATION))))
        u = low + (1 - low) * _phi(z)
        x = torch.sigmoid(math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-7, 1 - 1e-7)))
        return 1 - (x - TRUNCATION) / (1 - TRUNCATION)
    log_snr = 2 * z - 1.2 if name == "log_snr" else 11 * torch.rand(n, generator=generator) - 6
    return torch.sigmoid(-log_snr).clamp(1e-4, 1 - 1e-4)


def _phi(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def shift_times(t: Tensor, lengths: Sequence[int], settings: FlowSettings) -> Tensor:
    """Longer clips are trained at higher noise: t (B,) shifted as the schedule `full` does for lengths in frames."""
    return SHIFTS["full"](
        t,
        torch.tensor(list(lengths), dtype=torch.float32),
        base_shift=settings.base_shift,
        max_shift=settings.max_shift,
        min_length=settings.min_length,
        max_length=settings.max_length,
    )


def extend_lengths(lengths: Sequence[int], mean_frames: float, frames: int, generator: torch.Generator) -> list[int]:
    """Valid frames with a random stretch of silence behind them, exponential with `mean_frames`, at most `frames` in all."""
    if mean_frames <= 0:
        return list(lengths)
    extra = -mean_frames * torch.rand(len(lengths), generator=generator).clamp_min(1e-9).log()
    return [min(frames, n + int(more)) for n, more in zip(lengths, extra.tolist(), strict=True)]


def draw_given(lengths: Sequence[int], frames: int, chances: Sequence[float], generator: torch.Generator) -> Tensor:
    """Inpainting masks (B, frames), True = given: segments are made anew, everything is, or all behind a given beginning."""

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    given = torch.zeros(len(lengths), frames, dtype=torch.bool)
    for row, n in zip(given, lengths, strict=True):
        kind = float(torch.rand((), generator=generator))
        if kind < chances[0]:
            row[:n] = True
            count = whole(1, 10)
            for _ in range(count):
                length = whole(1, max(1, n // count))
                start = whole(0, n - length)
                row[start : start + length] = False
        elif kind >= chances[0] + chances[1]:
            row[: whole(0, n)] = True
    return given


def pair_noise(z: Tensor, noise: Tensor, rounds: int = 20) -> Tensor:
    """The noises (B, ...) in the order in which they lie near the items of z, by entropic optimal transport (arXiv 2407.03648).

    Sinkhorn on log P = -C / mean(C), C the squared distances; then each item in turn takes its likeliest noise that is left.
    """
    cost = torch.cdist(z.flatten(1).float(), noise.flatten(1).float()).square()
    plan = -cost / cost.mean().clamp_min(1e-12)
    for _ in range(rounds):
        plan = plan - plan.logsumexp(1, keepdim=True)
        plan = plan - plan.logsumexp(0, keepdim=True)
    order, left = [], list(range(len(noise)))
    for row in plan.tolist():
        order.append(max(left, key=row.__getitem__))
        left.remove(order[-1])
    return noise[order]


def loss(
    net: Generator, batches: Callable[[torch.Generator], Batch], settings: FlowSettings, frame_rate: float, checkpointing: bool = False
) -> Callable:
    """The loss of one step for `loop.Trainer`. batches(generator) -> a Batch; frame_rate: latent frames per second.

    checkpointing: as in `flow_loss`.
    """

    def step_loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = batches(generator)
        z = batch.latents
        effective = batch.lengths if batch.effective is None else batch.effective
        t = shift_times(draw_times(settings.times, len(z), generator), effective, settings)
        noise = torch.randn(z.shape, generator=generator).to(z)
        noise = pair_noise(z, noise) if settings.pairing and len(z) > 1 else noise
        lengths = extend_lengths(batch.lengths, settings.silence * frame_rate, z.shape[-1], generator)
        given = draw_given(lengths, z.shape[-1], settings.masks, generator)
        kept = torch.rand(len(z), generator=generator) >= settings.prompt_dropout
        return flow_loss(net, z, noise, t, lengths, given, batch.condition, kept, settings.context_weight, checkpointing)

    return step_loss


def flow_loss(
    net: Generator, z: Tensor, noise: Tensor, t: Tensor, lengths: Sequence[int], given: Tensor, condition: Condition, kept: Tensor,
    context_weight: float = 1.0, checkpointing: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """The loss for these draws. z, noise (B, D, T); t (B,); given (B, T); kept (B,): items that see their prompt.

    Every item counts alike, whatever its length; frames beyond `lengths` cost nothing. checkpointing: keep only the inputs of the
    transformer's layers, and compute the layers again in the backward pass.
    """
    device = z.device
    level, given = t.to(z)[:, None, None], given.to(device)
    x = (1 - level) * z + level * noise
    cross = condition.cross_attn * kept.to(condition.cross_attn)[:, None, None]
    inputs = prepare(net, z, given, replace(condition, cross_attn=cross), lengths)
    frames = inputs.frames
    error = (
        (net.dit(x, t, inputs, _checkpointed if checkpointing else None) - (noise - z)).float().square().mean(1)[:, :frames]
    )  # (B, frames)
    valid = (torch.arange(frames)[None] < torch.tensor(list(lengths))[:, None]).to(device)
    generated, context = valid & ~given[:, :frames], valid & given[:, :frames]
    main = ((error * generated).sum(1) / (generated.sum(1) + 1e-8)).mean()
    side = ((error * context).sum(1) / (context.sum(1) + 1e-8)).mean()
    return {"loss": main + context_weight * side, "generated": main, "context": side}


def _checkpointed(layer: torch.nn.Module, *args) -> Tensor:
    return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)


def prepare(net: Generator, z: Tensor, given: Tensor, condition: Condition, lengths: Sequence[int]) -> DiTInputs:
    """The transformer's inputs: its condition, and the frames of z (B, D, T) that are given (B, T)."""
    known = given[:, None].to(z)
    local = torch.cat((known, known * z), dim=1).to(condition.cross_attn)
    return net.dit.prepare(condition.cross_attn, condition.global_cond, local, z.shape[-1], lengths, condition.adapters)


LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def fixed_loss(net: Generator, batch: Batch, seed: int, levels: Sequence[float] = LEVELS) -> dict[float, float]:
    """The loss of a batch at each noise level, nothing given and every prompt seen; the same noise whenever it is asked."""
    z, n = batch.latents, len(batch.latents)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(z)
    given, kept = torch.zeros(n, z.shape[-1], dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    found = {}
    for level in levels:
        terms = flow_loss(net, z, noise, torch.full((n,), level), batch.lengths, given, batch.condition, kept)
        found[level] = float(terms["generated"])
    return found
