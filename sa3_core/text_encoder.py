"""T5Gemma's encoder half through `transformers`: prompts -> one vector per token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import SA3Error
from .json_files import read_json

# What an encoder is made of: sizes with the largest believed, and what else it computes with.
SIZES = {
    "vocab_size": 2**20, "hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 256, "num_attention_heads": 1024,
    "num_key_value_heads": 1024, "head_dim": 2**14,
}  # fmt: skip
NUMBERS = {
    "query_pre_attn_scalar", "rms_norm_eps", "rope_theta", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping",
    "max_position_embeddings",
}  # fmt: skip
OTHERS = {"layer_types", "hidden_activation", "rope_parameters", "attention_bias", "pad_token_id", "bos_token_id", "eos_token_id"}


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
            try:
                prompt.encode()
            except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold and no tokenizer takes
                raise SA3Error(f"A prompt holds something that is no text at character {error.start}; write it anew.") from error
            row = self.tokenizer.encode(prompt, add_special_tokens=False).ids[:max_tokens]
            if row and max(row) >= self.config.vocab_size:
                raise SA3Error(
                    f"The tokenizer gives the token {max(row)}, the text encoder knows {self.config.vocab_size}: they belong to different "
                    "models. Download the text encoder's folder again."
                )
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = True
        return Tokens(ids, mask)

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """What the tokenizer has no token for, in the order of its first appearance. Empty for tokenizers that fall back to bytes."""
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        found = {}
        for prompt in prompts:
            row = self.tokenizer.encode(prompt, add_special_tokens=False)
            found |= {prompt[a:b]: None for token, (a, b) in zip(row.tokens, row.offsets, strict=True) if token == unknown}
        return list(found)

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
    values = read_json(path, "the config.json of the text encoder")
    if not isinstance(values, dict):
        raise SA3Error(f"{path} holds {type(values).__name__}, expected the config of the t5gemma text encoder of Stable Audio 3.")
    if values.get("model_type") != "t5gemma" or not isinstance(values.get("encoder"), dict):
        raise SA3Error(f"{path} describes '{values.get('model_type')}', expected the t5gemma text encoder of Stable Audio 3.")
    return config_from(values, path)


def config_from(values: dict, where: str | Path = "the text encoder"):
    """The same from the values of a config.json. Only what the encoder computes with is taken over: a config could also name code."""
    from transformers import T5GemmaConfig

    part = {name: value for name, value in values["encoder"].items() if name in SIZES or name in NUMBERS | OTHERS}
    for name, largest in SIZES.items():
        value = part.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise SA3Error(f"{where}: the encoder's '{name}' is {str(value)[:80]}; expected a whole number from 1 to {largest}.")
    for name in NUMBERS & part.keys():
        value = part[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**31):
            raise SA3Error(f"{where}: the encoder's '{name}' is {str(value)[:80]}; expected a number.")
    if part["num_attention_heads"] % part["num_key_value_heads"]:
        raise SA3Error(f"{where}: {part['num_attention_heads']} heads cannot share {part['num_key_value_heads']} keys and values.")
    known = {"model_type": "t5gemma", "encoder": dict(part), "decoder": dict(part), "vocab_size": part["vocab_size"]}
    try:
        config = T5GemmaConfig.from_dict({**known, "is_encoder_decoder": False})
        for one in (config, config.encoder):
            one._attn_implementation = "eager"
        empty_model(config)
    except Exception as error:  # transformers checks configs in many ways and places
        raise SA3Error(f"{where} is not the config of a T5Gemma text encoder ({str(error)[:200]}). Download it again.") from error
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
