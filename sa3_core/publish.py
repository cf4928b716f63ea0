"""Files and folders that appear whole under their name or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write(part)` make a file or folder beside its place, then give it its name; what fails or is killed leaves no half."""
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    _discard(part)  # what a killed process has left
    try:
        write(part)
        os.rename(part, target)
    finally:
        _discard(part)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
