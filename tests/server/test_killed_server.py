"""kill -9 of ComfyUI in a run: no file under its name, and a new server gives what an undisturbed one gave."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import psutil
import pytest
import torch

from sa3_core.audio import files as audio_files
from tools.launcher.server import Event, Server, ServerFailed

ROOT = Path(__file__).parents[2]
GRAPH = json.loads((ROOT / "workflows" / "api" / "text_to_audio.json").read_text())


def workflow(**latent) -> dict:
    """The shared workflow on the demo, saved with all digits."""
    graph = copy.deepcopy(GRAPH)
    changes = {"SA3_ModelLoader": {"model": "demo"}, "SA3_EmptyLatent": {"seconds": 0.5, **latent}, "SA3_Sampler": {"seed": 11, "steps": 3}}
    for node in graph.values():
        node["inputs"].update(changes.get(node["class_type"], {}))
    return graph


def test_a_killed_server(comfy: Server, comfyui_tree: Path, tmp_path: Path):
    (undisturbed,) = comfy.output_files(comfy.wait(comfy.queue(workflow())))

    def kill(event: Event) -> None:
        if event.kind == "progress":
            psutil.Process(server._process.pid).kill()

    with Server(comfyui_tree, tmp_path, packs=[ROOT]) as server:
        prompt = server.queue(workflow(seconds=90.0, batch_size=2))
        with pytest.raises(ServerFailed):
            server.wait(prompt, kill)
    assert not [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    with Server(comfyui_tree, tmp_path, packs=[ROOT]) as server:
        (after,) = server.output_files(server.wait(server.queue(workflow())))
    assert torch.equal(audio_files.read(after)[0], audio_files.read(undisturbed)[0])
