"""What a file is, from the names and shapes of its tensors: its kind, and its config where model_config.json is missing."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import LARGEST, RATE, ConditioningConfig, DiTConfig, ModelConfig, ResamplerConfig, SAMEConfig
from ..errors import SA3Error
from ..files import parse_json
from .sentencepiece import PREFIXES as TEXT_PREFIXES
from .tensors import header_bytes

Shapes = Mapping[str, Sequence[int]]  # tensor names and shapes of a file

OBJECTIVES = {"auto": None, "post-trained": "rf_denoiser", "base": "rectified_flow"}  # the user's term -> the config's
PRETRANSFORM = "pretransform.model."
DIT = "model.model.transformer."
MAPPING = "decoder.layers.3.mapping.weight_v"
KERNELS = {3: "SAME-S", 1: "SAME-L"}  # of that convolution
PROMPT, SECONDS = "conditioner.conditioners.prompt.padding_embedding", "conditioner.conditioners.seconds_total.embedder.embedding.1.weight"

# Values that all eight releases share and that the weights do not contain.
AUDIO_CHANNELS, STRIDE, CHUNK = 2, 16, 32
MAX_TOKENS, SECONDS_RANGE, TEXT_SUBFOLDER = 256, (0, 384), "t5gemma-b-b-ul2"
SINUSOIDAL = 8  # number of last blocks of SAME-L's decoder that gate with a sine
MASK_NOISE = {"SAME-S": {"encoder": 0.0, "decoder": 0.01}, "SAME-L": {"encoder": 0.001, "decoder": 0.1}}
LONGEST = {("medium", False): 16_777_216, ("medium", True): 16_777_216, ("small", False): 5_292_032, ("small", True): 5_324_800}


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file tells: enough to list the files that fit a widget."""

    kind: str | None = None  # generative | autoencoder | text encoder
    autoencoder: str | None = None  # SAME-S | SAME-L
    width: int | None = None  # of a text encoder


def read_header(path: Path) -> Header:
    """The header of a safetensors file, or an empty one for any other file. Reads no weights and never raises."""
    try:
        header = parse_json(header_bytes(path), path, "the header of a safetensors file")
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
        kernel = next((shapes[p + MAPPING][-1] for p in ("", PRETRANSFORM) if p + MAPPING in shapes), None)
        width = next((shapes[p + "embed_tokens.weight"][1] for p in TEXT_PREFIXES if p + "embed_tokens.weight" in shapes), None)
        return Header(kind_of(shapes), KERNELS.get(kernel), width)
    except (SA3Error, OSError, LookupError, ValueError, TypeError, AttributeError, OverflowError):
        return Header()


def kind_of(names: Collection[str]) -> str | None:
    """The kind of file with these tensor names: "generative", "autoencoder", "text encoder", or None for any other."""
    if DIT + "project_in.weight" in names and SECONDS in names:
        return "generative"
    if any(prefix + "bottleneck.running_std" in names and prefix + "decoder.layers.3.new_tokens" in names for prefix in ("", PRETRANSFORM)):
        return "autoencoder"
    for prefix in (*TEXT_PREFIXES, ""):
        if prefix + "embed_tokens.weight" in names and prefix + "layers.0.pre_feedforward_layernorm.weight" in names:
            return "text encoder"
    return None


def is_base_name(name: str) -> bool:
    """Whether a file or folder name contains `base` as a separate word: stable_audio_3_medium_base, small-music-base."""
    return re.search(r"(?<![a-z0-9])base(?![a-z0-9])", name.lower()) is not None


def model_config(shapes: Shapes, base: bool) -> ModelConfig:
    """The config of a generative file with these tensors. base: whether it is a base checkpoint, which the weights do not tell.

    Raises SA3Error naming the first tensor that is missing or has an impossible shape.
    """
    same = _same_config(shapes, PRETRANSFORM)
    width, latent_dim = _shape(shapes, DIT + "project_in.weight", 2)
    depth = _count(shapes, DIT + "layers.")
    rows = _shape(shapes, DIT + "layers.0.self_attn.to_qkv.weight", 2)[0]
    if rows not in (3 * width, 5 * width):
        raise SA3Error(f"'{DIT}layers.0.self_attn.to_qkv.weight' has {rows} rows, expected 3 or 5 times the width {width}")
    (head_dim,) = _shape(shapes, DIT + "layers.0.self_attn.q_norm.gamma", 1)
    if width % head_dim or head_dim < 32:
        raise SA3Error(f"the heads have {head_dim} channels; expected at least 32, and the width {width} a multiple of it")
    ff_rows = _shape(shapes, DIT + "layers.0.ff.ff.0.proj.weight", 2)[0]
    local_dim = _shape(shapes, DIT + "layers.0.to_local_embed.0.weight", 2)[1]
    cond_dim, global_dim = (_shape(shapes, f"model.model.{name}.0.weight", 2)[1] for name in ("to_cond_embed", "to_global_embed"))
    memory_tokens = _shape(shapes, DIT + "memory_tokens", 2)[0]
    differential = rows == 5 * width
    dit = DiTConfig(
        latent_dim, width, depth, width // head_dim, cond_dim, global_dim, local_dim, differential, ff_rows / (2 * width), memory_tokens
    )
    (prompt_dim,) = _shape(shapes, PROMPT, 1)
    conditioning = ConditioningConfig(prompt_dim, MAX_TOKENS, TEXT_SUBFOLDER, *SECONDS_RANGE)
    longest = LONGEST["medium" if differential else "small", base]
    align = (same.encoder.chunk_size or CHUNK) // STRIDE
    return ModelConfig(RATE, longest, same, dit, conditioning, OBJECTIVES["base" if base else "post-trained"], {"kind": "logsnr"}, align)


def autoencoder_config(shapes: Shapes, prefix: str) -> ModelConfig:
    """The config of the SAME whose tensors lie below `prefix`."""
    same = _same_config(shapes, prefix)
    return ModelConfig(RATE, None, same, align=same.encoder.align)


def _same_config(shapes: Shapes, prefix: str) -> SAMEConfig:
    """The config of SAME-S (convolution over three patches, chunked attention) or SAME-L (kernel 1, sliding window)."""
    kernel = _shape(shapes, prefix + MAPPING, 3)[2]
    if kernel not in KERNELS:
        raise SA3Error(f"'{prefix}{MAPPING}' has a kernel of {kernel}, expected 3 (SAME-S) or 1 (SAME-L)")
    kind = KERNELS[kernel]
    encoder, decoder = (_resampler(shapes, prefix, side, kind) for side in ("encoder", "decoder"))
    patch = encoder.patch_channels // AUDIO_CHANNELS
    if patch < 1 or encoder.patch_channels % AUDIO_CHANNELS:
        raise SA3Error(f"patches have {encoder.patch_channels} channels; expected a multiple of {AUDIO_CHANNELS}")
    return SAMEConfig(encoder, decoder, AUDIO_CHANNELS, patch, encoder.latent_dim, patch * STRIDE)


def _resampler(shapes: Shapes, prefix: str, side: str, kind: str) -> ResamplerConfig:
    block = f"{prefix}{side}.layers.{0 if side == 'encoder' else 3}."
    rows, columns, kernel = _shape(shapes, block + "mapping.weight_v", 3)
    patch_channels, width = (columns, rows) if side == "encoder" else (rows, columns)
    latent_dim = _shape(shapes, prefix + "encoder.layers.2.weight", 2)[0]
    depth = _count(shapes, block + "transformers.")
    (head_dim,) = _shape(shapes, block + "transformers.0.self_attn.q_norm.gamma", 1)
    if width % head_dim:
        raise SA3Error(f"the {side}'s heads have {head_dim} channels; expected the width {width} to be a multiple of it")
    chunked = kind == "SAME-S"
    sinusoidal = 0 if chunked or side == "encoder" else min(SINUSOIDAL, depth)
    return ResamplerConfig(
        side, patch_channels, width, latent_dim, STRIDE, depth, head_dim, kernel == 3, CHUNK if chunked else None, chunked,
        None if chunked else STRIDE + 1, sinusoidal, MASK_NOISE[kind][side],
    )  # fmt: skip


def _shape(shapes: Shapes, name: str, dims: int) -> tuple[int, ...]:
    if name not in shapes:
        raise SA3Error(f"tensor '{name}' is missing; this is not a complete Stable Audio 3 model")
    shape = shapes[name]
    if len(shape) != dims or 0 in shape:
        raise SA3Error(f"tensor '{name}' has shape {list(shape)}, expected {dims} dimensions")
    return tuple(shape)


def _count(names: Collection[str], prefix: str) -> int:
    """Number of numbered modules below a prefix."""
    count = len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})
    if count > LARGEST["depth"]:
        raise SA3Error(f"there are {count} layers below '{prefix}', expected at most {LARGEST['depth']}")
    return count
