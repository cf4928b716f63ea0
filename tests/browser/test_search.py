"""Words that a musician types find this pack's nodes and blueprints, in the page's own search.

A front end whose search reads `search_aliases` promises a place among the first three for WORDS, and to find what COMMON lists, words
with which core names many nodes. Older ones, whose search web/search.js extends, promise to find all of them. All languages find English
words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="no playwright; pip install playwright")

from tools.launcher.editor import Editor
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
WORDS = {
    "text to music": "Text to Music (Stable Audio 3)",
    "sound effect": "Sound Effect (Stable Audio 3)",
    "remix": "Remix (Stable Audio 3)",
    "repair": "Repair a Region (Stable Audio 3)",
    "continue": "Continue (Stable Audio 3)",
    "loop": "Loop (Stable Audio 3)",
    "takes": "Four Takes (Stable Audio 3)",
    "generate music": "SA3_Sampler",
    "variation": "SA3_Sampler",
    "style transfer": "SA3_SAMEEncode",
    "waveform": "SA3_InpaintMask",
    "edit audio": "SA3_InpaintMask",
    "outpaint": "SA3_Extend",
    "extend": "SA3_Extend",
    "longer": "SA3_Extend",
    "full song": "SA3_Extend",
    "seamless": "SA3_Loop",
    "crossfade": "SA3_Splice",
    "bpm": "SA3_PromptHelper",
    "prompt": "SA3_PromptHelper",
    "negative prompt": "SA3_TextEncode",
    "duration": "SA3_EmptyLatent",
    "song length": "SA3_EmptyLatent",
    "listen": "SA3_PreviewBatch",
    "compare audio": "SA3_PreviewBatch",
    "spectrogram": "SA3_AudioImage",
    "loudness": "SA3_Levels",
    "LUFS": "SA3_Levels",
    "normalise": "SA3_Levels",
    "normalize audio": "SA3_Levels",
    "volume": "SA3_Levels",
    "wav": "SA3_SaveAudio",
    "flac": "SA3_SaveAudio",
    "mp3": "SA3_SaveAudio",
    "fine-tune": "SA3_TrainLoRA",
    "train": "SA3_TrainLoRA",
    "merge lora": "SA3_LoRAMerge",
    "convert lora": "SA3_LoRAConvert",
    "autoencoder": "SA3_AutoencoderLoader",
    "download": "SA3_Download",
}
COMMON = {
    "text to audio": "SA3_Sampler",
    "generate": "SA3_Sampler",
    "sampler": "SA3_Sampler",
    "denoise": "SA3_Sampler",
    "inpaint": "SA3_InpaintMask",
    "length": "SA3_EmptyLatent",
    "batch": "SA3_PreviewBatch",
    "stem": "SA3_Splice",
    "guidance": "SA3_Guidance",
    "cfg": "SA3_Guidance",
    "scheduler": "SA3_Schedule",
    "lora": "SA3_LoRAStack",
    "vae": "SA3_AutoencoderLoader",
    "encode": "SA3_SAMEEncode",
    "decode": "SA3_SAMEDecode",
    "save": "SA3_SaveAudio",
}
SEARCH = """async words => {
  const stores = document.getElementById('vue-app').__vue_app__.config.globalProperties.$pinia._s
  const service = stores.get('nodeDef').nodeSearchService
  service.searchNode('audio')  // creates the store of how common a node is, which ranks
  await stores.get('nodeFrequency').loadNodeFrequencies()  // as the page does when it is idle
  const named = def => def.name.startsWith('SubgraphBlueprint.') ? def.display_name : def.name
  const found = words.map(word => service.searchNode(word, [], { limit: 64 }).map(named))
  return [Object.fromEntries(words.map((word, i) => [word, found[i]])), service.nodeFuseSearch.keys.includes('search_aliases')]
}"""


@pytest.fixture(scope="module")
def editor(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    with Server(tree, tmp_path_factory.mktemp("comfyui"), packs=[ROOT], frontend=True) as server, Editor(server) as editor:
        yield editor


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_words_find_nodes(editor: Editor, language: str):
    editor.errors.clear()
    editor.reload(language)
    found, reads_aliases = editor.page.evaluate(SEARCH, [*WORDS, *COMMON, "stable audio", "sa3"])
    assert {word: found[word] for word, name in {**WORDS, **COMMON}.items() if name not in found[word]} == {}
    if reads_aliases:
        assert {word: found[word][:5] for word, name in WORDS.items() if name not in found[word][:3]} == {}
    nodes = set(json.loads((ROOT / "web" / "search_words.json").read_text(encoding="utf-8")))
    assert nodes - set(found["stable audio"]) == set() == nodes - set(found["sa3"])
    assert editor.errors == []
