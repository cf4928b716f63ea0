"""SA3_SaveAudio through a real server: every format, read back, with the record and the name of each item; a kept item alone."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
KINDS = ("flac", "wav24", "mp3", "opus", "m4a")


@pytest.fixture(scope="module")
def graph() -> dict:
    """Two effects of different durations in one batch, a SaveAudio per format, and a preview that keeps the second."""
    graph = json.loads((ROOT / "workflows" / "api" / "sfx_pack.json").read_text(encoding="utf-8"))
    nodes = {content["class_type"]: node for node, content in graph.items()}
    save = graph.pop(nodes["SA3_SaveAudio"])
    graph[nodes["SA3_ModelLoader"]]["inputs"]["model"] = "demo"
    graph[nodes["SA3_TextEncode"]]["inputs"].update(text="a low tone\nrain / wind", one_prompt_per_line=True)
    graph[nodes["SA3_EmptyLatent"]]["inputs"].update(batch_size=2, seconds_per_item="0.3, 0.5")
    graph[nodes["SA3_Sampler"]]["inputs"].update(steps=1, seed=11)
    name = "formats/%prompt% %duration%"
    for kind in KINDS:
        graph[kind] = {**save, "inputs": {**save["inputs"], "format": kind, "filename_prefix": name, "quality": "medium"}}
    preview = {"audio": [nodes["SA3_SAMEDecode"], 0], "run_info": [nodes["SA3_Sampler"], 1], "keep": "2"}
    graph["preview"] = {"class_type": "SA3_PreviewBatch", "inputs": preview}
    kept = {"audio": ["preview", 0], "run_info": ["preview", 3], "format": "opus", "filename_prefix": "kept/%seed%"}
    graph["kept"] = {"class_type": "SA3_SaveAudio", "inputs": kept}
    return graph


def read(path: Path) -> tuple[int, int, dict]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        samples = sum(frame.samples for frame in container.decode(stream))
        return samples, stream.rate, {**container.metadata, **stream.metadata}


def test_each_format_has_its_items(comfy: Server, graph: dict):
    entry = comfy.wait(comfy.queue(graph))
    output = comfy.base_directory / "output"
    seeds = []
    for kind in KINDS:
        found = [output / file["subfolder"] / file["filename"] for file in entry["outputs"][kind]["audio"]]
        suffix = kind.removesuffix("24")
        assert [path.suffix for path in found] == [f".{suffix}"] * 2  # the formats share the numbers
        assert [path.stem[: -len("_00001_")] for path in found] == ["a low tone 0.3s", "rain _ wind 0.5s"]
        for path, seconds in zip(found, (0.3, 0.5), strict=True):
            samples, rate, texts = read(path)
            length = -(-int(seconds * 44100) * rate // 44100)
            assert rate == (48000 if kind == "opus" else 44100) and 0 <= samples - length < (1024 if kind == "m4a" else 1)
            record = json.loads(texts["comment"] if suffix == "wav" else texts["sa3"])
            assert record["seconds"] == [seconds] and record["prompt"] == ["a low tone" if seconds == 0.3 else "rain / wind"]
            assert suffix == "wav" or json.loads(texts["prompt"]).keys() == graph.keys()
            seeds.append(record["seed"])
    assert seeds == [11, seeds[1]] * len(KINDS) and seeds[1] < 2**53
    (kept,) = (output / "kept").iterdir()
    assert kept.name == f"{seeds[1]}_00001_.opus" and json.loads(read(kept)[2]["sa3"])["prompt"] == ["rain / wind"]
