"""One real ComfyUI with the pack in it, shared by the server tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.environment import is_comfyui
from launcher.server import Server

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("SA3_COMFYUI") or ROOT / ".run" / "comfyui")


@pytest.fixture(scope="session")
def comfyui_tree() -> Path:
    """The ComfyUI under test: SA3_COMFYUI, else the private one."""
    if not is_comfyui(TREE):
        pytest.skip(f"no ComfyUI in {TREE}; run.py --test makes one, SA3_COMFYUI names another")
    return TREE


@pytest.fixture(scope="session")
def comfy(comfyui_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with a base directory of its own, on the CPU, without the front end."""
    with Server(comfyui_tree, tmp_path_factory.mktemp("comfyui"), packs=[ROOT]) as server:
        yield server
