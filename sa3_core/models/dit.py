"""The diffusion transformer: latents, time and conditioning -> velocity.

Everything that stays constant over a sampling run is computed once by `DiT.prepare` and handed to `DiT.forward`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends.ambient import independent
from ..backends.device import backend_of, to_device
from ..config import DiTConfig
from . import operations
from .attention import attend
from .conditions import Conditions, LocalInput, Modulation, StepCache
from .layers import (  # fmt: skip
    FOURIER_DIM,
    Adapters,
    FeedForward,
    RMSNorm,
    adapted,
    apply_rotary,
    cast_to,
    expo_features,
    in_turn,
    merge_heads,
    norm_type,
    norms_in_half,
    over_rms,
    rotary_table,
    rotate,
    split_heads,
)


class SelfAttention(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        self.head_dim, self.differential = config.head_dim, config.differential
        parts = 5 if config.differential else 3
        self.to_qkv = operations.Linear(config.width, parts * config.width, bias=False, **kw)
        self.to_out = operations.Linear(config.width, config.width, bias=False, **kw)
        self.q_norm = RMSNorm(config.head_dim, 1e-6, **kw)
        self.k_norm = RMSNorm(config.head_dim, 1e-6, **kw)

    def forward(self, x: Tensor, rotary, key_mask: Tensor | None, adapters: Adapters | None = None) -> Tensor:
        """x (B, rows, width). As many of the rows as the rotary table has are tokens, and attend to each other."""
        tokens = len(rotary[0])
        parts = adapted(self.to_qkv, x, adapters)[:, :tokens].unflatten(-1, (5 if self.differential else 3, -1, self.head_dim))
        # q, k, v, q2, k2: (B, N, parts, H, D)
        v = parts[:, :, 2].transpose(1, 2)
        tables = self._tables(rotary, parts) if norms_in_half(parts) else None
        out = attend(*self._rotated(parts[:, :, :2], rotary, tables), v, key_mask=key_mask)
        if self.differential:
            out = out - attend(*self._rotated(parts[:, :, 3:], rotary, tables), v, key_mask=key_mask)
        out = merge_heads(out)
        return adapted(self.to_out, F.pad(out, (0, 0, 0, x.shape[1] - tokens)) if x.shape[1] > tokens else out, adapters)

    def _tables(self, rotary, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary table with the gains of both norms in it, (N, 2, 1, D) and (N, 2, 1, width)."""
        cos, sin = rotary
        gains = torch.stack((cast_to(self.q_norm.gamma, like, torch.float32), cast_to(self.k_norm.gamma, like, torch.float32)))
        half = sin.shape[-1] // 2
        swapped = torch.cat((gains[:, half : 2 * half], gains[:, :half]), dim=1)
        return tuple((part[:, None] * gain).to(like.dtype)[:, :, None] for part, gain in ((cos, gains), (sin, swapped)))

    def _rotated(self, qk: Tensor, rotary, tables) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, N, 2, H, D), normed and turned, each (B, H, N, D). tables: on a GPU in 16 bits, else float32 is used."""
        if tables is not None:
            turned = apply_rotary(F.rms_norm(qk, qk.shape[-1:], None, self.q_norm.eps), *tables)
            return tuple(part.transpose(1, 2) for part in turned.unbind(2))
        gains = torch.stack((cast_to(self.q_norm.gamma, qk, torch.float32), cast_to(self.k_norm.gamma, qk, torch.float32)))[:, None]
        turned = rotate(over_rms(qk.float(), self.q_norm.eps) * gains, rotary).to(qk.dtype)
        return tuple(part.transpose(1, 2) for part in turned.unbind(2))


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
        """Normed keys and the values of a context (B, n, width): (k, v), or (k, k2, v) when differential."""
        rows = adapted(self.to_kv, context, adapters)
        *keys, v = (split_heads(part, self.head_dim) for part in rows.chunk(3 if self.differential else 2, dim=-1))
        return *map(self.k_norm, keys), v

    def forward(self, x: Tensor, kv: tuple[Tensor, ...], bias: Tensor | None, adapters: Adapters | None = None) -> Tensor:
        *keys, v = kv
        queries = self.q_norm(adapted(self.to_q, x, adapters).unflatten(-1, (len(keys), -1, self.head_dim)))  # (B, N, one or two, H, D)
        outs = [attend(queries[:, :, i].transpose(1, 2), k, v, key_mask=bias) for i, k in enumerate(keys)]
        return adapted(self.to_out, merge_heads(outs[0] - outs[1] if self.differential else outs[0]), adapters)


class Layer(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        width = config.width
        self.pre_norm = RMSNorm(width, **kw)
        self.self_attn = SelfAttention(config, operations, **kw)
        self.cross_attend_norm = RMSNorm(width, **kw)
        self.cross_attn = CrossAttention(config, operations, **kw)
        self.to_local_embed = nn.Sequential(
            operations.Linear(config.local_dim, width, **kw), nn.SiLU(), operations.Linear(width, width, **kw)
        )
        self.ff_norm = RMSNorm(width, **kw)
        self.ff = FeedForward(width, int(width * config.ff_mult), operations=operations, **kw)
        self.to_scale_shift_gate = nn.Parameter(torch.zeros(6 * width, device=kw["device"], dtype=kw["dtype"]))

    def forward(
        self, h: Tensor, modulation: Modulation, kv, bias, local: Tensor | None, rotary, key_mask, memory: int,
        adapters: Adapters | None = None,
    ) -> Tensor:  # fmt: skip
        """h (B, rows, width); modulation: this layer's, (B, 1, width) each."""
        m = modulation
        h = torch.addcmul(h, self.self_attn(self.pre_norm.modulated(h, m.gain1, m.shift1), rotary, key_mask, adapters), m.gate1)
        h = h + self.cross_attn(self.cross_attend_norm(h), kv, bias, adapters)
        if local is not None:
            tokens = h[:, : len(rotary[0])].unflatten(0, (-1, local.shape[0]))
            tokens[:, :, memory:].add_(local)  # h is fresh here; memory tokens get nothing
        return torch.addcmul(h, self.ff(self.ff_norm.modulated(h, m.gain2, m.shift2), adapters), m.gate2)


RunLayer = Callable[..., Tensor]  # (layer, *its arguments) -> its output


class Transformer(nn.Module):
    def __init__(self, config: DiTConfig, operations, **kw):
        super().__init__()
        width = config.width
        self.memory_tokens = nn.Parameter(torch.zeros(config.memory_tokens, width, device=kw["device"], dtype=kw["dtype"]))
        self.project_in = operations.Linear(config.io_channels, width, bias=False, **kw)
        self.project_out = operations.Linear(width, config.io_channels, bias=False, **kw)
        self.global_cond_embedder = nn.Sequential(
            operations.Linear(width, width, **kw), nn.SiLU(), operations.Linear(width, 6 * width, **kw)
        )
        self.layers = nn.ModuleList(Layer(config, operations, **kw) for _ in range(config.depth))


class DiT(nn.Module):
    """The transformer of `config`, parameter names as in the release (below ``model.model.``)."""

    def __init__(self, config: DiTConfig, operations=operations, device=None, dtype=None):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        self.config = config
        width, io = config.width, config.io_channels

        def mlp(inner: int, bias: bool) -> nn.Sequential:
            return nn.Sequential(
                operations.Linear(inner, width, bias=bias, **kw), nn.SiLU(), operations.Linear(width, width, bias=bias, **kw)
            )

        self.to_cond_embed = mlp(config.cond_dim, False)
        self.to_global_embed = mlp(config.global_dim, False)
        self.to_timestep_embed = mlp(FOURIER_DIM, True)
        self.preprocess_conv = operations.Conv1d(io, io, 1, bias=False, **kw)
        self.postprocess_conv = operations.Conv1d(io, io, 1, bias=False, **kw)
        self.transformer = Transformer(config, operations, **kw)

    @independent
    def prepare(
        self,
        cross_attn: Tensor,
        global_cond: Tensor,
        local: LocalInput | Tensor | None,
        frames: int,
        lengths: Sequence[int] | None = None,
        adapters: Adapters | None = None,
    ) -> Conditions:
        """Compute once what every step of a run needs.

        cross_attn (B, n, cond_dim), global_cond (B, cond_dim); their type is the one the network computes in.
        local: (B, local_dim, T) mask and masked latents, None = absent, or what `local_embeddings` made of one.
        frames: T. lengths: valid frames per item; those beyond are hidden from attention and come out as zero velocity.
        adapters: in the forward pass of these inputs.
        """
        lengths = [frames] * len(cross_attn) if lengths is None else list(lengths)
        frames = max(lengths)
        memory, device = self.config.memory_tokens, cross_attn.device
        mask = None
        if min(lengths) < frames:
            valid = torch.arange(-memory, frames)[None] < torch.tensor(lengths)[:, None]
            mask = valid.to(device)
        cross_attn, bias = backend_of(device).distinct_rows(cross_attn)
        return Conditions(
            cross_attn,
            global_cond,
            self._cross_kv(cross_attn, adapters),
            bias,
            self.local_embeddings(local, frames, adapters) if isinstance(local, Tensor) else local,
            in_turn(self.to_global_embed, global_cond, adapters),
            rotary_table(memory + frames, self.config.rotary_dim, self.config.head_dim, device),
            mask,
            frames,
            adapters,
        )

    @independent
    def refresh(self, inputs: Conditions, changed: Iterable[str], adapters: Adapters | None = None) -> Conditions:
        """The same inputs with other adapters: what the modules named in `changed` have a part in is computed again."""
        changed = list(changed)

        def touched(part: str) -> bool:
            return any(part in name for name in changed)

        context, local = touched("to_cond_embed") or touched("cross_attn.to_kv"), inputs.local
        return replace(
            inputs,
            cross_kv=self._cross_kv(inputs.cross_attn, adapters) if context else inputs.cross_kv,
            local=self._local(local.rows, adapters) if local is not None and touched("to_local_embed") else local,
            global_embed=in_turn(self.to_global_embed, inputs.global_cond, adapters) if touched("to_global_embed") else inputs.global_embed,
            adapters=adapters,
            cache=StepCache(scheduled=inputs.cache.scheduled),
        )

    def _cross_kv(self, cross_attn: Tensor, adapters: Adapters | None) -> list[tuple[Tensor, ...]]:
        context = in_turn(self.to_cond_embed, cross_attn, adapters)
        return [layer.cross_attn.keys(context, adapters) for layer in self.transformer.layers]

    def _local(self, rows: Tensor, adapters: Adapters | None = None) -> LocalInput:
        return LocalInput(rows, [in_turn(layer.to_local_embed, rows, adapters) for layer in self.transformer.layers])

    @independent
    def local_embeddings(self, local: Tensor, frames: int, adapters: Adapters | None = None) -> LocalInput:
        """A local input (B, local_dim, T), embedded once for all conditions. Zeros are the same row everywhere: (1, 1, width)."""
        return self._local(local[:, :, :frames].transpose(1, 2) if local.any() else local[:1, :, :1].transpose(1, 2), adapters)

    def modulation(self, t: Tensor, inputs: Conditions) -> Modulation:
        """adaLN values of times t (B,); each distinct t of a run is computed once."""
        key = tuple(t.tolist())
        modulations = inputs.cache.modulations
        if key not in modulations:
            modulations[key] = self.modulation_of(self.time_features(t, inputs), inputs)
        return modulations[key]

    @staticmethod
    def time_features(t: Tensor, inputs: Conditions) -> Tensor:
        """Fourier features (B, 256) of times t (B,), where the network computes."""
        return to_device(expo_features(t), inputs.global_embed.device, inputs.global_embed.dtype)

    def modulation_of(self, features: Tensor, inputs: Conditions) -> Modulation:
        """adaLN values of times with these features (B, 256)."""
        times = in_turn(self.to_timestep_embed, features, inputs.adapters)
        rows = in_turn(self.transformer.global_cond_embedder, inputs.global_embed + times, inputs.adapters)  # (B, 6 width)
        layers = self.transformer.layers
        own = torch.stack([cast_to(layer.to_scale_shift_gate, rows) for layer in layers])
        scale1, shift1, gate1, scale2, shift2, gate2 = (own[:, None] + rows)[:, :, None].chunk(6, dim=-1)
        kind = norm_type(rows)

        def gain(norm: str, scale: Tensor) -> Tensor:
            gammas = torch.stack([cast_to(getattr(layer, norm).gamma, rows, torch.float32) for layer in layers])[:, None, None]
            return (gammas * (1 + scale.float())).to(kind)

        return Modulation(
            gain("pre_norm", scale1), shift1.to(kind), torch.sigmoid(1 - gate1),
            gain("ff_norm", scale2), shift2.to(kind), torch.sigmoid(1 - gate2),
        )  # fmt: skip

    @independent
    def forward(self, x: Tensor, t: Tensor, inputs: Conditions, run_layer: RunLayer | None = None) -> Tensor:
        """Velocity (B, C, T) of latents x (B, C, T) at times t (B,), t in float32 or better. run_layer: in place of `Layer.forward`."""
        at_once = self._items_at_once(inputs)
        if len(x) <= at_once or torch.is_grad_enabled():
            return self._velocity(x, t, inputs, run_layer)
        parts = []
        for start in range(0, len(x), at_once):
            stop = min(start + at_once, len(x))
            parts.append(self._velocity(x[start:stop], t[start:stop], inputs.part(range(start, stop)), run_layer))
        return torch.cat(parts)

    def _items_at_once(self, inputs: Conditions) -> int:
        largest = 2 * int(self.config.width * self.config.ff_mult) * inputs.cross_attn.element_size() * inputs.rows
        return backend_of(inputs.cross_attn.device).items_at_once(inputs.batch, largest)

    def _velocity(self, x: Tensor, t: Tensor, inputs: Conditions, run_layer: RunLayer | None) -> Tensor:
        return self.step(x, self.modulation(t, inputs), inputs, run_layer)

    def step(self, x: Tensor, modulation: Modulation, inputs: Conditions, run_layer: RunLayer | None = None) -> Tensor:
        """`forward` with its adaLN values given: on a GPU it reads nothing back and depends on no value."""
        core, frames, memory, adapters = self.transformer, inputs.frames, self.config.memory_tokens, inputs.adapters
        run_layer = run_layer or Layer.__call__
        padding = x.shape[-1] - frames
        x = x[..., :frames].to(modulation.gate1.dtype)
        if inputs.rows > memory + frames:
            x = F.pad(x, (0, inputs.rows - memory - frames))
        x = adapted(self.preprocess_conv, x, adapters) + x
        h = adapted(core.project_in, x.transpose(1, 2), adapters)
        h = torch.cat((cast_to(core.memory_tokens, h).expand(h.shape[0], -1, -1), h), dim=1)
        for i, layer in enumerate(core.layers):
            local = None if inputs.local is None else inputs.local.embeddings[i]
            own = Modulation(*(part[i] for part in modulation))
            h = run_layer(layer, h, own, inputs.cross_kv[i], inputs.cross_bias, local, inputs.rotary, inputs.key_mask, memory, adapters)
        y = adapted(core.project_out, h[:, memory:], adapters).transpose(1, 2)
        y = (adapted(self.postprocess_conv, y, adapters) + y)[..., :frames]
        return F.pad(y, (0, padding)) if padding else y
