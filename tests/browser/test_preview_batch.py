"""SA3_PreviewBatch in a browser: items play, ticking one saves it, the choice survives a reload. Dropping a WAV opens its graph."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

from sa3_core.audio import files as audio_files
from tools.launcher.editor import Editor
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
NODE = "window.app.graph.nodes.find(node => node.type === 'SA3_PreviewBatch')"
KEEP = f"() => {NODE}.widgets.find(widget => widget.name === 'keep').value"
LOADED = "() => { const a = [...document.querySelectorAll('.sa3-batch audio')]; return a.length && a.every(one => one.readyState >= 1) }"
DROP = """([name, type, bytes]) => {
  const files = new DataTransfer()
  files.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name, { type }))
  window.app.canvas.canvas.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }))
}"""


@pytest.fixture(scope="module")
def comfy(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tree, tmp_path_factory.mktemp("comfyui"), packs=[ROOT], frontend=True) as server:
        yield server


@pytest.fixture(autouse=True)
def no_old_errors(editor: Editor) -> None:
    editor.errors.clear()


def workflow() -> dict:
    """The shared graph with a short duration and few steps, the decoded items as their own original, and WAV as the format."""
    graph = json.loads((ROOT / "workflows" / "make_four_keep_one.json").read_text(encoding="utf-8"))
    nodes = {node["type"]: node for node in graph["nodes"]}
    nodes["SA3_EmptyLatent"]["widgets_values"][0] = 1.5
    nodes["SA3_Sampler"]["widgets_values"][2] = 3  # steps
    nodes["SA3_SaveAudio"]["widgets_values"][1] = "wav16"
    decode, preview = nodes["SA3_SAMEDecode"], nodes["SA3_PreviewBatch"]
    slot = next(i for i, one in enumerate(preview["inputs"]) if one["name"] == "original")
    link = graph["last_link_id"] = graph["last_link_id"] + 1
    graph["links"].append([link, decode["id"], 0, preview["id"], slot, "AUDIO"])
    decode["outputs"][0]["links"].append(link)
    preview["inputs"][slot]["link"] = link
    return graph


def queue(editor: Editor) -> set[str]:
    """Runs the open graph and returns the ids of the nodes that were not cached."""
    run = editor.queue()
    return set(run["prompt"][2]) - set(dict(run["status"]["messages"])["execution_cached"]["nodes"])


def ids(editor: Editor, *types: str) -> set[str]:
    return set(editor.page.evaluate("types => app.graph.nodes.filter(n => types.includes(n.type)).map(n => String(n.id))", list(types)))


def kept_files(server: Server) -> list[Path]:
    return sorted((server.base_directory / "output" / "audio").glob("kept_*.wav"))


def test_listen_tick_and_save(comfy: Server, editor: Editor):
    page, before = editor.page, len(kept_files(comfy))
    editor.load(workflow(), "choice")
    queue(editor)
    page.wait_for_function(LOADED, timeout=60_000)
    durations = page.evaluate("() => [...document.querySelectorAll('.sa3-batch audio')].map(audio => audio.duration)")
    assert durations == [1.5] * 8  # four items and the original of each
    assert page.evaluate("() => [...document.querySelectorAll('.sa3-batch img')].every(one => one.naturalWidth === 640)")
    assert len(kept_files(comfy)) == before  # none was kept

    page.locator(".sa3-batch-keep input").nth(2).click()
    assert page.evaluate(KEEP) == "3"
    ran = queue(editor)
    assert ran == ids(editor, "SA3_PreviewBatch", "SA3_SaveAudio")  # the sampler did not
    assert len(kept_files(comfy)) == before + 1

    page.evaluate(f"() => {{ const keep = {NODE}.widgets[0]; keep.value = '1, 3-4'; keep.callback(keep.value) }}")  # by hand
    boxes = page.locator(".sa3-batch-keep input")
    assert [boxes.nth(i).is_checked() for i in range(4)] == [True, False, True, True]
    assert editor.dialogs() == [] and editor.errors == []


def test_the_switch_to_the_original_keeps_the_place(editor: Editor):
    page = editor.page
    row = page.locator(".sa3-batch-row").nth(1)
    state = "row => [...row.querySelectorAll('audio')].map(audio => [audio.paused, audio.currentTime])"
    picture = row.locator(".sa3-batch-picture").bounding_box()
    page.mouse.click(picture["x"] + picture["width"] / 2, picture["y"] + picture["height"] / 2)
    handle = row.element_handle()
    page.wait_for_function("row => Math.abs(row.querySelector('audio').currentTime - 0.75) < 0.05", arg=handle)
    row.locator(".sa3-batch-sides button").nth(1).click()
    (_, item), (_, original) = row.evaluate(state)
    assert abs(original - item) < 0.05
    row.evaluate("row => row.querySelectorAll('audio').forEach(audio => { audio.loop = true })")  # however slow the machine
    row.locator(".sa3-batch-play").click()
    page.wait_for_function("row => { const b = row.querySelectorAll('audio')[1]; return !b.paused && b.currentTime > 0.8 }", arg=handle)
    item_paused, original_paused, moved = row.evaluate(
        """row => {
          const [item, original] = row.querySelectorAll('audio'), { currentTime } = original
          row.querySelector('.sa3-batch-sides button').click()
          return [item.paused, original.paused, Math.abs(item.currentTime - currentTime)]
        }"""
    )
    assert not item_paused and original_paused and moved < 0.05
    page.locator(".sa3-batch-play").nth(0).click()  # another player stops the first
    assert row.evaluate(state)[0][0]
    assert editor.errors == []


def test_a_reload_brings_the_choice_and_the_items_back(editor: Editor):
    saved = editor.page.evaluate("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")
    editor.open()
    page = editor.page
    page.wait_for_function("!!(window.app?.graph && window.LiteGraph?.registered_node_types?.SA3_PreviewBatch)", timeout=60_000)
    editor.load(saved, "again")
    assert page.evaluate(KEEP) == "1, 3-4"
    page.wait_for_function(LOADED, timeout=60_000)
    boxes = page.locator(".sa3-batch-keep input")
    assert [boxes.nth(i).is_checked() for i in range(4)] == [True, False, True, True]
    assert editor.errors == []


def drop(editor: Editor, name: str, content: bytes, kind: str = "audio/wav") -> None:
    editor.page.evaluate(DROP, [name, kind, base64.b64encode(content).decode()])


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    sound = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)) + chunk(b"data", bytes(1600))
    body = b"WAVE" + sound + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


TYPES = "() => window.app.graph.nodes.map(node => node.type).sort().join()"


def types(editor: Editor) -> str:
    return editor.page.evaluate(TYPES)


def wait_for_types(editor: Editor, wanted: str) -> None:
    editor.page.wait_for_function(f"wanted => ({TYPES})() === wanted", arg=wanted, timeout=60_000)


SMALL = {"nodes": [{"id": 1, "type": "SA3_EmptyLatent", "pos": [0, 0], "size": [280, 140], "widgets_values": [3.0, 1, 6.0, ""]}],
         "links": [], "version": 0.4}  # fmt: skip
PROMPT = {"1": {"class_type": "SA3_ModelLoader", "inputs": {"model": "demo"}}}


def test_a_saved_wav_opens_its_graph(comfy: Server, editor: Editor):
    graph = types(editor)
    editor.load(SMALL, "small")
    drop(editor, "kept.wav", kept_files(comfy)[-1].read_bytes())
    wait_for_types(editor, graph)
    assert editor.page.evaluate(KEEP) in ("3", "1, 3-4") and editor.errors == []


LOADERS = "() => app.graph.nodes.filter(node => node.type === 'LoadAudio').map(node => node.widgets[0].value)"
DRAG = """index => {
  const transfer = new DataTransfer(), { canvas } = window.app.canvas
  document.querySelectorAll('.sa3-batch-grip')[index].dispatchEvent(new DragEvent('dragstart', { dataTransfer: transfer, bubbles: true }))
  const frame = canvas.getBoundingClientRect(), [x, y] = [frame.left + 40, frame.bottom - 40]
  const options = { dataTransfer: transfer, bubbles: true, cancelable: true, clientX: x, clientY: y }
  const taken = !canvas.dispatchEvent(new DragEvent('dragover', options))
  canvas.dispatchEvent(new DragEvent('drop', options))
  return [taken, transfer.getData('DownloadURL'), transfer.getData('text/uri-list')]
}"""


def test_an_item_gives_its_seed_and_its_file(comfy: Server, editor: Editor):
    page, folder = editor.page, comfy.base_directory / "input"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seed = page.locator(".sa3-batch-seed").nth(2)
    number = seed.inner_text().removeprefix("seed ")
    assert int(number) < 2**53
    seed.click()
    page.wait_for_function("() => document.querySelectorAll('.sa3-batch-seed')[2].textContent === 'copied'")
    assert page.evaluate("() => navigator.clipboard.readText()") == number
    page.wait_for_function("n => document.querySelectorAll('.sa3-batch-seed')[2].textContent === `seed ${n}`", arg=number)

    if screenshots := os.environ.get("SA3_SCREENSHOTS"):
        page.locator(".sa3-batch").screenshot(path=f"{screenshots}/preview_batch_{'nodes2' if editor.nodes2 else 'litegraph'}.png")
    right = "one => one.getBoundingClientRect().right"
    assert page.locator(".sa3-batch-tools").first.evaluate(right) <= page.locator(".sa3-batch-row").first.evaluate(right)  # not cut
    page.locator(".sa3-batch-use").nth(2).click()  # a new Load Audio
    page.wait_for_function(f"() => ({LOADERS})().length === 1", timeout=30_000)
    (name,) = page.evaluate(LOADERS)
    assert name.startswith("sa3_item_3_seed_") and number in name
    shown = page.evaluate("async () => [...new Uint8Array(await (await fetch(document.querySelectorAll('.sa3-batch-row')[2]"
                          ".querySelector('audio').src)).arrayBuffer())]")  # fmt: skip
    assert (folder / name).read_bytes() == bytes(shown)
    page.locator(".sa3-batch-use").nth(0).click()  # the same Load Audio
    page.wait_for_function(f"() => ({LOADERS})()[0].startsWith('sa3_item_1')", timeout=30_000)

    taken, download, address = page.evaluate(DRAG, 1)
    assert (
        taken and address.startswith("http") and download == f"audio/wav:{download.split(':')[1]}:{address}" and "sa3_item_2_" in download
    )
    page.wait_for_function(f"() => ({LOADERS})().some(name => name.startsWith('sa3_item_2'))", timeout=30_000)
    assert len(page.evaluate(LOADERS)) == 2 and editor.errors == []


def test_an_item_that_is_gone_cannot_be_used(comfy: Server, editor: Editor):
    page, before = editor.page, len(list((comfy.base_directory / "input").iterdir()))
    use = page.locator(".sa3-batch-use")
    page.route("**/view?*filename=*", lambda route: route.fulfill(status=404, body="not found"))
    count = use.count()
    use.first.click()  # ComfyUI has deleted the file since the list was shown
    page.wait_for_function("() => [...document.querySelectorAll('.p-toast-message')].some(one => one.innerText.includes('404'))")
    assert use.count() == count == 4
    editor.load(page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))"), "gone")
    page.wait_for_function("() => document.querySelectorAll('.sa3-batch-gone').length === 4")
    assert use.count() == page.locator(".sa3-batch-grip").count() == 0
    page.unroute("**/view?*filename=*")
    assert len(list((comfy.base_directory / "input").iterdir())) == before
    editor.errors.clear()  # the browser reports each 404


def test_unused_seeds_are_fixed_in_new_nodes_only(editor: Editor):
    control = "node => node.widgets.find(widget => widget.name === 'control_after_generate').value"
    assert editor.page.evaluate(f"() => ({control})(LiteGraph.createNode('SA3_SAMEDecode'))") == "fixed"
    assert editor.page.evaluate(f"() => ({control})(LiteGraph.createNode('SA3_Sampler'))") == "randomize"
    saved = {"id": 1, "type": "SA3_SAMEDecode", "pos": [0, 0], "size": [280, 200], "widgets_values": [128, 32, "seeded", 7, "randomize"]}
    editor.load({"nodes": [saved], "links": [], "version": 0.4}, "saved")
    assert editor.page.evaluate(f"() => ({control})(app.graph.nodes[0])") == "randomize" and editor.errors == []


def test_the_quality_of_a_saved_graph_stays(editor: Editor):
    node = {"id": 1, "type": "SA3_SaveAudio", "pos": [0, 0], "size": [280, 200], "widgets_values": ["audio/x", "mp3", "low"]}
    editor.load({"nodes": [node], "links": [], "version": 0.4}, "quality")
    for _ in range(2):
        values = "() => Object.fromEntries(app.graph.nodes[0].widgets.map(w => [w.name, w.value]))"
        found = editor.page.evaluate(values)
        assert {"filename_prefix": "audio/x", "format": "mp3", "quality": "low"}.items() <= found.items()
        editor.load(editor.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))"), "again")
    node["widgets_values"] = ["audio/x", "wav16", ""]  # of an older version; the third is the player's
    editor.load({"nodes": [node], "links": [], "version": 0.4}, "older")
    assert {"format": "wav16", "quality": "high"}.items() <= editor.page.evaluate(values).items() and editor.errors == []


@pytest.mark.parametrize("kind", ["mp3", "opus", "m4a"])
def test_a_saved_lossy_file_opens_its_graph(tmp_path: Path, editor: Editor, kind: str):
    audio_files.write(tmp_path / "a", torch.zeros(2, 500), 44100, kind, {"prompt": "{}", "workflow": json.dumps(SMALL)})
    editor.load({**SMALL, "nodes": []}, "empty")
    drop(editor, f"kept.{kind}", (tmp_path / "a").read_bytes(), {"mp3": "audio/mpeg", "opus": "audio/ogg", "m4a": "audio/x-m4a"}[kind])
    wait_for_types(editor, "SA3_EmptyLatent")
    assert editor.errors == []


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        ([chunk(b"LIST", b"INFO" + chunk(b"ICMT", json.dumps({"workflow": json.dumps(SMALL)}).encode()))], "SA3_EmptyLatent"),
        ([chunk(b"sa3 ", json.dumps({"prompt": PROMPT, "x": float("nan")}).encode())], "SA3_ModelLoader"),
    ],
    ids=["in a comment", "API form with NaN"],
)
def test_other_ways_to_carry_a_graph(editor: Editor, chunks, wanted):
    editor.load({**SMALL, "nodes": []}, "empty")
    drop(editor, "other.wav", riff(*chunks))
    wait_for_types(editor, wanted)
    assert editor.errors == []


@pytest.mark.parametrize(("content", "ours"), [(riff(), False), (riff(chunk(b"sa3 ", b"not json")), True)], ids=["plain", "damaged"])
def test_a_wav_without_a_graph_is_left_to_comfyui(editor: Editor, content: bytes, ours: bool):
    """ComfyUI adds a Load Audio node, or reports that it found no workflow, depending on its version."""
    editor.load(SMALL, "small")
    drop(editor, "plain.wav", content)
    toast = "[...document.querySelectorAll('.p-toast-message')].map(one => one.innerText).join()"
    editor.page.wait_for_function(f"() => ({TYPES})().includes('LoadAudio') || {toast}.includes('plain.wav')", timeout=60_000)
    if ours:
        editor.page.wait_for_function(f"() => {toast}.includes('damaged')")
    assert "SA3_EmptyLatent" in types(editor) and editor.errors == []
