from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tools.launcher import job
from tools.launcher.environment import SetupError
from tools.launcher.server import Event

GRAPH = {
    "12": {"class_type": "SA3_TextEncode", "inputs": {"text": "old", "clip": ["3", 1]}, "_meta": {"title": "Prompt"}},
    "x": {"class_type": "SA3_Sampler", "inputs": {"seed": 1, "steps": 0}},
}


def test_options_go_to_nodes_found_by_class():
    filled = job.fill(GRAPH, {"prompt": "new", "seed": 7, "steps": None, "model": None})
    assert filled["12"]["inputs"] == {"text": "new", "clip": ["3", 1]}
    assert filled["x"]["inputs"] == {"seed": 7, "steps": 0}
    assert GRAPH["12"]["inputs"]["text"] == "old"


def test_an_empty_prompt_and_a_zero_are_given():
    assert job.fill(GRAPH, {"prompt": "", "seed": 0})["x"]["inputs"]["seed"] == 0


def test_option_without_its_node_is_refused():
    with pytest.raises(SetupError, match="no SA3_EmptyLatent node, so duration"):
        job.fill(GRAPH, {"duration": 3.0})


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"nodes": [], "links": []}', "\x00"])
def test_file_that_is_no_workflow_is_refused(tmp_path: Path, content: str):
    file = tmp_path / "w.json"
    file.write_text(content)
    with pytest.raises(SetupError, match=r"w\.json"):
        job.read_graph(file)


def test_missing_workflow_is_refused(tmp_path: Path):
    with pytest.raises(SetupError, match="cannot be read"):
        job.read_graph(tmp_path / "none.json")


def test_workflow_is_read(tmp_path: Path):
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    assert job.read_graph(tmp_path / "w.json") == GRAPH


def test_progress_names_stage_and_step():
    stream = io.StringIO()
    progress = job.Progress(GRAPH, stream)
    for kind, data in [
        ("executing", {"node": "12"}),
        ("progress", {"node": "x", "value": 2, "max": 8}),
        ("executing", {"node": None}),
    ]:
        progress(Event(kind, data))
    assert stream.getvalue() == "[run] Prompt\n[run] SA3_Sampler: step 2/8\n"
