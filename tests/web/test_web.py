"""The modules of web/ that need no page, by `node --test`."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sa3_core.checkpoints.releases import RELEASES, SOURCES, VARIANTS

FOLDER = Path(__file__).parent
NODE = shutil.which("node")
OLDEST = 18


def version() -> int:
    """The major version of Node, 0 where there is none."""
    if NODE is None:
        return 0
    found = re.match(r"v(\d+)\.", subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout)
    return int(found[1]) if found else 0


@pytest.mark.skipif(version() < OLDEST, reason=f"no Node.js {OLDEST} or newer on this machine (node --version)")
@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.test.mjs")), ids=lambda file: file.name)
def test_node(file: Path):
    run = subprocess.run([NODE, "--test", str(file)], capture_output=True, encoding="utf-8", timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^(# |ℹ )pass [1-9]", run.stdout, re.MULTILINE), f"no test ran:\n{run.stdout}"


READ = """import { readFileSync } from "node:fs"
import { graphOf } from "%s"
console.log(JSON.stringify(await graphOf(new Blob([readFileSync("%s")]))))"""


@pytest.mark.skipif(version() < OLDEST, reason=f"no Node.js {OLDEST} or newer on this machine (node --version)")
@pytest.mark.parametrize("kind", ["wav16", "mp3", "opus", "m4a"])
def test_a_saved_file_holds_its_graph(tmp_path: Path, kind: str):
    """Short audio with a graph of many Ogg pages, as the page reads it."""
    torch, audio_files = pytest.importorskip("torch"), pytest.importorskip("sa3_core.audio.files")
    workflow = {"nodes": [{"id": 1, "title": "é}=\n" * 30_000}]}
    path = tmp_path / "a"
    audio_files.write(path, torch.zeros(2, 600), 48000, kind, {"prompt": "{}", "workflow": json.dumps(workflow), "sa3": "{}"})
    script = tmp_path / "read.mjs"
    script.write_text(READ % ((FOLDER.parents[1] / "web" / "audio_files" / "graph.js").as_uri(), path), encoding="utf-8")
    run = subprocess.run([NODE, str(script)], capture_output=True, encoding="utf-8", timeout=300)
    assert run.returncode == 0 and json.loads(run.stdout) == {"workflow": workflow}, run.stdout[:500] + run.stderr


@pytest.mark.skipif(version() < OLDEST, reason=f"no Node.js {OLDEST} or newer on this machine (node --version)")
def test_the_loader_s_dialog_lists_the_releases():
    module = (FOLDER.parents[1] / "web" / "download" / "releases.js").as_uri()
    script = f"""
    import {{ RELEASES, gigabytes, page }} from {json.dumps(module)}
    const sizes = name => ["official", "mirror"].map(source => gigabytes(name, source))
    console.log(JSON.stringify(Object.entries(RELEASES).map(([name, one]) => [name, sizes(name), one.gated, page(name), one.seconds])))
    """
    run = subprocess.run([NODE, "--input-type=module", "-e", script], capture_output=True, encoding="utf-8", timeout=60, check=True)
    listed = [
        [
            name,
            [one.size(source) for source in SOURCES],
            one.gated,
            f"https://huggingface.co/{one.repository}",
            380 if "medium" in name else 120,
        ]
        for name, one in RELEASES.items()
        if name in VARIANTS
    ]
    assert json.loads(run.stdout) == [[name, pytest.approx(sizes), *rest] for name, sizes, *rest in listed]
