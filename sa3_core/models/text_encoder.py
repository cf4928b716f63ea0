"""T5Gemma's encoder: prompts -> one embedding per token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backends.ambient import independent
from ..backends.device import backend_of
from ..errors import SA3Error

LABEL = re.compile(r"(TrackType|VocalType):[^,\n]*,?|\b\w+:")  # of a prompt in the form of the training data


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
    """Tokenizer and encoder. The parameters have transformers' names, below `model`."""

    def __init__(self, model: nn.Module, tokenizer, config):
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config

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

    def counts(self, prompts: Sequence[str]) -> list[int]:
        """The number of tokens of each prompt."""
        return [len(self.tokenizer.encode(prompt, add_special_tokens=False).ids) for prompt in prompts]

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words that are not in the vocabulary, without labels (LABEL), numbers and punctuation, in order of first appearance.

        Empty for tokenizers that fall back to bytes.
        """
        unknown = getattr(getattr(self.tokenizer, "model", None), "unk_token", None)  # a SentencePiece tokenizer has none
        if unknown is None:
            return []
        words = {}
        for prompt in prompts:
            prompt = LABEL.sub("", prompt)
            row = self.tokenizer.encode(prompt, add_special_tokens=False)
            found = (prompt[a:b] for token, (a, b) in zip(row.tokens, row.offsets, strict=True) if token == unknown)
            words |= {word: None for word in found if any(map(str.isalpha, word))}
        return list(words)

    @independent
    @torch.no_grad()
    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings (B, n, width) of the first n positions, n = the longest prompt's real tokens (at least 1)."""
        n, device = max(1, int(tokens.mask.sum(1).max())), self.model.device
        mask = tokens.mask[:, :n].clone()
        mask[:, 0] = True  # an empty prompt has no token to attend to; the padding vector replaces its row later
        return self.model(input_ids=tokens.ids[:, :n].to(device), attention_mask=mask.long().to(device)).last_hidden_state


def cut_warnings(counts: Sequence[int], most: int) -> list[str]:
    """A sentence for each prompt with more tokens than the model reads."""
    names = ["The prompt"] if len(counts) == 1 else [f"Prompt {i}" for i in range(1, len(counts) + 1)]
    return [
        f"{name} has {count} tokens; the model reads the first {most}." for name, count in zip(names, counts, strict=True) if count > most
    ]
