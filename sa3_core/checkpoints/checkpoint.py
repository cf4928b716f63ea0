"""Checkpoints on disk in every published layout: opening, checking and loading them."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import config as configs
from ..backends.ambient import independent
from ..config import ModelConfig
from ..errors import SA3Error
from ..models.release import build
from ..models.t5gemma import config_from, empty_model, encoder_config, read_tokenizer
from ..models.text_encoder import TextEncoder
from . import detect, sentencepiece
from .tensors import TensorFile, refuse_optimized

WEIGHTS, CONFIG = "model.safetensors", "model_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its config and its tensor file, in which the names of the model begin with `prefix`."""

    path: Path  # as given by the user: a folder or a file
    config: ModelConfig
    tensors: TensorFile
    text_encoder: Path | None  # the text encoder's folder next to the weights
    prefix: str = ""
    layout: str = "release"  # release | mirror | single file | autoencoder | autoencoder in a generative file
    objective: str = "auto"  # as requested

    @property
    def name(self) -> str:
        return display_name(self.tensors.path)

    @property
    def same_prefix(self) -> str:
        """The prefix of the autoencoder's tensors."""
        return self.prefix if self.config.dit is None else detect.PRETRANSFORM


def display_name(weights: Path) -> str:
    """The name by which a user knows a weights file: its folder's name if the file is called model.safetensors."""
    return weights.parent.name if weights.name == WEIGHTS else weights.stem


@independent
def open_checkpoint(path: str | Path, objective: str = "auto", autoencoder: bool = False) -> Checkpoint:
    """Open a release's folder, the weights file in it, or a single file without a config, and check the names and shapes of its tensors.

    objective: "base" or "post-trained" for a file without a config; "auto" decides by the file's name.
    autoencoder: open only SAME, alone or inside a generative file.
    """
    path = Path(path)
    if objective not in detect.OBJECTIVES:
        raise SA3Error(f"The objective is '{objective}'; expected one of {', '.join(detect.OBJECTIVES)}.")
    tensors = TensorFile(_find_weights(path))
    config, prefix, layout = _read_config(tensors), "", "release"
    if config is None:
        config, prefix = _infer_config(tensors, objective, autoencoder)
        layout = "single file"
    elif config.dit is not None:
        if detect.OBJECTIVES[objective] not in (None, config.objective):
            raise SA3Error(f"{tensors.path.parent / CONFIG} says '{config.objective}', not '{objective}'; set the objective to auto.")
        if detect.PROMPT in tensors.names and tensors.dtype(detect.PROMPT) == "BF16":
            layout = "mirror"
        if autoencoder:
            config, prefix = ModelConfig(config.sample_rate, None, config.same, align=config.same.encoder.align), detect.PRETRANSFORM
    encoder = None
    if config.dit is None:
        layout = "autoencoder in a generative file" if prefix else "autoencoder"
    else:
        folder = tensors.path.parent / (config.conditioning.text_subfolder or detect.TEXT_SUBFOLDER)
        encoder = folder if (folder / "config.json").is_file() else None
    _check_names(tensors, build(config).state_dict(), prefix)
    return Checkpoint(path, config, tensors, encoder, prefix, layout, objective)


def _find_weights(path: Path) -> Path:
    """The weights file in a folder; a file itself."""
    if not os.path.exists(path):
        raise SA3Error(f"{path} does not exist; expected a folder with {CONFIG} and {WEIGHTS}, or a .safetensors file.")
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    files = sorted(path.iterdir())
    for file in files:
        refuse_optimized(file)
    deeper = sorted(str(file.parent.relative_to(path)) for at in ("*", "snapshots/*") for file in path.glob(f"{at}/{WEIGHTS}"))
    way_out = f"choose one of its sub-folders: {', '.join(deeper)}." if deeper else "expected the folder of a Stable Audio 3 release."
    partial = [file.name for file in (path, *files) if file.suffix in (".part", ".incomplete", ".crdownload", ".tmp")]
    if partial:
        way_out = f"{partial[0]} looks like an unfinished download; finish it first."
    raise SA3Error(f"The folder {path} has no {WEIGHTS}; {way_out}")


def _read_config(tensors: TensorFile) -> ModelConfig | None:
    """The config next to the weights, or None. In a folder of many files it may belong to another file: then names are compared."""
    file = tensors.path.parent / CONFIG
    if not file.is_file():
        return None
    config = configs.read(file)
    if tensors.path.name == WEIGHTS:
        return config
    expected = set(build(config).state_dict())
    return config if len(expected & tensors.names) > len(expected) // 2 else None


def _infer_config(tensors: TensorFile, objective: str, autoencoder: bool) -> tuple[ModelConfig, str]:
    """Config and prefix of a file without a config, from names and shapes."""
    kind, shapes = detect.kind_of(tensors.names), {name: tensors.shape(name) for name in tensors.names}
    try:
        if kind == "generative" and not autoencoder:
            base = detect.is_base_name(display_name(tensors.path)) if objective == "auto" else objective == "base"
            return detect.model_config(shapes, base), ""
        if kind in ("generative", "autoencoder"):
            prefix = detect.PRETRANSFORM if any(name.startswith(detect.PRETRANSFORM) for name in tensors.names) else ""
            return detect.autoencoder_config(shapes, prefix), prefix
    except SA3Error as error:
        raise SA3Error(
            f"{tensors.path} has no {CONFIG} next to it, and its tensors do not imply one: {error}. Use a release's folder."
        ) from error
    if tensors.metadata().get("format") == "mlx":
        raise SA3Error(f"{tensors.path} is an optimized file for MLX; it has no PyTorch weights to load. Use the model's own release.")
    what = f"a {kind}" if kind else f"of another model (it holds '{min(tensors.names, default='nothing')}')"
    raise SA3Error(
        f"{tensors.path} is {what}, not a Stable Audio 3 model, and has no {CONFIG} next to it. "
        "Use a release's folder, a file repackaged for ComfyUI, or a standalone SAME."
    )


def _check_names(file: TensorFile, expected: Mapping[str, Tensor], prefix: str) -> None:
    """Compare the names and shapes below `prefix` with a module's state_dict. Rotary tables are optional: they are recomputed."""
    expected = {prefix + name: tensor for name, tensor in expected.items()}
    found = {name for name in file.names if name.startswith(prefix) and not name.endswith("inv_freq")}
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if missing and extra and len(missing) > len(expected) // 2:
        raise SA3Error(
            f"{file.path} is not the Stable Audio 3 checkpoint its config describes: {len(missing)} of {len(expected)} tensors are "
            f"missing, for example '{missing[0]}', and it holds '{extra[0]}' instead. Download both again."
        )
    if missing:
        raise SA3Error(
            f"{file.path}: tensor '{missing[0]}' is missing{_more(missing)}. The file is incomplete or of another model: download it again."
        )
    if extra:
        raise SA3Error(
            f"{file.path}: tensor '{extra[0]}' is unexpected{_more(extra)}. The file does not fit its {CONFIG}: download both again."
        )
    for name, tensor in expected.items():
        file.expect(name, tensor.shape)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


@independent
def load_into(
    module: nn.Module, file: TensorFile, prefix: str = "", dtype: torch.dtype | None = None, device=None, names: Iterable[str] | None = None
) -> nn.Module:
    """Fill a module (usually on the meta device) with the tensors below `prefix` and return it in eval mode, frozen.

    names: the tensors to load, for a host whose layers create their weights while loading; None: those of the module's state_dict.
    """
    state = {name: file.read(prefix + name, dtype, device) for name in (module.state_dict() if names is None else names)}
    for name, tensor in state.items():
        if name.endswith("weight_v") and not bool(tensor.float().flatten(1).norm(dim=1).all()):
            raise SA3Error(
                f"{file.path}: tensor '{prefix}{name}' has a row whose norm, by which it is divided, is 0 in {tensor.dtype}; load it in "
                "fp32, or download it again."
            )
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


@independent
def load_text_encoder(path: str | Path, dtype: torch.dtype | None = None, device=None, width: int | None = None) -> TextEncoder:
    """Load T5Gemma's encoder from a release's folder (config.json, tokenizer.json, model.safetensors) or from a repackaged file.

    dtype: None = that of the file's first tensor. width: the embedding width that the model expects; another one is an SA3Error.
    """
    path = Path(path)
    path = path.parent if path.name == WEIGHTS and (path.parent / "config.json").is_file() else path
    if path.is_file():
        file = TensorFile(path)
        config, tokenizer = config_from(sentencepiece.config_values(file), path), sentencepiece.read_tokenizer(file)
    else:
        tokenizer, config = read_tokenizer(path), encoder_config(path)
        if not (path / WEIGHTS).exists() and (shards := sorted(path.glob("*.safetensors"))):
            raise SA3Error(f"{path} holds {shards[0].name}; expected {WEIGHTS}, the text encoder of a release in one file.")
        file = TensorFile(path / WEIGHTS)
    if width is not None and config.encoder.hidden_size != width:
        raise SA3Error(
            f"The text encoder in {path} is {config.encoder.hidden_size} wide, this model expects {width}: it belongs to another model. "
            "Use the t5gemma-b-b-ul2 of the release."
        )
    model = empty_model(config)
    prefix = next((p for p in sentencepiece.PREFIXES if any(name.startswith(p) for name in file.names)), sentencepiece.PREFIXES[-1])
    state = {}
    for name, tensor in model.state_dict().items():
        stored = prefix + name.removeprefix("encoder.")
        if stored not in file.names:
            raise SA3Error(f"The text encoder in {path} lacks the tensor '{stored}'; expected T5Gemma's encoder, download it again.")
        file.expect(stored, tensor.shape)
        state[name] = file.read(stored, dtype, device)
        dtype = dtype or state[name].dtype  # one type for all tensors, even if the file mixes types
    known = {prefix + name.removeprefix("encoder.") for name in state}
    if strange := sorted(name for name in file.names - known if not _is_unused(name)):
        raise SA3Error(f"The text encoder in {path} holds the unexpected tensor '{strange[0]}'; use the t5gemma-b-b-ul2 of the release.")
    model.load_state_dict(state, strict=True, assign=True)
    return TextEncoder(model.to(device), tokenizer, config.encoder)


def _is_unused(name: str) -> bool:
    """Whether a tensor is not of T5Gemma's encoder: decoder, output head, rotary tables, the tokenizer of a repackaged file."""
    return "decoder." in name or name.startswith("lm_head") or name.endswith("inv_freq") or name == sentencepiece.SPIECE
