"""Files -> config and tensors. Reads safetensors lazily and strictly; nothing is ever unpickled."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import config as configs
from .config import ModelConfig
from .errors import SA3Error
from .network import build

WEIGHTS, CONFIG = "model.safetensors", "model_config.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


class TensorFile:
    """A safetensors file read tensor by tensor. Each tensor is copied out: the file may be replaced afterwards."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_file(self.path)
        try:
            self.file = safe_open(self.path, framework="pt")
            self.names = frozenset(self.file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise SA3Error(
                f"{self.path} is not a complete safetensors file ({error}). It may be truncated or still being written; download it again."
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(name).get_shape())

    def metadata(self) -> dict[str, str]:
        return self.file.metadata() or {}

    def read(self, name: str, dtype: torch.dtype | None = None, device=None) -> Tensor:
        """One tensor, finite throughout, floating types as `dtype`."""
        tensor = self.file.get_tensor(name)
        if not tensor.is_floating_point():
            return tensor.clone()
        # A finite sum proves finite values in one cheap pass; an overflowing one is looked at closely.
        if not math.isfinite(float(tensor.sum(dtype=torch.float32))) and not bool(torch.isfinite(tensor).all()):
            raise SA3Error(f"{self.path}: tensor '{name}' contains NaN or infinite values; the file is damaged, download it again.")
        return tensor.to(device=device, dtype=dtype, copy=True)


def check_file(path: Path) -> None:
    """What can be said about a file before reading it."""
    if not path.exists():
        raise SA3Error(f"{path} does not exist.")
    if path.is_dir():
        raise SA3Error(f"{path} is a folder; expected a .safetensors file.")
    with open(path, "rb") as file:
        head = file.read(8)
    # safetensors begins with the header's length in 8 bytes; it may look like a magic number, but no header has 16 MB.
    pickled = head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK") and any(head[3:])
    if path.suffix.lower() in PICKLES or pickled:
        raise SA3Error(
            f"{path} is a pickled (or zip) file, which can run code when read; expected .safetensors. Use the release's model.safetensors."
        )
    if not head:
        raise SA3Error(f"{path} is empty; the download did not finish.")
    if path.suffix.lower() != ".safetensors":
        raise SA3Error(f"{path} is not a .safetensors file.")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its config, its tensors, and where its text encoder lies (None = not beside it)."""

    path: Path
    config: ModelConfig
    tensors: TensorFile
    text_encoder: Path | None

    @property
    def name(self) -> str:
        return self.path.stem if self.path.is_file() and self.path.name != WEIGHTS else self.tensors.path.parent.name

    def check(self) -> None:
        """Every tensor of the release is there with its shape, and none besides."""
        check_names(self.tensors, build(self.config).state_dict())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a release: its folder (model_config.json, model.safetensors, text encoder folder), or the weights file in it."""
    path = Path(path)
    if not path.exists():
        raise SA3Error(f"{path} does not exist; expected a folder with {CONFIG} and {WEIGHTS}, or a .safetensors file.")
    weights = path / WEIGHTS if path.is_dir() else path
    folder = weights.parent
    if path.is_dir() and not weights.is_file():
        raise SA3Error(f"The folder {path} has no {WEIGHTS}; expected the folder of a Stable Audio 3 release.")
    tensors = TensorFile(weights)
    config_file = folder / CONFIG
    if not config_file.is_file():
        raise SA3Error(f"{folder} has no {CONFIG} beside {weights.name}; put the release's {CONFIG} there.")
    config = configs.read(config_file)
    encoder = None
    if config.conditioning is not None:
        encoder = folder / config.conditioning.text_subfolder
        encoder = encoder if (encoder / "config.json").is_file() else None
    checkpoint = Checkpoint(path, config, tensors, encoder)
    checkpoint.check()
    return checkpoint


def check_names(file: TensorFile, expected: Mapping[str, Tensor]) -> None:
    """Names and shapes of a file against a module's state_dict. Rotary tables are recomputed, so they may be missing or rounded."""
    found = {name for name in file.names if not name.endswith("inv_freq")}
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if missing and extra and len(missing) > len(expected) // 2:
        raise SA3Error(
            f"{file.path} is not the Stable Audio 3 checkpoint its config describes: {len(missing)} of {len(expected)} tensors are "
            f"missing, for example '{missing[0]}', and it holds '{extra[0]}' instead."
        )
    if missing:
        raise SA3Error(f"{file.path}: tensor '{missing[0]}' is missing{_more(missing)}. The file is incomplete or of another model.")
    if extra:
        raise SA3Error(f"{file.path}: tensor '{extra[0]}' is unexpected{_more(extra)}. The file does not fit its {CONFIG}.")
    for name, tensor in expected.items():
        shape = file.shape(name)
        if shape != tuple(tensor.shape):
            raise SA3Error(f"{file.path}: tensor '{name}' has shape {list(shape)}, expected {list(tensor.shape)} from the config.")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def load_into(module: nn.Module, file: TensorFile, prefix: str = "", dtype: torch.dtype | None = None, device=None) -> nn.Module:
    """Fill a module (usually on the meta device) with the tensors below `prefix`; names must have been checked."""
    state = {name: file.read(prefix + name, dtype, device) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def load_text_encoder(folder: str | Path, dtype: torch.dtype | None = None, device=None):
    """The T5Gemma encoder of a release folder (config.json, tokenizer.json, *.safetensors)."""
    from .text_encoder import TextEncoder, empty_model, encoder_config, read_tokenizer

    folder = Path(folder)
    tokenizer = read_tokenizer(folder)
    config = encoder_config(folder)
    model = empty_model(config)
    files = {name: file for file in _weight_files(folder) for name in file.names}
    prefix = "model.encoder." if any(name.startswith("model.encoder.") for name in files) else "encoder."
    state = {}
    for name, tensor in model.state_dict().items():
        stored = prefix + name.removeprefix("encoder.")
        if stored not in files:
            raise SA3Error(
                f"The text encoder in {folder} lacks the tensor '{stored}'; expected T5Gemma's encoder, download the folder again."
            )
        if files[stored].shape(stored) != tuple(tensor.shape):
            raise SA3Error(
                f"{folder}: '{stored}' has shape {list(files[stored].shape(stored))}, its config.json says {list(tensor.shape)}."
            )
        state[name] = files[stored].read(stored, dtype, device)
    known = {prefix + name.removeprefix("encoder.") for name in state}
    strange = sorted(name for name in files if name not in known and not _decoder_part(name))
    if strange:
        raise SA3Error(f"The text encoder in {folder} holds the unexpected tensor '{strange[0]}'; expected T5Gemma.")
    model.load_state_dict(state, strict=True, assign=True)
    return TextEncoder(model.to(device), tokenizer, config.encoder)


def _decoder_part(name: str) -> bool:
    return "decoder." in name or name.startswith("lm_head") or name.endswith("inv_freq")


def _weight_files(folder: Path) -> Iterable[TensorFile]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
        if any(Path(name).name != name for name in names):
            raise SA3Error(f"{index} names a file outside its folder.")
        return [TensorFile(folder / name) for name in names]
    return [TensorFile(folder / "model.safetensors")]
