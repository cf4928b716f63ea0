"""Write the editor form of the shared workflows from their API form, with a layout and a note.

    python tools/docs/make_graphs.py [NAME ...] [--comfyui PATH]

Reads the nodes' inputs from a running ComfyUI, so that widget values are in the saved order.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from tools.docs.layout import TITLE, Link, Size, lay_out
from tools.launcher.server import Server

RELEASE = "The demo model runs until a release is installed (README, *Models*). For a release: "
NOTES = {
    "text_to_audio": (
        "**Replace** the prompt and the length.\n\n" + RELEASE + "*TrackType: Music, VocalType: Instrumental, Genre: Dub Techno, "
        "Instruments: chord stabs, sub bass, 122 BPM*"
    ),
    "sfx_pack": (
        "**Replace** the prompts and the lengths, one of each per line.\n\nEach effect becomes a file. "
        + RELEASE
        + "*TrackType: SFX, a heavy oak door slams shut in a stone hall, long decay*: the object, what happens to it, the room."
    ),
    "make_four_keep_one": (
        "**Replace** the prompt and the length.\n\nRun and listen: nothing is saved yet. Tick the ones to keep and run again; only saving "
        "runs. " + RELEASE + "*TrackType: Music, Genre: Dub Techno, 122 BPM*"
    ),
    "audio_to_audio": (
        "**Replace** the recording and the prompt.\n\n**noise_level**: 0.1 is a close variation, 0.6 the same shape with another sound, "
        "0.9 a loose resemblance. " + RELEASE + "*the same melody on a music box*"
    ),
    "inpaint": (
        "**Replace** the recording, the part and the prompt.\n\nDrag over the part, or write seconds: *0.5-1, 2.5-3*. Everything outside "
        "stays bit-identical. " + RELEASE + "*TrackType: SFX, a glass breaking*"
    ),
    "inpaint_variations": (
        "**Replace** the recording, the part and the prompt.\n\nRun and compare the four: nothing is saved yet. Tick the ones to keep and "
        "run again. " + RELEASE + "*TrackType: SFX, a glass breaking*"
    ),
    "continue": (
        "**Replace** the recording and the prompt.\n\n**side** adds after the end or before the start. The recording stays bit-identical. "
        + RELEASE
        + "describe the recording: *the same groove goes on, 120 BPM*"
    ),
    "loop": (
        "**Replace** the recording, its tempo and the prompt.\n\nThe seam, where the end meets the start, is regenerated. "
        + RELEASE
        + "describe the recording: *a steady drum loop, 120 BPM*"
    ),
    "extend": (
        "**Replace** the recording, the prompt and the seconds.\n\n**context**: seconds that each window sees. An interrupted run resumes "
        "when it is queued again. " + RELEASE + "*an evolving ambient pad*, context 10, seconds 60"
    ),
    "lora_blend": (
        "**Replace** the model, the two LoRAs and the prompt.\n\nThe example LoRAs belong to the demo: one makes sounds high, one makes "
        "them fade. LoRAs of a release need that release, and its kind of prompt: *Genre: Dub Techno, 122 BPM*"
    ),
    "train_lora": (
        "**Replace** the folder, the name and the model.\n\nThe folder lies in ComfyUI's input folder and holds audio with captions: "
        "*kick.wav*, *kick.txt*. Choose a -base release and 1000 steps; the 40 steps here are a trial. Stop, and queue again to resume. "
        "Curves: blue each step, red training clips, green held-out clips; when green rises, use an earlier file."
    ),
    "autoencoder_round_trip": (
        "**Replace** the recording, and the autoencoder by SAME-S or SAME-L.\n\nThe result shows what encoding alone changes. It has the "
        "recording's length, at 44.1 kHz."
    ),
    "rewrite_prompt": (
        "**Replace** the idea.\n\nA language model turns it into a prompt in the form of the training data. Needs ComfyUI 0.33 or later, "
        "[qwen3.5_2b_bf16](https://huggingface.co/Comfy-Org/Qwen3.5) in models/text_encoders, and a release: the demo does not know its "
        "words."
    ),
    "caption_to_prompt": (
        "**Replace** the recording.\n\nA language model listens to it, and its description becomes the prompt. For a picture, connect Load "
        "Image to *image*. Needs ComfyUI 0.33 or later, [gemma4_e4b_it_fp8_scaled](https://huggingface.co/Comfy-Org/gemma-4) in "
        "models/text_encoders, and a release: the demo does not know its words."
    ),
}
# language models of the templates, which the editor offers to download
HUB = "https://huggingface.co/Comfy-Org/{}/resolve/main/text_encoders/{}"
MODELS = {"qwen3.5_2b_bf16.safetensors": "Qwen3.5", "gemma4_e4b_it_fp8_scaled.safetensors": "gemma-4"}
# sizes of nodes that show more than their widgets
LIST = (530, 520)  # of four items, which the node takes after a run
ROOMY = {"SA3_PreviewBatch": LIST, "SA3_InpaintMask": (380, 390), "SA3_Continue": (380, 490)}
ROOMY |= {"SA3_TrainLoRA": (380, 620), "PreviewImage": (380, 280)}
STEADY = ("make_four_keep_one", "inpaint_variations")  # fixed seed: queueing again with another selection must not sample again
APP = {  # what App mode shows: widgets by class
    "LoadAudio": ["audio"], "LoadImage": ["image"], "SA3_PromptHelper": ["genre", "instruments", "mood", "extra"],
    "SA3_TextEncode": ["text"], "SA3_EmptyLatent": ["seconds"], "SA3_InpaintMask": ["regions"], "SA3_Loop": ["bpm", "bars"],
    "SA3_Continue": ["seconds"], "SA3_Extend": ["seconds", "seed"], "SA3_TrainLoRA": ["folder", "name", "steps"],
    "SA3_LoRAStack": ["lora", "strength"], "SA3_Sampler": ["seed"], "SA3_PreviewBatch": ["keep"],
}  # fmt: skip
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")  # of the last, only a choice without inputs
COLUMN = 280
LARGE = 8  # nodes of a graph, or one with a list, in which the nodes of FOLDED are collapsed, and the others at most NARROW wide
NARROW = 340
PLAYER = 50  # height of an audio player
FOLDED = ("SA3_SAMEDecode", "SA3_Splice")  # nobody changes their settings
VIEW = {"scale": 0.8, "offset": [120, 170]}  # the whole graph in a window of 1366 x 768
PROJECT = dict(re.findall(r'^(name|version) = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
CORE = "0.3.75"  # the oldest ComfyUI that runs the graphs


def lines(text: str, width: float) -> int:
    """Lines of a text in a box."""
    return sum(-(-len(line) // int(width / 7)) or 1 for line in text.split("\n"))


def answered(node: dict) -> bool:
    """Whether a prompt helper passes on an answer, so that its other inputs have no effect."""
    return any(entry["name"] == "rewritten" and entry["link"] for entry in node["inputs"])


def editor_form(name: str, graph: dict, schemas: dict) -> dict:
    """The editor form of a graph in API form, with the note of that name if there is one. schemas: object_info."""
    links, nodes, sizes = [], [], {}
    large = len(graph) >= LARGE or any(node["class_type"] == "SA3_PreviewBatch" for node in graph.values())
    outputs = {key: [[] for _ in schemas[node["class_type"]]["output"]] for key, node in graph.items()}
    if note := NOTES.get(name):
        sizes["note"] = Size(COLUMN, 70 + 17 * lines(note, COLUMN))
    for key, node in graph.items():
        schema = schemas[node["class_type"]]
        inputs, values, player = [], [], 0
        specs = {n: s for group in ("required", "optional") for n, s in schema["input"].get(group, {}).items()}
        text = 0  # height of text boxes
        for input_name, spec in specs.items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            options = spec[1] if len(spec) > 1 else {}
            given = node["inputs"].get(input_name)
            entry = {"name": input_name, "type": kind, "link": None}
            if kind in WIDGETS and not options.get("forceInput"):
                entry["widget"] = {"name": input_name}
                values.append(options.get("default", "") if given is None or isinstance(given, list) else given)
                if options.get("control_after_generate"):
                    values.append("randomize" if node["class_type"] == "SA3_Sampler" and name not in STEADY else "fixed")
                if options.get("audio_upload"):
                    values.append(None)
                    player = PLAYER
                if options.get("multiline"):
                    text += 20 + 18 * max(2, 0 if isinstance(given, list) else 1 + lines(values[-1], COLUMN))
            elif kind == "AUDIO_UI":
                player = PLAYER
                continue
            if isinstance(given, list):
                entry["link"] = len(links) + 1
                links.append([len(links) + 1, int(given[0]), given[1], int(key), len(inputs), kind])
                outputs[given[0]][given[1]].append(len(links))
            inputs.append(entry)
        sockets = max(sum("widget" not in entry for entry in inputs), len(schema["output"]))
        least = 22 * sockets + 22 * len(values) + text + 20
        width, height = ROOMY.get(node["class_type"], (COLUMN, least + player))
        size = [min(width, NARROW) if large and (width, height) != LIST else width, max(height, least)]
        folded = large and node["class_type"] in FOLDED
        tall = 22 * sockets + 32 * len(values) + text + player + 2 * TITLE
        sizes[key] = Size(160, TITLE) if folded else Size(size[0], max(tall, size[1] + TITLE))
        pack = schema["python_module"].startswith("custom_nodes.")
        offered = [
            {"name": value, "url": HUB.format(MODELS[value], value), "directory": "text_encoders"} for value in values if value in MODELS
        ]
        kinds = zip(schema["output_name"], schema["output"], outputs[key], strict=True)
        nodes.append(
            {
                "id": int(key), "type": node["class_type"], "pos": [0, 0], "size": size,
                "flags": {"collapsed": True} if folded else {}, "order": 0, "mode": 0,
                "inputs": inputs, "outputs": [{"name": label, "type": kind, "links": ids} for label, kind, ids in kinds],
                "title": node.get("_meta", {}).get("title", schema["display_name"]),
                "properties": {
                    "Node name for S&R": node["class_type"], "cnr_id": PROJECT["name"] if pack else "comfy-core",
                    "ver": PROJECT["version"] if pack else CORE, **({"models": offered} if offered else {}),
                },
                "widgets_values": values,
            }
        )  # fmt: skip
    sockets = {node["id"]: [i for i, entry in enumerate(node["inputs"]) if "widget" not in entry] for node in nodes}
    wires = [
        Link(str(source), output, str(target), sockets[target].index(i) if i in sockets[target] else len(sockets[target]))
        for _, source, output, target, i, _ in links
    ]
    boxes = lay_out(sizes, wires, ["note"] if note else [])
    for node in nodes:
        box = boxes[str(node["id"])]
        node["pos"] = [box.x, box.y + TITLE]
        node["outputs"] = [{**output, "links": output["links"] or None} for output in node["outputs"]]
    nodes.sort(key=lambda node: node["pos"])
    last = max(int(key) for key in graph)
    if note:
        last += 1
        box = boxes["note"]
        nodes.append(
            {
                "id": last, "type": "MarkdownNote", "pos": [box.x, box.y + TITLE], "size": [box.width, box.height - TITLE], "flags": {},
                "order": 0, "mode": 0, "inputs": [], "outputs": [], "title": "Start here", "properties": {}, "widgets_values": [note],
                "color": "#432", "bgcolor": "#653",
            }
        )  # fmt: skip
    for order, node in enumerate(nodes):
        node["order"] = order
    shown = [
        [str(node["id"]), entry["name"]]
        for kind, names in APP.items() for node in nodes if node["type"] == kind and not answered(node)
        for entry in node["inputs"] if entry["name"] in names and entry["link"] is None
    ]  # fmt: skip
    results = [str(node["id"]) for node in nodes if node["type"] in ("SA3_PreviewBatch", "SA3_SaveAudio")]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"sa3/{name}")), "revision": 0, "last_node_id": last, "last_link_id": len(links),
        "nodes": nodes, "links": links, "groups": [], "config": {},
        "extra": {"ds": VIEW, "linearData": {"inputs": shown, "outputs": results}, "linearMode": False}, "version": 0.4,
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
        if missing := {node["class_type"] for node in graph.values()} - schemas.keys():
            print(f"{name}: unchanged; this ComfyUI has no {', '.join(missing)}")
            continue
        text = json.dumps(editor_form(name, graph, schemas), indent=1)
        (ROOT / "workflows" / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"workflows/{name}.json")


if __name__ == "__main__":
    main()
