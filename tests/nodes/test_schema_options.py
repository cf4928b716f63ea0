"""What a schema gives the editor beyond inputs and outputs: search words, and inputs that it folds away."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = json.loads((Path(__file__).parents[2] / "web" / "search_words.json").read_text(encoding="utf-8"))


def test_every_node_has_search_words(node_classes):
    assert sorted(WORDS) == sorted(node_classes)
    assert all(words[0].startswith("stable audio ") and len(words) == len(set(words)) > 3 for words in WORDS.values())


def test_comfyui_gets_the_words_and_the_folded_inputs(node_classes):
    sampler = node_classes["SA3_Sampler"].GET_NODE_INFO_V1()
    if "search_aliases" not in sampler:  # ComfyUI 0.3.75, where web/search.js supplies the words
        return
    assert sampler["search_aliases"] == WORDS["SA3_Sampler"]
    for node_class in node_classes.values():
        info = node_class.GET_NODE_INFO_V1()
        shown = [spec[1] for group in ("required", "optional") for spec in info["input"].get(group, {}).values() if len(spec) > 1]
        assert not all(options.get("advanced") for options in shown)
    assert sampler["input"]["optional"]["preview"][1]["advanced"] is True
    assert "advanced" not in sampler["input"]["required"]["steps"][1]
