"""The scripts that `run.py --benchmark` runs. Standard library only, so that listing needs no environment."""

from __future__ import annotations

import ast
from pathlib import Path


def scripts(root: Path) -> dict[str, str]:
    """Name -> first line of the docstring, for scripts in `root`/benchmarks whose docstring contains their command."""
    lines = {}
    for file in sorted((root / "benchmarks").glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if f"python benchmarks/{file.name}" in docstring:
            lines[file.stem] = docstring.splitlines()[0]
    return lines


def listed(root: Path) -> str:
    """One line per script: its name and purpose."""
    lines = scripts(root)
    width = max(map(len, lines), default=0)
    return "\n".join(f"{name:{width}}  {line}" for name, line in lines.items())
