"""Takes the README's pictures: a real ComfyUI with this pack, its editor in Chromium, a shared workflow that has just run.

    python docs/make_pictures.py [--comfyui PATH]

Needs playwright and Chromium. Writes docs/pictures/*.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launcher.editor import Editor  # noqa: E402
from launcher.server import Server  # noqa: E402

WORKFLOWS = ["text_to_audio"]
PANELS = ".p-tooltip, .actionbar-container, .side-tool-bar-container { display: none }"
MARGIN = 24  # CSS pixels around the graph
WIDTH = 1420  # of the picture in CSS pixels, at most

PLACE = """([scale, x, y]) => {
  const view = window.app.canvas.ds
  view.scale = scale; view.offset = [x, y]
  window.app.canvas.deselectAll(); window.app.canvas.setDirty(true, true)
}"""


def shoot(editor: Editor, workflow: Path, picture: Path) -> None:
    """Runs a workflow and takes its graph, nothing else."""
    editor.load(json.loads(workflow.read_text(encoding="utf-8")), workflow.stem)
    editor.run()
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
    editor.page.screenshot(path=picture, clip=clip)
    hidden.evaluate("style => style.remove()")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".run" / "comfyui", help="a ComfyUI tree (else the one run.py made)")
    comfyui = parser.parse_args().comfyui.expanduser().absolute()
    pictures = ROOT / "docs" / "pictures"
    pictures.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as base,
        Server(comfyui, Path(base), packs=[ROOT], frontend=True) as server,
        Editor(server, size=(1600, 1000), scale=1.5) as editor,
    ):
        for name in WORKFLOWS:
            shoot(editor, ROOT / "workflows" / f"{name}.json", pictures / f"{name}.png")
            print(pictures / f"{name}.png")


if __name__ == "__main__":
    main()
