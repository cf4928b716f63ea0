"""JSON of files that nobody vouches for."""

import json
from pathlib import Path

from .errors import SA3Error


def parse_json(text: str | bytes, where: str | Path, expected: str):
    """The value of a JSON text. Raises SA3Error for what is none, or is nested past all reason."""
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
