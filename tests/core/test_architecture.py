"""What docs/architecture.md promises: imports go one way, the networks know no machine, files can be read in one sitting."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import sa3_core

PACKAGE = Path(sa3_core.__file__).parent
PRODUCT = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "nodes").rglob("*.py")])
MACHINES = re.compile(r"\b(cpus?|cuda|mps|nvidia|amd|intel|apple|onednn|mkl|glibc|avx\w*|cache size|vram)\b", re.IGNORECASE)
BELOW = {  # package -> what it may import of sa3_core, besides errors, files and config
    "audio": {"backends"},
    "backends": {"models"},  # CUDA graphs wrap the transformer; a module's own imports have no circle
    "models": {"audio", "backends"},
    "timeline": {"audio", "backends"},
    "sampling": {"audio", "backends", "models", "timeline"},
    "lora": {"backends", "checkpoints", "models"},
    "checkpoints": {"backends", "models"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """Module -> modules of sa3_core that it imports, anywhere in the file."""
    modules, found = {name_of(path): path for path in PACKAGE.rglob("*.py")}, defaultdict(set)
    for name, path in modules.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1] + ([node.module] if node.module else [])
                for alias in node.names:
                    whole = ".".join([*base, alias.name])
                    found[name].add(whole if whole in modules else ".".join(base))
    return found


def test_imports_have_no_circle():
    graph, finished = imports(), set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in finished:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            finished.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_downward_only(package):
    used = {
        other.split(".")[1]
        for name, others in imports().items()
        if name.startswith(f"sa3_core.{package}")
        for other in others
        if other.count(".") >= 1 and not other.startswith(f"sa3_core.{package}")
    }
    assert used - {"errors", "files", "config"} <= BELOW[package]


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda path: path.name)
def test_the_networks_name_no_machine(path):
    assert not MACHINES.findall(path.read_text(encoding="utf-8"))


def test_a_stranger_finds_the_way():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 14
    assert not {path.name: lines for path in PRODUCT if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400}
