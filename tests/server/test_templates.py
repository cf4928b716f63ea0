"""The shared graphs as ComfyUI's template browser shows them."""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from sa3_core.audio import files as audio_files
from tools.docs.layout import TITLE, Box, Link, crossed
from tools.launcher.server import LOCAL, PromptRejected, Server

ROOT = Path(__file__).parents[2]
SHARED = sorted((ROOT / "workflows").glob("*.json"))
LONG = bool(os.environ.get("SA3_LONG"))


@pytest.fixture(scope="module")
def bare(comfyui_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own with nothing but the pack."""
    with Server(comfyui_tree, tmp_path_factory.mktemp("bare"), packs=[ROOT]) as server:
        yield server


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
    notes = [node for node in json.loads(file.read_text(encoding="utf-8"))["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1 and notes[0]["widgets_values"][0].startswith("**Replace** ")


@pytest.mark.parametrize("file", SHARED, ids=lambda file: file.stem)
def test_metadata(comfy: Server, file: Path):
    graph = json.loads(file.read_text(encoding="utf-8"))
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    owner = {True: "stable-audio-3-nodes", False: "comfy-core"}
    for node in nodes.values():
        if node["type"] != "MarkdownNote":
            assert node["properties"]["cnr_id"] == owner[node["type"].startswith("SA3_")] and node["properties"]["ver"]
    (save,) = (node for node in nodes.values() if node["type"] == "SA3_SaveAudio")
    records = [entry["link"] for entry in save["inputs"] if entry["name"] == "run_info"]
    assert (records != [None]) == bool({"SA3_Sampler", "SA3_Extend"} & {node["type"] for node in nodes.values()})
    app = graph["extra"]["linearData"]
    assert app["inputs"] and app["outputs"] and not graph["extra"]["linearMode"]
    for node, name in app["inputs"]:
        assert [entry["link"] for entry in nodes[node]["inputs"] if entry.get("widget") == {"name": name}] == [None]
    assert {nodes[node]["type"] for node in app["outputs"]} <= {"SA3_SaveAudio", "SA3_PreviewBatch"}
    assert "SA3_SaveAudio" in {nodes[node]["type"] for node in app["outputs"]}


def links_of(graph: dict) -> tuple[list[Link], dict[str, Box]]:
    """The links between sockets of a graph in editor form, and its nodes as the first renderer draws them."""
    boxes = {str(node["id"]): shown(node) for node in graph["nodes"]}
    places = {node["id"]: [i for i, entry in enumerate(node["inputs"]) if "widget" not in entry] for node in graph["nodes"]}
    links = [(a, out, b, places[b].index(i) if i in places[b] else 0) for _, a, out, b, i, _ in graph["links"]]
    return [Link(str(a), out, str(b), i) for a, out, b, i in links], boxes


def shown(node: dict) -> Box:
    x, y, width, height = *node["pos"], *node["size"]
    return Box(x, y - TITLE, 160, TITLE) if node["flags"].get("collapsed") else Box(x, y - TITLE, width, height + TITLE)


BEHIND = {
    "make_four_keep_one": 1,
    "inpaint": 3,
    "inpaint_variations": 7,
    "continue": 3,
    "loop": 2,
    "lora_blend": 2,
    "train_lora": 2,
    "rewrite_prompt": 2,
    "caption_to_prompt": 1,
}


@pytest.mark.parametrize("file", SHARED, ids=lambda file: file.stem)
def test_links_run_from_left_to_right_and_hardly_behind_nodes(file: Path):
    links, boxes = links_of(json.loads(file.read_text(encoding="utf-8")))
    back = [link for link in links if boxes[link.source].x > boxes[link.target].x]
    above = [link for link in links if boxes[link.source].x == boxes[link.target].x and boxes[link.source].y > boxes[link.target].y]
    assert back == above == []
    assert len(crossed(links, boxes)) <= BEHIND.get(file.stem, 0)


@pytest.mark.parametrize("file", SHARED, ids=lambda file: file.stem)
def test_every_graph_is_heard_on_a_computer_with_nothing_but_the_pack(bare: Server, file: Path):
    graph = json.loads((ROOT / "workflows" / "api" / file.name).read_text(encoding="utf-8"))
    classes = {node["class_type"] for node in graph.values()}
    if absent := classes - bare.object_info().keys():
        pytest.skip(f"this ComfyUI has no {', '.join(absent)}")
    if "CLIPLoader" in classes:  # a language model of 4 GB is all that is missing
        with pytest.raises(PromptRejected, match="clip_name"):
            bare.queue(graph)
        return
    for node in graph.values():
        node["inputs"] |= {"steps": 8} if node["class_type"] in ("SA3_Sampler", "SA3_Extend") and not LONG else {}
        node["inputs"] |= {"keep": "all"} if node["class_type"] == "SA3_PreviewBatch" else {}
    made = bare.output_files(bare.wait(bare.queue(graph)))
    files = [path for path in made if path.is_relative_to(bare.base_directory / "output")]
    assert files
    for path in files:
        sound, rate = audio_files.read(path)
        assert rate == 44100 and sound.shape[0] == 2 and float(sound.abs().max()) > 0.01


def test_a_list_of_effects_becomes_files_of_its_durations(comfy: Server):
    graph = json.loads((ROOT / "workflows" / "api" / "sfx_pack.json").read_text(encoding="utf-8"))
    prompts = graph["2"]["inputs"]["text"].splitlines()
    seconds = [float(word) for word in graph["3"]["inputs"]["seconds_per_item"].split(",")]
    files = comfy.output_files(comfy.wait(comfy.queue(graph)))
    assert len(prompts) == len(seconds) == len(files)
    for file, duration in zip(files, seconds, strict=True):
        with wave.open(str(file)) as audio:
            assert audio.getnframes() == round(duration * 44100) and audio.getsampwidth() == 3
