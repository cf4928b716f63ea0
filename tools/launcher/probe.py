"""Print, as JSON, the version, torch, accelerator and unmet requirements of the running interpreter.

usage: python probe.py [REQUIREMENTS_FILE]
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path


def has_accelerator() -> bool:
    """Whether torch sees a GPU that ComfyUI uses by default."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())


def unmet(requirements: str) -> list[str]:
    """The lines of a requirements file whose package is missing or has another version."""
    lines = [line.split("#")[0].strip() for line in requirements.splitlines()]
    return [line for line in lines if line and not line.startswith("-") and not is_met(line)]


def is_met(requirement: str) -> bool:
    """Whether a requirement is met; without the package `packaging` the version is not checked."""
    try:
        version = importlib.metadata.version(re.match(r"[\w.-]+", requirement)[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def main() -> None:
    requirements = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else ""
    report = {"version": sys.version_info[:2], "unmet": unmet(requirements), "torch": None, "accelerator": False}
    try:
        import torch
    except Exception as error:  # a broken torch raises OSError and others
        report["torch_error"] = f"{type(error).__name__}: {error}"
    else:
        report["torch"] = torch.__version__
        report["torch_home"] = str(Path(torch.__file__).parents[1])
        report["accelerator"] = has_accelerator()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
