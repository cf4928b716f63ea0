"""The benchmark of a user's ComfyUI on the demos: every row has its figures, every comparison holds, and what fails stays a row."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.extend([str(ROOT)] * (str(ROOT) not in sys.path))

from benchmarks import gpu_server
from benchmarks.gpu_server import Check, Failed, Model, Report, Row

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the machine's line is read from /proc")
ITEMS = ["text to audio", "same seed after /free", "LoRA, constant", "LoRA, scheduled", "without LoRA again", "continue, splice"]


def test_jobs_of_a_user_on_a_cpu(comfyui_tree: Path, tmp_path: Path):
    out = tmp_path / "all.json"
    asked = ["--device", "cpu", "--tiny", "--servers", "default", "--items", ";".join(ITEMS), "--out", str(out)]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_server.py"), "--comfyui", str(comfyui_tree), *asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads(out.read_text())
    rows = [row for row in whole["rows"] if row["model"] == "demo"]
    assert [row["item"] for row in rows] == ITEMS and all(row["state"] == "ok" for row in rows)
    assert all(run["seconds"] > 0 and run["nodes"]["SA3_Sampler"] > 0 for row in rows for run in row["runs"])
    assert [len(row["runs"]) for row in rows] == [2, 1, 2, 2, 1, 2] and rows[0]["runs"][0]["nodes"]["SA3_ModelLoader"] > 0
    said = {row["item"]: " ".join(words for words, _ in row["checks"]) for row in rows}
    assert "same bytes" in said["same seed after /free"] and "same bytes" in said["without LoRA again"]
    assert "from without" in said["LoRA, constant"] and "from constant" in said["LoRA, scheduled"]
    account = whole["servers"]["default"]
    assert any("ComfyUI version" in line for line in account["facts"]) and len(account["starts_s"]) == 1
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert done.stdout.rstrip().endswith(table[-1]) and len(table) == len(whole["rows"]) + 2
    assert "got prompt" in out.with_suffix(".log").read_text()


def test_after_the_limit_no_server_is_started(comfyui_tree: Path, capsys: pytest.CaptureFixture):
    assert gpu_server.main(["--comfyui", str(comfyui_tree), "--device", "cpu", "--tiny", "--limit", "0"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| default | demo |")]
    assert len(rows) >= len(gpu_server.EVERYTHING) - 1 and all("not reached" in row for row in rows)  # one needs a second model


@pytest.mark.parametrize(
    ("outcome", "state", "words"),
    [
        (([], [Check("kept part: same bytes"), Check("DIFFERS by 1e-3", False)]), "check", "**DIFFERS by 1e-3**"),
        (Failed("SA3_Sampler: no such thing", "Traceback ..."), "failed", "**FAILED** SA3_Sampler: no such thing"),
        (ZeroDivisionError("division by zero"), "failed", "**FAILED** ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_is_a_row(outcome, state: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def item(session):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setitem(gpu_server.ITEMS, "text to audio", item)
    report = Report(Namespace(limit=60.0, out=tmp_path / "rows.json", tiny=True))
    session = Namespace(host=Namespace(name="default"), model=Model("demo", "demo", 2.0), about={})
    report.item(session, "text to audio")
    (row,) = report.rows
    assert isinstance(row, Row) and row.state == state and words in report.show()
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["state"] == state
