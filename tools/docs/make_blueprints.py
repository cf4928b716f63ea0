"""Write subgraphs/*.json, the blueprints that the editor's node library offers: a whole graph as one node with a few inputs.

    python tools/docs/make_blueprints.py [--comfyui PATH]

Reads the nodes' inputs from a running ComfyUI, so that widget values are in the saved order. ComfyUI shows the name of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import uuid
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from tools.docs.make_graphs import editor_form
from tools.launcher.server import Server

FOLDER = ROOT / "subgraphs"
SUFFIX = " (Stable Audio 3)"
INPUTS, OUTPUTS = -10, -20  # ids that ComfyUI gives a subgraph's own ends
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
CHUNKS = {"chunk_size": 128, "overlap": 32}
MODEL, ENCODE, SOURCE, MASK, SAMPLE, DECODE, SPLICE = "1234567"  # node ids, in the order of the graph
MUSIC = "TrackType: Music, VocalType: Instrumental, Genre: Dub Techno, Instruments: chord stabs, sub bass, 122 BPM"


class Blueprint(NamedTuple):
    """A graph in API form and what its node shows: each input with the inputs inside that it sets, each output with its source."""

    description: str
    graph: dict
    inputs: dict[str, list[tuple[str, str]]]
    outputs: dict[str, tuple[str, int]]


def node(kind: str, **inputs: object) -> dict:
    """A node in API form."""
    return {"class_type": kind, "inputs": inputs}


def blueprint(description: str, prompt: str, graph: dict, inputs: dict, **sampler: object) -> Blueprint:
    """The given nodes between a loader and a prompt, a sampler and a decoder. The last node before the sampler supplies its LATENT."""
    latent = max(graph.keys() - {SPLICE}, key=int)
    whole = {
        MODEL: node("SA3_ModelLoader", model="auto"),
        ENCODE: node("SA3_TextEncode", clip=[MODEL, 1], text=prompt),
        **graph,
        SAMPLE: node("SA3_Sampler", model=[MODEL, 0], positive=[ENCODE, 0], latent=[latent, 0], **sampler),
        DECODE: node("SA3_SAMEDecode", latent=[SAMPLE, 0], vae=[MODEL, 2], **CHUNKS),
    }
    shown = {"prompt": [(ENCODE, "text")], **inputs, "seed": [(SAMPLE, "seed")], "model": [(MODEL, "model")]}
    return Blueprint(description, whole, shown, {"AUDIO": (SPLICE if SPLICE in graph else DECODE, 0)})


def from_text(description: str, prompt: str, seconds: float, batch_size: int = 1) -> Blueprint:
    """Sound from a prompt alone."""
    empty = node("SA3_EmptyLatent", seconds=seconds, batch_size=batch_size)
    return blueprint(description, prompt, {SOURCE: empty}, {"seconds": [(SOURCE, "seconds")]})


def marked(description: str, prompt: str, kind: str, inputs: list[str], **values: object) -> Blueprint:
    """A recording of which the node `kind` marks a part; the regenerated part is pasted into the recording."""
    mark = node(kind, vae=[MODEL, 2], **values, **CHUNKS)
    splice = node("SA3_Splice", original=[SOURCE, 2], generated=[DECODE, 0], regions=[SOURCE, 1])
    shown = {"audio": [(SOURCE, "audio")], **{name: [(SOURCE, name)] for name in inputs}}
    return blueprint(description, prompt, {SOURCE: mark, SPLICE: splice}, shown)


RECORDING = node("SA3_SAMEEncode", vae=[MODEL, 2], **CHUNKS)
REGION = node("SA3_InpaintMask", latent=[SOURCE, 0], regions="1-2")
PASTE = node("SA3_Splice", generated=[DECODE, 0], regions=[MASK, 1])
TAKES = from_text("Four takes of one prompt as a batch. Connect SA3 Preview Batch to listen and to pick.", MUSIC, 10.0, 4)

BLUEPRINTS = {
    "Text to Music": from_text("Music from a prompt. seconds sets the length; another seed gives another take.", MUSIC, 30.0),
    "Sound Effect": from_text(
        "A sound effect from a prompt: the object, what happens to it, and the room.", "TrackType: SFX, A glass breaks on stone", 4.0
    ),
    "Remix": blueprint(
        "A variation of a recording. strength: 0.1 stays close, 0.6 keeps the shape with another sound, 0.9 keeps little.",
        "The same melody on a music box",
        {SOURCE: RECORDING},
        {"audio": [(SOURCE, "audio")], "strength": [(SAMPLE, "noise_level")]},
        noise_level=0.6,
    ),
    "Repair a Region": blueprint(
        "Regenerates regions of a recording, in seconds: 0.5-1, 2.5-3. Outside them every sample is unchanged. Open the subgraph to "
        "draw them in the waveform.",
        "A steady drum loop",
        {SOURCE: RECORDING, MASK: REGION, SPLICE: PASTE},
        {"audio": [(SOURCE, "audio"), (MASK, "audio"), (SPLICE, "original")], "regions": [(MASK, "regions")]},
    ),
    "Continue": marked(
        "Continues a recording after its end, or before its start. The recording stays unchanged.",
        "The same groove goes on", "SA3_Continue", ["seconds", "side"], seconds=10.0, side="after",
    ),
    "Loop": marked(
        "Cuts whole bars from a recording and regenerates the seam, so that they repeat without a break.",
        "A steady drum loop", "SA3_Loop", ["bpm", "bars"], bpm=120.0, bars=4,
    ),
    "Four Takes": TAKES._replace(outputs={**TAKES.outputs, "run_info": (SAMPLE, 1)}),
}  # fmt: skip


def blueprint_form(name: str, one: Blueprint, schemas: dict) -> dict:
    """A workflow with one subgraph node, as ComfyUI saves a blueprint."""
    unique = {slot: str(uuid.uuid5(uuid.NAMESPACE_URL, f"sa3/blueprint/{name}/{slot}")) for slot in ("", *one.inputs, *one.outputs)}
    form = editor_form(name, one.graph, schemas)
    nodes = {str(each["id"]): each for each in form["nodes"] if each["type"] in schemas and each["type"].startswith("SA3_")}
    links = [dict(zip(LINK, link, strict=True)) for link in form["links"]]
    for each in nodes.values():
        each["inputs"].sort(key=lambda entry: "widget" in entry)  # as the editor orders them
    for one_link in links:
        entries = nodes[str(one_link["target_id"])]["inputs"]
        one_link["target_slot"] = next(i for i, entry in enumerate(entries) if entry["link"] == one_link["id"])

    def link(origin: tuple[int, int], target: tuple[int, int], kind: str) -> int:
        number = len(links) + 1
        links.append(dict(zip(LINK, (number, *origin, *target, kind), strict=True)))
        return number

    inputs, shown = [], []
    for slot, (label, targets) in enumerate(one.inputs.items()):
        numbers = []
        for key, input_name in targets:
            at = next(i for i, entry in enumerate(nodes[key]["inputs"]) if entry["name"] == input_name)
            entry = nodes[key]["inputs"][at]
            entry["link"] = link((INPUTS, slot), (int(key), at), entry["type"])
            numbers.append(entry["link"])
        inputs.append({"id": unique[label], "name": label, "type": entry["type"], "linkIds": numbers, "pos": [-160, 20 * slot]})
        shown.append({"name": label, "type": entry["type"], "link": None, **({"widget": {"name": label}} if "widget" in entry else {})})
    outputs = []
    for slot, (label, (key, at)) in enumerate(one.outputs.items()):
        output = nodes[key]["outputs"][at]
        number = link((int(key), at), (OUTPUTS, slot), output["type"])
        output["links"] = [*(output["links"] or []), number]
        outputs.append({"id": unique[label], "name": label, "type": output["type"], "linkIds": [number], "pos": [0, 20 * slot]})
    right = max(each["pos"][0] + each["size"][0] for each in nodes.values()) + 100
    subgraph = {
        "id": unique[""], "version": 1, "revision": 0, "name": name, "config": {}, "category": "Audio/Stable Audio 3",
        "state": {"lastNodeId": max(map(int, nodes)), "lastLinkId": len(links), "lastGroupId": 0, "lastRerouteId": 0},
        "inputNode": {"id": INPUTS, "bounding": [-260, 0, 120, 20 * len(inputs) + 40]},
        "outputNode": {"id": OUTPUTS, "bounding": [right, 0, 120, 20 * len(outputs) + 40]},
        "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": list(nodes.values()), "groups": [], "links": links, "extra": {},
    }  # fmt: skip
    host = {
        "id": 1, "type": unique[""], "pos": [0, 0], "size": [340, 60 + 30 * len(shown)], "flags": {}, "order": 0, "mode": 0,
        "inputs": shown, "outputs": [{"name": each["name"], "type": each["type"], "links": []} for each in outputs],
        "title": name, "properties": {}, "widgets_values": [],
    }  # fmt: skip
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [host], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [subgraph]}, "extra": {"BlueprintDescription": one.description},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".run" / "comfyui", help="a ComfyUI tree (default: run.py's)")
    comfyui = parser.parse_args().comfyui.expanduser().absolute()
    with tempfile.TemporaryDirectory() as base, Server(comfyui, Path(base), packs=[ROOT]) as server:
        schemas = server.object_info()
    FOLDER.mkdir(exist_ok=True)
    for short, one in BLUEPRINTS.items():
        name = short + SUFFIX
        text = json.dumps(blueprint_form(name, one, schemas), indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"subgraphs/{name}.json")


if __name__ == "__main__":
    main()
