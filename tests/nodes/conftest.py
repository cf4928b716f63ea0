"""The node classes inside this process, beside an importable ComfyUI and without a server.

ComfyUI's top-level modules include `nodes`, `utils` and `app`, so its tree comes first on the path, and the pack is imported
as ComfyUI does it: as a package of another name, whose `sa3_core` is `sa3_pack.sa3_core`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

HERE = Path(__file__).parent
# Behind everything else, like the core tests' own.
sys.path.extend(str(path) for path in (HERE, HERE.parent / "core") if str(path) not in sys.path)

from lazy_layers import make_lazy
from node_support import FOLDERS, Pack, put

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("SA3_COMFYUI") or ROOT / ".run" / "comfyui")
BASE = tempfile.TemporaryDirectory(prefix="comfyui-")  # where ComfyUI looks for models, input and output


def import_comfyui() -> None:
    """Makes ComfyUI importable; it reads its options from sys.argv once, when it is first imported."""
    sys.path.insert(0, str(TREE))
    import comfy.options

    comfy.options.enable_args_parsing()
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", BASE.name]
    import comfy.cli_args
    import utils.extra_config  # noqa: F401  early, as main.py does: ComfyUI's nodes.py puts comfy/, which has a utils.py, on the path

    sys.argv = arguments


# test modules may import comfy at their top, so this comes before any fixture
LAZY = ""
if (TREE / "main.py").is_file():
    import_comfyui()
    LAZY = make_lazy() if os.environ.get("SA3_LAZY_LAYERS") else ""


def pytest_report_header() -> str:
    if "comfy.cli_args" not in sys.modules:
        return "ComfyUI: none"
    import comfyui_version

    layers = f", lazily created layers ({LAZY})" if LAZY else ""
    return f"ComfyUI {comfyui_version.__version__}, torch {torch.__version__}, on the CPU{layers}"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that more threads only wait for each other, minutes long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_directory() -> Path:
    """ComfyUI's base directory in this process: `models/checkpoints` and so on lie below."""
    return Path(BASE.name)


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The pack as ComfyUI imports it, as `sa3_pack`."""
    if "comfy.cli_args" not in sys.modules:
        pytest.skip(f"no ComfyUI in {TREE}; run.py --test makes one, SA3_COMFYUI names another")
    # `import nodes` inside ComfyUI must find ComfyUI's, whatever other tests have put on the path since.
    sys.path.remove(str(TREE))
    sys.path.insert(0, str(TREE))
    spec = importlib.util.spec_from_file_location("sa3_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["sa3_pack"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def node_classes(pack: ModuleType) -> dict[str, type]:
    """The pack's node classes by id."""

    async def listed() -> list[type]:
        extension = await pack.comfy_entrypoint()
        return await extension.get_node_list()

    return {node.define_schema().node_id: node for node in asyncio.run(listed())}


@pytest.fixture(scope="session")
def sa3(node_classes: dict[str, type]) -> Pack:
    """The pack to run nodes of; its modules as `sa3.core.runs`, `sa3.nodes.sampling`, `sa3.host.model` and so on."""

    def modules(package: str, *names: str) -> SimpleNamespace:
        return SimpleNamespace(**{name.rpartition(".")[2]: importlib.import_module(f"sa3_pack.{package}.{name}") for name in names})

    return Pack(
        classes=node_classes,
        SA3Error=importlib.import_module("sa3_pack.sa3_core.errors").SA3Error,
        core=modules(
            "sa3_core",
            "checkpoints.checkpoint",
            "checkpoints.detect",
            "models.dit",
            "backends.cpu",
            "models.release",
            "models.same",
            "models.text_encoder",
            "pipeline",
            "sampling.draws",
            "sampling.runs",
        ),
        nodes=modules("nodes", "latents", "models", "sampling"),
        host=modules("nodes.comfyui", "folders", "model", "run_options", "sampling", "vae"),
    )


@pytest.fixture(scope="session")
def comfy(pack: ModuleType) -> SimpleNamespace:
    """ComfyUI's own modules: `nodes` and `audio` with core's node classes, `management`, `folder_paths`, ..."""
    names = {
        "folder_paths": "folder_paths",
        "nodes": "nodes",
        "audio": "comfy_extras.nodes_audio",
        "custom": "comfy_extras.nodes_custom_sampler",
        "management": "comfy.model_management",
        "utils": "comfy.utils",
    }
    return SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})


@pytest.fixture(scope="session")
def shelf(base_directory: Path) -> Path:
    """ComfyUI's folder of checkpoints with all four tiny releases in it; tests leave it alone."""
    checkpoints = base_directory / "models" / "checkpoints"
    for variant in FOLDERS:
        put(checkpoints, variant)
    return checkpoints


@pytest.fixture(scope="session")
def load(sa3: Pack, shelf: Path) -> Callable[..., SimpleNamespace]:
    """load(variant, dtype): MODEL, CLIP and VAE of a tiny release, loaded once by the node."""
    loaded: dict[tuple[str, str], SimpleNamespace] = {}

    def from_shelf(variant: str, dtype: str = "auto") -> SimpleNamespace:
        if (variant, dtype) not in loaded:
            loaded[variant, dtype] = sa3.load(file=FOLDERS[variant], dtype=dtype)
        return loaded[variant, dtype]

    return from_shelf


@pytest.fixture(scope="session")
def pipeline(sa3: Pack, shelf: Path) -> Callable:
    """pipeline(variant): the same release loaded without ComfyUI."""
    return functools.cache(lambda variant: sa3.core.pipeline.load(shelf / FOLDERS[variant]))


@pytest.fixture
def checkpoints(comfy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of checkpoints, the only place where ComfyUI now finds models."""
    known = comfy.folder_paths.folder_names_and_paths
    for key in ("checkpoints", "diffusion_models"):
        (tmp_path / key).mkdir()
        monkeypatch.setitem(known, key, ([str(tmp_path / key)], known[key][1]))
    return tmp_path / "checkpoints"


@pytest.fixture
def at_rest(sa3: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network may compute while this is in force: a refusal comes before any work."""

    def work(*args, **kwargs):
        pytest.fail("a network computed something before the refusal")

    for cls in (sa3.core.dit.DiT, sa3.core.same.Resampler, sa3.core.text_encoder.TextEncoder):
        monkeypatch.setattr(cls, "forward", work)
    monkeypatch.setattr(sa3.core.dit.DiT, "prepare", work)
