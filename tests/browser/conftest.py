"""What the browser tests share: a ComfyUI and a Chromium or a skip that says which is missing, and the editor in both renderers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.environment import is_comfyui
from launcher.server import Server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tree() -> Path:
    """The ComfyUI to start."""
    from launcher.editor import find_chromium  # needs playwright, without which the tests skip before they ask for this

    tree = Path(os.environ.get("SA3_COMFYUI") or ROOT / ".run" / "comfyui")
    if not is_comfyui(tree):
        pytest.skip(f"no ComfyUI in {tree}; run.py --test makes one, SA3_COMFYUI names another")
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine")
    return tree


@pytest.fixture(scope="module", params=[False, True], ids=["litegraph", "nodes2"])
def editor(comfy: Server, request: pytest.FixtureRequest) -> Iterator:
    """The page of the module's own server `comfy`, in each renderer."""
    from launcher.editor import Editor

    with Editor(comfy, nodes2=request.param) as editor:
        yield editor
