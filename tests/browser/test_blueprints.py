"""Every blueprint of the node library, inserted as one node: its inputs, what it queues, and its sound.

One runs in each renderer, all with SA3_LONG=1. Of the others, what is queued is shown to be their graph with the inputs' values.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "browser"))

from test_graphs import complete

from sa3_core.audio import files
from tools.docs.make_blueprints import BLUEPRINTS, FOLDER, SUFFIX, blueprint_form
from tools.launcher.editor import Editor
from tools.launcher.server import Server

LONG = bool(os.environ.get("SA3_LONG"))
RUN = {"Repair a Region"}
VALUES = {"prompt": "a low tone", "seconds": 1.0, "seed": 7, "model": "demo", "strength": 0.9, "regions": "0.5-1", "bpm": 240.0, "bars": 1}
RECORDING = "recording.wav"
INSERT = """name => {
  const { app } = window
  const stores = document.getElementById('vue-app').__vue_app__.config.globalProperties.$pinia._s
  const offered = stores.get('nodeDef').nodeDefs.filter(def => def.display_name === name)
  const { nodes, definitions } = stores.get('subgraph').getBlueprint(offered[0].name)
  app.graph.clear()
  const [node] = app.canvas._deserializeItems({ nodes, subgraphs: definitions.subgraphs }, { position: [400, 100] }).nodes.values()
  return [offered.length, node.title, node.inputs.map(input => input.label ?? input.name), node.outputs.map(output => output.name),
          node.widgets.map(widget => widget.name), offered[0].description]
}"""
CONNECT = """([values, recording]) => {
  const { app, LiteGraph } = window
  const [node] = app.graph.nodes
  for (const widget of node.widgets) if (widget.name in values) {
    widget.value = values[widget.name]
    widget.callback?.(widget.value, app.canvas, node)
  }
  const add = (type, x) => {
    const one = LiteGraph.createNode(type)
    one.pos = [x, 100]
    app.graph.add(one)
    return one
  }
  const audio = node.inputs.findIndex(input => input.name === 'audio')
  if (audio >= 0) {
    const load = add('LoadAudio', 0)
    load.widgets.find(widget => widget.name === 'audio').value = recording
    load.connect(0, node, audio)
  }
  node.connect(0, add('SaveAudio', 900), 0)
  return String(node.id)
}"""


@pytest.fixture(scope="module")
def comfy(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    (base / "input").mkdir()
    tone = 0.25 * torch.sin(2 * torch.pi * 220 / 44100 * torch.arange(88200))
    files.write(base / "input" / RECORDING, tone.expand(2, -1), 44100, "wav16")
    with Server(tree, base, packs=[ROOT], frontend=True) as server:
        yield server


def expected(name: str, host: str) -> dict:
    """The blueprint's graph in API form below the node `host`, with VALUES at its inputs."""
    one = BLUEPRINTS[name]
    graph = json.loads(json.dumps(one.graph))
    for label, targets in one.inputs.items():
        for key, input_name in targets:
            if label in VALUES:
                graph[key]["inputs"][input_name] = VALUES[label]

    def inside(value: object) -> object:
        return [f"{host}:{value[0]}", value[1]] if isinstance(value, list) else value

    for node in graph.values():
        node["inputs"] = {slot: inside(value) for slot, value in node["inputs"].items()}
    return {f"{host}:{key}": node for key, node in graph.items()}


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint(comfy: Server, editor: Editor, name: str, tmp_path: Path):
    one, page = BLUEPRINTS[name], editor.page
    editor.errors.clear()
    offered, title, inputs, outputs, widgets, description = page.evaluate(INSERT, name + SUFFIX)
    assert (offered, title, inputs, outputs, description) == (1, name + SUFFIX, list(one.inputs), list(one.outputs), one.description)
    assert widgets[: len(inputs)] == [label for label in inputs if label != "audio"]
    host = page.evaluate(CONNECT, [VALUES, RECORDING])
    editor.fit()
    if folder := os.environ.get("SA3_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}-{'nodes2' if editor.nodes2 else 'litegraph'}.png")
    schemas = comfy.object_info()
    queued = editor.prompt()
    ends = {key: node for key, node in queued.items() if node["class_type"] in ("LoadAudio", "SaveAudio")}
    recording = next((key for key, node in ends.items() if node["class_type"] == "LoadAudio"), "")
    graph = expected(name, host)
    for key, input_name in one.inputs.get("audio", []):
        graph[f"{host}:{key}"]["inputs"][input_name] = [recording, 0]
    assert complete({key: node for key, node in queued.items() if key not in ends}, schemas) == complete(graph, schemas)
    if name in RUN or LONG:
        url = editor.run()
        assert "/view?" in url
        (tmp_path / "sound.flac").write_bytes(page.request.get(url).body())
        waveform, _ = files.read(tmp_path / "sound.flac")
        assert waveform.abs().max() > 0.01
    assert editor.dialogs() == [] and editor.errors == []


@pytest.mark.skipif(not LONG, reason="computes all layouts: SA3_LONG=1")
def test_the_files_are_up_to_date(comfy: Server):
    schemas = comfy.object_info()
    for name, one in BLUEPRINTS.items():
        saved = json.loads((FOLDER / f"{name}{SUFFIX}.json").read_text(encoding="utf-8"))
        assert saved == blueprint_form(name + SUFFIX, one, schemas), "run tools/docs/make_blueprints.py"
    assert len(list(FOLDER.glob("*.json"))) == len(BLUEPRINTS)
