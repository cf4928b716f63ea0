"""SA3_Schedule shows the numbers of the chosen schedule; the others keep their values and are saved.

Skipped in Nodes 2.0 of front end 1.32, which always shows all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

from sa3_core.sampling import schedule
from tools.launcher.editor import Editor
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
NUMBERS = sorted({name for kind in schedule.SHIFTS for name in schedule.parameters(kind)})
ADD = """() => {
  const { app } = window
  app.graph.clear()
  const node = window.LiteGraph.createNode('SA3_Schedule')
  node.pos = [100, 100]
  app.graph.add(node)
  node.widgets.find(widget => widget.name === 'rate').value = 0.25
}"""
CHOOSE = """kind => {
  const node = window.app.graph.nodes.find(node => node.type === 'SA3_Schedule')
  const widget = node.widgets.find(widget => widget.name === 'kind')
  widget.value = kind
  widget.callback?.(kind, window.app.canvas, node)
}"""
SHOWN = """([names, nodes2]) => {
  const node = window.app.graph.nodes.find(node => node.type === 'SA3_Schedule')
  const labels = [...document.querySelectorAll('[data-node-id] *')].filter(one => !one.children.length && one.checkVisibility())
  const widgets = node.widgets.filter(widget => node.isWidgetVisible(widget))
  const seen = nodes2 ? labels.map(one => one.textContent.trim()) : widgets.map(widget => widget.name)
  return names.filter(name => seen.includes(name))
}"""


@pytest.fixture(scope="module")
def comfy(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tree, tmp_path_factory.mktemp("comfyui"), packs=[ROOT], frontend=True) as server:
        yield server


def test_only_the_numbers_of_the_chosen_schedule_show(editor: Editor):
    page = editor.page
    if editor.nodes2 and page.evaluate("window.__COMFYUI_FRONTEND_VERSION__").startswith("1.32."):
        pytest.skip("Nodes 2.0 of this front end hides no widgets")
    editor.errors.clear()
    page.evaluate(ADD)
    editor.fit()
    heights = {}
    for kind in ("the model's", *schedule.SHIFTS):
        page.evaluate(CHOOSE, kind)
        expected = [] if kind == "the model's" else [name for name in NUMBERS if name in schedule.parameters(kind)]
        page.wait_for_function(f"arg => JSON.stringify(({SHOWN})(arg)) === JSON.stringify(arg[2])", arg=[NUMBERS, editor.nodes2, expected])
        page.evaluate("() => window.app.canvas.draw(true, true)")  # older front ends grow a node here
        heights[kind] = page.evaluate("() => window.app.graph.nodes[0].size[1]")
        if folder := os.environ.get("SA3_SCREENSHOTS"):
            page.wait_for_timeout(300)
            page.screenshot(path=f"{folder}/schedule-{kind}-{'nodes2' if editor.nodes2 else 'litegraph'}.png")
    assert heights["the model's"] < heights["full"]
    saved = page.evaluate("() => window.app.graph.serialize()")
    assert 0.25 in saved["nodes"][0]["widgets_values"]
    editor.load(saved)
    page.evaluate(CHOOSE, "flux")
    values = dict(page.evaluate("() => window.app.graph.nodes[0].widgets.map(widget => [widget.name, widget.value])"))
    assert values["rate"] == 0.25 and set(NUMBERS) <= set(values)
    assert editor.errors == []
