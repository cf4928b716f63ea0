"""Write the editor form of the shared workflows from their API form, with a layout and a note.

    python tools/docs/make_graphs.py [NAME ...] [--comfyui PATH]

Reads the nodes' inputs from a running ComfyUI, so that widget values are in the saved order.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from tools.launcher.server import Server

NOTES = {
    "sfx_pack": (
        "Generate a set of sound effects from a list.\n\n"
        "One effect per line, one duration per line; each effect is saved as its own file. Choose small-sfx or medium in the loader. "
        "Another seed gives another set; an effect is the same alone and in the list. Describe the object, what happens to it, and "
        "the room."
    ),
    "make_four_keep_one": (
        "Generate four, keep one.\n\n"
        "Queue once and listen: with keep at none nothing is saved. Tick the ones to keep and queue again: only the preview and the "
        "nodes after it run, and the ticked ones are saved. The seed below an item generates it again, alone."
    ),
    "audio_to_audio": (
        "Restyle a recording.\n\n"
        "noise_level on the sampler: 0.1 gives a close variation, 0.6 the same shape with another sound, 0.9 only a loose "
        "resemblance."
    ),
    "inpaint": (
        "Regenerate parts of a recording.\n\n"
        "Draw regions in the picture, or write them in seconds: 0.5-1, 2.5-3. Everything outside stays bit-identical: the splice "
        "pastes the recording back at its own sample rate and channels. For audio to audio inside the regions, lower noise_level."
    ),
    "inpaint_variations": (
        "Four variations of an inpainted region.\n\n"
        "batch_size of the encoder sets how many. Queue once and compare each with the recording: with keep at none nothing is saved. "
        "Tick the ones to keep and queue again: only the preview and the nodes after it run. Everything outside the regions stays "
        "bit-identical in all of them."
    ),
    "continue": (
        "Continue a recording after its end, or before its start (side).\n\n"
        "The splice keeps the recording bit-identical and reports the step at the join. For more than the model's longest clip use "
        "SA3 Extend."
    ),
    "loop": (
        "Whole bars that repeat without a break.\n\n"
        "Set the tempo and the bars; the seam where the end meets the start is regenerated. The splice rotates the loop back so that "
        "it starts on the first beat, and reports the step at the wrap."
    ),
    "extend": (
        "Continue past the model's longest clip, window by window.\n\n"
        "context: seconds of the existing audio that each window sees. An interrupted run keeps the finished windows; queue again to "
        "resume."
    ),
    "train_lora": (
        "Train a LoRA on your own sounds.\n\n"
        "Put audio with captions (kick.wav, kick.txt) into input/training and choose a -base model in the loader; demo is for trying "
        "it out. 40 steps are a trial; the official guide suggests 1000. Stop and queue again to resume. The curves: blue is the loss "
        "of the steps, red of training clips, green of held-out clips; when green rises, use an earlier file. Then choose the file in "
        "SA3 LoRA Stack, on the post-trained model too."
    ),
    "autoencoder_round_trip": (
        "Encode and decode a recording.\n\nChoose SAME-S, SAME-L or the demo. The result has the recording's length at 44.1 kHz."
    ),
}
# sizes of nodes that show more than their widgets
ROOMY = {"SA3_PreviewBatch": (460, 470), "SA3_InpaintMask": (480, 460), "SA3_Continue": (480, 520)}
ROOMY |= {"SA3_TrainLoRA": (420, 910), "PreviewImage": (420, 280)}
STEADY = ("make_four_keep_one", "inpaint_variations")  # fixed seed: queueing again with another selection must not sample again
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
COLUMN, ROW, GAP = 280, 24, 50
TALL_ROW = 34  # the second renderer enlarges nodes beyond their saved size


def editor_form(name: str, graph: dict, schemas: dict) -> dict:
    """The editor form of a graph in API form. schemas: object_info."""
    depth = {key: 0 for key in graph}
    for _ in graph:
        for key, node in graph.items():
            sources = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
            depth[key] = max([depth[source] + 1 for source in sources], default=0)
    widths = [COLUMN] * (max(depth.values()) + 1)
    for key, node in graph.items():
        widths[depth[key]] = max(widths[depth[key]], ROOMY.get(node["class_type"], (COLUMN,))[0])
    links, nodes, bottoms = [], [], {}
    outputs = {key: [[] for _ in schemas[node["class_type"]]["output"]] for key, node in graph.items()}
    for order, key in enumerate(sorted(graph, key=lambda k: (depth[k], int(k)))):
        node, schema = graph[key], schemas[graph[key]["class_type"]]
        inputs, values = [], []
        specs = {n: s for group in ("required", "optional") for n, s in schema["input"].get(group, {}).items()}
        for input_name, spec in specs.items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            options = spec[1] if len(spec) > 1 else {}
            given = node["inputs"].get(input_name)
            entry = {"name": input_name, "type": kind, "link": None}
            if kind in WIDGETS:
                entry["widget"] = {"name": input_name}
                values.append(options.get("default", "") if given is None or isinstance(given, list) else given)
                if options.get("control_after_generate"):
                    values.append("fixed" if name in STEADY else "randomize")
                if options.get("audio_upload"):
                    values.append(None)
            elif kind == "AUDIO_UI":
                continue
            if isinstance(given, list):
                entry["link"] = len(links) + 1
                links.append([len(links) + 1, int(given[0]), given[1], int(key), len(inputs), kind])
                outputs[given[0]][given[1]].append(len(links))
            inputs.append(entry)
        sockets = sum("widget" not in entry for entry in inputs)
        lines = sum(3 for spec in specs.values() if len(spec) > 1 and spec[1].get("multiline"))
        rows = max(sockets, len(schema["output"])) + len(values) + lines
        size = ROOMY.get(node["class_type"], (COLUMN, ROW * rows + 20))
        left, top = sum(width + GAP for width in widths[: depth[key]]), bottoms.get(depth[key], 0)
        bottoms[depth[key]] = top + max(TALL_ROW * rows, size[1]) + 2 * GAP
        nodes.append(
            {
                "id": int(key), "type": node["class_type"], "pos": [left, top], "size": list(size),
                "flags": {}, "order": order, "mode": 0, "inputs": inputs, "outputs": [],
                "title": node.get("_meta", {}).get("title", schema["display_name"]),
                "properties": {"Node name for S&R": node["class_type"]}, "widgets_values": values,
            }
        )  # fmt: skip
    for node in nodes:
        schema = schemas[node["type"]]
        kinds = zip(schema["output_name"], schema["output"], outputs[str(node["id"])], strict=True)
        node["outputs"] = [{"name": label, "type": kind, "links": ids or None} for label, kind, ids in kinds]
    note_id = max(int(key) for key in graph) + 1
    nodes.append(
        {
            "id": note_id, "type": "Note", "pos": [0, -240], "size": [2 * COLUMN, 180], "flags": {}, "order": len(nodes), "mode": 0,
            "inputs": [], "outputs": [], "title": "What to try", "properties": {}, "widgets_values": [NOTES[name]], "color": "#432",
            "bgcolor": "#653",
        }
    )  # fmt: skip
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"sa3/{name}")), "revision": 0, "last_node_id": note_id, "last_link_id": len(links),
        "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NOTES)}; default: all")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".run" / "comfyui", help="a ComfyUI tree (default: run.py's)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NOTES):
        parser.error(f"unknown: {', '.join(unknown)}")
    comfyui = options.comfyui.expanduser().absolute()
    with tempfile.TemporaryDirectory() as base, Server(comfyui, Path(base), packs=[ROOT]) as server:
        schemas = server.object_info()
    for name in options.names or NOTES:
        graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        text = json.dumps(editor_form(name, graph, schemas), indent=1)
        (ROOT / "workflows" / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"workflows/{name}.json")


if __name__ == "__main__":
    main()
