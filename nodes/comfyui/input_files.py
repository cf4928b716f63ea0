"""Files of the user in ComfyUI's input and output folders."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ...sa3_core.errors import SA3Error
from ...sa3_core.files import create
from .folders import EXAMPLES

RECORDING = "sa3_example.wav"


def add_recording() -> None:
    """Copy the pack's recording into ComfyUI's input folder, where LoadAudio reads. A file of that name is left alone."""
    target = Path(folder_paths.get_input_directory()) / RECORDING
    if os.path.lexists(target):
        return
    try:
        content = (EXAMPLES / RECORDING).read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        create(target, lambda file: file.write(content))
    except (OSError, SA3Error) as error:
        logging.info("Stable Audio 3: the templates' recording %s is not in the input folder: %s", RECORDING, error)


def latents(suffixes: Sequence[str]) -> list[str]:
    """Names in the widget: the files in ComfyUI's input folder and its subfolder `latents`, and in `latents` of the output folder."""

    def names(folder: str, pattern: str) -> list[str]:
        found = (path for path in Path(folder).glob(pattern) if path.suffix.lower() in suffixes and not path.name.startswith("."))
        return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())

    own, output = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    return [*names(own, "*"), *names(own, "latents/**/*"), *(f"{name} [output]" for name in names(output, "latents/**/*"))]


def find(name: str, suffixes: Sequence[str]) -> Path:
    """The file that a name selects: in the input folder, or with " [output]" after it in the output folder. Never outside of them."""
    try:
        relative, folder = folder_paths.annotated_filepath(name)
        folder = os.path.realpath(folder or folder_paths.get_input_directory())
        path = os.path.realpath(os.path.join(folder, relative))
        known = map(os.path.realpath, (folder_paths.get_input_directory(), folder_paths.get_output_directory()))
        inside = folder in known and os.path.commonpath((folder, path)) == folder
    except (ValueError, AttributeError, OSError):  # a NUL, another drive, not a text
        inside = False
    if not inside or Path(path).suffix.lower() not in suffixes or not os.path.isfile(path):
        raise SA3Error(
            f"file is {ascii(name)[:80]}, which selects no file; expected the name of a {', '.join(suffixes)} file in ComfyUI's input "
            "folder, or in its output folder with ' [output]' after the name."
        )
    return Path(path)
