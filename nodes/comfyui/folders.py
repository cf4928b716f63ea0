"""Where models lie in ComfyUI's model folders, and how a name finds one."""

import functools
import json
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

BY_NAME = "by name"
AUTO = "auto"
FOLDERS = ["checkpoints", "diffusion_models"]  # ComfyUI's keys; extra_model_paths.yaml adds to them
KINDS = {"diffusion_cond_inpaint": "generative", "autoencoder": "autoencoder"}

__all__ = [
    "AUTO", "AUTOENCODERS", "BY_NAME", "VARIANTS", "autoencoders", "download_folder", "find_autoencoder", "find_release",
    "find_text_encoder", "releases", "state_of", "text_encoders", "variant_of",
]  # fmt: skip


def releases() -> dict[str, Path]:
    """Generative models on disk: the name a user sees (path below ComfyUI's folder) -> weights file."""
    return _listed(FOLDERS, "generative")


def autoencoders() -> dict[str, Path]:
    """Everything that holds a SAME, standalone or in a generative file, by the name a user sees."""
    return {**_listed([*FOLDERS, "vae"], "generative"), **_listed(["vae", *FOLDERS], "autoencoder")}


def text_encoders() -> dict[str, Path]:
    """T5Gemma in ComfyUI's text_encoders folders: repackaged files, and folders with a config.json -> file or folder."""
    found: dict[str, Path] = {}
    for name, path in _files("text_encoders"):
        if path.name == WEIGHTS and (path.parent / "config.json").is_file():
            if _folder_width(path.parent) is not None:
                found.setdefault(_label(name), path.parent)
        elif header(path).kind == "text encoder":
            found.setdefault(_label(name), path)
    return found


def find_release(model: str, file: str) -> Path:
    """The folder or file of the chosen model. `file` wins over `model`; auto takes what there is, and the demo when there is nothing."""
    if model not in (AUTO, *VARIANTS, *DEMOS):
        raise SA3Error(f"'{model}' is not a Stable Audio 3 model; there are {', '.join(VARIANTS)}.")
    available = releases()
    if file != BY_NAME:
        return _place(_chosen(file, available, "Stable Audio 3 releases"))
    if model in DEMOS:
        return DEMOS[model]
    wanted = VARIANTS if model == AUTO else [model]
    for variant in wanted:
        for name in sorted(available):
            if variant_of(name) == variant:
                return _place(available[name])
    if model == AUTO:
        return _place(available[min(available)]) if available else DEMOS["demo"]
    raise SA3Error(
        f"No file of '{model}' was found among {_listing(available)}. Put the release's folder ({CONFIG}, {WEIGHTS}, {TEXT_SUBFOLDER}/) "
        f"or its file repackaged for ComfyUI under {_home()}, let SA3_Download fetch it, or choose 'demo' to try the graph without any."
    )


def find_autoencoder(autoencoder: str, file: str) -> Path:
    """The folder or file that holds the chosen SAME; a standalone one comes before one inside a generative file."""
    available = autoencoders()
    if file != BY_NAME:
        return _place(_chosen(file, available, "autoencoders"))
    if autoencoder in DEMOS:
        return DEMOS[autoencoder]
    if autoencoder not in AUTOENCODERS:
        raise SA3Error(f"'{autoencoder}' is not an autoencoder of Stable Audio 3; there are {', '.join(AUTOENCODERS)}.")
    fitting = [name for name in sorted(available) if header(available[name]).autoencoder == autoencoder]
    fitting.sort(key=lambda name: _kind(available[name]) != "autoencoder")
    if not fitting:
        family = "small" if autoencoder == "SAME-S" else "medium"
        raise SA3Error(
            f"{autoencoder} was not found among {_listing(available)}. Put stabilityai/{autoencoder} or any {family} release under "
            f"{_home()}, let SA3_Download fetch it, or choose 'demo'."
        )
    return _place(available[fitting[0]])


def find_text_encoder(choice: str, opened: Checkpoint) -> Path:
    """The text encoder of a model: beside the weights, else in ComfyUI's text_encoders folders, else in the Hub's cache."""
    available = text_encoders()
    if choice != AUTO:
        return _chosen(choice, available, "T5Gemma text encoders")
    if opened.text_encoder is not None:
        return opened.text_encoder
    width = opened.config.conditioning.cond_dim
    for name in sorted(available):
        path = available[name]
        if (_folder_width(path) if path.is_dir() else header(path).width) == width:
            return path
    cached = cached_text_encoder(width)
    if cached is None:
        raise SA3Error(
            f"{opened.path} has no text encoder: expected the folder {opened.config.conditioning.text_subfolder} beside the weights, or "
            f"that folder or t5gemma_b_b_ul2.safetensors in {_home('text_encoders', '')}."
        )
    return cached


def download_folder(model: str) -> Path:
    """Where SA3_Download puts a model, and the loaders look for it."""
    release = find(model)
    return Path(folder_paths.get_folder_paths("vae" if release.is_autoencoder else FOLDERS[0])[0]) / release.folder


def state_of(*places: Path) -> str:
    """Changes whenever a file of these folders (or one of these files) is replaced."""
    files = sorted(file for place in places for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file())
    return json.dumps([[str(path), path.stat().st_mtime_ns, path.stat().st_size] for path in files])


def header(path: Path) -> Header:
    """`detect.read_header`, cached by modification time and size: the browser requests the lists of files often."""
    try:
        stat = path.stat()
    except OSError:
        return Header()
    return _header(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4096)
def _header(path: Path, modified: int, size: int) -> Header:
    return detect.read_header(path)


def _files(key: str):
    """(name, path) of the safetensors files that ComfyUI finds for a key. Hidden folders hold unfinished downloads."""
    for name in folder_paths.get_filename_list(key):
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        path = folder_paths.get_full_path(key, name) if name.lower().endswith(".safetensors") else None
        if path:
            yield name, Path(path)


def _listed(keys: list[str], kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for key in keys:
        for name, path in _files(key):
            if _kind(path) == kind:
                found.setdefault(_label(name), path)
    return found


def _kind(path: Path) -> str | None:
    """By the release's config where there is one, else by the header."""
    config = path.parent / CONFIG
    if path.name != WEIGHTS or not config.is_file():
        return header(path).kind
    try:
        return KINDS.get(read_json(config, "a release's config").get("model_type"))
    except (SA3Error, AttributeError, TypeError):
        return None  # not a release; the loader says why when the user picks such a file


def _folder_width(folder: Path) -> int | None:
    """Width of the T5Gemma in a folder, None for other models."""
    try:
        values = read_json(folder / "config.json", "the config.json of a text encoder")
        return values["encoder"]["hidden_size"] if values["model_type"] == "t5gemma" else None
    except (SA3Error, KeyError, TypeError):
        return None


def _label(name: str) -> str:
    """A release's folder, or a file's own name."""
    path = Path(name)
    return (path.parent if path.name == WEIGHTS and path.parent.name else path).as_posix()


def _place(weights: Path) -> Path:
    """The folder of a release whose weights have the usual name; a file with a name of its own stands alone."""
    return weights.parent if weights.name == WEIGHTS and (weights.parent / CONFIG).is_file() else weights


def _chosen(file: str, available: dict[str, Path], what: str) -> Path:
    if file not in available:
        raise SA3Error(f"'{file}' is not among the {what} in ComfyUI's model folders: {_listing(available)}.")
    return available[file]


def _listing(available: dict[str, Path]) -> str:
    return ", ".join(sorted(available)) or "none"


def _home(key: str = FOLDERS[0], name: str = "stable-audio-3-…") -> str:
    return str(Path(folder_paths.get_folder_paths(key)[0]) / name)
