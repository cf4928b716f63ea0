from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.launcher import private
from tools.launcher.environment import SetupError, venv_python

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        ("2.13.0+cpu", ["torch==2.13.0+cpu", "torchvision==0.28.*", "torchaudio==2.11.*"]),
        ("2.5.1", ["torch==2.5.1", "torchvision==0.20.*", "torchaudio==2.5.*"]),
        ("3.0.0", ["torch==3.0.0"]),
    ],
)
def test_constraints_keep_torch(torch: str, expected: list[str]):
    assert private.constraint_lines(torch) == expected


@pytest.mark.parametrize(("torch", "reused"), [("2.13.0+cpu", "/site"), ("2.4.0", "/site"), ("2.3.1", None), (None, None)])
def test_installed_torch_is_reused_when_new_enough(torch: str | None, reused: str | None):
    assert private.reusable_torch({"torch": torch, "torch_home": "/site"}) == reused


def make_wheel(file: Path, *names: str) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return file


TREE = ("lib/_comfyui/main.py", "lib/_comfyui/comfy/model.py", "lib/_comfyui/extra_model_paths.yaml", "lib/other.py")


def test_only_the_comfyui_tree_is_extracted(tmp_path: Path):
    target = tmp_path / "comfyui"
    (target / "old").mkdir(parents=True)
    private.extract_comfyui(make_wheel(tmp_path / "a.whl", *TREE), target)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert files == ["a.whl", "comfyui/comfy/model.py", "comfyui/main.py"]
    assert (target / "main.py").read_text() == "content of lib/_comfyui/main.py"


@pytest.mark.parametrize(
    "name", ["lib/_comfyui/../../../x", "../lib/_comfyui/x", "lib/_comfyui//x", "lib/_comfyui/C:/x", "a/_comfyui/..\\x"]
)
def test_escaping_file_is_refused(tmp_path: Path, name: str):
    with pytest.raises(SetupError, match="outside its folder"):
        private.extract_comfyui(make_wheel(tmp_path / "a.whl", *TREE, name), tmp_path / "run" / "comfyui")
    assert not (tmp_path / "x").exists() and not (tmp_path / "run" / "comfyui").exists()


def test_wheel_without_comfyui_is_refused(tmp_path: Path):
    with pytest.raises(SetupError, match="no ComfyUI tree"):
        private.extract_comfyui(make_wheel(tmp_path / "a.whl", "lib/_comfyui/readme"), tmp_path / "comfyui")


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the steps that need a network by a list of their names; `fail` in the list makes pip fail."""
    done: list[str] = []

    def pip(python: Path, arguments: list[str], environ: dict[str, str]) -> None:
        done.append(f"pip {arguments[0]}")
        if "fail" in done:
            raise SetupError("pip failed")
        if arguments[0] == "download":
            folder = Path(arguments[arguments.index("--dest") + 1])
            folder.mkdir()
            make_wheel(folder / "a.whl", *TREE)

    def make_venv(base: Path, venv: Path, environ: dict[str, str]) -> None:
        done.append("venv")
        venv_python(venv).parent.mkdir(parents=True, exist_ok=True)
        venv_python(venv).touch()
        (venv / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)
        (venv / "Lib" / "site-packages").mkdir(parents=True, exist_ok=True)

    def probe(python: Path, requirements: Path | None = None) -> dict:
        inside = python.is_relative_to(tmp_path)
        return {"version": [3, 11], "torch": "2.13.0" if inside else None, "accelerator": False}

    monkeypatch.setattr(private, "pip", pip)
    monkeypatch.setattr(private, "make_venv", make_venv)
    monkeypatch.setattr(private, "probe", probe)
    monkeypatch.setattr(private, "repair", lambda *_: done.append("repair"))
    return done


WHOLE = ["venv", "pip install", "pip install", "repair", "pip download"]


def test_second_run_does_nothing(tmp_path: Path, steps: list[str]):
    found = private.prepare(tmp_path)
    assert steps == WHOLE
    assert found == private.Environment(venv_python(tmp_path / ".run/venv"), tmp_path / ".run/comfyui", private=True)
    private.prepare(tmp_path)
    assert steps == WHOLE


def test_interrupted_installation_is_repeated(tmp_path: Path, steps: list[str]):
    steps.append("fail")
    with pytest.raises(SetupError):
        private.prepare(tmp_path)
    assert private.read_stamp(tmp_path / ".run") is None
    steps.clear()
    private.prepare(tmp_path)
    assert steps == WHOLE


def test_changed_requirements_are_added_to_what_is_there(tmp_path: Path, steps: list[str]):
    private.prepare(tmp_path)
    steps.clear()
    (tmp_path / "requirements.txt").write_text("another")
    private.prepare(tmp_path)
    assert steps == WHOLE[1:]


def test_a_missing_interpreter_is_detected(tmp_path: Path, steps: list[str]):
    private.prepare(tmp_path)
    steps.clear()
    venv_python(tmp_path / ".run/venv").unlink()
    private.prepare(tmp_path)
    assert steps == WHOLE


def test_a_missing_reused_torch_is_detected(tmp_path: Path, steps: list[str]):
    private.prepare(tmp_path)
    stamp = tmp_path / ".run/ready.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "reused_torch": str(tmp_path / "gone")}))
    assert not private.is_ready(tmp_path / ".run", tmp_path)


def test_installed_torch_is_linked_and_not_installed(tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch):
    found = {"version": [3, 12], "torch": "2.9.0", "torch_home": str(tmp_path / "site"), "accelerator": False}
    monkeypatch.setattr(private, "probe", lambda *_: found)
    private.prepare(tmp_path)
    assert steps.count("pip install") == 1
    link = private.site_packages(tmp_path / ".run/venv") / "reused_torch.pth"
    assert link.read_text().strip() == str(tmp_path / "site")


@pytest.mark.parametrize("version", [[3, 9], [3, 14]])
def test_an_unsupported_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: list[int]):
    monkeypatch.setattr(private, "probe", lambda *_: {"version": version, "torch": None})
    with pytest.raises(SetupError, match=r"needs 3\.10 to 3\.13"):
        private.prepare(tmp_path)


def test_a_second_process_waits(tmp_path: Path):
    code = "import sys; from tools.launcher.private import exclusive_lock\nwith exclusive_lock(sys.argv[1]): print('in')"
    with private.exclusive_lock(tmp_path / "lock"):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "lock")],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert "waiting" in other.stderr.readline()
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "in\n"


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for the interpreter")
def test_python_without_ensurepip_is_reported_with_the_remedy(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no ensurepip\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(SetupError, match=r"apt install python3-venv\): no ensurepip"):
        private.make_venv(python, tmp_path / "venv", dict(os.environ))
