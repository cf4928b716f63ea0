"""Atomic writes, and JSON of untrusted files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .errors import SA3Error


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Atomic write: `write(part)` creates a hidden file or folder, which then gets its name. A failure leaves nothing behind."""
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    _discard(part)  # left by a killed process
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


def parse_json(text: str | bytes, where: str | Path, expected: str):
    """The value of a JSON text. Raises SA3Error where it is not JSON, or is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SA3Error(f"{where} cannot be read as JSON ({error}). Expected {expected}.") from error


def _refuse(constant: str):
    raise ValueError(f"{constant} is no JSON number")


def read_json(path: str | Path, expected: str):
    """The value in a JSON file."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SA3Error(f"{path} cannot be read ({error}). Expected {expected}.") from error
    return parse_json(content, path, expected)
