"""Opens every shared workflow in the editor of a real ComfyUI, converts it to API form and runs it with the button."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

from sa3_core.audio import files as audio_files
from tools.docs.layout import HEIGHT, WIDTH
from tools.launcher.editor import Box, Editor
from tools.launcher.server import LOCAL, Graph, Server

ROOT = Path(__file__).parents[2]
API = ROOT / "workflows" / "api"
SHOTS = os.environ.get("SA3_SCREENSHOTS")
LONG = bool(os.environ.get("SA3_LONG"))
RUN = {"text_to_audio"}  # of the others, what is queued is shown to be the API form, which tests/server/test_templates.py runs
# Graph units; the others: WIDTH, HEIGHT
WIDE = {"inpaint_variations": 1562}
TALL = {"train_lora": 860, "inpaint_variations": 836, "make_four_keep_one": 804, "rewrite_prompt": 850, "caption_to_prompt": 870}
KEEP_ALL = """() => app.graph.nodes.filter(node => node.type === 'SA3_PreviewBatch').map(node => {
  node.widgets.find(widget => widget.name === 'keep').value = 'all'
  return true
})"""
SHARED = sorted(file for file in (ROOT / "workflows").glob("*.json") if (API / file.name).is_file())


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def comfy(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the front end and nothing but the pack."""
    with Server(tree, tmp_path_factory.mktemp("comfyui"), packs=[ROOT], frontend=True) as server:
        yield server


def missing(file: Path, schemas: dict) -> set[str]:
    """Classes of a shared graph that this ComfyUI does not have."""
    return {node["class_type"] for node in read(API / file.name).values()} - schemas.keys()


def picture(editor: Editor, name: str) -> None:
    if folder := os.environ.get("SA3_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        editor.page.screenshot(path=Path(folder) / f"{name}_{'nodes2' if editor.nodes2 else 'litegraph'}.png")


def complete(graph: Graph, schemas: dict) -> Graph:
    """Class and inputs of each node, with the node's defaults filled in and without inputs that only display."""
    nodes = {}
    for node_id, node in graph.items():
        groups = schemas[node["class_type"]]["input"]
        inputs = {name: spec for group in ("required", "optional") for name, spec in groups.get(group, {}).items()}
        shown = {"audioUI", *(name for name, spec in inputs.items() if spec[0] == "AUDIO_UI")}  # older front ends give every player a value
        defaults = {name: spec[1]["default"] for name, spec in inputs.items() if len(spec) > 1 and "default" in spec[1]}
        given = {name: value for name, value in node["inputs"].items() if name not in shown}
        nodes[node_id] = (node["class_type"], {**defaults, **given})
    return nodes


def overlaps(boxes: list[Box]) -> list[tuple[str, str]]:
    """Pairs of nodes that overlap."""
    return [
        (one.title, other.title)
        for one, other in itertools.combinations(boxes, 2)
        if abs(2 * (one.x - other.x) + one.width - other.width) < one.width + other.width
        and abs(2 * (one.y - other.y) + one.height - other.height) < one.height + other.height
    ]


NOTES = """() => [...document.querySelectorAll('.comfy-markdown .tiptap, .comfy-markdown-content')]
  .filter(note => note.checkVisibility())
  .map(note => [note.scrollHeight - note.clientHeight, note.innerText.length])"""


@pytest.mark.parametrize("file", SHARED, ids=lambda file: file.stem)
def test_graph(comfy: Server, editor: Editor, file: Path):
    workflow, schemas = read(file), comfy.object_info()
    if absent := missing(file, schemas):
        pytest.skip(f"this ComfyUI has no {', '.join(absent)}")
    editor.errors.clear()
    editor.load(workflow, file.stem)
    assert editor.missing() == [] and editor.dialogs() == []
    picture(editor, file.stem)
    boxes = editor.boxes()
    assert len(boxes) == len(workflow["nodes"])
    assert overlaps(boxes) == []
    width, height = (max(getattr(box, at) + getattr(box, size) for box in boxes) - min(getattr(box, at) for box in boxes)
                     for at, size in (("x", "width"), ("y", "height")))  # fmt: skip
    if not editor.nodes2:  # the second renderer makes nodes taller
        assert width <= WIDE.get(file.stem, WIDTH)
        assert height <= TALL.get(file.stem, HEIGHT) + 1  # the player of front end 1.32.9 is one higher
    notes = editor.page.evaluate(NOTES)
    assert notes and all(hidden <= 2 and letters > 50 for hidden, letters in notes)
    assert complete(editor.prompt(), schemas) == complete(read(API / file.name), schemas)
    if file.stem in RUN or LONG:
        for node in editor.page.evaluate(KEEP_ALL):  # listening comes before saving
            assert node
        run = editor.queue()
        sounds = [audio_files.read(path)[0] for path in comfy.output_files(run) if path.suffix in audio_files.READABLE]
        assert sounds and all(float(sound.abs().max()) > 0.01 for sound in sounds)
        picture(editor, f"{file.stem}_done")
        assert overlaps(editor.boxes()) == []
    assert editor.dialogs() == [] and editor.errors == []


# Other ids than in the templates: Nodes 2.0 of front end 1.32.9 keeps the widgets of an earlier graph's node with the same id and type.
LOUD = {
    "11": ("SA3_ModelLoader", {"model": "demo", "file": "by name", "dtype": "auto", "text_encoder": "auto"}),
    "12": ("SA3_TextEncode", {"clip": ["11", 1], "text": "", "one_prompt_per_line": False}),
    "13": ("SA3_EmptyLatent", {"seconds": 1.0, "batch_size": 1, "padding": 0.0, "seconds_per_item": ""}),
    "14": (
        "SA3_Sampler",
        {
            "model": ["11", 0], "positive": ["12", 0], "latent": ["13", 0], "seed": 1, "steps": 4, "sampler": "auto", "cfg": 0.0,
            "noise_level": 1.0,
        },
    ),
    "15": ("SA3_SAMEDecode", {"latent": ["14", 0], "vae": ["11", 2], "chunk_size": 128, "overlap": 32, "noise": "off", "seed": 0}),
    "16": ("SA3_Levels", {"audio": ["15", 0], "normalize": "loudness", "target": 0.0, "limit": "off", "ceiling": -1.0}),
    "17": ("SA3_SaveAudio", {"audio": ["16", 0], "filename_prefix": "loud", "format": "wav16"}),
}  # fmt: skip
ON_NODE = """([id, words]) => {
  const [x, y, width, height] = window.app.graph.getNodeById(id).getBounding()
  const says = element => [...element.childNodes].some(part => part.nodeType === Node.TEXT_NODE && part.data.includes(words))
  const shown = [...document.querySelectorAll('body *')].filter(element => element.checkVisibility() && says(element))
  return shown.some(element => {
    const box = element.getBoundingClientRect()
    const [left, top] = window.app.clientPosToCanvasPos([box.x + box.width / 2, box.y + 1])
    return box.height > 1 && left > x && left < x + width && top > y && top < y + height
  })
}"""

SAYS = "([id, words]) => window.app.graph.getNodeById(id).widgets.some(one => one.type === 'sa3_line' && one.value.includes(words))"
STYLE = """words => {
  const innermost = [...document.querySelectorAll('body *')].filter(one => one.textContent.includes(words)).pop()
  const { wordBreak, overflow } = getComputedStyle(innermost)
  return [wordBreak, overflow]
}"""


def test_warnings_stand_on_their_nodes(editor: Editor):
    graph = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in LOUD.items()}
    editor.page.evaluate("graph => window.app.loadApiJson(graph, 'loud')", graph)
    editor.queue()
    editor.fit()
    for node_id, words in ((14, "The prompt is empty"), (16, "The peak is now"), (17, "samples exceed full scale")):
        editor.page.wait_for_function(ON_NODE, arg=[node_id, words], timeout=10_000)
        assert not editor.page.evaluate(ON_NODE, [13, words])
    style = editor.page.evaluate(STYLE, "The peak is now")
    assert style == ["normal", "visible"]  # breaks at words, and nothing is hidden
    if SHOTS:
        editor.page.screenshot(path=f"{SHOTS}/warnings_{'nodes2' if editor.nodes2 else 'litegraph'}.png")


def test_an_error_stands_on_its_node_until_the_next_run(editor: Editor):
    graph = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in LOUD.items()}
    graph["13"] = {**graph["13"], "inputs": {**graph["13"]["inputs"], "seconds": 300.0}}
    editor.page.evaluate("graph => window.app.loadApiJson(graph, 'too long')", graph)
    with pytest.raises(RuntimeError, match="The duration is 300"):
        editor.queue()
    editor.fit()
    editor.page.wait_for_function(ON_NODE, arg=[14, "this model makes at most 120.0 s"], timeout=10_000)
    if editor.dialogs():  # of older front ends
        editor.page.locator(".p-dialog-close-button").last.click()
    if SHOTS:
        editor.page.screenshot(path=f"{SHOTS}/error_{'nodes2' if editor.nodes2 else 'litegraph'}.png")
    editor.page.evaluate("() => { window.app.graph.getNodeById(13).widgets.find(one => one.name === 'seconds').value = 1 }")
    editor.queue()
    editor.page.wait_for_function(f"values => !({SAYS})(values)", arg=[14, "at most"], timeout=10_000)


def test_an_interrupted_run_says_where(editor: Editor):
    graph = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in LOUD.items()}
    graph["14"] = {**graph["14"], "inputs": {**graph["14"]["inputs"], "steps": 1000}}
    editor.page.evaluate("graph => window.app.loadApiJson(graph, 'long')", graph)
    editor.fit()
    editor.page.locator("[data-testid=queue-button]").first.click()
    editor.page.wait_for_function(SAYS, arg=[14, "step "], timeout=60_000)
    editor.page.evaluate("() => window.comfyAPI.api.api.interrupt(null)")
    editor.page.wait_for_function(SAYS, arg=[14, "stopped at step "], timeout=60_000)


@pytest.mark.parametrize("file", SHARED, ids=lambda file: file.stem)
def test_graph_is_offered_as_a_template(comfy: Server, file: Path):
    with LOCAL.open(f"{comfy.url}/api/workflow_templates") as answer:
        assert file.stem in json.load(answer)[ROOT.name]
    with LOCAL.open(f"{comfy.url}/api/workflow_templates/{ROOT.name}/{file.stem}.json") as answer:
        assert json.load(answer) == read(file)
