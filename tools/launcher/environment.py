"""Find the ComfyUI and the Python that a command runs in. Standard library only.

ComfyUI is the one that contains the pack, the one named by an option, or a private one under `.run/` (private.py). Only the private one is
ever changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class SetupError(Exception):
    """The environment or an input cannot be used; the message is for the user."""


@dataclass(frozen=True)
class Environment:
    """A ComfyUI tree with the interpreter that runs it."""

    python: Path
    comfyui: Path
    private: bool
    accelerator: bool = False


def is_comfyui(folder: Path) -> bool:
    """Whether `folder` is the root of a ComfyUI tree."""
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def find_comfyui(root: Path, named: Path | None = None) -> Path | None:
    """The named tree, else the one whose `custom_nodes` contains the pack at `root`, else None."""
    if named is not None:
        named = named.expanduser().absolute()
        if not is_comfyui(named):
            raise SetupError(f"--comfyui {named} is not a ComfyUI folder; expected main.py and comfy/ in it.")
        return named
    around = root.parent.parent
    return around if root.parent.name == "custom_nodes" and is_comfyui(around) else None


def default_comfyui(root: Path) -> Path:
    """The default tree of a benchmark: SA3_COMFYUI, which `run.py` sets, else the private one."""
    return Path(os.environ.get("SA3_COMFYUI") or root / ".run" / "comfyui")


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment on this system."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_python(comfyui: Path, named: Path | None = None) -> Path:
    """The interpreter of a user's ComfyUI: the named one, one of a virtual environment next to it, or the running one."""
    if named is not None:
        named = named.expanduser().absolute()
        if not named.is_file():
            raise SetupError(f"--python {named} does not exist.")
        return named
    candidates = [venv_python(comfyui / ".venv"), venv_python(comfyui / "venv"), comfyui.parent / "python_embeded" / "python.exe"]
    return next((python for python in candidates if python.is_file()), Path(sys.executable))


def probe(python: Path, requirements: Path | None = None) -> dict:
    """The report of probe.py run by `python`: version, torch, torch_home, accelerator, unmet requirements."""
    script = Path(__file__).with_name("probe.py")
    command = [str(python), str(script)] + ([str(requirements)] if requirements and requirements.is_file() else [])
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise SetupError(f"{python} cannot be run ({error.strerror}); name a Python with --python.") from error
    if answer.returncode:
        raise SetupError(f"{python} cannot report its packages: {answer.stderr.strip() or answer.returncode}")
    try:
        return json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise SetupError(f"{python} is not a Python: it printed '{answer.stdout.strip()[:80]}'; name a Python with --python.") from error


def users_environment(root: Path, comfyui: Path, python: Path | None) -> Environment:
    """The environment of a user's own ComfyUI, which is never changed."""
    python = find_python(comfyui, python)
    report = probe(python, root / "requirements.txt")
    if report["torch"] is None:
        raise SetupError(
            f"{python} cannot import torch ({report['torch_error']}), so it is not the Python of {comfyui}. Name that one with --python."
        )
    if report["unmet"]:
        command = " ".join([str(python), "-m pip install", *(f'"{line}"' for line in report["unmet"])])
        raise SetupError(f"The pack needs packages that ComfyUI's Python lacks. Install them with: {command}")
    return Environment(python, comfyui, private=False, accelerator=report["accelerator"])


def child_environ(root: Path, private: bool) -> dict[str, str]:
    """Environment variables that keep the caches and temporary files of a child process under `.run/`."""
    run = root / ".run"
    environ = dict(os.environ)
    # The user may have set the location of the shared model cache.
    environ.setdefault("HF_HOME", str(run / "cache" / "huggingface"))
    for name, folder in {
        "XDG_CACHE_HOME": "cache",
        "PIP_CACHE_DIR": "cache/pip",
        "TORCH_HOME": "cache/torch",
        "TORCHINDUCTOR_CACHE_DIR": "cache/inductor",
        "TRITON_CACHE_DIR": "cache/triton",
        "CUDA_CACHE_PATH": "cache/cuda",
        "TMPDIR": "tmp",
        "TEMP": "tmp",
        "TMP": "tmp",
    }.items():
        environ[name] = str(run / folder)
    (run / "tmp").mkdir(parents=True, exist_ok=True)
    environ["PYTHONUNBUFFERED"] = "1"
    if private:
        # Isolate the environment from the user's other Pythons and from pip options.
        for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX"):
            environ.pop(name, None)
        environ |= {"PYTHONNOUSERSITE": "1", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return environ
