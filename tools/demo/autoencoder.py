"""Training of SAME: an initialisation that preserves the waveform, and the losses.

With a default initialisation the small network learns magnitudes only: identical new tokens make attention average the patches of a
frame, so phases cancel. `init_block_pca` initialises it as a linear code of every patch instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sa3_core.config import ResamplerConfig
from sa3_core.errors import SA3Error
from sa3_core.models.same import SAME, Block
from sa3_core.training.trainer import Loss

PEAK = 7.7  # scale of queries and keys: the softmax gives 98 % to one token
FLOOR = 1e-4  # smallest variance of a direction, relative to the largest


@torch.no_grad()
def init_block_pca(same: SAME, audio: Tensor, generator: torch.Generator) -> None:
    """Initialise SAME to code each patch of `audio` (B, C, N) by its latent_dim / stride leading principal components.

    Raises SA3Error unless the heads have latent_dim / stride channels and the width exceeds the number of latents.
    """
    c = same.config.encoder
    block = c.latent_dim // c.stride
    if c.head_dim != block or c.width < max(c.latent_dim, c.stride * block) + 1:
        raise SA3Error(
            f"The block PCA needs heads of latents / stride = {block} channels and a width above {c.latent_dim}, found heads of "
            f"{c.head_dim} channels and width {c.width}."
        )
    patch = same.config.patch_size
    rows = audio[..., : audio.shape[-1] // patch * patch].unflatten(2, (-1, patch)).transpose(1, 2).flatten(2).flatten(0, 1).double()
    variance, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    order = torch.arange(len(variance) - 1, len(variance) - c.width, -1)  # the last channel is constant
    variance, directions = variance[order].clamp_min(FLOOR * variance[-1]), directions[:, order]
    scale = variance**-0.25  # half whitened
    scale *= 0.3 / (variance[:block].sqrt() * scale[:block] ** 2).sqrt().mean()

    for side in (same.encoder.layers[0], same.decoder.layers[3]):
        for part in side.parameters():
            if part.dim() > 1:
                part.copy_(0.02 * torch.randn(part.shape, generator=generator))
        side.new_tokens.zero_()[..., -1] = 1
        for index, module in enumerate(side.transformers):
            _quiet_block(module, side.config, index == 0)
    encode, decode = same.encoder.layers[0].mapping, same.decoder.layers[3].mapping
    weight = torch.zeros(c.width, rows.shape[1])
    weight[:-1] = (directions * scale).T.float()
    weight[-1] = 1e-4 * torch.randn(rows.shape[1], generator=generator)
    _set_weight(encode, F.pad(weight[..., None], ((encode.weight_v.shape[-1] - 1) // 2,) * 2))
    encode.bias.zero_()[-1] = 1
    weight = 1e-4 * torch.randn(decode.weight_v.shape, generator=generator)
    weight[:, :-1, decode.weight_v.shape[-1] // 2] += (directions / scale).float()
    _set_weight(decode, weight)
    decode.bias.zero_()

    first, last = same.encoder.layers[2], same.decoder.layers[1]
    for linear in (first, last):
        linear.weight.copy_(0.02 * torch.randn(linear.weight.shape, generator=generator) / math.sqrt(linear.weight.shape[1]))
        linear.bias.zero_()
        linear.weight[torch.arange(c.latent_dim), torch.arange(c.latent_dim)] = 1
    last.bias[-1] = 1
    blocks = [slice(h * block, (h + 1) * block) for h in range(c.stride)]
    _aim(same.encoder.layers[0].transformers[0], c, [(c.stride - h, slice(0, block), part) for h, part in enumerate(blocks)])
    _aim(same.decoder.layers[3].transformers[0], same.config.decoder, [(h + 1, part, slice(0, block)) for h, part in enumerate(blocks)])


def _set_weight(conv, weight: Tensor) -> None:
    conv.weight_v.copy_(weight)
    conv.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])


def _quiet_block(block: Block, config: ResamplerConfig, first: bool) -> None:
    """Scale a block to small outputs and moderate queries and keys."""
    attention = block.self_attn
    attention.to_qkv.weight.mul_(1 / (0.02 * math.sqrt(config.width)))
    attention.to_out.weight.mul_(0.5)
    attention.q_norm.gamma.fill_(PEAK if first else 1.5)
    attention.k_norm.gamma.fill_(PEAK if first else 1.5)
    if first:
        attention.to_qkv.weight[: 2 * config.width].mul_(0.02)
        attention.to_qkv.weight[3 * config.width :].mul_(0.02)
    block.ff.ff[0].proj.weight.mul_(1 / (0.02 * math.sqrt(config.width)))
    block.ff.ff[2].weight.mul_(0.5)


def _aim(block: Block, config: ResamplerConfig, heads: list[tuple[int, slice, slice]]) -> None:
    """Make head h copy channels `source` of the token `offset` positions before to channels `target`. heads: (offset, source, target)."""
    width, dim, constant = config.width, config.head_dim, math.tanh(1.0)
    half = dim // 4  # rotary pairs (i, i + half)
    omega = 10000.0 ** (-torch.arange(0, 2 * half, 2) / (2 * half))
    weight, out = block.self_attn.to_qkv.weight, block.self_attn.to_out.weight
    for h, (offset, source, target) in enumerate(heads):
        rows = torch.arange(h * dim, (h + 1) * dim)
        weight[rows] = 0
        weight[width + rows] = 0
        weight[2 * width + rows] = 0
        used = int((omega > 0.03).sum())
        weight[rows[:used], -1] = math.atanh(0.9) / constant
        weight[width + rows[:used], -1] = torch.atanh(0.9 * torch.cos(omega[:used] * offset)) / constant
        weight[width + rows[half : half + used], -1] = torch.atanh(0.9 * torch.sin(omega[:used] * offset)) / constant
        weight[2 * width + rows, torch.arange(width)[source]] = 1
        out[:, rows] = 0
        out[torch.arange(width)[target], rows] = 1


def waveform_loss(decoded: Tensor, audio: Tensor, saturating: bool = False) -> Tensor:
    """Squared error relative to the energy of each item, mean over the items; 0.01 is 20 dB.

    saturating: e / (1 + e) per item, which bounds the cost of synthesised noise: 2/3 at the correct level, 1/2 for silence.
    """
    error, energy = (decoded - audio).square().mean((1, 2)), audio.square().mean((1, 2))
    relative = error / (energy + 1e-4)
    return (relative / (1 + relative) if saturating else relative).mean()


def spectral_loss(decoded: Tensor, audio: Tensor, angles: Tensor, sizes=(2048, 512, 128), floor: float = 1e-3) -> Tensor:
    """Mean |log magnitude difference| over windows of `sizes` samples with 50 % overlap.

    decoded, audio (B, 2, N); angles (B,): radians of the mix of the two channels that is compared.
    """
    mix = torch.stack((angles.cos(), angles.sin()), dim=1)[..., None]  # (B, 2, 1)
    pair, total = torch.cat(((decoded * mix).sum(1), (audio * mix).sum(1))), audio.new_zeros(())
    for size in sizes:
        frames = pair.unfold(-1, size, size // 2) * torch.hann_window(size)
        spectrum = torch.view_as_real(torch.fft.rfft(frames))
        level = 0.5 * (spectrum.square().sum(-1) / size + floor**2).log()
        a, b = level.chunk(2)
        total = total + (a - b).abs().mean()
    return total / len(sizes)


def soft_norm_loss(z: Tensor) -> Tensor:
    """SAME's regulariser to zero mean and unit variance: per channel over time, plus 0.4 times per frame over channels. z (B, D, T)."""

    def term(dim: int) -> Tensor:
        mean, variance = z.mean(dim), z.var(dim, correction=0).clamp_min(1e-4)
        return (mean.square() + variance - variance.log() - 1).mean()

    return term(2) + 0.4 * term(1)


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms. The spectral term rises linearly from `spectral_from` to `spectral_full`, fractions of all steps."""

    waveform: float = 1.0
    spectral: float = 0.1
    soft_norm: float = 0.003
    spectral_from: float = 0.3
    spectral_full: float = 0.5
    saturating: bool = False  # see waveform_loss
    latent: float = 0.0  # squared distance to the teacher's latents
    latent_noise: float = 0.05  # added before decoding, relative to the standard deviation of the latents
    new_token_noise: float = 0.01


def training_loss(
    same: SAME, audio: Callable[[torch.Generator], Tensor], steps: int, weights: Weights, teacher: SAME | None = None
) -> Loss:
    """The loss of a `Trainer`. audio(generator) -> a batch (B, C, N), N in whole frames.

    teacher: an autoencoder with the same frame size and channels, whose latents are to be matched.
    """

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = audio(generator)
        z = same.encode(batch)
        noisy = z + weights.latent_noise * z.detach().std() * torch.randn(z.shape, generator=generator)
        decoded = same.decode(noisy, noise=_TokenNoise(generator) if weights.new_token_noise else None)
        wave, norm = waveform_loss(decoded, batch, weights.saturating), soft_norm_loss(z)
        share = (step / steps - weights.spectral_from) / max(weights.spectral_full - weights.spectral_from, 1e-6)
        angles = math.pi * torch.rand(len(batch), generator=generator)
        spectral = spectral_loss(decoded, batch, angles) if share > 0 or step % 10 == 0 else torch.zeros(())
        total = weights.waveform * wave + min(max(share, 0.0), 1.0) * weights.spectral * spectral + weights.soft_norm * norm
        terms = {"waveform": wave, "spectral": spectral, "soft_norm": norm}
        if teacher is not None:
            with torch.no_grad():
                target = teacher.encode(batch)
            terms["latent"] = (z - target).square().mean()
            total = total + weights.latent * terms["latent"]
        return {"loss": total, **terms}

    return loss


class _TokenNoise:
    """The noise argument of `SAME.decode`, drawn from the step's generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def at(self, start: int) -> "_TokenNoise":
        return self

    def draw(self, purpose: str, batch: int, frames: int, per_frame: int) -> Tensor:
        return torch.randn(batch, frames, per_frame, generator=self.generator)


@torch.no_grad()
def measure_scale(same: SAME, batches: list[Tensor]) -> None:
    """Set running_std so that the latents have standard deviation 1."""
    same.bottleneck.running_std.fill_(1.0)
    same.bottleneck.running_std.copy_(torch.cat([same.encode(batch).flatten() for batch in batches]).std().reshape(1))


def snr(decoded: Tensor, audio: Tensor) -> float:
    """Signal to noise ratio in dB of one clip."""
    return float(10 * torch.log10(audio.square().sum() / (decoded - audio).square().sum().clamp_min(1e-12)))
