"""T5Gemma's encoder half through `transformers`: prompts -> one vector per token."""

import importlib.metadata
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backends.ambient import independent
from ..backends.device import backend_of
from ..errors import SA3Error
from ..files import read_json

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


def encoder_dtype(dtype: torch.dtype, device) -> torch.dtype:
    """The type of the text encoder in a model of type `dtype`.

    T5Gemma's activations exceed float16's range, so that becomes bfloat16 where the device has it, else float32.
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
    """What the text encoder says of B prompts, padded as the model sees it.

    embeddings (B, max_tokens, dim), mask (B, max_tokens) True = a real token, input_ids (B, max_tokens).
    """

    embeddings: Tensor
    mask: Tensor
    input_ids: Tensor


class Encodings:
    """The encodings used last, on the CPU, whatever asks for them: at most `entries` of them and `size` bytes."""

    def __init__(self, entries: int = 32, size: int = 32 * 2**20):
        self.entries, self.size = entries, size
        self._found: OrderedDict[tuple, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: tuple) -> bool:
        return key in self._found

    def get(self, key: tuple) -> Tensor | None:
        """A copy: who asks may write into it."""
        with self._lock:
            if key not in self._found:
                return None
            self._found.move_to_end(key)
            return self._found[key].clone()

    def put(self, key: tuple, embeddings: Tensor) -> None:
        if embeddings.nbytes > self.size:
            return
        with self._lock:
            self._found[key] = embeddings.detach().to("cpu", copy=True)
            while len(self._found) > self.entries or self.nbytes > self.size:
                self._found.popitem(last=False)

    def keep(self, encoders: set[Hashable]) -> None:
        """Drop what others than these text encoders said."""
        with self._lock:
            for key in [key for key in self._found if key[0] not in encoders]:
                del self._found[key]

    def clear(self) -> None:
        self.keep(set())


ENCODINGS = Encodings()


class TextEncoder(nn.Module):
    """Tokenizer and encoder. Build with `load`; parameters live under `model` with transformers' names.

    identity: the state of the files that the weights are from. Encoders of one identity share their encodings, also with one that is
    loaded later; None = nothing is kept. home: where it computes, for hosts that move the weights in between; None = where they are.
    """

    _alive: weakref.WeakSet = weakref.WeakSet()

    def __init__(self, model: nn.Module, tokenizer, config, identity: Hashable = None):
        super().__init__()
        self.model, self.tokenizer, self.config, self.identity = model, tokenizer, config, identity
        self.home: torch.device | None = None
        self._alive.add(self)
        ENCODINGS.keep({encoder.identity for encoder in self._alive})

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @independent
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
        """Words that the tokenizer has no token for, in order of first appearance. Empty for tokenizers that fall back to bytes."""
        unknown = getattr(getattr(self.tokenizer, "model", None), "unk_token", None)  # a SentencePiece tokenizer has none
        if unknown is None:
            return []
        found = {}
        for prompt in prompts:
            row = self.tokenizer.encode(prompt, add_special_tokens=False)
            found |= {prompt[a:b]: None for token, (a, b) in zip(row.tokens, row.offsets, strict=True) if token == unknown}
        return list(found)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings (B, n, width) of the first n positions, n = the longest prompt's real tokens (at least 1); from the cache or new."""
        if self.identity is None:
            return self.compute(tokens)
        key = self._key(tokens)
        embeddings = ENCODINGS.get(key)
        if embeddings is None:
            embeddings = self.compute(tokens)
            ENCODINGS.put(key, embeddings)
        return embeddings.to(self.model.device)

    def knows(self, tokens: Tokens) -> bool:
        """Whether `forward` would compute nothing."""
        return self.identity is not None and self._key(tokens) in ENCODINGS

    @independent
    @torch.no_grad()
    def compute(self, tokens: Tokens) -> Tensor:
        """`forward` without the cache."""
        n = _longest(tokens)
        device = self.model.device
        mask = tokens.mask[:, :n].clone()
        mask[:, 0] = True  # an empty prompt has no token to attend to; its row is replaced by padding afterwards
        return self.model(input_ids=tokens.ids[:, :n].to(device), attention_mask=mask.long().to(device)).last_hidden_state

    def _key(self, tokens: Tokens) -> tuple:
        """Prompts of a batch are rounded together, so it is known as a whole: the bytes never depend on what came before."""
        n = _longest(tokens)
        content = tuple(map(tuple, tokens.ids[:, :n].tolist())), tuple(map(tuple, tokens.mask[:, :n].tolist()))
        return self.identity, self.model.dtype, str(self.home or self.model.device), content


def _longest(tokens: Tokens) -> int:
    return max(1, int(tokens.mask.sum(1).max()))


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


def t5gemma() -> tuple[type, type]:
    """transformers' config and encoder classes of T5Gemma."""
    try:
        from transformers import T5GemmaConfig, T5GemmaEncoderModel
    except ImportError as error:
        try:
            found = f"version {importlib.metadata.version('transformers')}"
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        raise SA3Error(
            f"The text encoder needs the package transformers, version 4.53 or later; installed is {found}. Update it with the Python that "
            "runs ComfyUI: python -m pip install --upgrade transformers."
        ) from error
    return T5GemmaConfig, T5GemmaEncoderModel


def config_from(values: dict, where: str | Path = "the text encoder"):
    """The same from the values of a config.json. Only what the encoder computes with is taken over: a config could also name code."""
    config_class, _ = t5gemma()
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
        config = config_class.from_dict({**known, "is_encoder_decoder": False})
        for one in (config, config.encoder):
            one._attn_implementation = "eager"
        empty_model(config)
    except Exception as error:  # transformers checks configs in many ways and places
        raise SA3Error(f"{where} is not the config of a T5Gemma text encoder ({str(error)[:200]}). Download it again.") from error
    return config


@independent
def empty_model(config) -> nn.Module:
    """The encoder on the meta device, with its few computed buffers real."""
    _, encoder_class = t5gemma()
    with torch.device("meta"):
        model = encoder_class(config)
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
