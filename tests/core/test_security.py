"""The guarantees of docs/security.md, checked in the source and at run time."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from core_support import DATA, TEXT_ENCODER

ROOT = Path(__file__).parents[2]
PRODUCT = sorted(
    [
        ROOT / "__init__.py",
        ROOT / "run.py",
        *(path for folder in ("sa3_core", "nodes", "tools/launcher") for path in (ROOT / folder).rglob("*.py")),
    ]
)
NETWORK = {"socket", "ssl", "http", "urllib.request", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "websockets", "huggingface_hub"}
ALLOWED = {  # module -> files that may import it
    "huggingface_hub": {"sa3_core/checkpoints/download.py"},  # only on request
    "socket": {"tools/launcher/server.py"},  # a free port
    "aiohttp": {"tools/launcher/server.py"},  # its own server on 127.0.0.1
    "urllib.request": {"tools/launcher/server.py"},
    "subprocess": {
        "run.py",
        "tools/launcher/environment.py",
        "tools/launcher/private.py",
        "tools/launcher/server.py",
        "tools/launcher/editor.py",
        "tools/launcher/probe.py",
    },
}
STARTERS: dict[str, set[str]] = {"os.system": set(), "os.popen": set(), "torch.hub.load": set()}
STARTERS |= {f"os.{word}{way}": set() for word in ("exec", "spawn") for way in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")}
STARTERS["os.execve"] = {"run.py"}  # into its own second stage, by a list of arguments
STARTERS["importlib.import_module"] = {"sa3_core/__init__.py"}  # its own modules, by a list of names
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imports(tree: ast.AST) -> set[str]:
    """Absolute imports, with all the packages above them."""
    found = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            found |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return found


def dangers(source: str, name: str) -> list[str]:
    """Forbidden imports and calls in a file, with their lines."""
    tree, found = ast.parse(source), []
    for module in imports(tree) & (NETWORK | UNPICKLERS | {"subprocess", "ctypes", "multiprocessing"}):
        if name not in ALLOWED.get(module, ()):
            found.append(f"import {module}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if called in ("eval", "exec", "compile", "__import__", "breakpoint"):
            found.append(f"{node.lineno}: {called}")
        if called in STARTERS and name not in STARTERS[called]:
            found.append(f"{node.lineno}: {called}")
        if called == "torch.load":
            safe = keywords.get("weights_only")
            if not (isinstance(safe, ast.Constant) and safe.value is True and name == "sa3_core/lora/convert.py"):
                found.append(f"{node.lineno}: torch.load")
        if "shell" in keywords and not (isinstance(keywords["shell"], ast.Constant) and keywords["shell"].value is False):
            found.append(f"{node.lineno}: shell")
        if "trust_remote_code" in keywords:
            found.append(f"{node.lineno}: trust_remote_code")
    return found


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_from_data_and_no_network_access(path):
    assert dangers(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')", "exec('1')", "compile('1', '', 'exec')", "import pickle", "from pickle import loads", "torch.load('x')",
        "torch.load('x', weights_only=False)", "import os; os.system('x')", "f('x', shell=True)", "import requests",
        "import urllib.request", "from urllib import request", "import huggingface_hub.file_download", "import subprocess",
        "load('x', trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_scan_finds(line):
    assert dangers(line, "sa3_core/x.py")


def test_web_scripts_evaluate_no_text_and_load_nothing_from_the_network():
    links = ("www.w3.org", "https://huggingface.co/stabilityai/")  # a namespace; the page of a release, which the user opens
    for path in (ROOT / "web").rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        for word in ("eval(", "new Function", "document.write", "insertAdjacentHTML", "importScripts", "http://", "https://"):
            lines = [
                line
                for line in text.splitlines()
                if word in line and not any(link in line for link in links) and not line.strip().startswith(("//", "*"))
            ]
            assert not lines, f"{path.name}: {lines}"


OFFLINE = """
import os, sys
def guard(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise AssertionError(f"{event} {arguments}")
sys.addaudithook(guard)
import torch
import sa3_core
import sa3_core.lora.convert
from sa3_core.audio import files as audio_files
folder = sys.argv[1]
model = sa3_core.load("demo")
result = model.generate(["rain", ""], 0.3, steps=2, seed=1, regions=[(0.1, 0.2)], source_audio=(44100, torch.randn(2, 13230) * 0.1))
audio_files.write_next(__import__("pathlib").Path(folder), "sa3", 1, result.audio[0], result.sample_rate, "flac", {"sa3": str(result.info)})
for name in ("no such model", folder, "demo2"):
    try:
        sa3_core.load(name)
    except sa3_core.SA3Error as error:
        print(error)
print("all done", result.info)
"""


def test_loading_and_generating_use_no_network_and_reveal_no_token(tmp_path):
    token = "hf_ThisTokenMustNotBeSeenAnywhere"
    (tmp_path / "out").mkdir()
    environ = {**os.environ, "HF_TOKEN": token, "HUGGING_FACE_HUB_TOKEN": token, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    environ.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path / "out")], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert "all done" in done.stdout, done.stderr
    assert token not in done.stdout + done.stderr
    assert not any(token.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_assets_and_test_data_contain_no_pickle():
    for folder in (ROOT / "assets", DATA / TEXT_ENCODER, DATA / "small"):
        assert not [path.name for path in folder.rglob("*") if path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".pkl")]


def test_requirements_match_the_imports():
    """The packages that the audit of docs/security.md covers."""
    wanted = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()]
    names = {line.split(">")[0].split("=")[0].split("<")[0].strip() for line in wanted if line}
    third = {"torch", "torchaudio", "safetensors", "huggingface_hub", "transformers", "tokenizers", "einops"}
    third |= {"sentencepiece", "av", "numpy", "PIL"}
    used = set()
    for path in PRODUCT:
        if "launcher" not in path.parts:
            used |= imports(ast.parse(path.read_text(encoding="utf-8"))) & third
    comfyui = {"torch", "torchaudio", "sentencepiece", "av", "numpy", "PIL", "safetensors"}  # ComfyUI's own requirements
    assert used <= names | comfyui and names <= third
