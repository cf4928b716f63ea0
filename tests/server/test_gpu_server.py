"""The benchmarks of a device and of a user's ComfyUI, on a CPU: every part runs, every comparison holds, and what fails stays a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.extend([str(ROOT)] * (str(ROOT) not in sys.path))

from benchmarks import gpu, gpu_parts, gpu_server
from benchmarks.gpu_server import Check, Failed, Model, Report, Row

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the machine's line is read from /proc")
LONG = bool(os.environ.get("SA3_LONG"))
PROCESSOR_SECONDS = 80  # of one thread; the rest of two minutes is waiting for the server
ITEMS = ["text to audio", "same seed after /free", "LoRA, constant", "LoRA, scheduled", "without LoRA again", "continue, splice"]


FACTORY = """
import torch

def create_diffusion_cond_from_config(config):
    model = torch.nn.Module()
    model.pretransform = torch.nn.Module()
    model.pretransform.inv_freq = torch.nn.Parameter(torch.ones(1))
    model.pretransform.decode = lambda z: z.repeat_interleave(4096, 2)[:, :2]
    model.conditioner = lambda conditioning, device: {"seconds_total": torch.ones(len(conditioning), 1)}
    return model
"""
MODEL = """
import torch

class StableAudioModel:
    def __init__(self, model, config, device, half):
        self.model, self.model_config = model, config

    def generate(self, conditioning, conditioning_tensors, duration, steps, return_latents, **options):
        embeddings, mask = conditioning_tensors["prompt"]
        assert embeddings.shape[:2] == mask.shape and return_latents
        return torch.ones(1, 32, 16)
"""


def processor_seconds() -> float:
    """Of all child processes that have ended: other work on the machine adds little to it."""
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.skipif(not LONG, reason="takes two minutes; SA3_LONG=1 runs it")
def test_the_whole_command_within_two_minutes(comfyui_tree: Path, tmp_path: Path):
    reference, out = tmp_path / "checkout" / "stable_audio_3", tmp_path / "out" / "found.json"
    reference.mkdir(parents=True)
    for name, text in {"__init__.py": "", "factory.py": FACTORY, "model.py": MODEL}.items():
        (reference / name).write_text(text)
    command = [sys.executable, gpu.__file__, "--device", "cpu", "--tiny", "--comfyui", str(comfyui_tree), "--out", str(out)]
    before = processor_seconds()
    done = subprocess.run([*command, "--reference", str(reference.parent)], capture_output=True, text=True, cwd=ROOT)
    took = processor_seconds() - before
    assert done.returncode == 0 and took < PROCESSOR_SECONDS, (took, done.stdout, done.stderr)
    records = json.loads(out.read_text(encoding="utf-8"))
    ends = {record["item"]: record for record in records if record["kind"] == "end"}
    assert set(ends) == {item.name for item in gpu_parts.items(None)} | {gpu.SERVER}
    assert not [record for record in ends.values() if record["error"]], done.stdout
    graphed = {name: "CUDA graphs need a CUDA device" for name in ends if name.endswith("graphed")}
    assert {name: record["skipped"][:30] for name, record in ends.items() if record.get("skipped")} == graphed
    printed = done.stdout.rstrip()
    assert printed.endswith(out.with_suffix(".md").read_text(encoding="utf-8").strip())
    *_, table = printed.split("### Summary\n\n")
    head, _, *rows = table.splitlines()
    assert head == "| question | figure | goal or limit | beside it |" and all(row.startswith("| ") for row in rows)
    assert {row[2] for row in rows} == {str(part) for part in gpu.PARTS}
    assert not [row for row in rows if "FAILED" in row or "NOT REACHED" in row or "CHECK" in row]
    through = [row for row in rows if "ComfyUI, default flags" in row]
    assert len(through) >= 2 * len(gpu.SERVER_ITEMS) and all("first run" in row for row in through)
    assert sum("reference 0." in row for row in rows) == 4  # of the stand-in


def test_jobs_of_a_user_on_a_cpu(comfyui_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    out, prepare = tmp_path / "all.json", gpu_server.prepare
    monkeypatch.setattr(gpu_server, "prepare", lambda *given: dict([next(iter(prepare(*given).items()))]))  # one model of two
    asked = ["--device", "cpu", "--tiny", "--servers", "default", "--items", ";".join(ITEMS), "--out", str(out)]
    code = gpu_server.main(["--comfyui", str(comfyui_tree), *asked])
    printed = capsys.readouterr()
    assert code == 0, printed
    whole = json.loads(out.read_text())
    rows = whole["rows"]
    assert [row["item"] for row in rows] == ITEMS and all(row["state"] == "ok" for row in rows)
    assert all(run["seconds"] > 0 and run["nodes"]["SA3_Sampler"] > 0 for row in rows for run in row["runs"])
    assert [len(row["runs"]) for row in rows] == [2, 1, 2, 2, 1, 2] and rows[0]["runs"][0]["nodes"]["SA3_ModelLoader"] > 0
    said = {row["item"]: " ".join(words for words, _ in row["checks"]) for row in rows}
    assert "same bytes" in said["same seed after /free"] and "same bytes" in said["without LoRA again"]
    assert "from without" in said["LoRA, constant"] and "from constant" in said["LoRA, scheduled"]
    account = whole["servers"]["default"]
    assert any("ComfyUI version" in line for line in account["facts"]) and len(account["starts_s"]) == 1
    table = [line for line in printed.out.splitlines() if line.startswith("|")]
    assert printed.out.rstrip().endswith(table[-1]) and len(table) == len(whole["rows"]) + 2
    assert "got prompt" in out.with_suffix(".log").read_text()


def test_after_the_limit_no_server_is_started(comfyui_tree: Path, capsys: pytest.CaptureFixture):
    assert gpu_server.main(["--comfyui", str(comfyui_tree), "--device", "cpu", "--tiny", "--limit", "0"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| default | demo |")]
    assert len(rows) >= len(gpu_server.ITEMS) - 1 and all("not reached" in row for row in rows)  # one needs a second model


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
