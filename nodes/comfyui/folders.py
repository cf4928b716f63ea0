"""Models in ComfyUI's model folders: what there is, and which file a choice means."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ...sa3_core.checkpoints import detect
from ...sa3_core.checkpoints.checkpoint import CONFIG, WEIGHTS, Checkpoint
from ...sa3_core.checkpoints.detect import TEXT_SUBFOLDER, Header
from ...sa3_core.checkpoints.download import cached_text_encoder
from ...sa3_core.checkpoints.releases import AUTOENCODERS, VARIANTS, find, variant_of
from ...sa3_core.errors import SA3Error
from ...sa3_core.files import read_json
from ...sa3_core.pipeline import DEMOS

BY_NAME, AUTO = "by name", "auto"
EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"  # what the templates use and a new user lacks
FOLDERS = ["checkpoints", "diffusion_models"]  # ComfyUI's keys; extra_model_paths.yaml adds folders to them
KINDS = {"diffusion_cond_inpaint": "generative", "autoencoder": "autoencoder"}  # model_type of a release's config -> kind of file


def releases() -> dict[str, Path]:
    """Generative models on disk: name in the widget (path below ComfyUI's folder) -> weights file."""
    return _weights_of_kind(FOLDERS, "generative")


def autoencoders() -> dict[str, Path]:
    """Files that contain SAME, alone or in a generative model: name in the widget -> weights file."""
    return {**_weights_of_kind([*FOLDERS, "vae"], "generative"), **_weights_of_kind(["vae", *FOLDERS], "autoencoder")}


def text_encoders() -> dict[str, Path]:
    """T5Gemma in ComfyUI's text_encoders folders: name in the widget -> single file, or folder with a config.json."""
    found: dict[str, Path] = {}
    for name, path in _files("text_encoders"):
        if header(path).kind == "text encoder":
            in_folder = path.name == WEIGHTS and (path.parent / "config.json").is_file()
            found.setdefault(_label(name), path.parent if in_folder else path)
    return found


def find_release(model: str, file: str) -> Path:
    """Folder or file of the chosen model. `file` wins over `model`; auto takes the first variant on disk, else the demo."""
    if model not in (AUTO, *VARIANTS, *DEMOS):
        raise SA3Error(f"'{model}' is not a Stable Audio 3 model; expected one of {', '.join((AUTO, *VARIANTS, *DEMOS))}.")
    available = releases()
    if file != BY_NAME:
        return _folder_or_file(_choose(file, available, "Stable Audio 3 releases"))
    if model in DEMOS:
        return DEMOS[model]
    by_variant = {variant_of(name): path for name, path in sorted(available.items(), reverse=True)}  # the first name of each wins
    for variant in VARIANTS if model == AUTO else [model]:
        if variant in by_variant:
            return _folder_or_file(by_variant[variant])
    if model == AUTO:
        return _folder_or_file(available[min(available)]) if available else DEMOS["demo"]
    raise SA3Error(
        f"No file of '{model}' was found; the model folders hold {_names(available)}. Put the release's folder "
        f"({CONFIG}, {WEIGHTS}, {TEXT_SUBFOLDER}/) or its file repackaged for ComfyUI under {_example()}, download it with SA3_Download, "
        "or choose 'demo' to try the graph."
    )


def find_autoencoder(autoencoder: str, file: str) -> Path:
    """Folder or file of the chosen SAME; a standalone one wins over one in a generative model."""
    available = autoencoders()
    if file != BY_NAME:
        return _folder_or_file(_choose(file, available, "autoencoders"))
    if autoencoder in DEMOS:
        return DEMOS[autoencoder]
    if autoencoder not in AUTOENCODERS:
        raise SA3Error(f"'{autoencoder}' is not an autoencoder of Stable Audio 3; expected one of {', '.join((*AUTOENCODERS, *DEMOS))}.")
    names = [name for name, path in available.items() if header(path).autoencoder == autoencoder]
    if not names:
        family = "small" if autoencoder == "SAME-S" else "medium"
        raise SA3Error(
            f"{autoencoder} was not found among {_names(available)}. Put stabilityai/{autoencoder} or any {family} release under "
            f"{_example()}, download it with SA3_Download, or choose 'demo'."
        )
    return _folder_or_file(available[min(names, key=lambda name: (_kind(available[name]) != "autoencoder", name))])


def find_text_encoder(choice: str, opened: Checkpoint) -> Path:
    """Text encoder of a model: the one next to the weights, else in ComfyUI's text_encoders folders, else in the Hub's cache."""
    available = text_encoders()
    if choice != AUTO:
        return _choose(choice, available, "T5Gemma text encoders", AUTO)
    if opened.text_encoder is not None:
        return opened.text_encoder
    width = opened.config.conditioning.cond_dim
    for _, path in sorted(available.items()):
        if header(path / WEIGHTS if path.is_dir() else path).width == width:
            return path
    cached = cached_text_encoder(width)
    if cached is None:
        raise SA3Error(
            f"{opened.path} has no text encoder: expected the folder {opened.config.conditioning.text_subfolder} next to the weights, or "
            f"that folder or t5gemma_b_b_ul2.safetensors in {_example('text_encoders', '')}."
        )
    return cached


def download_folder(model: str) -> Path:
    """The folder into which SA3_Download puts a model, where the loaders find it."""
    release = find(model)
    return Path(folder_paths.get_folder_paths("vae" if release.is_autoencoder else FOLDERS[0])[0]) / release.folder


def fingerprint(*paths: Path) -> str:
    """A text that changes when one of these files, or a file in one of these folders, is replaced."""
    files = sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return json.dumps([[str(file), *_identity(file)] for file in files])


def header(path: Path) -> Header:
    """`detect.read_header`, cached until the file changes: the browser requests the lists of files often."""
    try:
        return _header(path, _identity(path))
    except OSError:
        return Header()


def _identity(path: Path) -> tuple[int, ...]:
    """Numbers that differ for another file of the same name, even one of the same size and modification time."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns, stat.st_ino


@functools.lru_cache(maxsize=4096)
def _header(path: Path, identity: tuple[int, ...]) -> Header:
    return detect.read_header(path)


def _files(key: str) -> Iterator[tuple[str, Path]]:
    """(name, path) of the safetensors files of one of ComfyUI's folder keys, without unfinished downloads in hidden folders."""
    for name in folder_paths.get_filename_list(key):
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if name.lower().endswith(".safetensors") and not hidden and (path := folder_paths.get_full_path(key, name)):
            yield name, Path(path)


def _weights_of_kind(keys: list[str], kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for key in keys:
        for name, path in _files(key):
            if _kind(path) == kind:
                found.setdefault(_label(name), path)
    return found


def _kind(path: Path) -> str | None:
    """Kind of a weights file: by the config of its release if there is one, else by its header."""
    config = path.parent / CONFIG
    if path.name != WEIGHTS or not config.is_file():
        return header(path).kind
    try:
        return KINDS.get(read_json(config, "a release's config").get("model_type"))
    except (SA3Error, AttributeError, TypeError):
        return None  # not offered; the loader reports the error when such a file is requested


def _label(name: str) -> str:
    """Name in the widget: the folder of a release, or the path of a single file."""
    path = Path(name)
    return (path.parent if path.name == WEIGHTS and path.parent.name else path).as_posix()


def _folder_or_file(weights: Path) -> Path:
    """The folder that contains a release's weights, or the single file itself."""
    return weights.parent if weights.name == WEIGHTS and (weights.parent / CONFIG).is_file() else weights


def _choose(file: str, available: dict[str, Path], what: str, default: str = BY_NAME) -> Path:
    if file not in available:
        raise SA3Error(f"'{file}' is not among the {what} in ComfyUI's model folders: {_names(available)}. Or choose '{default}'.")
    return available[file]


def _names(available: dict[str, Path]) -> str:
    return ", ".join(sorted(available)) or "none"


def _example(key: str = FOLDERS[0], name: str = "stable-audio-3-…") -> str:
    """Where a file of the user would be found."""
    return str(Path(folder_paths.get_folder_paths(key)[0]) / name)
