from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make_tree(folder: Path) -> Path:
    """A folder that looks like ComfyUI and whose main.py is the fake server."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "models" / "checkpoints").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("fake_comfyui.py"), folder / "main.py")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A fake ComfyUI."""
    return make_tree(tmp_path / "ComfyUI")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A copy of the launcher in a project folder of its own."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "tools" / "launcher", folder / "tools" / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tools" / "__init__.py", folder / "tools")
    shutil.copy(ROOT / "run.py", folder)
    return folder
