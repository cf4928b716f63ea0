"""Files -> config and tensors, in every layout that is around. Reads safetensors lazily and strictly; nothing is ever unpickled."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .. import config as configs
from ..backends.ambient import independent
from ..config import ModelConfig
from ..errors import SA3Error
from ..files import parse_json, read_json
from ..models.release import build
from . import detect, sentencepiece

WEIGHTS, CONFIG = "model.safetensors", "model_config.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
OPTIMIZED = {
    ".onnx": "ONNX",
    ".engine": "TensorRT",
    ".plan": "TensorRT",
    ".trt": "TensorRT",
    ".tflite": "TFLite",
    ".npz": "MLX",
    ".gguf": "GGUF",
}
MAX_HEADER = 10_000_000  # bytes; a release has 0.2 MB of names, and safetensors itself takes ten times this
MAX_NAME = 512  # characters of a tensor's name
DTYPES = ("F32", "F16", "BF16", "F64")  # what weights may be stored as
WHOLE = ("I64", "I32", "I16", "I8", "U8", "BOOL")  # what else is read: the bytes of a tokenizer, an alpha


class TensorFile:
    """A safetensors file read tensor by tensor. Each tensor is copied out: the file may be replaced afterwards."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_file(self.path)
        try:
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            self.file = safe_open(self.path, framework="pt")
            self.names = frozenset(self.file.keys())
            longest = max(self.names, key=len, default="")
            if len(longest) > MAX_NAME:
                raise ValueError(f"the name of a tensor has {len(longest)} characters")
        except (SafetensorError, OSError, ValueError) as error:
            raise SA3Error(
                f"{self.path} is not a complete safetensors file ({error}). It may be truncated or still being written; download it again."
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As stored: F32, BF16, ..."""
        return self.file.get_slice(name).get_dtype()

    def expect(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a tensor of another shape, or of numbers that are no weights."""
        if self.shape(name) != tuple(shape):
            raise SA3Error(f"{self.path}: tensor '{name}' has shape {list(self.shape(name))}, expected {list(shape)} from the config.")
        if self.dtype(name) not in DTYPES:
            raise SA3Error(
                f"{self.path}: tensor '{name}' is stored as {self.dtype(name)}, a quantised copy; expected {', '.join(DTYPES)}. "
                "Use the model's own release."
            )

    def metadata(self) -> dict[str, str]:
        return self.file.metadata() or {}

    def fingerprint(self) -> str:
        """Size and header in one word: tells releases and layouts apart without reading gigabytes. `sha256` reads it all."""
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest = hashlib.sha256(file.read(length)).hexdigest()
        return f"{self.path.stat().st_size}-{digest[:16]}"

    def sha256(self) -> str:
        return sha256(self.path)

    def read(self, name: str, dtype: torch.dtype | None = None, device=None) -> Tensor:
        """One tensor, finite throughout, floating types as `dtype`."""
        if self.dtype(name) not in DTYPES + WHOLE:
            raise SA3Error(f"{self.path}: tensor '{name}' is stored as {self.dtype(name)}; expected one of {', '.join(DTYPES)}.")
        tensor = self.file.get_tensor(name)
        if not tensor.is_floating_point():
            return tensor.clone()
        # A finite sum proves finite values in one cheap pass; an overflowing one is looked at closely.
        if not math.isfinite(float(tensor.sum(dtype=torch.float32))) and not bool(torch.isfinite(tensor).all()):
            raise SA3Error(f"{self.path}: tensor '{name}' contains NaN or infinite values; the file is damaged, download it again.")
        return tensor.to(device=device, dtype=dtype, copy=True)


def file_state(*files: Path) -> tuple:
    """Changes whenever one of these files is replaced or written to."""
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats)


def sha256(path: Path, progress=None) -> str:
    """Hash of a whole file, in pieces. progress(bytes done, bytes in all)."""
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            done += len(piece)
            if progress is not None:
                progress(done, size)
    return digest.hexdigest()


def optimized(path: Path) -> SA3Error | None:
    """Why a file made for another engine cannot be loaded here; None for other files."""
    engine = OPTIMIZED.get(path.suffix.lower())
    if engine is None:
        return None
    return SA3Error(
        f"{path} is an optimized file for {engine}, as in stabilityai/stable-audio-3-optimized; it has no PyTorch weights to load. "
        "Use the model's own release with its model.safetensors."
    )


def check_file(path: Path) -> None:
    """What can be said about a file before reading it."""
    if not os.path.exists(path):  # unlike Path's own, never raises, whatever the name
        raise SA3Error(f"{path} does not exist.")
    if (refusal := optimized(path)) is not None:
        raise refusal
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
class Glance:
    """What a file's header tells without opening the file in earnest: for lists of files that fit."""

    kind: str | None = None  # generative | autoencoder | text encoder
    autoencoder: str | None = None  # SAME-S | SAME-L
    width: int | None = None  # of a text encoder


def glance(path: Path) -> Glance:
    """Read the header of a safetensors file; anything else is nothing that fits."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < MAX_HEADER:
                return Glance()
            header = parse_json(file.read(length), path, "the header of a safetensors file")
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
        kind = detect.kind_of(shapes)
        widths = [shapes[p + "embed_tokens.weight"][1] for p in sentencepiece.PREFIXES if p + "embed_tokens.weight" in shapes]
        return Glance(kind, detect.same_of(shapes), widths[0] if widths and kind == "text encoder" else None)
    except (SA3Error, OSError, LookupError, ValueError, TypeError, AttributeError, OverflowError):
        return Glance()


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its config, its tensors (those below `prefix`), and where its text encoder lies (None = not beside it)."""

    path: Path
    config: ModelConfig
    tensors: TensorFile
    text_encoder: Path | None
    prefix: str = ""
    layout: str = "release"  # release | mirror | single file | autoencoder | autoencoder in a generative file
    objective: str = "auto"  # as it was asked for

    @property
    def name(self) -> str:
        return hint(self.tensors.path)

    @property
    def same_prefix(self) -> str:
        """Where the autoencoder's tensors lie."""
        return self.prefix if self.config.dit is None else detect.PRETRANSFORM

    def check(self) -> None:
        """Every tensor of the release is there with its shape, and none besides."""
        check_names(self.tensors, build(self.config).state_dict(), self.prefix)


def hint(weights: Path) -> str:
    """The name by which a user knows a weights file: its folder's, when the file is called like all of them."""
    return weights.parent.name if weights.name == WEIGHTS else weights.stem


@independent
def open_checkpoint(path: str | Path, objective: str = "auto", autoencoder: bool = False) -> Checkpoint:
    """Open what is at `path`: a release's folder, the weights file in it, or a single file without a config.

    objective: "base" or "post-trained" for a file without a config, whose name does not say it ("auto": by its name).
    autoencoder: only SAME, which may lie in a generative file.
    """
    path = Path(path)
    if objective not in detect.OBJECTIVES:
        raise SA3Error(f"The objective is '{objective}'; expected one of {', '.join(detect.OBJECTIVES)}.")
    tensors = TensorFile(find_weights(path))
    config = _config_beside(tensors)
    single = config is None
    prefix = ""
    if single:
        config, prefix = _infer(tensors, objective, autoencoder)
    elif config.dit is not None and detect.OBJECTIVES[objective] not in (None, config.objective):
        raise SA3Error(f"{tensors.path.parent / CONFIG} says '{config.objective}', which is not '{objective}'; set the objective to auto.")
    layout = "single file" if single else "release"
    if not single and config.dit is not None and detect.PROMPT in tensors.names and tensors.dtype(detect.PROMPT) == "BF16":
        layout = "mirror"
    if config.dit is not None and autoencoder:
        config, prefix = ModelConfig(config.sample_rate, None, config.same, align=config.same.encoder.align), detect.PRETRANSFORM
        layout = "autoencoder in a generative file"
    elif config.dit is None:
        layout = "autoencoder in a generative file" if prefix else "autoencoder"
    encoder = None if config.conditioning is None else _encoder_beside(tensors.path.parent, config.conditioning.text_subfolder)
    checkpoint = Checkpoint(path, config, tensors, encoder, prefix, layout, objective)
    checkpoint.check()
    return checkpoint


def find_weights(path: Path) -> Path:
    """The weights file of a folder; a file is its own."""
    if not os.path.exists(path):
        raise SA3Error(f"{path} does not exist; expected a folder with {CONFIG} and {WEIGHTS}, or a .safetensors file.")
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    files = sorted(path.iterdir())
    for file in files:
        if (refusal := optimized(file)) is not None:
            raise refusal
    deeper = sorted(str(file.parent.relative_to(path)) for at in ("*", "snapshots/*") for file in path.glob(f"{at}/{WEIGHTS}"))
    way_out = f"Choose one of its sub-folders: {', '.join(deeper)}." if deeper else "expected the folder of a Stable Audio 3 release."
    partial = [file.name for file in (path, *files) if file.suffix in (".part", ".incomplete", ".crdownload", ".tmp")]
    if partial:
        way_out = f"{partial[0]} looks like an unfinished download; finish it first."
    raise SA3Error(f"The folder {path} has no {WEIGHTS}; {way_out}")


def _config_beside(tensors: TensorFile) -> ModelConfig | None:
    """The release's config. A folder of many models has none, or one that is of another file."""
    file = tensors.path.parent / CONFIG
    if not file.is_file():
        return None
    config = configs.read(file)
    if tensors.path.name == WEIGHTS:
        return config
    expected = set(build(config).state_dict())
    return config if len(expected & tensors.names) > len(expected) // 2 else None


def _infer(tensors: TensorFile, objective: str, autoencoder: bool) -> tuple[ModelConfig, str]:
    """Config and prefix of a file without a config."""
    kind = detect.kind_of(tensors.names)
    name = hint(tensors.path)
    try:
        if kind == "generative" and not autoencoder:
            base = detect.is_base_name(name) if objective == "auto" else objective == "base"
            return detect.model_config(tensors.names, tensors.shape, base), ""
        if kind in ("generative", "autoencoder"):
            prefix = detect.PRETRANSFORM if any(n.startswith(detect.PRETRANSFORM) for n in tensors.names) else ""
            return detect.autoencoder_config(tensors.names, tensors.shape, prefix), prefix
    except SA3Error as error:
        raise SA3Error(f"{tensors.path} has no {CONFIG} beside it, and its tensors do not tell one: {error}.") from error
    if tensors.metadata().get("format") == "mlx":
        raise SA3Error(f"{tensors.path} is an optimized file for MLX; it has no PyTorch weights to load. Use the model's own release.")
    what = f"a {kind}" if kind else f"of another model (it holds '{min(tensors.names, default='nothing')}')"
    raise SA3Error(
        f"{tensors.path} is {what}, not a Stable Audio 3 model, and there is no {CONFIG} beside it to say otherwise. "
        "Use a release's folder, a file repackaged for ComfyUI, or a standalone SAME."
    )


def _encoder_beside(folder: Path, subfolder: str) -> Path | None:
    encoder = folder / (subfolder or detect.TEXT_SUBFOLDER)
    return encoder if (encoder / "config.json").is_file() else None


def check_names(file: TensorFile, expected: Mapping[str, Tensor], prefix: str = "") -> None:
    """Names and shapes below `prefix` of a file against a module's state_dict. Rotary tables are recomputed, so they may be
    missing or rounded."""
    expected = {prefix + name: tensor for name, tensor in expected.items()}
    found = {name for name in file.names if name.startswith(prefix) and not name.endswith("inv_freq")}
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
        file.expect(name, tensor.shape)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


@independent
def load_into(
    module: nn.Module, file: TensorFile, prefix: str = "", dtype: torch.dtype | None = None, device=None, names: Iterable[str] | None = None
) -> nn.Module:
    """Fill a module (usually on the meta device) with the tensors below `prefix`; names must have been checked.

    names: of the tensors to load. None: those of the module. A host whose layers have no weight before it is loaded gives the names of the
    same network on torch's own layers.
    """
    state = {name: file.read(prefix + name, dtype, device) for name in (module.state_dict() if names is None else names)}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


@independent
def load_text_encoder(path: str | Path, dtype: torch.dtype | None = None, device=None, width: int | None = None):
    """The T5Gemma encoder of a release folder (config.json, tokenizer.json, *.safetensors), or repackaged as a single file.

    width: that of the model it is for; another is refused.
    """
    from ..models.text_encoder import TextEncoder, config_from, empty_model, encoder_config, read_tokenizer

    path = Path(path)
    path = path.parent if path.name == WEIGHTS and (path.parent / "config.json").is_file() else path
    if path.is_file():
        file = TensorFile(path)
        files = dict.fromkeys(file.names - {sentencepiece.SPIECE}, file)
        config = config_from(sentencepiece.config_values(file.names, file.shape, str(path)), path)
        tokenizer = sentencepiece.read_spiece(file.read, file.names, str(path))
        identity = file_state(path)
    else:
        tokenizer = read_tokenizer(path)
        config = encoder_config(path)
        weights = _weight_files(path)
        files = {name: file for file in weights for name in file.names}
        identity = file_state(path / "config.json", *(file.path for file in weights))
    if width is not None and config.encoder.hidden_size != width:
        raise SA3Error(
            f"The text encoder in {path} is {config.encoder.hidden_size} wide, this model expects {width}: it belongs to another model. "
            "Use the t5gemma-b-b-ul2 of the release."
        )
    model = empty_model(config)
    prefix = sentencepiece.PREFIXES[0] if any(name.startswith(sentencepiece.PREFIXES[0]) for name in files) else sentencepiece.PREFIXES[1]
    state = {}
    for name, tensor in model.state_dict().items():
        stored = prefix + name.removeprefix("encoder.")
        if stored not in files:
            raise SA3Error(f"The text encoder in {path} lacks the tensor '{stored}'; expected T5Gemma's encoder, download it again.")
        files[stored].expect(stored, tensor.shape)
        state[name] = files[stored].read(stored, dtype, device)
        dtype = dtype or state[name].dtype  # one type for all, whatever a file mixes
    known = {prefix + name.removeprefix("encoder.") for name in state}
    strange = sorted(name for name in files if name not in known and not _decoder_part(name))
    if strange:
        raise SA3Error(f"The text encoder in {path} holds the unexpected tensor '{strange[0]}'; expected T5Gemma.")
    model.load_state_dict(state, strict=True, assign=True)
    return TextEncoder(model.to(device), tokenizer, config.encoder, identity)


def _decoder_part(name: str) -> bool:
    return "decoder." in name or name.startswith("lm_head") or name.endswith("inv_freq")


def _weight_files(folder: Path) -> list[TensorFile]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index, "a list of weight files")
        listed = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise SA3Error(f"{index} is not a list of weight files; download the folder again.")
        names = sorted(set(listed.values()))
        if any(Path(name).name != name or not name.isprintable() for name in names):
            raise SA3Error(f"{index} names a file outside its folder.")
        return [TensorFile(folder / name) for name in names]
    return [TensorFile(folder / "model.safetensors")]
