"""Where ComfyUI keeps results, and what it may write into them."""

import json
import re
from pathlib import Path

import folder_paths
from comfy.cli_args import args

from ...sa3_core.errors import SA3Error

LONGEST_NAME = 180  # bytes; file systems allow 255 with counter and suffix
UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*]')


def place(prefix: str, item: int) -> tuple[Path, str, int, str]:
    """(folder, beginning of the name, first number to try, sub-folder as the browser asks for it) of an output file.

    A prefix may name sub-folders of the output folder and nothing outside it; characters that some systems refuse become _.
    """
    prefix = UNSAFE.sub("_", prefix.replace("%batch_num%", str(item)).replace("\\", "/")).strip()
    parts = prefix.split("/")
    if prefix.startswith("/") or ".." in parts:
        raise SA3Error(f"filename_prefix is '{prefix}', which leads out of the output folder; use a name or sub-folder/name.")
    parts = [part.strip(" .") for part in parts if part.strip(" .")] or ["sa3"]
    parts[-1] = parts[-1].encode()[:LONGEST_NAME].decode(errors="ignore")
    output = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path("/".join(parts), output)
    return Path(folder), name, counter, subfolder


def metadata(prompt, extra_pnginfo, run_info: str | None) -> dict[str, str]:
    """The texts that core writes into files, by its own names, and the run's record as `sa3`. Nothing under --disable-metadata."""
    if args.disable_metadata:
        return {}
    found = {} if prompt is None else {"prompt": json.dumps(prompt)}
    found |= {key: json.dumps(value) for key, value in (extra_pnginfo or {}).items()}
    return {**found, **({"sa3": run_info} if run_info else {})}
