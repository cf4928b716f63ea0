"""The scripts in benchmarks/ that `run.py --benchmark` runs. Standard library only: listing them needs no environment."""

from __future__ import annotations

import ast
from pathlib import Path


def scripts(root: Path) -> dict[str, str]:
    """Name -> first line of the docstring, of each script in `root`/benchmarks whose docstring shows its command."""
    found = {}
    for file in sorted((root / "benchmarks").glob("*.py")):
        words = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if f"python benchmarks/{file.name}" in words:
            found[file.stem] = words.splitlines()[0]
    return found


def listed(root: Path) -> str:
    """One line per script: its name and what it does."""
    found = scripts(root)
    width = max(map(len, found), default=0)
    return "\n".join(f"{name:{width}}  {words}" for name, words in found.items())
