"""Takes the pictures: a real ComfyUI with this pack and its editor in Chromium.

    python docs/make_pictures.py [--comfyui PATH] [readme] [templates] [nodes]

readme: a shared workflow that has just run, docs/pictures/*.png. templates: what the template browser shows, workflows/*.jpg.
nodes: each node alone, for its help page, web/docs/pictures/*.png. Without a word: all. Needs playwright, Chromium and Pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import wave
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from launcher.editor import Editor  # noqa: E402
from launcher.server import Server  # noqa: E402

WORKFLOWS = ["text_to_audio"]
KINDS = ("readme", "templates", "nodes")
THUMBNAIL = 800  # pixels wide
COLOURS = 64  # of a node's picture
PANELS = ".p-tooltip, .actionbar-container, .side-tool-bar-container { display: none }"
MARGIN = 24  # CSS pixels around the graph
WIDTH = 1420  # of the picture in CSS pixels, at most

ALONE = """type => {
  // not clear(): it would use ids again, and the front end keeps widget values by id
  for (const old of [...window.app.graph.nodes]) window.app.graph.remove(old)
  const node = window.LiteGraph.createNode(type)
  window.app.graph.add(node)
  window.app.canvas.setDirty(true, true)
  node.setSize([Math.max(node.size[0], 340), node.computeSize()[1]])
}"""
PLACE = """([scale, x, y]) => {
  const view = window.app.canvas.ds
  view.scale = scale; view.offset = [x, y]
  window.app.canvas.deselectAll(); window.app.canvas.setDirty(true, true)
}"""


def take(editor: Editor) -> bytes:
    """The open graph as PNG, nothing else."""
    boxes = editor.boxes()
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    width = max(box.x + box.width for box in boxes) - left
    height = max(box.y + box.height for box in boxes) - top
    scale = min(1.0, (WIDTH - 2 * MARGIN) / width)
    hidden = editor.page.add_style_tag(content=PANELS)
    # away from the window's edges, where the editor's panels are
    x, y = 80, 120
    editor.page.evaluate(PLACE, [scale, (x + MARGIN) / scale - left, (y + MARGIN) / scale - top])
    editor.page.mouse.move(x, 900)
    editor.page.wait_for_timeout(1500)
    clip = {"x": x, "y": y, "width": width * scale + 2 * MARGIN, "height": height * scale + 2 * MARGIN}
    picture = editor.page.screenshot(clip=clip)
    hidden.evaluate("style => style.remove()")
    return picture


def open_workflow(editor: Editor, name: str) -> None:
    editor.load(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")), name)


def readme(editor: Editor, names: list[str]) -> None:
    (ROOT / "docs" / "pictures").mkdir(exist_ok=True)
    for name in names:
        open_workflow(editor, name)
        editor.run()
        (ROOT / "docs" / "pictures" / f"{name}.png").write_bytes(take(editor))


def templates(editor: Editor, names: list[str]) -> None:
    for name in names:
        open_workflow(editor, name)
        picture = Image.open(io.BytesIO(take(editor))).convert("RGB")
        picture = picture.resize((THUMBNAIL, round(THUMBNAIL * picture.height / picture.width)), Image.Resampling.LANCZOS)
        picture.save(ROOT / "workflows" / f"{name}.jpg", quality=80, optimize=True)


def nodes(editor: Editor, names: list[str]) -> None:
    pictures = ROOT / "web" / "docs" / "pictures"
    pictures.mkdir(exist_ok=True)
    open_workflow(editor, WORKFLOWS[0])  # in place of the front end's own, which asks the network for its models
    for name in names:
        editor.page.evaluate(ALONE, name)
        editor.page.wait_for_function("() => window.app.graph.nodes[0].getBounding()[2] > 0")  # once it was drawn
        picture = Image.open(io.BytesIO(take(editor))).convert("RGB")
        picture.quantize(COLOURS).save(pictures / f"{name}.png", optimize=True)


def lay_out(base: Path) -> None:
    """The files that the shared workflows name."""
    for graph in (ROOT / "workflows" / "api").glob("*.json"):
        for node in json.loads(graph.read_text(encoding="utf-8")).values():
            for name, folder in (("audio", base / "input"), ("lora", base / "models" / "loras")):
                if isinstance(node["inputs"].get(name), str):
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / node["inputs"][name]).touch()
    for file in (base / "input").iterdir():
        with wave.open(str(file), "wb") as out:
            out.setparams((2, 2, 44100, 0, "NONE", ""))
            out.writeframes(bytes(4 * 44100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".run" / "comfyui", help="a ComfyUI tree (else the one run.py made)")
    options = parser.parse_args()
    comfyui, kinds = options.comfyui.expanduser().absolute(), options.kinds or KINDS
    if strange := set(kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(strange)}")
    with tempfile.TemporaryDirectory() as base:
        lay_out(Path(base))
        with (
            Server(comfyui, Path(base), packs=[ROOT], frontend=True) as server,
            Editor(server, size=(1600, 1000), scale=1.5) as editor,
        ):
            if "readme" in kinds:
                readme(editor, WORKFLOWS)
            if "templates" in kinds:
                templates(editor, sorted(file.stem for file in (ROOT / "workflows").glob("*.json")))
            if "nodes" in kinds:
                nodes(editor, sorted(name for name in server.object_info() if name.startswith("SA3_")))


if __name__ == "__main__":
    main()
