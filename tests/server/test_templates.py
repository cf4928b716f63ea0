"""The shared graphs as ComfyUI's template browser shows them."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest

from tools.launcher.server import LOCAL, Server

ROOT = Path(__file__).parents[2]
SHARED = sorted((ROOT / "workflows").glob("*.json"))


def test_every_graph_is_there_in_both_forms():
    names = [file.name for file in SHARED]
    assert names == sorted(file.name for file in (ROOT / "workflows" / "api").glob("*.json"))
    assert len(names) >= 8
    assert sorted(file.stem for file in (ROOT / "workflows").glob("*.jpg")) == [file.stem for file in SHARED]


@pytest.mark.parametrize("file", SHARED, ids=lambda file: file.stem)
def test_thumbnail_and_note(comfy: Server, file: Path):
    with LOCAL.open(f"{comfy.url}/api/workflow_templates/{ROOT.name}/{file.stem}.jpg") as answer:
        picture = answer.read()
        assert answer.headers["Content-Type"] == "image/jpeg"
    assert picture[:3] == b"\xff\xd8\xff" and len(picture) < 60_000
    notes = [node for node in json.loads(file.read_text(encoding="utf-8"))["nodes"] if node["type"] == "Note"]
    assert len(notes) == 1 and len(notes[0]["widgets_values"][0]) > 50


def test_a_list_of_effects_becomes_files_of_its_durations(comfy: Server):
    graph = json.loads((ROOT / "workflows" / "api" / "sfx_pack.json").read_text(encoding="utf-8"))
    prompts = graph["2"]["inputs"]["text"].splitlines()
    seconds = [float(word) for word in graph["3"]["inputs"]["seconds_per_item"].split(",")]
    files = comfy.output_files(comfy.wait(comfy.queue(graph)))
    assert len(prompts) == len(seconds) == len(files)
    for file, duration in zip(files, seconds, strict=True):
        with wave.open(str(file)) as audio:
            assert audio.getnframes() == round(duration * 44100) and audio.getsampwidth() == 3
