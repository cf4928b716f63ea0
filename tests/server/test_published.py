"""What the registry gets: `comfy node validate` has nothing to say, and the published files alone run in an empty ComfyUI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
COMFY_CLI = ROOT / ".run" / "registry" / "bin" / "comfy"  # installed by the gate
MAX_SIZE = 40 * 2**20  # bytes


def tracked(*options: str) -> set[str]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", *options]
    return set(subprocess.check_output(command, cwd=ROOT, text=True).split("\0")) - {""}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the registry publishes: the tracked ones that .comfyignore does not name."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    folder = tmp_path_factory.mktemp("published") / "stable-audio-3-nodes"
    for name in sorted(tracked() - tracked("--ignored", f"--exclude-from={ROOT / '.comfyignore'}")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_nothing_of_development_is_published(published: Path):
    assert {path.name for path in published.iterdir()} == {
        "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "PARITY.md", "README.md", "__init__.py", "assets", "docs", "locales", "nodes",
        "pyproject.toml", "requirements.txt", "run.py", "sa3_core", "subgraphs", "tools", "web", "workflows",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in published.rglob("*") if path.is_file()) < MAX_SIZE


def test_the_published_files_run(published: Path, comfyui_tree: Path, tmp_path: Path):
    graph = json.loads((published / "workflows" / "api" / "text_to_audio.json").read_text(encoding="utf-8"))
    for node in graph.values():
        node["inputs"] |= {name: value for name, value in {"seconds": 0.5, "steps": 2}.items() if name in node["inputs"]}
    with Server(comfyui_tree, tmp_path / "base", packs=[published]) as server:
        (file,) = server.output_files(server.wait(server.queue(graph)))
    assert file.stat().st_size > 10_000


@pytest.mark.skipif(not COMFY_CLI.exists(), reason="no comfy-cli in .run/registry; .ci/run installs it")
def test_the_registrys_tool_finds_nothing(tmp_path: Path):
    environ = {**os.environ, "HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    command = [str(COMFY_CLI), "--skip-prompt", "--no-enable-telemetry", "node", "validate"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "All validation checks passed" in done.stdout + done.stderr
    assert "arning" not in done.stdout + done.stderr, done.stdout + done.stderr
