"""Saved workflows keep working: node ids stay, and widgets, sockets and outputs only get company at the end.

tests/data/schemas.json is how things stand. After an addition bring it up to date:

    SA3_RENEW_SCHEMAS=1 python run.py --test tests/nodes/test_schema_snapshot.py

That refuses to write down a change that breaks saved workflows. Such a change needs a new node id; the old node stays.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).parents[1] / "data" / "schemas.json"
FROM_DISK = ("file", "text_encoder", "lora")  # choices that depend on the user's files
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def described(schema) -> dict:
    """What a saved workflow relies on: in the editor widgets by position, in API form inputs by name, outputs by position."""
    inputs = []
    for one in schema.inputs:
        kind = one.get_io_type()
        entry = {"name": one.id, "type": kind, "optional": bool(one.optional)}
        if kind in WIDGETS and not getattr(one, "force_input", None):
            entry["widget"] = True
            if getattr(one, "control_after_generate", None):
                entry["control"] = True  # a widget of its own behind it
        if kind == "COMBO" and one.id not in FROM_DISK:
            entry["options"] = [str(option) for option in one.options]
        inputs.append(entry)
    outputs = [{"type": one.get_io_type(), "list": bool(one.is_output_list)} for one in schema.outputs]
    return {"inputs": inputs, "outputs": outputs}


def broken(before: dict, now: dict) -> list[str]:
    """What in the nodes of now would break workflows saved before, one sentence each."""
    said = []
    for node_id, old in before.items():
        new = now.get(node_id)
        if new is None:
            said.append(f"{node_id} is gone")
            continue
        if old["outputs"] != new["outputs"][: len(old["outputs"])]:
            said.append(f"{node_id}: its outputs changed or moved")
        found = {entry["name"]: entry for entry in new["inputs"]}
        for entry in old["inputs"]:
            other = found.get(entry["name"])
            if other is None:
                said.append(f"{node_id}.{entry['name']} is gone")
            elif any(entry.get(key) != other.get(key) for key in ("type", "widget", "control")):
                said.append(f"{node_id}.{entry['name']} is of another kind")
            elif entry["optional"] and not other["optional"]:
                said.append(f"{node_id}.{entry['name']} was optional")
            elif lost := set(entry.get("options", ())) - set(other.get("options", ())):
                said.append(f"{node_id}.{entry['name']} lost {', '.join(sorted(lost))}")
        for key in (True, None):  # widgets and sockets each keep their order
            names = [entry["name"] for entry in old["inputs"] if entry.get("widget") == key]
            if names != [entry["name"] for entry in new["inputs"] if entry.get("widget") == key][: len(names)]:
                said.append(f"{node_id}: its {'widgets' if key else 'sockets'} moved")
        known = {entry["name"] for entry in old["inputs"]}
        said += [
            f"{node_id}.{entry['name']} is new and required"
            for entry in new["inputs"]
            if entry["name"] not in known and not entry["optional"]
        ]
    return said


def test_saved_workflows_keep_working(node_classes):
    now = {node_id: described(node_classes[node_id].define_schema()) for node_id in sorted(node_classes)}
    before = json.loads(SNAPSHOT.read_text(encoding="utf-8")) if SNAPSHOT.is_file() else {}
    assert broken(before, now) == []
    if os.environ.get("SA3_RENEW_SCHEMAS"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    assert now == before, "an addition; bring tests/data/schemas.json up to date, see the top of this file"


OLD = {
    "SA3_X": {
        "inputs": [
            {"name": "model", "type": "MODEL", "optional": False},
            {"name": "seed", "type": "INT", "optional": False, "widget": True, "control": True},
            {"name": "kind", "type": "COMBO", "optional": True, "widget": True, "options": ["a", "b"]},
        ],
        "outputs": [{"type": "LATENT", "list": False}],
    }
}
APPENDED = {"name": "more", "type": "FLOAT", "optional": True, "widget": True}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda node: node["inputs"].append(APPENDED), None),
        (lambda node: node["inputs"][2]["options"].insert(0, "c"), None),
        (lambda node: node["outputs"].append({"type": "STRING", "list": False}), None),
        (lambda node: node["inputs"].insert(1, APPENDED), "widgets moved"),
        (lambda node: node["inputs"].append({**APPENDED, "optional": False}), "new and required"),
        (lambda node: node["inputs"].pop(0), "gone"),
        (lambda node: node["inputs"][1].update(type="FLOAT"), "another kind"),
        (lambda node: node["inputs"][1].pop("control"), "another kind"),
        (lambda node: node["inputs"][2].update(optional=False), "was optional"),
        (lambda node: node["inputs"][2]["options"].remove("a"), "lost a"),
        (lambda node: node["outputs"].insert(0, {"type": "STRING", "list": False}), "outputs changed"),
    ],
)
def test_what_counts_as_breaking(change, complaint):
    new = copy.deepcopy(OLD)
    change(new["SA3_X"])
    said = broken(OLD, new)
    assert (complaint is None and said == []) or any(complaint in line for line in said)


def test_a_node_that_is_gone():
    assert broken(OLD, {}) == ["SA3_X is gone"]
