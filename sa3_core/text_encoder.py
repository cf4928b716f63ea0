"""T5Gemma's encoder half through `transformers`: prompts -> one vector per token."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import SA3Error


@dataclass(frozen=True)
class Tokens:
    """Right-padded token ids and mask (B, n); mask True = a real token."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Text:
    """What the text encoder says of B prompts, padded as the model sees it.

    embeddings (B, max_tokens, dim), mask (B, max_tokens) True = a real token, input_ids (B, max_tokens).
    """

    embeddings: Tensor
    mask: Tensor
    input_ids: Tensor


class TextEncoder(nn.Module):
    """Tokenizer and encoder. Build with `load`; parameters live under `model` with transformers' names."""

    def __init__(self, model: nn.Module, tokenizer, config):
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config

    @property
    def width(self) -> int:
        return self.config.hidden_size

    def tokenize(self, prompts: Sequence[str], max_tokens: int) -> Tokens:
        """No BOS, no EOS; truncated to max_tokens, padded to max_tokens."""
        ids = torch.zeros(len(prompts), max_tokens, dtype=torch.long)
        mask = torch.zeros(len(prompts), max_tokens, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise SA3Error(f"A prompt is {type(prompt).__name__}, expected text.")
            row = self.tokenizer.encode(prompt, add_special_tokens=False).ids[:max_tokens]
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = True
        return Tokens(ids, mask)

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings (B, n, width) of the first n positions, n = the longest prompt's real tokens (at least 1)."""
        n = max(1, int(tokens.mask.sum(1).max()))
        device = self.model.device
        mask = tokens.mask[:, :n].clone()
        mask[:, 0] = True  # an empty prompt has no token to attend to; its row is replaced by padding afterwards
        return self.model(input_ids=tokens.ids[:, :n].to(device), attention_mask=mask.long().to(device)).last_hidden_state


def encoder_config(folder: str | Path):
    """transformers' config of an encoder-only T5Gemma from the release's config.json, eager attention.

    Eager, because the scaled-dot-product path of transformers before 5.22 silently drops the logit softcap.
    """
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SA3Error(f"The text encoder's {path} cannot be read ({error}).") from error
    if not isinstance(values, dict):
        raise SA3Error(f"{path} holds {type(values).__name__}, expected the config of the t5gemma text encoder of Stable Audio 3.")
    if values.get("model_type") != "t5gemma" or not isinstance(values.get("encoder"), dict):
        raise SA3Error(f"{path} describes '{values.get('model_type')}', expected the t5gemma text encoder of Stable Audio 3.")
    return config_from(values)


def config_from(values: dict):
    """The same from the values of a config.json."""
    from transformers import T5GemmaConfig

    config = T5GemmaConfig.from_dict({**values, "is_encoder_decoder": False})
    for part in (config, config.encoder):
        part._attn_implementation = "eager"
    return config


def empty_model(config) -> nn.Module:
    """The encoder on the meta device, with its few computed buffers real."""
    from transformers import T5GemmaEncoderModel

    with torch.device("meta"):
        model = T5GemmaEncoderModel(config)
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            fresh = type(module)(config=config.encoder)
            for name, buffer in fresh.named_buffers(recurse=False):
                module.register_buffer(name, buffer, persistent=False)
    return model.eval().requires_grad_(False)


def read_tokenizer(folder: str | Path):
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise SA3Error(f"The text encoder folder {folder} has no tokenizer.json; expected the folder t5gemma-b-b-ul2 of the release.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise SA3Error(f"{path} is not a tokenizer file ({error}).") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
