"""T5Gemma's encoder: prompts -> one embedding per token."""

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backends.ambient import independent
from ..backends.device import backend_of
from ..backends.tensor_cache import TensorCache
from ..errors import SA3Error

ENCODINGS = TensorCache()  # shared by all encoders; the first part of a key is the encoder's `identity`


def encoder_dtype(dtype: torch.dtype, device) -> torch.dtype:
    """The dtype of the text encoder in a model of `dtype`.

    T5Gemma's activations exceed float16's range: float16 becomes bfloat16 where that is native, else float32.
    """
    if dtype != torch.float16:
        return dtype
    return torch.bfloat16 if backend_of(torch.device(device)).has_bfloat16() else torch.float32


@dataclass(frozen=True)
class Tokens:
    """Right-padded token ids and mask (B, n); mask True = a real token."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Text:
    """Encoded prompts, padded as the transformer receives them.

    embeddings (B, max_tokens, dim), mask (B, max_tokens) True = a real token, input_ids (B, max_tokens).
    """

    embeddings: Tensor
    mask: Tensor
    input_ids: Tensor


class TextEncoder(nn.Module):
    """Tokenizer and encoder. The parameters have transformers' names, below `model`.

    identity: fingerprint of the weight files. Encoders with the same one share cached encodings, also with one loaded later; None = no
    caching. home: the device that computes, for hosts that move the weights between runs; None = where the weights are.
    """

    _alive: weakref.WeakSet = weakref.WeakSet()

    def __init__(self, model: nn.Module, tokenizer, config, identity: Hashable = None):
        super().__init__()
        self.model, self.tokenizer, self.config, self.identity = model, tokenizer, config, identity
        self.home: torch.device | None = None
        self._alive.add(self)
        identities = {encoder.identity for encoder in self._alive}
        ENCODINGS.discard(lambda key: key[0] not in identities)

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @independent
    def tokenize(self, prompts: Sequence[str], max_tokens: int) -> Tokens:
        """Token ids (B, max_tokens) without BOS and EOS, truncated and right-padded."""
        ids = torch.zeros(len(prompts), max_tokens, dtype=torch.long)
        mask = torch.zeros(len(prompts), max_tokens, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise SA3Error(f"A prompt is {type(prompt).__name__}, expected text.")
            try:
                prompt.encode()
            except UnicodeEncodeError as error:  # an unpaired surrogate: valid in JSON, rejected by tokenizers
                raise SA3Error(f"A prompt contains an invalid character at position {error.start}; delete it or type it again.") from error
            row = self.tokenizer.encode(prompt, add_special_tokens=False).ids[:max_tokens]
            if row and max(row) >= self.config.vocab_size:
                raise SA3Error(
                    f"The tokenizer returned token {max(row)}, the text encoder's vocabulary has {self.config.vocab_size}: they belong to "
                    "different models. Download the text encoder's folder again."
                )
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = True
        return Tokens(ids, mask)

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words that are not in the vocabulary, in order of first appearance. Empty for tokenizers that fall back to bytes."""
        unknown = getattr(getattr(self.tokenizer, "model", None), "unk_token", None)  # a SentencePiece tokenizer has none
        if unknown is None:
            return []
        words = {}
        for prompt in prompts:
            row = self.tokenizer.encode(prompt, add_special_tokens=False)
            words |= {prompt[a:b]: None for token, (a, b) in zip(row.tokens, row.offsets, strict=True) if token == unknown}
        return list(words)

    def forward(self, tokens: Tokens) -> Tensor:
        """`compute`, through the cache."""
        if self.identity is None:
            return self.compute(tokens)
        key = self._key(tokens)
        embeddings = ENCODINGS.get(key)
        if embeddings is None:
            embeddings = self.compute(tokens)
            ENCODINGS.store(key, embeddings)
        return embeddings.to(self.model.device)

    def is_cached(self, tokens: Tokens) -> bool:
        return self.identity is not None and self._key(tokens) in ENCODINGS

    @independent
    @torch.no_grad()
    def compute(self, tokens: Tokens) -> Tensor:
        """Embeddings (B, n, width) of the first n positions, n = the longest prompt's real tokens (at least 1)."""
        n, device = _longest(tokens), self.model.device
        mask = tokens.mask[:, :n].clone()
        mask[:, 0] = True  # an empty prompt has no token to attend to; the padding vector replaces its row later
        return self.model(input_ids=tokens.ids[:, :n].to(device), attention_mask=mask.long().to(device)).last_hidden_state

    def _key(self, tokens: Tokens) -> tuple:
        """Cache key of a whole batch: a prompt's rounding depends on the other prompts, so single rows are not cached."""
        n = _longest(tokens)
        content = tuple(map(tuple, tokens.ids[:, :n].tolist())), tuple(map(tuple, tokens.mask[:, :n].tolist()))
        return self.identity, self.model.dtype, str(self.home or self.model.device), content


def _longest(tokens: Tokens) -> int:
    return max(1, int(tokens.mask.sum(1).max()))
