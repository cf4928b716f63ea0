"""The modules of web/ that need no page, by `node --test`."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
