"""Names in the editor in three languages, and a node's help page with its screenshot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

from tools.launcher.editor import Editor
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
NODE = "SA3_Sampler"


@pytest.fixture(scope="module")
def editor(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    with Server(tree, tmp_path_factory.mktemp("comfyui"), packs=[ROOT], frontend=True) as server, Editor(server) as editor:
        yield editor


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_names_in_the_editor(editor: Editor, language: str):
    editor.reload(language)
    version = editor.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__ ?? ''")
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[NODE]
    served = editor.page.request.get("/".join([*editor.page.url.split("/")[:3], "i18n"])).json()
    assert served[language]["nodeDefs"][NODE]["display_name"] == texts["display_name"]
    if language != "en" and version.startswith("1.32."):
        pytest.skip(f"front end {version} drops the packs' own texts when it loads a language")
    title, labels = editor.page.evaluate(
        """type => {
          const node = window.LiteGraph.createNode(type)
          const shown = [...node.inputs, ...(node.widgets ?? [])].map(one => [one.name, one.localized_name ?? one.label])
          return [node.title, shown.filter(([, label]) => label)]
        }""",
        NODE,
    )
    assert title == texts["display_name"]
    shown = dict(labels)
    for name in ("positive", "steps", "noise_level"):
        assert shown[name] == texts["inputs"][name]["name"]


def test_the_help_page_shows_with_its_picture(editor: Editor):
    editor.reload("en")
    editor.load(json.loads((ROOT / "workflows" / "text_to_audio.json").read_text(encoding="utf-8")))
    title_bar = editor.page.evaluate(
        """type => {
          const [x, y] = window.app.graph.nodes.find(node => node.type === type).getBounding()
          const view = window.app.canvas.ds, frame = window.app.canvas.canvas.getBoundingClientRect()
          return [(x + 80 + view.offset[0]) * view.scale + frame.left, (y + 15 + view.offset[1]) * view.scale + frame.top]
        }""",
        NODE,
    )
    editor.page.mouse.click(*title_bar)
    editor.page.locator("[data-testid=info-button]").first.click()
    picture = editor.page.locator(f"img[src*='{NODE}.png']").first
    picture.wait_for(timeout=60_000)
    editor.page.wait_for_function("name => [...document.images].some(i => i.src.includes(name) && i.naturalWidth > 0)", arg=f"{NODE}.png")
    assert "Common errors" in editor.page.content()
