from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.launcher import environment, probe
from tools.launcher.environment import SetupError


def test_comfyui_that_contains_the_pack_is_detected(tree: Path):
    pack = tree / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    assert environment.find_comfyui(pack) == tree


def test_named_comfyui_wins(tree: Path, tmp_path: Path):
    pack = tmp_path / "other" / "custom_nodes" / "pack"
    assert environment.find_comfyui(pack, tree) == tree


@pytest.mark.parametrize("place", ["pack", "ComfyUI/pack", "nowhere/custom_nodes/pack"])
def test_no_comfyui_around(tree: Path, tmp_path: Path, place: str):
    assert environment.find_comfyui(tmp_path / place) is None


def test_a_named_folder_without_comfyui_is_refused(tmp_path: Path):
    with pytest.raises(SetupError, match="is not a ComfyUI folder"):
        environment.find_comfyui(tmp_path, tmp_path)


def test_python_next_to_comfyui_is_preferred_to_the_running_one(tree: Path):
    assert environment.find_python(tree) == Path(sys.executable)
    venv = environment.venv_python(tree / "venv")
    venv.parent.mkdir(parents=True)
    venv.touch()
    assert environment.find_python(tree) == venv
    assert environment.find_python(tree, Path(sys.executable)) == Path(sys.executable)


def test_missing_python_is_refused(tree: Path):
    with pytest.raises(SetupError, match="does not exist"):
        environment.find_python(tree, tree / "python")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("content", ["#!/bin/sh\necho hello", "#!/bin/sh\n", "not a program"])
def test_what_is_no_python_is_refused(tree: Path, tmp_path: Path, content: str):
    program = tmp_path / "python"
    program.write_text(content)
    program.chmod(0o755)
    with pytest.raises(SetupError, match="name a Python with --python"):
        environment.probe(program)


def test_python_without_torch_is_refused(tree: Path, tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    with pytest.raises(SetupError, match=r"cannot import torch .*--python"):
        environment.users_environment(tmp_path, tree, environment.venv_python(tmp_path / "bare"))


def test_unmet_requirements_are_reported_with_the_command(tree: Path, tmp_path: Path):
    (tmp_path / "requirements.txt").write_text("# ours\naiohttp\nno-such-package>=2  # really\n")
    with pytest.raises(SetupError, match=r'-m pip install "no-such-package>=2"$'):
        environment.users_environment(tmp_path, tree, Path(sys.executable))


def test_users_environment(tree: Path, tmp_path: Path):
    found = environment.users_environment(tmp_path, tree, Path(sys.executable))
    assert (found.python, found.comfyui, found.private) == (Path(sys.executable), tree, False)


@pytest.mark.parametrize(
    ("requirement", "met"),
    [("pytest", True), ("pytest>=1,<1000", True), ("pytest<1", False), ("no-such-package", False)],
)
def test_is_met(requirement: str, met: bool):
    assert probe.is_met(requirement) is met


@pytest.mark.parametrize("private", [True, False])
def test_children_write_inside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    environ = environment.child_environ(tmp_path, private)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "PIP_CACHE_DIR", "TORCH_HOME", "TMPDIR", "TEMP"):
        assert Path(environ[name]).is_relative_to(tmp_path / ".run")
    assert Path(environ["TMPDIR"]).is_dir()
    assert environ.get("PYTHONPATH") == (None if private else "elsewhere")
