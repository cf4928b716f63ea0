"""The node classes inside this process, beside an importable ComfyUI and without a server.

ComfyUI's top-level modules include `nodes`, `utils` and `app`, so its tree comes first on the path, and the pack is imported
as ComfyUI does it: as a package of another name, whose `sa3_core` is `sa3_pack.sa3_core`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

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

    sys.argv = arguments


# test modules may import comfy at their top, so this comes before any fixture
if (TREE / "main.py").is_file():
    import_comfyui()


@pytest.fixture(scope="session")
def base_directory() -> Path:
    """ComfyUI's base directory in this process: `models/checkpoints` and so on lie below."""
    return Path(BASE.name)


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The pack as ComfyUI imports it, as `sa3_pack`."""
    if "comfy.cli_args" not in sys.modules:
        pytest.skip(f"no ComfyUI in {TREE}; run.py --test makes one, SA3_COMFYUI names another")
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
