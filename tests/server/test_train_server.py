"""The shared workflow that trains a LoRA, through a real ComfyUI: files appear, the stop button saves, the next queue goes on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from sa3_core.audio import files as audio_files
from sa3_core.lora.formats import read_lora
from tools.launcher.server import Event, Interrupted, Server

ROOT = Path(__file__).parents[2]
GRAPH = json.loads((ROOT / "workflows" / "api" / "train_lora.json").read_text(encoding="utf-8"))
(TRAIN,) = (node for node, content in GRAPH.items() if content["class_type"] == "SA3_TrainLoRA")
(LATENT,) = (node for node, content in GRAPH.items() if content["class_type"] == "SA3_EmptyLatent")
(SAMPLER,) = (node for node, content in GRAPH.items() if content["class_type"] == "SA3_Sampler")


@pytest.fixture(scope="module")
def folder(comfy: Server) -> Path:
    """The training folder that the shared workflow names."""
    path = comfy.base_directory / "input" / GRAPH[TRAIN]["inputs"]["folder"]
    path.mkdir(parents=True)
    for i in range(3):
        noise = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(i))
        audio_files.write(path / f"{i}.wav", (0.2 * noise).clamp(-1, 1), 44100, "wav16")
        (path / f"{i}.txt").write_text("a robot", encoding="utf-8")
    return path


def workflow(name: str, steps: int, **more) -> dict:
    graph = copy.deepcopy(GRAPH)
    graph[TRAIN]["inputs"] |= {"name": name, "steps": steps, "rank": 2, "seconds": 1.0, "preview_seconds": 0.5, **more}
    graph[LATENT]["inputs"]["seconds"] = 0.5
    graph[SAMPLER]["inputs"]["steps"] = 2
    return graph


def test_the_shared_workflow_trains_shows_and_uses_a_lora(comfy: Server, folder: Path):
    shown: list[str] = []

    def watch(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] == TRAIN:
            shown.append(f"{event.data['value']} of {event.data['max']}")

    entry = comfy.wait(comfy.queue(workflow("robot", 4)), watch)
    assert "3 of 4" in shown
    kinds = {node: set(output) for node, output in entry["outputs"].items()}
    assert kinds[TRAIN] == {"audio"}  # the last sample, on the node
    assert {"images"} in kinds.values()  # the curves
    assert read_lora(comfy.base_directory / "models" / "loras" / "robot.safetensors").config["step"] == 4
    sounds = [file for file in comfy.output_files(entry) if file.suffix == ".flac"]
    assert sounds and all(file.stat().st_size > 1000 for file in sounds)


def test_the_stop_button_saves_and_the_next_queue_ends_as_if_never_stopped(comfy: Server, folder: Path):
    loras = comfy.base_directory / "models" / "loras"
    comfy.wait(comfy.queue(workflow("whole", 6)))

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] == TRAIN and (event.data["value"], event.data["max"]) == (2, 6):
            comfy.interrupt()

    with pytest.raises(Interrupted, match="SA3_TrainLoRA"):
        comfy.wait(comfy.queue(workflow("stopped", 6)), stop)
    (saved,) = loras.glob("stopped_step*.safetensors")
    assert 2 <= read_lora(saved).config["step"] < 6 and not (loras / "stopped.safetensors").exists()
    comfy.wait(comfy.queue(workflow("stopped", 6)))
    assert (loras / "stopped.safetensors").read_bytes() == (loras / "whole.safetensors").read_bytes()
