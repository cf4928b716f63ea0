"""One real ComfyUI with the pack in it, shared by the server tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.launcher.environment import is_comfyui
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("SA3_COMFYUI") or ROOT / ".run" / "comfyui")

TOKEN = "hf_ATokenThatNobodyMayTell"


@pytest.fixture(scope="session")
def comfyui_tree() -> Path:
    """The ComfyUI under test: SA3_COMFYUI, else the private one."""
    if not is_comfyui(TREE):
        pytest.skip(f"no ComfyUI in {TREE}; run.py --test makes one, SA3_COMFYUI names another")
    return TREE


@pytest.fixture(scope="session")
def comfy(comfyui_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with a base directory of its own, on the CPU, without the front end.

    Its user is logged in to the Hub: when all tests are over, the token must stand in nothing that they have made or heard.
    """
    base = tmp_path_factory.mktemp("comfyui")
    with Server(comfyui_tree, base, packs=[ROOT], environ={**os.environ, "HF_TOKEN": TOKEN}) as server:
        yield server
        heard = repr(server.events)
    told = [str(path) for path in base.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not told and TOKEN not in heard, f"the token stands in {told or 'an event'}"
