"""Paths of the files that nodes write, and the metadata inside them."""

import json
import re
from pathlib import Path

import folder_paths
from comfy.cli_args import args

from ...sa3_core.errors import SA3Error

MAX_NAME = 180  # bytes; file systems allow 255, with counter and suffix
UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*]')  # characters that some systems refuse in a name


def next_output(prefix: str, item: int) -> tuple[Path, str, int, str]:
    """(folder, beginning of the name, first number to try, sub-folder for ComfyUI's /view) of an output file.

    prefix: may name sub-folders of the output folder, nothing outside it. Unsafe characters become _, %batch_num% the item.
    """
    prefix = UNSAFE.sub("_", prefix.replace("%batch_num%", str(item)).replace("\\", "/")).strip()
    parts = prefix.split("/")
    if prefix.startswith("/") or ".." in parts:
        raise SA3Error(f"filename_prefix is '{prefix}', which leads out of the output folder; use a name or sub-folder/name.")
    parts = [part.strip(" .") for part in parts if part.strip(" .")] or ["sa3"]
    parts[-1] = parts[-1].encode()[:MAX_NAME].decode(errors="ignore")
    output = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path("/".join(parts), output)
    return Path(folder), name, counter, subfolder


def new_model_file(key: str, name: str) -> Path:
    """Path of a new file or folder in ComfyUI's model folder `key` (loras, checkpoints, ...)."""
    name = name.strip()
    if not name or Path(name).name != name or name.startswith(".") or "\\" in name or UNSAFE.search(name):
        raise SA3Error(f"'{name}' is not a plain file name; use a name without folders and special characters.")
    return Path(folder_paths.get_folder_paths(key)[0]) / name


def metadata(prompt, extra_pnginfo, run_info: str | None) -> dict[str, str]:
    """The graph under ComfyUI's own keys and the run's record under `sa3`, as texts. Empty under --disable-metadata."""
    if args.disable_metadata:
        return {}
    graph = {} if prompt is None else {"prompt": json.dumps(prompt)}
    graph |= {key: json.dumps(value) for key, value in (extra_pnginfo or {}).items()}
    return {**graph, **({"sa3": run_info} if run_info else {})}
