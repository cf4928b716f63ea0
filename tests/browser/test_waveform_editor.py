"""The waveform editor in a real ComfyUI, by mouse and keyboard, in both renderers. SA3_SCREENSHOTS: a folder for screenshots.

Logic that needs no page is tested in tests/web.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

from playwright.sync_api import TimeoutError

from tools.launcher.editor import Editor
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
SECONDS, RATE, PITCH = 4.0, 44100, 220.0
LONG = 1201  # seconds of a recording that the editor shows at low resolution
INPAINT, CONTINUE = "SA3_InpaintMask", "SA3_Continue"

FIND = """const node = app.canvas.graph.nodes.find(n => n.type === type)
  const editor = node.widgets.find(w => w.name === 'waveform').editor;"""
LOOK = f"""type => {{
  {FIND}
  const {{view, regions, selected, cursor, clip, player, parts, model}} = editor
  return {{
    state: model.state, regions, selected, cursor, duration: clip?.duration ?? 0, start: view.start, span: view.span,
    playing: player.playing, heard: player.audio.currentTime, audio: [player.audio.readyState, player.audio.duration],
    hint: parts.hint.textContent, message: parts.message.textContent, properties: node.properties.sa3_waveform ?? null,
  }}
}}"""
PLACE = f"""type => {{  // true once nothing has moved it for a while: opening a workflow glides
  {FIND}
  if (node.size[0] !== 560) node.setSize([560, 520])
  const [x, y] = node.pos, view = app.canvas.ds, wanted = [1, 420 - x, 150 - y]
  const same = [view.scale, ...view.offset].every((value, i) => Math.abs(value - wanted[i]) < 0.5)
  window.still = same ? (window.still ?? 0) + 1 : 0
  view.scale = 1; view.offset = wanted.slice(1)
  app.canvas.setDirty(true, true)
  return window.still > 20 && editor.clip && !editor.surface.frame
}}"""


class Waveform:
    """The editor on one node of the open workflow."""

    def __init__(self, editor: Editor, node: str) -> None:
        self.editor, self.node = editor, node
        self.page.wait_for_function(PLACE, arg=node)

    @property
    def page(self):
        return self.editor.page

    @property
    def stage(self):
        return self.page.locator(".sa3w-stage:visible").first

    def look(self) -> dict:
        return self.page.evaluate(LOOK, self.node)

    @property
    def state(self):
        return self.look()["state"]

    def until(self, condition: str, *, timeout: float = 60.0) -> None:
        """Waits until a JavaScript expression of `node` and `editor` is true."""
        try:
            self.page.wait_for_function(f"type => {{ {FIND} return {condition} }}", arg=self.node, timeout=timeout * 1000)
        except TimeoutError as error:
            raise AssertionError(f"never: {condition}; seen: {self.look()}") from error

    def settles(self, seconds: float) -> None:
        """Waits until the state is this number of seconds; a busy page handles the mouse late."""
        self.page.wait_for_function(f"type => Math.abs(({LOOK})(type).state - {seconds}) < 0.03", arg=self.node, timeout=60_000)

    def at(self, seconds: float, height: float = 0.3) -> tuple[float, float]:
        """Screen position of a time, at a fraction of the canvas height."""
        box, seen = self.stage.bounding_box(), self.look()
        return box["x"] + 1 + (seconds - seen["start"]) / seen["span"] * (box["width"] - 2), box["y"] + height * box["height"]

    def drag(self, start: float, end: float, height: float = 0.3) -> None:
        self.page.mouse.move(*self.at(start, height))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((start + end) / 2, height))
        self.page.mouse.move(*self.at(end, height))
        self.page.mouse.up()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.stage.press(key)

    def click(self, name: str) -> None:
        self.page.locator(f".sa3w-button[data-action={name}]:visible").first.click()

    def seconds(self) -> list[list[float]]:
        return [[round(time, 1) for time in region] for region in self.look()["regions"]]

    def type(self, text: str) -> None:
        """Replaces the text of the text widget."""
        state = self.state
        next(box for box in self.page.locator("textarea:visible").all() if box.input_value() == state).fill(text)

    def choose(self, recording: str) -> None:
        """Selects a file in the graph's loader."""
        self.page.evaluate("name => { app.graph.nodes.find(n => n.type === 'LoadAudio').widgets[0].value = name }", recording)

    def picture(self, name: str) -> None:
        if folder := os.environ.get("SA3_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}_{'nodes2' if self.editor.nodes2 else 'litegraph'}.png")


def read(name: str) -> dict:
    """A shared workflow with this module's recording, the region 0.5-1, and few steps."""
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        if node["type"] == "LoadAudio":
            node["widgets_values"][0] = "recording.wav"
        if node["type"] == "SA3_InpaintMask":
            node["widgets_values"] = ["0.5-1"]
        if node["type"] == "SA3_Sampler":
            node["widgets_values"][2] = 3
    return graph


@pytest.fixture(scope="module")
def comfy(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a recording: a tone that fades in from silence every second."""
    base = tmp_path_factory.mktemp("comfyui")
    (base / "input").mkdir()
    values = (int(20000 * (i / RATE % 1) * math.sin(2 * math.pi * PITCH * i / RATE)) for i in range(int(SECONDS * RATE)))
    with wave.open(str(base / "input" / "recording.wav"), "wb") as out:
        out.setparams((2, 2, RATE, 0, "NONE", ""))
        out.writeframes(b"".join(struct.pack("<hh", value, value) for value in values))
    (base / "input" / "broken.wav").write_bytes(b"RIFF of nothing")
    with wave.open(str(base / "input" / "long.wav"), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(b"\x00\x20" * 8000 * LONG)
    with Server(tree, base, packs=[ROOT], frontend=True) as server:
        yield server


@pytest.fixture
def inpaint(editor: Editor) -> Iterator[Waveform]:
    """The shared workflow with the region 0.5-1. Fails where a test causes an error of the page."""
    editor.errors.clear()
    editor.load(read("inpaint"), "inpaint")
    yield Waveform(editor, INPAINT)
    assert editor.errors == []


def test_the_mouse_makes_moves_resizes_and_deletes(inpaint: Waveform):
    assert inpaint.look()["duration"] == SECONDS and inpaint.seconds() == [[0.5, 1.0]]
    inpaint.drag(2.0, 3.0)
    assert inpaint.seconds() == [[0.5, 1.0], [2.0, 3.0]] and inpaint.look()["selected"] == 1
    inpaint.drag(2.5, 2.9, height=0.7)  # by its body, in the spectrogram
    assert inpaint.seconds() == [[0.5, 1.0], [2.4, 3.4]]
    inpaint.drag(3.4, 3.8)
    assert inpaint.seconds() == [[0.5, 1.0], [2.4, 3.8]]
    inpaint.picture("regions")
    inpaint.drag(2.4, 0.8)  # over the other region, which merges them
    assert inpaint.seconds() == [[0.5, 3.8]]
    inpaint.press("Control+z")
    assert inpaint.seconds() == [[0.5, 1.0], [2.4, 3.8]]
    inpaint.drag(3.0, 9.0)  # not beyond the end
    assert inpaint.seconds()[1] == [2.6, 4.0]
    inpaint.press("Delete")
    assert inpaint.state == "0.5-1"
    assert inpaint.page.evaluate(f"() => app.graph.nodes.some(n => n.type === '{INPAINT}')"), "the key deleted the node"
    inpaint.click("undo")
    inpaint.click("undo")
    inpaint.click("redo")
    assert inpaint.seconds() == [[0.5, 1.0], [2.6, 4.0]]


def test_the_keys_do_all_that_the_mouse_does(inpaint: Waveform):
    inpaint.stage.focus()
    inpaint.press("Home", "ArrowDown", "ArrowRight", "Shift+ArrowRight", "Alt+ArrowLeft")
    assert inpaint.state == "0.61-1.1"
    inpaint.press("Escape", "End", "Shift+ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowLeft", "Enter")
    assert inpaint.state == "0.61-1.1, 3.7-3.9"
    inpaint.press("ArrowUp", "Delete")
    assert inpaint.state == "3.7-3.9"
    inpaint.press("Control+z", "Control+z", "Control+y", "Control+Shift+z", "Control+z", "Control+z")
    assert inpaint.state == "0.61-1.1"
    inpaint.press("Control+z", "Control+z", "Control+z")
    assert inpaint.state == "0.5-1"
    inpaint.press("+", "+", "Home")
    seen = inpaint.look()
    assert seen["span"] == pytest.approx(1.0) and seen["start"] == 0 and seen["cursor"] == 0
    inpaint.press("End", "-")
    assert inpaint.look()["span"] == pytest.approx(2.0) and inpaint.look()["cursor"] == SECONDS
    inpaint.press("0", "h")
    assert inpaint.page.locator(".sa3w-keys:visible").count() == 1
    inpaint.picture("keys")


def test_edges_snap(inpaint: Waveform):
    inpaint.click("beats")
    inpaint.page.locator(".sa3w-number input:visible").first.fill("100")  # a beat each 0.6 s
    inpaint.page.locator(".sa3w-number input:visible").first.press("Enter")
    inpaint.drag(1.75, 2.5)
    assert inpaint.state == "0.5-1, 1.8-2.4"
    inpaint.picture("beats")
    inpaint.press("ArrowRight")
    assert inpaint.state == "0.5-1, 2.4-3"
    inpaint.click("beats")
    inpaint.click("zero")
    inpaint.drag(1.204, 1.707)
    for time in inpaint.look()["regions"][1]:
        crossings = time * 2 * PITCH  # whole numbers are zero crossings; the edge is the sample after one
        assert 0 <= (crossings - round(crossings)) / (2 * PITCH) * RATE < 1.001
    assert inpaint.look()["properties"] == {"zero": True, "bpm": 100}


def test_text_and_picture_follow_each_other(inpaint: Waveform):
    inpaint.type("0:02-0:03, 1-1.5")
    inpaint.until("editor.regions.length === 2")
    assert inpaint.look()["regions"] == [[1, 1.5], [2, 3]] and inpaint.state == "0:02-0:03, 1-1.5"
    inpaint.type("2-3, 1.5-")
    inpaint.until("editor.error")
    inpaint.until("editor.parts.hint.textContent.includes('1.5-')")  # the words are drawn a frame later
    inpaint.drag(3.2, 3.6)
    assert inpaint.state == "2-3, 1.5-", "what cannot be read must stay"
    inpaint.picture("unreadable")
    inpaint.type("2-3")
    inpaint.until("!editor.error")
    inpaint.drag(3.2, 3.6)
    text = inpaint.state
    assert text.startswith("2-3, 3.") and inpaint.editor.prompt()[node_id(inpaint)]["inputs"]["regions"] == text
    inpaint.type("3-9")
    inpaint.until("editor.view.to === 9 && editor.parts.hint.textContent.includes('0:04')")
    assert inpaint.look()["regions"] == [[3, 9]]


def node_id(waveform: Waveform) -> str:
    return waveform.page.evaluate("type => String(app.graph.nodes.find(n => n.type === type).id)", waveform.node)


def test_it_plays_from_a_point_and_a_region(inpaint: Waveform):
    inpaint.page.mouse.click(*inpaint.at(2.0))
    inpaint.press("Space")
    inpaint.until("editor.player.audio.currentTime > 2.1")
    ready, duration = inpaint.look()["audio"]
    assert ready >= 2 and duration == pytest.approx(SECONDS, abs=0.01)
    inpaint.press("Space")
    assert not inpaint.look()["playing"]
    inpaint.page.mouse.click(*inpaint.at(0.75))
    inpaint.click("playRegion")
    inpaint.until("!editor.player.playing && editor.player.audio.currentTime >= 1")
    assert inpaint.look()["heard"] < 3, "it went on to the end of the recording"
    inpaint.click("loop")
    inpaint.click("playRegion")
    round_again = "editor.player.round.context.currentTime - editor.player.round.began > 0.6 && editor.head >= 0.5 && editor.head < 1"
    inpaint.until(f"editor.player.looping && {round_again}")
    inpaint.press("Escape")
    assert not inpaint.look()["playing"]


def test_zoom_and_scroll_with_the_wheel(inpaint: Waveform):
    graph = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"
    before = inpaint.page.evaluate(graph)
    inpaint.page.mouse.click(*inpaint.at(2.0))
    inpaint.page.mouse.wheel(0, -600)
    inpaint.until("editor.view.span < 2")
    seen = inpaint.look()
    assert seen["start"] + seen["span"] / 2 == pytest.approx(2.0, abs=0.05), "the time under the mouse stays there"
    inpaint.page.mouse.wheel(300, 0)
    inpaint.until(f"editor.view.start > {seen['start']}")
    assert inpaint.page.evaluate(graph) == before, "the graph moved"
    inpaint.picture("zoomed")
    inpaint.page.mouse.click(*inpaint.at(0, height=0.97))  # the overview
    inpaint.until("node.properties.sa3_waveform?.span < 2")


def test_saved_reloaded_copied_and_undone_by_the_graph(inpaint: Waveform):
    page = inpaint.page
    inpaint.drag(2.0, 3.0)
    inpaint.press("+")
    inpaint.until("node.properties.sa3_waveform?.span")
    wanted = inpaint.look()
    saved = page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    (node,) = (node for node in saved["nodes"] if node["type"] == INPAINT)
    assert node["widgets_values"] == [wanted["state"]]
    title = page.evaluate(
        f"""type => {{ {FIND} const [x, y] = node.getBounding(), v = app.canvas.ds, f = app.canvas.canvas.getBoundingClientRect()
        return [(x + 100 + v.offset[0]) * v.scale + f.left, (y + 15 + v.offset[1]) * v.scale + f.top] }}""",
        INPAINT,
    )
    page.mouse.click(*title)
    page.keyboard.press("Control+c")
    page.keyboard.press("Control+v")
    page.wait_for_function(f"() => app.graph.nodes.filter(n => n.type === '{INPAINT}').length === 2")
    copies = page.evaluate(
        """type => app.graph.nodes.filter(n => n.type === type)
        .map(n => [n.widgets.find(w => w.name === 'regions').value, n.properties.sa3_waveform])""",
        INPAINT,
    )
    assert copies[0] == copies[1] == [wanted["state"], wanted["properties"]]
    # The graph's undo removes the copy, then the region. Old front ends record a paste late; an undo before that does nothing.
    alone = f"() => app.graph.nodes.filter(n => n.type === '{INPAINT}').length === 1"
    for _ in range(5):
        page.keyboard.press("Control+z")
        try:
            page.wait_for_function(alone, timeout=5000)
            break
        except TimeoutError:
            continue
    assert page.evaluate(alone)
    while inpaint.state != "0.5-1":
        before = inpaint.look()
        page.keyboard.press("Control+z")
        kept = json.dumps(json.dumps([before["state"], before["properties"]], separators=(",", ":")))
        inpaint.until(f"JSON.stringify([editor.model.state, node.properties.sa3_waveform ?? null]) !== {kept}")
    inpaint.editor.open()
    inpaint.editor.load(saved, "saved")
    again = Waveform(inpaint.editor, INPAINT).look()
    for key in ("state", "regions", "properties", "start", "span"):
        assert again[key] == wanted[key], key


def test_the_graph_runs_with_what_was_drawn(inpaint: Waveform):
    inpaint.drag(2.0, 3.0)
    sent = inpaint.editor.prompt()[node_id(inpaint)]["inputs"]
    assert set(sent) == {"latent", "audio", "regions"} and sent["regions"] == inpaint.state
    assert inpaint.page.locator(".sa3w-button[data-action=after]:visible").count() == 0
    result = inpaint.editor.run().split("filename=")[1].split("&")[0]
    assert inpaint.editor.dialogs() == []
    inpaint.click("after")
    inpaint.until(f"editor.sounds.shown.clip.url.includes('{result}') && editor.sounds.shown.at === 0")
    inpaint.picture("after")
    inpaint.page.mouse.click(*inpaint.at(2.5))
    inpaint.press("Space")
    inpaint.until(f"editor.player.audio.src.includes('{result}') && editor.head > 2.5")
    inpaint.press("Space", "a")
    inpaint.until("editor.sounds.shown.clip === editor.clip && editor.clip.url.includes('recording.wav')")


def test_audio_that_is_no_file_shows_after_a_run(comfy: Server, inpaint: Waveform):
    """A node between the loader and the editor computes new audio, which the editor shows after a run of its own node."""
    page = inpaint.page
    page.evaluate(
        """type => {
          const graph = app.graph, node = graph.nodes.find(n => n.type === type), loader = graph.nodes.find(n => n.type === 'LoadAudio')
          const empty = LiteGraph.createNode('SA3_SAMEDecode')
          graph.add(empty)
          const encode = graph.nodes.find(n => n.type === 'SA3_SAMEEncode'), model = graph.nodes.find(n => n.type === 'SA3_ModelLoader')
          encode.connect(0, empty, 0)
          model.connect(2, empty, 1)
          empty.connect(0, node, node.inputs.findIndex(input => input.name === 'audio'))
        }""",
        INPAINT,
    )
    inpaint.until("!editor.clip && editor.parts.message.textContent")
    assert inpaint.state == "0.5-1" and "once" in inpaint.look()["message"]
    inpaint.picture("before_a_run")
    inpaint.editor.run()
    inpaint.until("editor.clip")
    assert inpaint.look()["duration"] == pytest.approx(SECONDS, abs=0.1)
    page.evaluate(
        """type => {
          const node = app.graph.nodes.find(n => n.type === type), second = LiteGraph.createNode(type)
          app.graph.add(second)
          node.connect(0, second, 0)
          window.second = second.widgets.find(widget => widget.name === 'waveform').editor
        }""",
        INPAINT,
    )
    inpaint.until("window.second.clip && window.second.clip.url === editor.clip.url")
    page.evaluate("() => app.graph.remove(window.second.node)")
    (written,) = (comfy.base_directory / "temp").glob("sa3_*.wav")
    stamp = written.stat().st_mtime_ns
    inpaint.drag(2.0, 3.0)
    inpaint.editor.run()
    assert [one.stat().st_mtime_ns for one in (comfy.base_directory / "temp").glob("sa3_*.wav")] == [stamp]
    saved = page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    inpaint.editor.open()
    inpaint.editor.load(saved, "saved")
    inpaint.until("editor.clip")  # without a run
    (node,) = (node for node in saved["nodes"] if node["type"] == INPAINT)
    assert node["properties"]["sa3_shown"]["shown"]["filename"] == written.name
    node["properties"]["sa3_shown"]["shown"]["filename"] = "sa3_gone.wav"
    inpaint.editor.load(saved, "gone")
    inpaint.until("!editor.clip && /once/.test(editor.parts.message.textContent)")
    inpaint.editor.run()  # the node is cached
    inpaint.until("editor.clip")


def test_what_another_recording_gave_is_not_shown_for_one_that_cannot_be_read(inpaint: Waveform):
    """The browser can read neither of two files: the result of a run with the first is not shown for the second."""
    executed = """([type, filename]) => {
      app.graph.nodes.find(n => n.type === type).onExecuted({ sa3_waveform: [{ filename, subfolder: '', type: 'input' }] })
    }"""
    inpaint.choose("broken.wav")
    inpaint.until("!editor.clip && /cannot read/.test(editor.parts.message.textContent)")
    inpaint.page.evaluate(executed, [INPAINT, "recording.wav"])
    inpaint.until("editor.clip")
    inpaint.choose("gone.wav")
    inpaint.until("!editor.clip && /not found/.test(editor.parts.message.textContent)")
    inpaint.choose("broken.wav")
    inpaint.until("editor.clip")


def test_a_long_recording_shows_at_low_resolution_after_a_run(comfy: Server, inpaint: Waveform):
    inpaint.choose("long.wav")
    inpaint.until("!editor.clip && /low-resolution/.test(editor.parts.message.textContent)")
    shutil.copy(comfy.base_directory / "input" / "long.wav", comfy.base_directory / "temp" / "coarse.wav")
    result = "{ sa3_waveform: [{ filename: 'coarse.wav', subfolder: '', type: 'temp' }] }"
    inpaint.page.evaluate(f"type => {{ {FIND} node.onExecuted({result}) }}", INPAINT)
    inpaint.until("editor.clip?.coarse")
    assert inpaint.look()["duration"] == LONG
    inpaint.until("editor.clip.url.includes('filename=long.wav')")  # the file itself is played


def test_regions_that_a_subgraph_promotes(inpaint: Waveform):
    """The editor inside edits the widget outside, and shows what is typed there."""
    page = inpaint.page
    page.evaluate(
        """type => {
          const mask = app.graph.nodes.find(node => node.type === type), { subgraph, node } = app.graph.convertToSubgraph(new Set([mask]))
          const inside = subgraph.nodes.find(node => node.type === type)
          const promoted = subgraph.addInput('regions', 'STRING')
          promoted.connect(inside.inputs.find(input => input.name === 'regions'), inside)
          window.outside = node.widgets.find(widget => widget.name === 'regions')
          app.canvas.openSubgraph(subgraph, node)
          window.still = 0 // the front end fits the view to the subgraph a moment later
        }""",
        INPAINT,
    )
    page.wait_for_function("type => app.canvas.graph.nodes.some(node => node.type === type)", arg=INPAINT)
    inside = Waveform(inpaint.editor, INPAINT)
    inside.drag(2.0, 3.0)
    drawn = inside.state
    assert drawn.startswith("0.5-1, 2") and page.evaluate("window.outside.value") == drawn
    page.evaluate("() => { window.outside.value = '1-2'; window.outside.callback?.('1-2') }")
    inside.until("editor.regions[0]?.[1] === 2")
    inside.press("Control+z")
    inside.until(f"window.outside.value === {json.dumps(drawn)}")
    inside.picture("promoted")
    assert [node["inputs"]["regions"] for node in inside.editor.prompt().values() if node["class_type"] == INPAINT] == [drawn]
    page.evaluate("() => app.canvas.setGraph(app.canvas.graph.rootGraph)")


def test_the_panel_of_properties_shares_the_text(inpaint: Waveform):
    """Next to the panel of newer front ends there is one editor, on the node, and both show the same regions."""
    page, setting = inpaint.page, "Comfy.RightSidePanel.IsOpen"
    if page.evaluate("name => app.extensionManager.setting.get(name)", setting) is None:
        pytest.skip("this front end has no panel of properties")
    opened = """([name, open, type]) => {
      app.canvas.selectItems([app.canvas.graph.nodes.find(node => node.type === type)]) // as a click: the panel follows
      return app.extensionManager.setting.set(name, open)
    }"""
    page.evaluate(opened, [setting, True, INPAINT])
    texts = "[...document.querySelectorAll('textarea')].filter(text => text.offsetParent && text.value === editor.model.state)"
    inpaint.until(f"{texts}.length === 2")
    inpaint.picture("panel")
    inpaint.drag(2.0, 3.0)
    inpaint.until(f"editor.regions.length === 2 && {texts}.length === 2")
    assert page.locator(".sa3w-stage:visible").count() == 1
    inpaint.type("1-1.5")
    inpaint.until(f"editor.regions[0][0] === 1 && {texts}.length === 2")
    page.evaluate(opened, [setting, False, INPAINT])


def test_a_recording_that_cannot_be_read_is_said(inpaint: Waveform):
    inpaint.choose("broken.wav")
    inpaint.until("!editor.clip && /cannot read/.test(editor.parts.message.textContent)")
    inpaint.choose("gone.wav")
    inpaint.until("!editor.clip && /not found/.test(editor.parts.message.textContent)")
    assert inpaint.state == "0.5-1"
    inpaint.choose("recording.wav")
    inpaint.until("editor.clip")


def test_the_recording_is_found_at_the_far_end(inpaint: Waveform):
    """Through a reroute, through the latent when `audio` is not connected, and inside a subgraph."""
    change = """([type, what]) => {
      const {graph} = app, find = type => graph.nodes.find(node => node.type === type), node = find(type), loader = find('LoadAudio')
      const slot = node.inputs.findIndex(input => input.name === 'audio')
      if (what === 'reroute') {
        const reroute = LiteGraph.createNode('Reroute')
        graph.add(reroute)
        loader.connect(0, reroute, 0)
        reroute.connect(0, node, slot)
      }
      if (what === 'latent') node.disconnectInput(slot)
      if (what === 'nothing') find('SA3_SAMEEncode').disconnectInput(0)
      if (what === 'subgraph') {
        loader.connect(0, node, slot)
        graph.convertToSubgraph(new Set([loader]))
      }
    }"""
    for what in ("reroute", "latent"):
        inpaint.page.evaluate(change, [INPAINT, what])
        inpaint.until("(editor.sync(), editor.sounds.source.includes('recording.wav')) && editor.clip")
    inpaint.page.evaluate(change, [INPAINT, "nothing"])
    inpaint.until("!editor.clip && /connect one/.test(editor.parts.message.textContent)")
    inpaint.page.evaluate(change, [INPAINT, "subgraph"])
    inpaint.until("editor.sounds.source.includes('recording.wav') && editor.clip")


@pytest.mark.parametrize("side", ["after", "before"])
def test_the_new_part_of_a_continuation(editor: Editor, side: str):
    editor.open()  # front end 1.32.9 moves a graph further away with each one that is loaded in Nodes 2.0, until clicks miss it
    editor.errors.clear()
    editor.load(read("continue"), "continue")
    waveform = Waveform(editor, CONTINUE)
    editor.page.evaluate(
        """([type, side]) => {
          const node = app.graph.nodes.find(n => n.type === type), widget = name => node.widgets.find(w => w.name === name)
          for (const [name, value] of [['side', side], ['seconds', 2]]) {
            widget(name).value = value
            widget(name).callback?.(value)
          }
        }""",
        [CONTINUE, side],
    )
    edge = SECONDS + 2 if side == "after" else -2
    waveform.until(f"editor.regions[0]?.[{1 if side == 'after' else 0}] === {edge}")
    waveform.drag(edge, edge + (1 if side == "after" else -1))
    waveform.settles(3.0)
    waveform.picture(f"continue_{side}")
    waveform.drag(1.0, 2.0)  # no free regions here
    assert waveform.state == pytest.approx(3.0, abs=0.03) and len(waveform.look()["regions"]) == 1
    waveform.press("ArrowRight", "Control+z", "Control+z")
    assert waveform.state == 2
    waveform.page.mouse.click(*waveform.at(1.0))
    waveform.press("Space")
    waveform.until("editor.player.audio.currentTime > 1.05")
    waveform.press("Space")
    (sent,) = (node["inputs"] for node in editor.prompt().values() if node["class_type"] == CONTINUE)
    assert set(sent) == {"audio", "vae", "seconds", "side", "padding", "chunk_size", "overlap", "batch_size"} and sent["seconds"] == 2
    assert editor.errors == []
