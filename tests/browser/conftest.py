"""Fixtures of the browser tests: a ComfyUI and Chromium, without which the tests skip, and the editor in both renderers."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.launcher.environment import is_comfyui
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
FRONTEND = os.environ.get("SA3_FRONTEND")  # the folder `static` of another front end, installed with pip --target


def pytest_report_header() -> str:
    """The version of the front end that the browser tests run on."""
    places = {"path": [str(Path(FRONTEND).parents[1])]} if FRONTEND else {}
    found = importlib.metadata.distributions(name="comfyui-frontend-package", **places)
    return f"front end {next((one.version for one in found), 'of unknown version')}{' in ' + FRONTEND if FRONTEND else ''}"


@pytest.fixture(scope="session")
def tree() -> Path:
    """The folder of the ComfyUI to start."""
    from tools.launcher.editor import find_chromium  # imports playwright; without it the test modules skip first

    tree = Path(os.environ.get("SA3_COMFYUI") or ROOT / ".run" / "comfyui")
    if not is_comfyui(tree):
        pytest.skip(f"no ComfyUI in {tree}; run.py --test creates one, SA3_COMFYUI names another")
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine")
    return tree


@pytest.fixture(scope="module", params=[False, True], ids=["litegraph", "nodes2"])
def editor(comfy: Server, request: pytest.FixtureRequest) -> Iterator:
    """The page of the module's own server `comfy`, in each renderer."""
    from tools.launcher.editor import Editor

    with Editor(comfy, nodes2=request.param) as editor:
        yield editor
