"""What the pack adds to ComfyUI's start-up: its own modules, and nothing that takes long to import.

In a process of its own: this one has imported everything already.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("SA3_COMFYUI") or ROOT / ".run" / "comfyui")
LONG = ["transformers", "tokenizers", "torchaudio", "scipy", "matplotlib", "soundfile", "av", "huggingface_hub", "sentencepiece", "pandas"]
CODE = """
import asyncio, importlib.util, json, sys
tree, root, base, forbidden = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
sys.path.insert(0, tree)
import comfy.options
comfy.options.enable_args_parsing()
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.cli_args, utils.extra_config, execution, server, nodes, comfy_api.latest
for name in forbidden:  # ComfyUI may have it already: only asking for it anew shows who wants it
    for module in [module for module in sys.modules if module == name or module.startswith(name + ".")]:
        del sys.modules[module]
    sys.modules[name] = None
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("sa3_pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["sa3_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
alone = sorted(name for name in set(sys.modules) - before if name != "sa3_pack")

async def ids():
    return [node.define_schema().node_id for node in await (await pack.comfy_entrypoint()).get_node_list()]

found = asyncio.run(ids())
new = sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"sa3_pack"})
print(json.dumps({"alone": alone, "ids": found, "new": new}))
"""


@pytest.fixture(scope="module")
def imported(pack, tmp_path_factory) -> dict:
    """What an import of the pack brought, in a ComfyUI where asking for anything that takes long fails."""
    base = str(tmp_path_factory.mktemp("base"))
    arguments = [str(TREE), str(ROOT), base, json.dumps(LONG)]
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_imported_before_comfyui_asks(imported):
    assert imported["alone"] == []


def test_the_nodes_are_listed_without_anything_that_takes_long(imported, node_classes):
    assert set(imported["ids"]) == set(node_classes)


def test_what_is_new_is_the_packs_own_or_python_and_torch(imported):
    known = {*sys.stdlib_module_names, "torch", "safetensors", "numpy", "PIL"}
    assert not {name for name in imported["new"] if not name.startswith(("comfy", "_"))} - known
