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
LONG = bool(os.environ.get("SA3_LONG"))
FRONTEND = os.environ.get("SA3_FRONTEND")  # the folder `static` of another front end, installed with pip --target


def pytest_report_header() -> str:
    """The version of the front end that the browser tests run on."""
    places = {"path": [str(Path(FRONTEND).parents[1])]} if FRONTEND else {}
    found = importlib.metadata.distributions(name="comfyui-frontend-package", **places)
    return f"front end {next((one.version for one in found), 'of unknown version')}{' in ' + FRONTEND if FRONTEND else ''}"


BOTH_RENDERERS = ("test_waveform_editor.py", "test_preview_batch.py")  # files that draw on nodes; the others in LiteGraph, and:
BOTH_RENDERERS_TOO = ("test_graph[nodes2-text_to_audio]", "test_warnings_stand_on_their_nodes[nodes2]")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In Nodes 2.0 everything runs with SA3_LONG=1 only, for the sake of time."""
    skip = pytest.mark.skip(reason="Nodes 2.0: SA3_LONG=1")
    for item in items:
        if "[nodes2" in item.name and item.path.name not in BOTH_RENDERERS and item.name not in BOTH_RENDERERS_TOO and not LONG:
            item.add_marker(skip)


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
