"""Prompt embeddings and seconds -> cross-attention context and global condition of the transformer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends.ambient import independent
from ..config import ConditioningConfig
from ..errors import SA3Error
from . import operations
from .embeddings import FOURIER_DIM, expo_features
from .layers import Adapters, adapted, cast_to


@dataclass(frozen=True)
class Condition:
    """The transformer's conditioning inputs.

    cross_attn (B, max_tokens + 1, dim): prompt rows, then the seconds row. global_cond (B, dim): the seconds embedding. adapters: those
    in the forward pass, also of the transformer.
    """

    cross_attn: Tensor
    global_cond: Tensor
    adapters: Adapters | None = None


class PromptPadding(nn.Module):
    def __init__(self, config: ConditioningConfig, device=None, dtype=None):
        super().__init__()
        self.padding_embedding = nn.Parameter(torch.zeros(config.cond_dim, device=device, dtype=dtype))

    def forward(self, embeddings: Tensor, mask: Tensor, max_tokens: int, negative: bool = False) -> Tensor:
        """Embeddings (B, n, dim) -> (B, max_tokens, dim): rows outside the mask become the learned vector, or zeros if negative."""
        n = min(embeddings.shape[1], max_tokens)
        embeddings = F.pad(embeddings[:, :n], (0, 0, 0, max_tokens - n))
        mask = F.pad(mask[:, :n].bool(), (0, max_tokens - n)).to(embeddings.device)[..., None]
        return torch.where(mask, embeddings, embeddings.new_zeros(()) if negative else cast_to(self.padding_embedding, embeddings))


class SecondsEmbedder(nn.Module):
    def __init__(self, config: ConditioningConfig, operations=operations, device=None, dtype=None):
        super().__init__()
        self.low, self.high = config.seconds_min, config.seconds_max
        linear = operations.Linear(FOURIER_DIM, config.cond_dim, device=device, dtype=dtype)
        self.embedder = nn.Module()  # named embedder.embedding.1 in the release
        self.embedder.embedding = nn.Sequential(nn.Identity(), linear)

    def forward(self, seconds: Sequence[float], dtype: torch.dtype, device=None, adapters: Adapters | None = None) -> Tensor:
        """Embeddings (B, dim) of seconds, which are clamped to the embedder's range. Features are float32 up to the Linear."""
        values = torch.tensor(list(seconds), dtype=torch.float32).clamp(self.low, self.high)
        features = expo_features((values - self.low) / (self.high - self.low))
        return adapted(self.embedder.embedding[1], features.to(device, dtype), adapters)


class Conditioner(nn.Module):
    def __init__(self, config: ConditioningConfig, operations=operations, device=None, dtype=None):
        super().__init__()
        self.config = config
        self.conditioners = nn.ModuleDict(
            {"prompt": PromptPadding(config, device, dtype), "seconds_total": SecondsEmbedder(config, operations, device, dtype)}
        )

    @independent
    def prompt(self, embeddings: Tensor, mask: Tensor, negative: bool = False) -> Tensor:
        """Prompt rows (B, max_tokens, dim) of embeddings (B, n, dim) with their mask (B, n)."""
        if embeddings.shape[-1] != self.config.cond_dim:
            raise SA3Error(
                f"The prompt embeddings are {embeddings.shape[-1]} wide, this model expects {self.config.cond_dim}: "
                "they come from another text encoder. Use the CLIP of the same loader."
            )
        return self.conditioners["prompt"](embeddings, mask, self.config.max_tokens, negative)

    @independent
    def forward(
        self, embeddings: Tensor, mask: Tensor, seconds: Sequence[float], negative: bool = False, adapters: Adapters | None = None
    ) -> Condition:
        """The condition of embeddings (B, n, dim) with their mask (B, n), and of B durations."""
        if len(seconds) != len(embeddings):
            raise SA3Error(f"There are {len(embeddings)} prompts and {len(seconds)} durations; give one duration per prompt.")
        rows = self.prompt(embeddings, mask, negative)
        seconds_row = self.conditioners["seconds_total"](seconds, rows.dtype, rows.device, adapters)
        return Condition(torch.cat((rows, seconds_row[:, None]), dim=1), seconds_row, adapters)
