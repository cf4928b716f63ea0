"""SA3_ModelLoader's button in a browser: the dialog, a download that is stopped and resumed, and the loader running the model."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

from tools.launcher.editor import Editor
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "core"))

from core_support import DATA, TEXT_ENCODER
from hub_server import Hub, Repository

from sa3_core.checkpoints.releases import MIRROR, RELEASES, VARIANTS

SHOTS = os.environ.get("SA3_SCREENSHOTS")
GRAPH = {
    "1": {"class_type": "SA3_ModelLoader", "inputs": {"model": "auto", "file": "by name", "dtype": "fp32", "text_encoder": "auto"}},
    "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
}
LOADER = "window.app.graph.getNodeById(1)"
LABEL = f"{LOADER}.widgets.find(widget => widget.name === 'get_model').element.textContent"
LINE = f"({LOADER}.widgets.find(widget => widget.type === 'sa3_line')?.value ?? '')"


class HeldHub(Hub):
    """A Hub whose large files wait for `gate`; `reached` is set while one waits."""

    gate, reached = threading.Event(), threading.Event()

    def send(self, status, headers, body, http) -> None:
        if http.command == "GET" and len(body) > 100_000:
            self.reached.set()
            assert self.gate.wait(60)
        super().send(status, headers, body, http)


@pytest.fixture(scope="module")
def hub() -> Iterator[HeldHub]:
    """The 16-bit mirror with a tiny small-music."""
    files = {name: (DATA / "small" / name).read_bytes() for name in ("model_config.json", "model.safetensors")}
    files |= {f"{TEXT_ENCODER}/{path.name}": path.read_bytes() for path in (DATA / TEXT_ENCODER).iterdir()}
    with HeldHub({MIRROR: Repository({f"small-music/{name}": content for name, content in files.items()})}) as hub:
        yield hub


@pytest.fixture(scope="module")
def comfy(tree: Path, hub: HeldHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(base / "hub"), "NO_PROXY": "127.0.0.1,localhost"}
    with Server(tree, base, packs=[ROOT], frontend=True, environ=environ) as server:
        yield server


def press(editor: Editor) -> None:
    """Click the loader's button."""
    editor.fit()  # the text on the node changes its height
    editor.page.get_by_role("button", name=editor.page.evaluate(LABEL)).click()


def wait(editor: Editor, value: str, words: str) -> None:
    editor.page.wait_for_function(f"words => {value}.includes(words)", arg=words, timeout=30_000)


def shot(editor: Editor, name: str) -> None:
    if SHOTS:
        editor.page.screenshot(path=f"{SHOTS}/{name}_{'nodes2' if editor.nodes2 else 'litegraph'}.png")


def begin(comfy: Server, hub: HeldHub, editor: Editor) -> None:
    """Open the graph on a server without models and a hub that waits."""
    shutil.rmtree(comfy.base_directory / "models" / "checkpoints", ignore_errors=True)
    (comfy.base_directory / "models" / "checkpoints").mkdir()
    hub.requests.clear(), hub.gate.clear(), hub.reached.clear()
    editor.load({"nodes": [], "links": [], "last_node_id": 0, "last_link_id": 0, "version": 0.4}, "empty")
    editor.page.evaluate("async graph => { await window.app.loadApiJson(graph, 'get'); await window.app.refreshComboInNodes() }", GRAPH)
    editor.fit()
    wait(editor, LABEL, "Demo sounds only")


def download(editor: Editor) -> None:
    dialog = editor.page.locator("dialog.sa3-models")
    press(editor)
    dialog.locator("[name=mirror]").check()
    assert f"{RELEASES['small-music'].size('mirror'):.1f} GB" in dialog.locator("button[value=download]").inner_text()
    dialog.locator("[name=accept]").check()
    dialog.locator("button[value=download]").click()


def test_get_a_model_stop_and_resume(comfy: Server, hub: HeldHub, editor: Editor):
    page, dialog = editor.page, editor.page.locator("dialog.sa3-models")
    begin(comfy, hub, editor)
    shot(editor, "before")

    press(editor)
    rows = [row.split("\n") for row in dialog.locator("form > div label").all_inner_texts()]
    assert [row[0].split()[0] for row in rows] == VARIANTS
    shot(editor, "dialog")
    assert dialog.locator("button[value=download]").is_disabled()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert hub.requests == []

    download(editor)
    assert hub.reached.wait(30)
    wait(editor, LABEL, "Stop the download")
    with page.expect_response("**/interrupt"):
        press(editor)
    hub.gate.set()
    wait(editor, LINE, "The download of small-music was stopped")
    shot(editor, "stopped")
    assert not (comfy.base_directory / "models" / "checkpoints" / "stable-audio-3-small-music").exists()

    download(editor)
    wait(editor, LINE, "small-music is downloaded and verified")
    wait(editor, LABEL, "Get a model")
    assert editor.prompt()["1"]["inputs"] == {**GRAPH["1"]["inputs"], "model": "small-music", "objective": "auto"}
    editor.queue()
    wait(editor, LINE, "small-music, fp32, 1 M parameters")
    page.get_by_text("small-music, fp32, 1 M parameters").wait_for()
    shot(editor, "after")
    assert all(request.token is None for request in hub.requests) and editor.errors == [] and editor.dialogs() == []


def test_a_download_changes_only_its_own_workflow(comfy: Server, hub: HeldHub, editor: Editor):
    """Another workflow is open when it ends, and the page has lost its connection: the loader there, of the same id, keeps its model."""
    page = editor.page
    begin(comfy, hub, editor)
    download(editor)
    assert hub.reached.wait(30)
    wait(editor, LABEL, "Stop the download")
    other = {**page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))"), "id": "11111111-2222-4333-8444-555555555555"}
    editor.load(other, "other")
    wait(editor, LABEL, "Stop the download")
    lose = "kind => app.api.addEventListener(kind, event => event.stopImmediatePropagation(), { capture: true, once: true })"
    page.evaluate(lose, "execution_success")
    hub.gate.set()
    page.wait_for_function("""async () => {
      const { queue_running, queue_pending } = await (await app.api.fetchApi('/queue')).json()
      return !queue_running.length && !queue_pending.length
    }""")
    wait(editor, LABEL, "Stop the download")
    page.evaluate("() => app.api.dispatchEvent(new CustomEvent('reconnected'))")
    wait(editor, LABEL, "Get a model")
    assert editor.prompt()["1"]["inputs"]["model"] == "auto"
    assert editor.errors == []


def test_a_node_is_as_tall_as_its_text_needs(editor: Editor):
    if editor.nodes2:
        pytest.skip("Nodes 2.0 lays its nodes out by itself")
    page = editor.page
    page.evaluate("async graph => { await window.app.loadApiJson(graph, 'text') }", GRAPH)
    editor.fit()
    tell = "text => app.api.dispatchEvent(new CustomEvent('progress_text', { detail: { nodeId: '1', text } }))"
    height = f"{LOADER}.size[1]"
    page.evaluate(tell, "one line")
    page.get_by_text("one line").wait_for()
    low = page.evaluate(height)
    page.evaluate(tell, "line\n" * 20)
    page.wait_for_function(f"low => {height} > low + 200", arg=low)
    page.evaluate(tell, "one line")
    page.wait_for_function(f"low => {height} === low", arg=low)
    page.evaluate(f"() => {LOADER}.setSize([400, {low + 500}])")
    page.evaluate(tell, "")
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert page.evaluate(height) == low + 500 and editor.errors == []
