"""Config, tokenizer and empty module of T5Gemma's encoder, read from untrusted files through `transformers` and `tokenizers`."""

import importlib.metadata
from pathlib import Path

import torch
from torch import nn

from ..backends.ambient import independent
from ..errors import SA3Error
from ..files import read_json

# The keys of a config that the encoder computes with: sizes with their upper bounds, numbers, others
SIZES = {
    "vocab_size": 2**20, "hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 256, "num_attention_heads": 1024,
    "num_key_value_heads": 1024, "head_dim": 2**14,
}  # fmt: skip
NUMBERS = {
    "query_pre_attn_scalar", "rms_norm_eps", "rope_theta", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping",
    "max_position_embeddings",
}  # fmt: skip
OTHERS = {"layer_types", "hidden_activation", "rope_parameters", "attention_bias", "pad_token_id", "bos_token_id", "eos_token_id"}


def encoder_config(folder: str | Path):
    """transformers' config of an encoder-only T5Gemma from the release's config.json."""
    path = Path(folder) / "config.json"
    values = read_json(path, "the config.json of the text encoder")
    if not isinstance(values, dict):
        raise SA3Error(f"{path} holds {type(values).__name__}, expected the config of the t5gemma text encoder of Stable Audio 3.")
    if values.get("model_type") != "t5gemma" or not isinstance(values.get("encoder"), dict):
        raise SA3Error(f"{path} describes '{values.get('model_type')}', expected the t5gemma text encoder of Stable Audio 3.")
    return config_from(values, path)


def config_from(values: dict, where: str | Path = "the text encoder"):
    """`encoder_config` from the values of a config.json. Copies only known keys, since a config can also name code to run."""
    config_class, _ = transformers_classes()
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
            one._attn_implementation = "eager"  # the SDPA path of transformers before 5.22 silently omits the logit softcap
        empty_model(config)
    except Exception as error:  # transformers validates a config in several places, with exceptions of many types
        raise SA3Error(f"{where} is not the config of a T5Gemma text encoder ({str(error)[:200]}). Download it again.") from error
    return config


@independent
def empty_model(config) -> nn.Module:
    """The encoder on the meta device; only its rotary tables, which no checkpoint contains, are computed."""
    _, encoder_class = transformers_classes()
    with torch.device("meta"):
        model = encoder_class(config)
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            for name, buffer in type(module)(config=config.encoder).named_buffers(recurse=False):
                module.register_buffer(name, buffer, persistent=False)
    return model.eval().requires_grad_(False)


def transformers_classes() -> tuple[type, type]:
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


def read_tokenizer(folder: str | Path):
    """The tokenizer of a text encoder's folder, without padding and truncation."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise SA3Error(f"The text encoder folder {folder} has no tokenizer.json; expected the folder t5gemma-b-b-ul2 of the release.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise SA3Error(f"{path} is not a tokenizer file ({error}); download it again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
