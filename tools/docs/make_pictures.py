"""Make the pictures of this pack: screenshots of ComfyUI's editor in Chromium, and thumbnails of the templates.

    python tools/docs/make_pictures.py [--comfyui PATH] [--only NAME ...] [readme] [templates] [nodes] [waveform]

readme: a workflow that has run, docs/pictures/*.png. templates: thumbnails of the template browser, drawn from the templates' results,
workflows/*.jpg. nodes: each node, for its help page, web/docs/pictures/*.png. waveform: the waveform editor, docs/pictures/waveform.png.
Default: all. Needs playwright, Chromium and Pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from sa3_core.audio import files as audio_files
from sa3_core.audio import spectrogram
from tools.launcher.editor import Editor
from tools.launcher.server import Server

WORKFLOWS = ["text_to_audio"]
KINDS = ("readme", "templates", "nodes", "waveform")
THUMBNAIL, BAND, WORD = (480, 320), 76, 46  # pixels: size, its part for a word, and the word's size
WORDS = {  # of a thumbnail; seconds to frame; kind of drawing
    "text_to_audio": ("Text to audio",),
    "sfx_pack": ("Sound effects", (), "both"),
    "make_four_keep_one": ("Make 4, keep 1",),
    "audio_to_audio": ("Restyle", (), "both"),
    "inpaint": ("Inpaint", ((2.0, 3.0),)),
    "inpaint_variations": ("4 variations", ((2.0, 3.0),)),
    "continue": ("Continue", ((6.0, 8.0),)),
    "loop": ("Loop", (), "waveform"),
    "extend": ("Extend", ((6.0, 18.0),)),
    "lora_blend": ("Blend LoRAs",),
    "train_lora": ("Train a LoRA", (), "both"),
    "autoencoder_round_trip": ("Autoencoder",),
    "rewrite_prompt": ("Rewrite a prompt",),
    "caption_to_prompt": ("Sound to prompt", (), "both"),
}
COLOURS = 64  # palette of a node's screenshot
PANELS = ".p-tooltip, .actionbar-container, .side-tool-bar-container, .subgraph-breadcrumb { display: none }"
MARGIN = 24  # CSS pixels around the graph
MAX_WIDTH = 1420  # CSS pixels

SHOW_NODE = """type => {
  // clear() would reuse ids, and the front end stores widget values by id
  for (const old of [...window.app.graph.nodes]) window.app.graph.remove(old)
  const node = window.LiteGraph.createNode(type)
  window.app.graph.add(node)
  window.app.canvas.setDirty(true, true)
  node.setSize([Math.max(node.size[0], 340), node.computeSize()[1]])
}"""
SHOW_EDITOR = """() => {
  const shown = ['LoadAudio', 'SA3_InpaintMask']
  for (const node of [...window.app.graph.nodes]) if (!shown.includes(node.type)) window.app.graph.remove(node)
  const [loader, node] = shown.map(type => window.app.graph.nodes.find(one => one.type === type))
  loader.pos = [0, 0]
  node.pos = [340, 0]
  node.setSize([640, 470])
  node.widgets.find(widget => widget.name === 'regions').value = '1.5-2.5, 4-5.25'
  const editor = node.widgets.find(widget => widget.name === 'waveform').editor
  editor.settings.beats = true
  editor.saveSettings()
  editor.select(1)
}"""
IS_DRAWN = """() => {
  const { editor } = window.app.graph.nodes.find(node => node.type === 'SA3_InpaintMask').widgets.find(widget => widget.name === 'waveform')
  const tiles = editor.sounds.recording?.tiles
  return tiles && editor.regions.length === 2 && !editor.surface.frame && !tiles.wanted.length && !tiles.job
}"""
PLACE = """([scale, x, y]) => {
  const view = window.app.canvas.ds
  view.scale = scale; view.offset = [x, y]
  window.app.canvas.deselectAll(); window.app.canvas.setDirty(true, true)
}"""


def take(editor: Editor) -> bytes:
    """A screenshot of the open graph as PNG, without the editor's panels."""
    boxes = editor.boxes()
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    width = max(box.x + box.width for box in boxes) - left
    height = max(box.y + box.height for box in boxes) - top
    x, y = 80, 120  # clear of the editor's panels at the window's edges
    scale = min(1.0, (MAX_WIDTH - 2 * MARGIN) / width, (editor.page.viewport_size["height"] - y - 3 * MARGIN) / height)
    hidden = editor.page.add_style_tag(content=PANELS)
    editor.page.evaluate(PLACE, [scale, (x + MARGIN) / scale - left, (y + MARGIN) / scale - top])
    editor.page.mouse.move(x, 900)
    editor.page.wait_for_timeout(1500)
    clip = {"x": x, "y": y, "width": width * scale + 2 * MARGIN, "height": height * scale + 2 * MARGIN}
    picture = editor.page.screenshot(clip=clip)
    hidden.evaluate("style => style.remove()")
    return picture


def open_workflow(editor: Editor, name: str) -> None:
    """Open a shared workflow."""
    editor.load(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")), name)


def readme(editor: Editor, names: list[str]) -> None:
    """Run workflows and take their screenshots."""
    (ROOT / "docs" / "pictures").mkdir(exist_ok=True)
    for name in names:
        open_workflow(editor, name)
        editor.run()
        (ROOT / "docs" / "pictures" / f"{name}.png").write_bytes(take(editor))


def templates(server: Server, names: list[str]) -> None:
    """Run workflows and draw their results as thumbnails."""
    for name in names:
        graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        models = [key for key, node in graph.items() if node["class_type"] in ("CLIPLoader", "TextGenerate")]
        for node in graph.values():  # without a language model, the idea itself is the prompt
            inputs = node["inputs"].items()
            node["inputs"] = {key: value for key, value in inputs if not (isinstance(value, list) and value[0] in models)}
            if "keep" in node["inputs"]:
                node["inputs"]["keep"] = "all"
        graph = {key: node for key, node in graph.items() if key not in models}
        files = server.output_files(server.wait(server.queue(graph)))
        saved = [file for file in files if file.is_relative_to(server.base_directory / "output")]
        clips = [audio_files.read(file) for file in saved if file.suffix in audio_files.READABLE]
        thumbnail(clips, *WORDS[name]).save(ROOT / "workflows" / f"{name}.jpg", quality=85, optimize=True)


def thumbnail(clips: list[tuple], word: str, marks: tuple[tuple[float, float], ...] = (), kind: str = "spectrogram") -> Image.Image:
    """Clips (waveform, rate) side by side, with a word below them. marks: seconds that are framed."""
    width, height = THUMBNAIL
    picture = Image.new("RGB", THUMBNAIL, "#101318")
    pen, above = ImageDraw.Draw(picture), height - BAND
    for i, (clip, rate) in enumerate(clips):
        left, right = (width + 6) * i // len(clips), (width + 6) * (i + 1) // len(clips) - 6
        drawn = spectrogram.draw(clip, rate, right - left, above, kind, quiet=-80, axes=False)
        picture.paste(Image.fromarray((drawn * 255).byte().numpy()), (left, 0))
        for start, end in marks:
            x0, x1 = (left + (right - left) * rate * t / clip.shape[1] for t in (start, end))
            pen.rectangle((x0, 2, min(x1, right - 2), above - 3), outline="#7CFFB2", width=5)
    font = ImageFont.load_default(WORD)
    pen.text((width / 2, above + BAND / 2), word, fill="white", font=font, anchor="mm")
    return picture


def nodes(editor: Editor, names: list[str]) -> None:
    """Take the screenshots of single nodes."""
    pictures = ROOT / "web" / "docs" / "pictures"
    pictures.mkdir(exist_ok=True)
    open_workflow(editor, WORKFLOWS[0])  # the front end's default workflow would request models from the network
    for name in names:
        editor.page.evaluate(SHOW_NODE, name)
        editor.page.wait_for_function("() => window.app.graph.nodes[0].getBounding()[2] > 0")  # wait until it is drawn
        picture = Image.open(io.BytesIO(take(editor))).convert("RGB")
        picture.quantize(COLOURS).save(pictures / f"{name}.png", optimize=True)


def waveform(editor: Editor) -> None:
    """Take the screenshot of the waveform editor."""
    open_workflow(editor, "inpaint")
    editor.page.wait_for_function("() => window.app.graph.nodes.length > 2")
    editor.page.evaluate(SHOW_EDITOR)
    editor.page.wait_for_function(IS_DRAWN)
    (ROOT / "docs" / "pictures" / "waveform.png").write_bytes(take(editor))


def lay_out(base: Path) -> None:
    """Create a file for SA3 Load Latent."""
    (base / "output" / "latents").mkdir(parents=True)
    (base / "output" / "latents" / "sa3_00001_.latent").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; default: all")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".run" / "comfyui", help="a ComfyUI tree (default: run.py's)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of templates and nodes; the others keep theirs")
    options = parser.parse_args()
    comfyui, kinds = options.comfyui.expanduser().absolute(), options.kinds or KINDS
    if strange := set(kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(strange)}")
    with tempfile.TemporaryDirectory() as base:
        lay_out(Path(base))
        with Server(comfyui, Path(base), packs=[ROOT], frontend=True) as server:
            nodes_here = sorted(name for name in server.object_info() if name.startswith("SA3_"))
            if "templates" in kinds:
                names = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
                templates(server, [name for name in names if name in options.only or not options.only])
            if set(kinds) == {"templates"}:
                return
            with Editor(server, size=(1600, 1000), scale=1.5) as editor:
                if "readme" in kinds:
                    readme(editor, WORKFLOWS)
                if "nodes" in kinds:
                    nodes(editor, [name for name in nodes_here if name in options.only or not options.only])
                if "waveform" in kinds:
                    waveform(editor)


if __name__ == "__main__":
    main()
