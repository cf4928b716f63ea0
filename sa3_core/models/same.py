"""SAME, the autoencoder: stereo audio <-> latents, 4096 samples per frame in the released models."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..audio.waveform import check_finite
from ..backends.ambient import independent
from ..backends.device import backend_of, to_device
from ..config import ResamplerConfig, SAMEConfig
from ..errors import SA3Error
from . import operations
from .attention import attend_difference
from .embeddings import rotary_table
from .layers import DyT, FeedForward, WeightNormConv1d, cast_to, kernels_of, merge_heads, sine_gate
from .rotary import rotate

REGULARIZE = 1e-3  # standard deviation of the latent noise on decode, in units of running_std
ROWS, FLOAT_ROWS = 12, 18  # peak activations of a block, in rows of `width` per token: in the dtype of the products, in float32
MAX_CHUNKS, MEMORY_SHARE = 8, 1 / 8  # chunks per pass, beyond which speed does not improve; the share of a device's memory for a pass
NOISE_BLOCK = 32  # frames per draw: each block has its own generator, so a chunk draws the same noise as the whole clip


@dataclass(frozen=True)
class Noise:
    """The autoencoder's inference noise, a pure function of (seed, item, frame, purpose)."""

    seed: int
    items: Sequence[int] = ()  # the item of each batch row; empty = 0, 1, ...
    start: int = 0  # the clip's frame at which the latents begin

    def draw(self, purpose: str, batch: int, frames: int, per_frame: int) -> Tensor:
        """Standard normal numbers (batch, frames, per_frame)."""
        items = list(self.items) or list(range(batch))
        blocks = range(self.start // NOISE_BLOCK, (self.start + frames - 1) // NOISE_BLOCK + 1)
        rows = [torch.cat([self._block(purpose, item, block, per_frame) for block in blocks]) for item in items[:batch]]
        offset = self.start % NOISE_BLOCK
        return torch.stack(rows)[:, offset : offset + frames]

    def _block(self, purpose: str, item: int, block: int, per_frame: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}/{item}/{purpose}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randn(NOISE_BLOCK, per_frame, generator=generator, dtype=torch.float32)

    def at(self, start: int) -> "Noise":
        return Noise(self.seed, self.items, self.start + start)


class DifferentialAttention(nn.Module):
    """softmax(q k) v - softmax(q2 k2) v, with DyT on queries and keys."""

    def __init__(self, width: int, head_dim: int, operations, **kw):
        super().__init__()
        self.head_dim = head_dim
        self.to_qkv = operations.Linear(width, 5 * width, bias=False, **kw)
        self.to_out = operations.Linear(width, width, bias=False, **kw)
        self.q_norm = DyT(head_dim, **kw)
        self.k_norm = DyT(head_dim, **kw)

    def forward(self, x: Tensor, rotary, window: int | None) -> Tensor:
        """x (B, N, width) -> the same shape. window: tokens on each side that a token attends to, None = all."""
        parts = self.to_qkv(x).unflatten(-1, (5, -1, self.head_dim))  # q, k, v, q2, k2: (B, N, 5, H, D)
        if x.dtype == torch.float16 and not torch.is_grad_enabled() and (kernels := kernels_of(x)):
            (q, k), (q2, k2) = kernels.queries_keys(parts, rotary, (self.q_norm, self.k_norm), None)
            return self.to_out(merge_heads(attend_difference(q, k, q2, k2, parts[:, :, 2].transpose(1, 2), window=window)))
        # Scores reach +-50 and the two softmaxes may nearly cancel: rounding queries and keys to bfloat16 then costs 17 % of the result,
        # to float16 2 %; the type of the subtraction adds nothing (PARITY.md). One part at a time: memory of smaller blocks is reused.
        q, k, v, q2, k2 = (part.float() for part in parts.unbind(2))
        del parts
        q, k, q2, k2 = (
            rotate(norm(part, part.dtype), rotary) for norm, part in zip((self.q_norm, self.k_norm) * 2, (q, k, q2, k2), strict=True)
        )
        q, k, v, q2, k2 = (part.transpose(1, 2) for part in (q, k, v, q2, k2))
        return self.to_out(merge_heads(attend_difference(q, k, q2, k2, v, window=window)).to(x.dtype))


class Block(nn.Module):
    def __init__(self, config: ResamplerConfig, index: int, operations, **kw):
        super().__init__()
        self.pre_norm = DyT(config.width, **kw)
        self.self_attn = DifferentialAttention(config.width, config.head_dim, operations, **kw)
        self.ff_norm = DyT(config.width, **kw)
        gate = sine_gate if config.depth - index < config.sinusoidal else F.silu
        self.ff = FeedForward(config.width, 3 * config.width, gate, operations, **kw)

    def forward(self, h: Tensor, rotary, window: int | None, dtype: torch.dtype) -> Tensor:
        """h (B, N, width) in float32 -> the same shape; matrix products are computed in `dtype`."""
        h = h + self.self_attn(self.pre_norm(h, dtype), rotary, window)
        return h + self.ff(self.ff_norm(h, dtype))


class Resampler(nn.Module):
    """Blocks over groups of one latent and `stride` patches: one of the two is given, the other starts as the learned new token."""

    def __init__(self, config: ResamplerConfig, operations, **kw):
        super().__init__()
        self.config = config
        channels = (config.patch_channels, config.width) if config.side == "encoder" else (config.width, config.patch_channels)
        self.mapping = WeightNormConv1d(*channels, 3 if config.conv_mapping else 1, **kw)
        self.new_tokens = nn.Parameter(torch.zeros(1, 1, config.width, device=kw["device"], dtype=kw["dtype"]))
        self.transformers = nn.ModuleList(Block(config, i, operations, **kw) for i in range(config.depth))

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Encoder: patches (B, P, 16 T) -> (B, width, T). Decoder: (B, width, T) -> patches (B, P, 16 T)."""
        c, encoding = self.config, self.config.side == "encoder"
        given, new = (c.stride, 1) if encoding else (1, c.stride)
        frames = x.shape[-1] // given
        padded = -(-frames // c.align) * c.align
        x = F.pad(x, (0, (padded - frames) * given))
        h = (self.mapping(x) if encoding else x).transpose(1, 2).unflatten(1, (padded, given))
        fresh = cast_to(self.new_tokens, h).expand(*h.shape[:2], new, -1)
        if noise is not None and c.mask_noise:
            drawn = to_device(noise.draw(c.side, h.shape[0], frames, new * c.width), h.device, h.dtype).unflatten(-1, (new, c.width))
            fresh = fresh + c.mask_noise * F.pad(drawn, (0, 0, 0, 0, 0, padded - frames))
        h = self._blocks(torch.cat((h, fresh), dim=2).flatten(1, 2).float(), x.dtype).to(x.dtype)
        h = h.unflatten(1, (padded, c.stride + 1))[:, :, -new:].flatten(1, 2).transpose(1, 2)
        return (h if encoding else self.mapping(h))[..., : frames * new]

    def _blocks(self, h: Tensor, dtype: torch.dtype) -> Tensor:
        """All blocks over h (B, N, width), with attention within a window (SAME-L) or within chunks (SAME-S)."""
        c = self.config
        chunk = h.shape[1] if c.window is not None else c.align * (c.stride + 1)
        rotary = rotary_table(chunk, c.head_dim // 2, c.head_dim, h.device)
        if c.window is not None:
            for block in self.transformers:
                h = block(h, rotary, c.window, dtype)
            return h
        half = c.depth // 2 if c.midpoint_shift else c.depth
        h = self._chunked(h, self.transformers[:half], chunk, rotary, dtype)
        if half == c.depth:
            return h
        # The second half's chunks are shifted by half a chunk; both ends are repeated as context.
        shift = chunk // 2
        h = torch.cat((h[:, :shift], h, h[:, -shift:]), dim=1)
        return self._chunked(h, self.transformers[half:], chunk, rotary, dtype)[:, shift:-shift]

    @staticmethod
    def _chunked(h: Tensor, blocks, chunk: int, rotary, dtype: torch.dtype) -> Tensor:
        """Blocks over each chunk of h (B, N, width) on its own."""
        batch = h.shape[0]
        h = rearrange(h, "b (k n) d -> (b k) n d", n=chunk)
        groups = []
        for group in h.tensor_split(backend_of(h.device).groups(len(h), chunk)):
            for block in blocks:
                group = block(group, rotary, None, dtype)
            groups.append(group)
        h = groups[0] if len(groups) == 1 else torch.cat(groups)
        return rearrange(h, "(b k) n d -> b (k n) d", b=batch)


class Bottleneck(nn.Module):
    """Scale and bias of the latents (B, D, T)."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        self.scaling_factor = nn.Parameter(torch.ones(1, dim, 1, **kw))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1, **kw))
        self.noise_scaling_factor = nn.Parameter(torch.zeros(1, 0, 1, **kw))
        self.register_buffer("running_std", torch.ones(1, **kw))

    def encode(self, z: Tensor) -> Tensor:
        return (z * cast_to(self.scaling_factor, z) + cast_to(self.bias, z)) / cast_to(self.running_std, z)

    def decode(self, z: Tensor, noise: Noise | None = None) -> Tensor:
        std = cast_to(self.running_std, z)
        z = z * std
        if noise is None:
            return z
        drawn = to_device(noise.draw("latents", z.shape[0], z.shape[2], z.shape[1]), z.device, z.dtype)
        return z + REGULARIZE * std * drawn.transpose(1, 2)


class _Encoder(nn.Module):
    def __init__(self, config: ResamplerConfig, operations, **kw):
        super().__init__()
        linear = operations.Linear(config.width, config.latent_dim, **kw)
        self.layers = nn.ModuleList([Resampler(config, operations, **kw), nn.Identity(), linear])  # indices as in the release

    def forward(self, patches: Tensor, noise: Noise | None) -> Tensor:
        return self.layers[2](self.layers[0](patches, noise).transpose(1, 2)).transpose(1, 2)


class _Decoder(nn.Module):
    def __init__(self, config: ResamplerConfig, operations, **kw):
        super().__init__()
        linear = operations.Linear(config.latent_dim, config.width, **kw)
        self.layers = nn.ModuleList([nn.Identity(), linear, nn.Identity(), Resampler(config, operations, **kw)])

    def forward(self, z: Tensor, noise: Noise | None) -> Tensor:
        return self.layers[3](self.layers[1](z.transpose(1, 2)).transpose(1, 2), noise)


class SAME(nn.Module):
    """The autoencoder of `config`. Parameter names are the standalone releases'; generative ones prefix ``pretransform.model.``."""

    def __init__(self, config: SAMEConfig, operations=operations, device=None, dtype=None):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        self.config = config
        self.encoder = _Encoder(config.encoder, operations, **kw)
        self.bottleneck = Bottleneck(config.latent_dim, **kw)
        self.decoder = _Decoder(config.decoder, operations, **kw)

    @independent
    def encode(
        self, audio: Tensor, chunk_size: int | None = None, overlap: int = 32, noise: Noise | None = None, progress=None, at_once: int = 1
    ) -> Tensor:
        """Audio (B, C, N) -> latents (B, D, ceil(N / samples_per_frame)). An incomplete last frame is zero-padded.

        chunk_size, overlap: in frames; chunk_size None = a single pass. noise: None = off. progress(done, total): called per pass.
        at_once: number of chunks to compute in a pass, as one longer chunk.
        """
        spf = self.config.samples_per_frame
        if audio.dim() != 3 or audio.shape[1] != self.config.audio_channels or audio.shape[2] == 0:
            raise SA3Error(f"Audio to encode has shape {tuple(audio.shape)}; expected (batch, {self.config.audio_channels}, samples).")
        check_finite("The audio to encode", audio)
        frames = -(-audio.shape[-1] // spf)

        def run(start: int, length: int) -> Tensor:
            piece = audio[..., start * spf : (start + length) * spf]
            piece = F.pad(piece, (0, length * spf - piece.shape[-1]))
            patches = rearrange(piece, "b c (n p) -> b (c p) n", p=self.config.patch_size)
            return self.bottleneck.encode(self.encoder(patches, noise and noise.at(start)))

        return _in_chunks(run, frames, 1, chunk_size, overlap, self.config.encoder, progress, at_once)

    @independent
    def decode(
        self, z: Tensor, chunk_size: int | None = None, overlap: int = 32, noise: Noise | None = None, progress=None, at_once: int = 1
    ) -> Tensor:
        """Latents (B, D, T) -> audio (B, C, T * samples_per_frame), not clipped. Arguments as in `encode`."""
        if z.dim() != 3 or z.shape[1] != self.config.latent_dim or z.shape[2] == 0:
            raise SA3Error(f"Latents to decode have shape {tuple(z.shape)}; expected (batch, {self.config.latent_dim}, frames).")

        def run(start: int, length: int) -> Tensor:
            here = noise and noise.at(start)
            patches = self.decoder(self.bottleneck.decode(z[..., start : start + length], here), here)
            return rearrange(patches, "b (c p) n -> b c (n p)", c=self.config.audio_channels)

        spf = self.config.samples_per_frame
        return _in_chunks(run, z.shape[-1], spf, chunk_size, overlap, self.config.decoder, progress, at_once)

    def chunks_at_once(self, chunk: int | None, batch: int, dtype: torch.dtype, memory: int | None) -> int:
        """Number of chunks to compute in a pass. memory: bytes of the device, None = one chunk at a time.

        Of the total memory, not the free one: the length of a pass changes how the result is rounded, and the same seed must give the same
        bytes whatever else is loaded. Callers retry with less at once when the free memory does not suffice.
        """
        if chunk is None or memory is None:
            return 1
        return max(1, min(MAX_CHUNKS, int(MEMORY_SHARE * memory) // (batch * self.activations(chunk, dtype))))

    def items_at_once(self, frames: int, dtype: torch.dtype, memory: int | None) -> int:
        """Number of items of this many frames to compute in a pass. memory: as of `chunks_at_once`."""
        return 1 if memory is None else max(1, int(MEMORY_SHARE * memory) // self.activations(frames, dtype))

    def activations(self, frames: int, dtype: torch.dtype) -> int:
        """Estimated peak memory of the activations of one item of `frames`, in bytes, with matrix products in `dtype`."""
        side = self.config.decoder
        return frames * (side.stride + 1) * side.width * (FLOAT_ROWS * 4 + ROWS * dtype.itemsize)


def _in_chunks(
    run: Callable, frames: int, scale: int, chunk: int | None, overlap: int, side: ResamplerConfig, progress, at_once: int
) -> Tensor:
    """Overlapping passes over `frames`, with half the overlap trimmed at inner edges. run(start, length): a pass, (B, C, length * scale).

    Starts are multiples of the side's `align`, so that SAME-S has the same chunks as in a single pass. An overlap beyond the network's
    reach would change nothing and is reduced to it, and a pass may then cover `at_once` chunks. With a smaller one, the last pass ends at
    the last frame, as in the public code.
    """
    if chunk is None:
        return run(0, frames)
    if not isinstance(chunk, int) or not isinstance(overlap, int) or not 0 <= overlap < chunk:
        raise SA3Error(f"Chunk size {chunk} with overlap {overlap}: expected 0 <= overlap < chunk size, in latent frames.")
    if chunk % side.align or overlap % side.align:
        raise SA3Error(f"Chunk size {chunk} with overlap {overlap}: this autoencoder needs both to be multiples of {side.align} frames.")
    needed = 2 * -(-side.reach // side.align) * side.align
    if exact := overlap >= needed:
        chunk, overlap = needed + at_once * (chunk - needed), needed
    if frames <= chunk:
        return run(0, frames)
    starts = list(range(0, frames - (overlap if exact else chunk), chunk - overlap))
    if not exact:
        starts.append(-(-(frames - chunk) // side.align) * side.align)
    out = None
    for done, start in enumerate(starts, 1):
        piece = run(start, min(chunk, frames - start))
        out = piece.new_empty(*piece.shape[:2], frames * scale) if out is None else out
        left = overlap // 2 if start else 0
        out[..., (start + left) * scale : (start + chunk) * scale] = piece[..., left * scale :]
        if progress is not None:
            progress(done, len(starts))
    return out
