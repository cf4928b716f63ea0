"""The diffusion transformer: latents, time and conditions -> velocity.

`DiT.prepare` computes what is constant over a sampling run, `DiT.forward` one step.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..backends.ambient import independent
from ..backends.device import backend_of, to_device
from ..config import DiTConfig
from . import operations
from .attention import attend
from .conditions import Conditions, LocalInput, Modulation, StepCache
from .embeddings import FOURIER_DIM, expo_features, rotary_table
from .layers import Adapters, FeedForward, RMSNorm, adapted, adapted_sequence, cast_to, kernels_of, merge_heads, norm_dtype, unit_rms
from .rotary import rotate


def mlp(inputs: int, width: int, outputs: int, operations, bias: bool = True, **kw) -> nn.Sequential:
    return nn.Sequential(operations.Linear(inputs, width, bias=bias, **kw), nn.SiLU(), operations.Linear(width, outputs, bias=bias, **kw))


class SelfAttention(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        self.head_dim, self.differential = config.head_dim, config.differential
        self.to_qkv = operations.Linear(config.width, (5 if config.differential else 3) * config.width, bias=False, **kw)
        self.to_out = operations.Linear(config.width, config.width, bias=False, **kw)
        self.q_norm = RMSNorm(config.head_dim, 1e-6, **kw)
        self.k_norm = RMSNorm(config.head_dim, 1e-6, **kw)

    def forward(self, x: Tensor, rotary, lengths: Tensor | None, adapters: Adapters | None = None) -> Tensor:
        """x (B, rows, width) -> the same shape. Rows beyond the length of the rotary table are padding: no keys, zeros in the result."""
        tokens = len(rotary[0])
        parts = adapted(self.to_qkv, x, adapters)[:, :tokens].unflatten(-1, (5 if self.differential else 3, -1, self.head_dim))
        v = parts[:, :, 2].transpose(1, 2)
        outs = [attend(q, k, v, lengths=lengths) for q, k in self._queries_keys(parts, rotary)]
        out = merge_heads(outs[0] - outs[1] if self.differential else outs[0])
        return adapted(self.to_out, F.pad(out, (0, 0, 0, x.shape[1] - tokens)) if x.shape[1] > tokens else out, adapters)

    def _queries_keys(self, parts: Tensor, rotary) -> Iterator[tuple[Tensor, Tensor]]:
        """Normed and rotated (q, k), then (q2, k2), (B, H, N, D) each, of parts (B, N, 3 or 5, H, D): q, k, v, q2, k2."""
        if kernels := kernels_of(parts):
            yield from kernels.queries_keys(parts, rotary, (self.q_norm, self.k_norm), self.q_norm.eps)
            return
        gains = torch.stack([cast_to(norm.gamma, parts, torch.float32) for norm in (self.q_norm, self.k_norm)])
        for pair in (parts[:, :, :2], parts[:, :, 3:])[: 2 if self.differential else 1]:
            pair = rotate(unit_rms(pair.float(), self.q_norm.eps) * gains[:, None], rotary).to(parts.dtype)
            yield tuple(part.transpose(1, 2) for part in pair.unbind(2))


class CrossAttention(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        self.head_dim, self.differential = config.head_dim, config.differential
        self.to_q = operations.Linear(config.width, (2 if config.differential else 1) * config.width, bias=False, **kw)
        self.to_kv = operations.Linear(config.width, (3 if config.differential else 2) * config.width, bias=False, **kw)
        self.to_out = operations.Linear(config.width, config.width, bias=False, **kw)
        self.q_norm = RMSNorm(config.head_dim, 1e-6, **kw)
        self.k_norm = RMSNorm(config.head_dim, 1e-6, **kw)

    def keys(self, context: Tensor, adapters: Adapters | None = None) -> tuple[Tensor, ...]:
        """Normed keys, and values, of a context (B, n, width): (k, v), or (k, k2, v) when differential; (B, H, n, D) each."""
        rows = adapted(self.to_kv, context, adapters)
        *keys, v = (part.unflatten(-1, (-1, self.head_dim)) for part in rows.chunk(3 if self.differential else 2, dim=-1))
        return tuple(part.transpose(1, 2) for part in (*map(self.k_norm, keys), v))

    def forward(self, x: Tensor, kv: tuple[Tensor, ...], bias: Tensor | None, adapters: Adapters | None = None) -> Tensor:
        """x (B, N, width) -> the same shape. kv: from `keys`. bias (B, n): added to the scores, None = zeros."""
        *keys, v = kv
        queries = self.q_norm(adapted(self.to_q, x, adapters).unflatten(-1, (len(keys), -1, self.head_dim)))  # (B, N, 1 or 2, H, D)
        outs = [attend(queries[:, :, i].transpose(1, 2), k, v, bias=bias) for i, k in enumerate(keys)]
        return adapted(self.to_out, merge_heads(outs[0] - outs[1] if self.differential else outs[0]), adapters)


class Layer(nn.Module):
    """A transformer layer: adaLN self-attention, cross-attention, local input, adaLN feed-forward."""

    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        width = config.width
        self.pre_norm = RMSNorm(width, **kw)
        self.self_attn = SelfAttention(config, operations, **kw)
        self.cross_attend_norm = RMSNorm(width, **kw)
        self.cross_attn = CrossAttention(config, operations, **kw)
        self.to_local_embed = mlp(config.local_dim, width, width, operations, **kw)
        self.ff_norm = RMSNorm(width, **kw)
        self.ff = FeedForward(width, int(width * config.ff_mult), operations=operations, **kw)
        self.to_scale_shift_gate = nn.Parameter(torch.zeros(6 * width, device=kw["device"], dtype=kw["dtype"]))

    def forward(
        self, h: Tensor, modulation: Modulation, kv, bias, local: Tensor | None, rotary, lengths, memory: int,
        adapters: Adapters | None = None,
    ) -> Tensor:  # fmt: skip
        """h (B, rows, width) -> the same shape. modulation: of this layer, (B, 1, width) each. memory: number of memory tokens."""
        m = modulation
        h = torch.addcmul(h, self.self_attn(self.pre_norm.modulated(h, m.gain1, m.shift1), rotary, lengths, adapters), m.gate1)
        h = h + self.cross_attn(self.cross_attend_norm(h), kv, bias, adapters)
        if local is not None:
            tokens = h[:, : len(rotary[0])].unflatten(0, (-1, local.shape[0]))
            tokens[:, :, memory:].add_(local)  # h was created above; memory tokens have no local input
        return torch.addcmul(h, self.ff(self.ff_norm.modulated(h, m.gain2, m.shift2), adapters), m.gate2)


class Transformer(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        width = config.width
        self.memory_tokens = nn.Parameter(torch.zeros(config.memory_tokens, width, device=kw["device"], dtype=kw["dtype"]))
        self.project_in = operations.Linear(config.io_channels, width, bias=False, **kw)
        self.project_out = operations.Linear(width, config.io_channels, bias=False, **kw)
        self.global_cond_embedder = mlp(width, width, 6 * width, operations, **kw)
        self.layers = nn.ModuleList(Layer(config, operations, **kw) for _ in range(config.depth))


class DiT(nn.Module):
    """The transformer of `config`. Parameter names are the release's, below ``model.model.``."""

    def __init__(self, config: DiTConfig, operations=operations, device=None, dtype=None):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        self.config = config
        self.gradient_checkpointing = False  # compute the layers' activations again in the backward pass instead of storing them
        width, io = config.width, config.io_channels
        self.to_cond_embed = mlp(config.cond_dim, width, width, operations, bias=False, **kw)
        self.to_global_embed = mlp(config.global_dim, width, width, operations, bias=False, **kw)
        self.to_timestep_embed = mlp(FOURIER_DIM, width, width, operations, **kw)
        self.preprocess_conv = operations.Conv1d(io, io, 1, bias=False, **kw)
        self.postprocess_conv = operations.Conv1d(io, io, 1, bias=False, **kw)
        self.transformer = Transformer(config, operations, **kw)

    @independent
    def prepare(
        self, cross_attn: Tensor, global_cond: Tensor, local: LocalInput | Tensor | None, frames: int,
        lengths: Sequence[int] | None = None, adapters: Adapters | None = None,
    ) -> Conditions:  # fmt: skip
        """The constants of a sampling run.

        cross_attn (B, n, cond_dim), global_cond (B, cond_dim): their dtype is the one the network computes in.
        local: mask and masked latents (B, local_dim, T), or the result of `local_embeddings`; None = absent.
        frames: T. lengths: valid frames per item, None = T; later frames are hidden from attention.
        adapters: those in the forward pass.
        """
        lengths = [frames] * len(cross_attn) if lengths is None else list(lengths)
        frames = max(lengths)
        memory, device = self.config.memory_tokens, cross_attn.device
        tokens = None
        if min(lengths) < frames:
            tokens = torch.tensor([memory + n for n in lengths], dtype=torch.int32).to(device)
        cross_attn, bias = backend_of(device).distinct_rows(cross_attn)
        cross_kv = self._cross_kv(cross_attn, adapters)
        local = self.local_embeddings(local, frames, adapters) if isinstance(local, Tensor) else local
        global_embed = self._embed_global(global_cond, adapters)
        rotary = rotary_table(memory + frames, self.config.rotary_dim, self.config.head_dim, device)
        return Conditions(cross_attn, global_cond, cross_kv, bias, local, global_embed, rotary, tokens, frames, adapters)

    @independent
    def refresh(self, conditions: Conditions, changed: Iterable[str], adapters: Adapters | None = None) -> Conditions:
        """The conditions with other adapters. changed: names of the modules whose results differ."""
        c, changed = conditions, list(changed)

        def affects(*parts: str) -> bool:
            return any(part in name for name in changed for part in parts)

        return replace(
            c,
            cross_kv=self._cross_kv(c.cross_attn, adapters) if affects("to_cond_embed", "cross_attn.to_kv") else c.cross_kv,
            local=self._embed_local(c.local.rows, adapters) if c.local is not None and affects("to_local_embed") else c.local,
            global_embed=self._embed_global(c.global_cond, adapters) if affects("to_global_embed") else c.global_embed,
            adapters=adapters,
            cache=StepCache(scheduled=c.cache.scheduled),
        )

    def _cross_kv(self, cross_attn: Tensor, adapters: Adapters | None) -> list[tuple[Tensor, ...]]:
        context = adapted_sequence(self.to_cond_embed, cross_attn, adapters)
        return [layer.cross_attn.keys(context, adapters) for layer in self.transformer.layers]

    def _embed_global(self, global_cond: Tensor, adapters: Adapters | None) -> Tensor:
        return adapted_sequence(self.to_global_embed, global_cond, adapters)

    def _embed_local(self, rows: Tensor, adapters: Adapters | None = None) -> LocalInput:
        return LocalInput(rows, [adapted_sequence(layer.to_local_embed, rows, adapters) for layer in self.transformer.layers])

    @independent
    def local_embeddings(self, local: Tensor, frames: int, adapters: Adapters | None = None) -> LocalInput:
        """The embeddings of a local input (B, local_dim, T); of a single row if it is all zeros."""
        local = local[:, :, :frames] if local.any() else local[:1, :, :1]
        return self._embed_local(local.transpose(1, 2), adapters)

    def modulation(self, t: Tensor, conditions: Conditions) -> Modulation:
        """adaLN values at times t (B,), cached by time."""
        key, cached = tuple(t.tolist()), conditions.cache.modulations
        if key not in cached:
            cached[key] = self.modulation_of(self.time_features(t, conditions), conditions)
        return cached[key]

    @staticmethod
    def time_features(t: Tensor, conditions: Conditions) -> Tensor:
        """Fourier features (B, 256) of times t (B,), on the device and in the dtype of the network."""
        return to_device(expo_features(t), conditions.global_embed.device, conditions.global_embed.dtype)

    def modulation_of(self, features: Tensor, conditions: Conditions) -> Modulation:
        """adaLN values from the Fourier features (B, 256) of the times."""
        times = adapted_sequence(self.to_timestep_embed, features, conditions.adapters)
        rows = adapted_sequence(self.transformer.global_cond_embedder, conditions.global_embed + times, conditions.adapters)  # (B, 6 width)
        layers, dtype = self.transformer.layers, norm_dtype(rows)
        own = torch.stack([cast_to(layer.to_scale_shift_gate, rows) for layer in layers])
        scale1, shift1, gate1, scale2, shift2, gate2 = (own[:, None] + rows)[:, :, None].chunk(6, dim=-1)

        def gain(norm: str, scale: Tensor) -> Tensor:
            gammas = torch.stack([cast_to(getattr(layer, norm).gamma, rows, torch.float32) for layer in layers])[:, None, None]
            return (gammas * (1 + scale.float())).to(dtype)

        return Modulation(
            gain("pre_norm", scale1), shift1.to(dtype), torch.sigmoid(1 - gate1),
            gain("ff_norm", scale2), shift2.to(dtype), torch.sigmoid(1 - gate2),
        )  # fmt: skip

    @independent
    def forward(self, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Velocity (B, C, T) of latents x (B, C, T) at times t (B,), float32 or float64; zero in frames beyond the longest item."""
        at_once = self._items_at_once(conditions)
        if len(x) <= at_once or torch.is_grad_enabled():
            return self.step(x, self.modulation(t, conditions), conditions)
        velocities = []
        for start in range(0, len(x), at_once):
            items = range(len(x))[start : start + at_once]
            part, rows = conditions.part(items), slice(items.start, items.stop)
            velocities.append(self.step(x[rows], self.modulation(t[rows], part), part))
        return torch.cat(velocities)

    def _items_at_once(self, conditions: Conditions) -> int:
        largest = 2 * int(self.config.width * self.config.ff_mult) * conditions.cross_attn.element_size() * conditions.rows
        return backend_of(conditions.cross_attn.device).items_at_once(conditions.batch, largest)

    def step(self, x: Tensor, modulation: Modulation, conditions: Conditions) -> Tensor:
        """`forward` for given adaLN values. Its control flow depends on no tensor's values, so it can be captured."""
        c, core, memory, adapters = conditions, self.transformer, self.config.memory_tokens, conditions.adapters
        padding = x.shape[-1] - c.frames
        x = x[..., : c.frames].to(modulation.gate1.dtype)
        if c.rows > memory + c.frames:
            x = F.pad(x, (0, c.rows - memory - c.frames))
        x = adapted(self.preprocess_conv, x, adapters) + x
        h = adapted(core.project_in, x.transpose(1, 2), adapters)
        h = torch.cat((cast_to(core.memory_tokens, h).expand(h.shape[0], -1, -1), h), dim=1)
        checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
        for i, layer in enumerate(core.layers):
            local = None if c.local is None else c.local.embeddings[i]
            own = Modulation(*(part[i] for part in modulation))
            args = (h, own, c.cross_kv[i], c.cross_bias, local, c.rotary, c.lengths, memory, adapters)
            h = checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False) if checkpointed else layer(*args)
        y = adapted(core.project_out, h[:, memory:], adapters).transpose(1, 2)
        y = (adapted(self.postprocess_conv, y, adapters) + y)[..., : c.frames]
        return F.pad(y, (0, padding)) if padding else y
