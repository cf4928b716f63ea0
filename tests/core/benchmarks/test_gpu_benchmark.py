"""The device benchmark on a CPU with tiny models: every kind of item runs, and what fails is reported while the rest continues."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_experiments, gpu_parts
from benchmarks.gpu_lab import Case, Lab, Skipped, run_latents, step_of

ITEMS = {item.name: item for item in [*gpu_parts.items(None), *gpu_experiments.items()]}
QUICK = [  # one of each kind; the command itself runs all
    "recorded cases, medium-base", "precision, text encoder", "draws", "decode, medium 120 s", "sampling, small 30 s, bf16, eager",
    "kernels of a step, small 30 s", "floor, medium 120 s", "memory, small 30 s, fp16",
    "LoRA, constant and scheduled", "training step", "resumed training", "attention, small 30 s x 8", "decode formats, medium 120 s",
    "chunks, small 30 s", "settings of products", "window, our blocks",
]  # fmt: skip
SKIPPED = {
    "sampling, small 30 s, fp16, graphed": "need a CUDA device", "captured decode, small 30 s": "need a CUDA device",
    "window, varlen": "needs a CUDA device", "window, flash without lengths": "needs a CUDA device",
    "reference, small 30 s": "--reference names no checkout",
}  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab("cpu", tiny=True)


@pytest.mark.parametrize("name", QUICK)
def test_an_item_yields_rows_of_plain_values(lab, name):
    with torch.no_grad():
        rows = list(ITEMS[name].job(lab))
    assert rows
    for table, row in rows:
        assert isinstance(table, str)
        assert all(isinstance(value, (str, int, float)) for value in row.values())
        json.dumps(row)
    assert gpu.markdown([row for _, row in rows]).count("\n") == len(rows) + 1


@pytest.mark.parametrize("name", SKIPPED)
def test_an_item_that_cannot_run_here_says_why(lab, name):
    with pytest.raises(Skipped, match=SKIPPED[name]):
        list(ITEMS[name].job(lab))


def test_names_are_unique_and_groups_known():
    assert len(ITEMS) == len([*gpu_parts.items(None), *gpu_experiments.items()])
    assert {item.group for item in [*gpu_parts.items(Path("reference")), *gpu_experiments.items()]} == set(gpu.GROUPS)
    assert {item.part for item in ITEMS.values()} == set(gpu.PARTS) - {gpu.SERVER_PART}


def test_weights_are_the_same_in_every_number_format(lab):
    exact, half = (lab.new_module("small", dtype).state_dict() for dtype in ("fp32", "bf16"))
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in exact.items())


def test_a_replay_is_the_step(lab):
    step = step_of(lab.model("medium", "fp32"), Case("medium", 0.5))
    graph, out = lab.capture(step.evaluation())
    graph.replay()
    assert torch.equal(out, step())


def test_every_prompt_of_a_random_model_is_cached(lab):
    model = lab.model("small", "fp32")
    one, two = model.encode_text("a"), model.encode_text(["b", "c"])
    assert torch.equal(one.embeddings.expand(2, -1, -1), two.embeddings)
    assert torch.isfinite(run_latents(model, Case("small", 0.2))).all()


# the command


def command(tmp_path: Path, *options: str) -> tuple[str, list[dict]]:
    out = tmp_path / "found.json"
    words = [sys.executable, gpu.__file__, "--device", "cpu", "--tiny", "--out", str(out), *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.with_suffix(".md").read_text(encoding="utf-8").strip() in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "found.md"]
    return done.stdout, json.loads(out.read_text(encoding="utf-8"))


def test_the_command_reports_progress_rows_and_what_was_skipped(tmp_path):
    printed, found = command(tmp_path, "--parts", "5,7", "--only", "window")
    assert "part 7: window, our blocks" in printed
    assert "### Part 7d." in printed and "### Failed" not in printed and "Traceback" not in printed
    assert "window, our blocks" in {record["item"] for record in found if record["kind"] == "row"}
    _, skipped = printed.split("### Skipped")
    for name in ("window, varlen", "window, flash without lengths"):  # CUDA alone has them
        assert f"| {name} | this kernel needs a CUDA device, and this is cpu |" in skipped
    assert "| ComfyUI server | --comfyui names no ComfyUI |" in skipped


def test_the_command_reports_what_failed(tmp_path):
    factory = tmp_path / "checkout" / "stable_audio_3" / "factory.py"
    factory.parent.mkdir(parents=True)
    factory.write_text("raise RuntimeError('not the public code')\n")
    (tmp_path / "out").mkdir()
    asked = ["--parts", "2", "--only", "reference, small", "--only", "draws", "--reference", str(tmp_path / "checkout")]
    printed, found = command(tmp_path / "out", *asked)
    (failed,) = [record for record in found if record["kind"] == "end" and record["error"]]
    assert failed["item"] == "reference, small 30 s" and failed["error"]["traceback"]
    assert "| reference, small 30 s | RuntimeError: not the public code |" in printed and "### Skipped" not in printed
    assert "draws" in {record["item"] for record in found if record["kind"] == "row"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_the_command_says_what_to_do(tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run([sys.executable, gpu.__file__, "--out", str(out)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{gpu.NO_DEVICE}\n")
    assert not out.exists()


def test_the_command_lists_what_it_did_not_reach(tmp_path):
    printed, found = command(tmp_path, "--parts", "2", "--only", "eager", "--limit", "0")
    assert "* sampling, small 30 s, fp16, eager" in printed
    assert not [record for record in found if record["kind"] == "begin"]


@pytest.fixture
def supervisor(tmp_path, monkeypatch) -> tuple:
    """Options, the records' path, and two lists: workers to come, functions of that path that return an exit status; groups that ran."""
    records, workers, groups = tmp_path / "records.jsonl", [], []

    def run(words: list[str], seconds: float) -> int | str:
        groups.append(words[words.index("--worker") + 1])
        return workers.pop(0)(records) if workers else 0

    monkeypatch.setattr(gpu, "run", run)
    options = gpu.arguments().parse_args(["--device", "cpu"])
    options.deadline = 2e10
    return options, records, workers, groups


def write(path: Path, *records: dict) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_a_worker_that_dies_is_followed_by_another(supervisor):
    options, records, workers, groups = supervisor

    def dies(path: Path) -> int:
        write(path, {"kind": "items", "items": ["a", "b"], "groups": ["main"]}, {"kind": "begin", "item": "a", "part": 1})
        return -11

    def finishes(path: Path) -> int:
        write(path, {"kind": "begin", "item": "b", "part": 1}, {"kind": "end", "item": "b", "part": 1, "seconds": 1, "error": None})
        return 0

    workers += [dies, finishes]
    gpu.supervise(options, records)
    text = "\n".join(gpu.tables(gpu.read(records)))
    assert "| a | Process: ended with -11 |" in text
    assert "Not reached" not in text
    assert groups == ["main", "main"]


def test_a_worker_that_begins_nothing_is_not_tried_again(supervisor):
    options, records, workers, groups = supervisor
    workers.append(lambda path: 1)
    gpu.supervise(options, records)
    assert groups == list(gpu.GROUPS)
    assert "| the process of 'main' | Process: ended with 1 |" in "\n".join(gpu.tables(gpu.read(records)))


def test_half_a_line_is_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind": "begin", "item": "a"}\n{"kind": "ro')
    assert gpu.read(path) == [{"kind": "begin", "item": "a"}]
