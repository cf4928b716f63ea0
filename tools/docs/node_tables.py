"""Write the node tables of docs/api.md from the /object_info of a running ComfyUI.

python tools/docs/node_tables.py http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
START, END = "<!-- nodes: written by tools/docs/node_tables.py -->", "<!-- end of nodes -->"
FROM_DISK = ("file", "text_encoder", "lora", "audio")  # combos that list the user's files
MAX_OPTIONS = 12


def kind(name: str, spec: list) -> str:
    """Type, range or choices of an input, and its default."""
    options = spec[1] if len(spec) > 1 else {}
    if spec[0] == "COMBO" or isinstance(spec[0], list):
        choices = options.get("options", spec[0])
        listed = name not in FROM_DISK and len(choices) <= MAX_OPTIONS
        text = ", ".join(f"`{choice}`" for choice in choices) if listed else "a name from the list that `/object_info` gives"
    elif "default" in options and not options.get("forceInput"):
        limits = f" {options['min']} to {options['max']}" if "min" in options else ""
        text = f"{spec[0]}{limits}"
    else:
        return f"{spec[0]} (a link)"
    default = json.dumps(options.get("default"), ensure_ascii=False)
    return f"{text}; default `{default}`" if "default" in options else text


def tables(nodes: dict) -> str:
    """A section per node of this pack."""
    sections = []
    for node in sorted(name for name in nodes if name.startswith("SA3_")):
        described = nodes[node]
        lines = [f"### {node}", "", described["description"], "", "| input | takes |", "|---|---|"]
        for group in ("required", "optional"):
            for name, spec in described["input"].get(group, {}).items():
                if spec[0] != "AUDIO_UI":  # the browser's player
                    lines.append(f"| `{name}`{' (optional)' if group == 'optional' else ''} | {kind(name, spec)} |")
        outputs = ", ".join(f"{i}: {name}" for i, name in enumerate(described["output_name"]))
        sections.append("\n".join([*lines, "", f"Outputs: {outputs or 'none'}."]))
    return "\n\n".join(sections)


def written(page: str, nodes: dict) -> str:
    """The page with its tables updated."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{tables(nodes)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of a ComfyUI that has loaded this pack")
    with urllib.request.urlopen(f"{parser.parse_args().url}/object_info") as answer:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), json.load(answer)), encoding="utf-8")


if __name__ == "__main__":
    main()
