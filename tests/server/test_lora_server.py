"""Two stacked LoRAs through a real ComfyUI server: heard, taken off without a trace, in an order that matters where it should."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tools.launcher.server import ExecutionFailed, Server

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "core"))

from lora_support import write_lora

import sa3_core

GRAPH = json.loads((ROOT / "workflows" / "api" / "lora_blend.json").read_text())
(LOADER,), STACK, (LATENT,), (SAMPLER,) = (
    [node for node, content in GRAPH.items() if content["class_type"] == name]
    for name in ("SA3_ModelLoader", "SA3_LoRAStack", "SA3_EmptyLatent", "SA3_Sampler")
)


@pytest.fixture(scope="module")
def loras(comfy: Server) -> Path:
    """The files that the shared workflow names, and a DoRA, made for the embedded model."""
    folder = comfy.base_directory / "models" / "loras"
    module = sa3_core.load("demo").module
    for seed, (name, kind) in enumerate({"sa3_example_high": "lora", "sa3_example_decay": "lora", "dora": "dora-rows"}.items()):
        write_lora(folder / f"{name}.safetensors", module, kind, seed=seed)
    return folder


def samples(comfy: Server, *rows: dict) -> np.ndarray:
    """The sound of the shared workflow on the embedded model, with these settings in its LoRA nodes; none = without them."""
    graph = copy.deepcopy(GRAPH)
    graph[LOADER]["inputs"]["model"] = "demo"
    graph[LATENT]["inputs"]["seconds"] = 0.5
    for node, row in zip(STACK, rows, strict=bool(rows)):
        graph[node]["inputs"] |= row
    if not rows:
        graph[SAMPLER]["inputs"]["model"] = [LOADER, 0]
        graph = {node: content for node, content in graph.items() if node not in STACK}
    (file,) = comfy.output_files(comfy.wait(comfy.queue(graph)))
    with av.open(str(file)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1).astype(np.float64)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_shared_workflow_is_heard_and_leaves_no_trace(comfy: Server, loras: Path):
    before = samples(comfy)
    blended = samples(comfy, {}, {})
    assert difference(blended, before) > 1e-2
    assert np.array_equal(samples(comfy, {"strength": 0.0}, {"strength": 0.0}), before)
    scheduled = samples(comfy, {"start": 0.5}, {})
    assert difference(scheduled, blended) > 1e-3 and difference(scheduled, before) > 1e-3
    assert np.array_equal(samples(comfy), before)


def test_order_matters_for_dora_only(comfy: Server, loras: Path):
    names = ("sa3_example_high", "sa3_example_decay", "dora")
    a, b, dora = ({"lora": f"{name}.safetensors", "strength": 1.0, "seconds_strength": 0.0} for name in names)
    plain = samples(comfy, a, b)
    assert difference(samples(comfy, b, a), plain) < 1e-3  # 16-bit files
    assert difference(samples(comfy, a, dora), samples(comfy, dora, a)) > 1e-2


def test_a_replaced_file_is_read_again(comfy: Server, loras: Path):
    write_lora(loras / "sa3_example_high.safetensors", sa3_core.load("demo").module, "lora", seed=7)
    first = samples(comfy, {}, {})
    write_lora(loras / "sa3_example_high.safetensors", sa3_core.load("demo").module, "lora", seed=8)
    assert difference(samples(comfy, {}, {}), first) > 1e-2


def test_what_a_user_is_told(comfy: Server, loras: Path):
    (loras / "old.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ExecutionFailed, match="SA3_LoRAConvert"):
        samples(comfy, {"lora": "old.ckpt"}, {})
