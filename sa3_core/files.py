"""Atomic writes, and JSON from untrusted files."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import SA3Error


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Atomic write of a file or folder: `write` creates a hidden one, which is then renamed to `target`. A failure leaves nothing.

    Raises SA3Error where the system cannot write, such as on a full disk.
    """
    part = target.with_name(f".{target.name}.part")
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _discard(part)  # of a killed process
        part.touch()
        mode = part.stat().st_mode  # what the umask allows; safetensors writes files that only their owner can read
        part.unlink()
        try:
            write(part)
            if part.is_file():
                part.chmod(mode)
            os.replace(part, target)
        finally:
            _discard(part)


def create(target: Path, write: Callable[[BinaryIO], None]) -> None:
    """Atomic write of a new file; raises FileExistsError when the name is taken, SA3Error where the system cannot write."""
    part = target.with_name(f".sa3-{uuid.uuid4().hex}.part")
    with _explained(target):
        try:
            with open(part, "x+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(part, target)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: reserve the name, then replace it
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """The system's errors as an SA3Error."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise SA3Error(
            f"{target} cannot be written ({error.strerror or error}), and nothing was. Make room, or choose another folder."
        ) from error


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def parse_json(text: str | bytes, where: str | Path, expected: str):
    """The value of a JSON text. Raises SA3Error when it is not JSON, has NaN or Infinity, or is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SA3Error(f"{where} cannot be read as JSON ({error}). Expected {expected}.") from error


def _refuse(constant: str):
    raise ValueError(f"{constant} is not a JSON number")


def read_json(path: str | Path, expected: str):
    """The value in a JSON file."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SA3Error(f"{path} cannot be read ({error}). Expected {expected}.") from error
    return parse_json(content, path, expected)
