"""Importing the package does nothing, and it knows no host."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sa3_core

PACKAGE = Path(sa3_core.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_names(source: str) -> set[str]:
    """Top-level names of every absolute import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, sa3_core; print(*sorted({'torch', 'transformers', 'safetensors', 'comfy', 'numpy'} & set(sys.modules)))"
    assert run_python(code) == ""


def test_importing_every_kernel_leaves_torch_and_the_environment_as_they_were():
    code = """
import os, torch
def state():
    return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(), dict(os.environ))
before = state()
import sa3_core, sa3_core.pipeline, sa3_core.models.text_encoder, sa3_core.sampling.samplers
sa3_core.load, sa3_core.build
print(before == state())
"""
    assert run_python(code) == "True"


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_kernels_know_no_host(path):
    assert not imported_names(path.read_text(encoding="utf-8")) & {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes"}


def test_the_public_surface_is_there():
    for name in ("load", "build", "SA3Error", "schedule", "samplers", "timeline"):
        assert getattr(sa3_core, name)
    with pytest.raises(AttributeError):
        sa3_core.no_such_name  # noqa: B018
