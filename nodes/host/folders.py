"""Where releases lie in ComfyUI's model folders, and how a name finds one."""

import json
from pathlib import Path

import folder_paths

from ...sa3_core.checkpoint import CONFIG, WEIGHTS
from ...sa3_core.errors import SA3Error
from ...sa3_core.pipeline import DEMO

BY_NAME = "by name"
AUTO = "auto"
VARIANTS = ["small-music", "small-sfx", "medium", "small-music-base", "small-sfx-base", "medium-base"]
FOLDERS = ["checkpoints", "diffusion_models"]  # ComfyUI's keys; extra_model_paths.yaml adds to them


def releases() -> dict[str, Path]:
    """Generative releases on disk: the name a user sees (path below ComfyUI's folder) -> weights file."""
    found: dict[str, Path] = {}
    for key in FOLDERS:
        for name in folder_paths.get_filename_list(key):
            if Path(name).name != WEIGHTS:
                continue
            path = folder_paths.get_full_path(key, name)
            if path and _model_type(Path(path).parent / CONFIG) == "diffusion_cond_inpaint":
                found.setdefault(str(Path(name).parent).replace("\\", "/"), Path(path))
    return found


def find_release(model: str, file: str) -> Path:
    """The folder of the chosen release. `file` wins over `model`; auto takes what there is, and the demo when there is nothing."""
    available = releases()
    if file != BY_NAME:
        if file not in available:
            raise SA3Error(f"'{file}' is not among the Stable Audio 3 releases in ComfyUI's model folders: {_listing(available)}.")
        return available[file].parent
    if model == "demo":
        return DEMO
    wanted = VARIANTS if model == AUTO else [model]
    for variant in wanted:
        for name in sorted(available):
            if variant_of(name) == variant:
                return available[name].parent
    if model == AUTO:
        return available[min(available)].parent if available else DEMO
    raise SA3Error(
        f"No file of '{model}' was found among {_listing(available)}. Put the release's folder ({CONFIG}, {WEIGHTS}, t5gemma-b-b-ul2/) "
        f"under {_home()}, or choose 'demo' to try the graph without a download."
    )


def variant_of(name: str) -> str | None:
    """The release a folder or file name speaks of, or None. Hyphens and underscores are alike; the longest name wins."""
    plain = name.lower().replace("_", "-")
    return next((variant for variant in sorted(VARIANTS, key=len, reverse=True) if variant in plain), None)


def state_of(folder: Path) -> str:
    """Changes whenever a file of the release is replaced."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return json.dumps([[str(path), path.stat().st_mtime_ns, path.stat().st_size] for path in files])


def _model_type(config: Path) -> str | None:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None  # not a release; the loader says why when the user picks such a file


def _listing(available: dict[str, Path]) -> str:
    return ", ".join(sorted(available)) or "none"


def _home() -> str:
    return str(Path(folder_paths.get_folder_paths(FOLDERS[0])[0]) / "stable-audio-3-…")
