"""Write the English locale from the nodes' schemas, and list missing and obsolete texts of the other languages.

    python tools/docs/make_locales.py [--comfyui PATH]

Chinese and Japanese are written by hand in locales/<language>/nodeDefs.json. The script lists changed English texts, whose translations
need a review.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

LOCALES = ROOT / "locales"
LANGUAGES = ("en", "zh", "ja")
SYNTAX = "{}@|"  # special characters of the front end's messages


def english(nodes: dict) -> dict:
    """The content of nodeDefs.json from a server's object_info."""
    texts = {}
    for node_id in sorted(name for name in nodes if name.startswith("SA3_")):
        node, inputs = nodes[node_id], {}
        for group in ("required", "optional"):
            for name, spec in node["input"].get(group, {}).items():
                if spec[0] != "AUDIO_UI":  # the browser's player
                    inputs[name] = {"name": name, "tooltip": spec[1]["tooltip"]}
        outputs = {str(i): {"name": name} for i, name in enumerate(node["output_name"])}
        texts[node_id] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": inputs,
            "outputs": outputs,
        }
    return texts


def flat(texts: dict, path: str = "") -> dict[str, str]:
    """The texts by path, such as SA3_Sampler.inputs.seed.tooltip."""
    by_path = {}
    for key, value in texts.items():
        by_path |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return by_path


def read(language: str, name: str = "nodeDefs") -> dict:
    """A file of a language."""
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def problems(language: str, wanted: dict) -> list[str]:
    """Missing texts, obsolete texts and special characters of a language, one line each."""
    ours, theirs = flat(wanted), flat(read(language))
    lines = [f"{language}: missing {path}" for path in ours if not theirs.get(path, "").strip()]
    lines += [f"{language}: obsolete {path}" for path in theirs if path not in ours]
    lines += [f"{language}: one of {SYNTAX} in {path}" for path, text in theirs.items() if set(text) & set(SYNTAX)]
    return lines


def main() -> None:
    from tools.launcher.server import Server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".run" / "comfyui", help="a ComfyUI tree (default: run.py's)")
    comfyui = parser.parse_args().comfyui.expanduser().absolute()
    with tempfile.TemporaryDirectory() as base, Server(comfyui, Path(base), packs=[ROOT]) as server:
        texts = english(server.object_info())
    before = flat(read("en")) if (LOCALES / "en" / "nodeDefs.json").is_file() else {}
    (LOCALES / "en").mkdir(parents=True, exist_ok=True)
    text = json.dumps(texts, indent=2, ensure_ascii=False)
    (LOCALES / "en" / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")
    changed = [f"en: changed {path}" for path, text in flat(texts).items() if before.get(path, text) != text]
    print("\n".join(changed + [line for language in LANGUAGES for line in problems(language, texts)]) or "All languages are complete.")


if __name__ == "__main__":
    main()
