"""The device benchmark: its models, its processes and its last table. tests/server/test_gpu_server.py runs the command."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts, gpu_summary
from benchmarks.gpu_lab import Case, Lab, run_latents, step_of

STARTS = 15  # seconds in which three processes import torch and open a GPU


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab("cpu", tiny=True)


def test_all_items_fit_into_six_minutes():
    items = gpu_parts.items(Path("reference"))
    assert len({item.name for item in items}) == len(items)
    assert {item.group for item in items} == set(gpu.GROUPS) - {gpu.SERVER_GROUP}
    assert {item.part for item in items} == set(gpu.PARTS) - {gpu.SERVER_PART}
    assert sum(item.needs for item in items) + gpu.SERVER_NEEDS + STARTS <= gpu.LIMIT and gpu.LIMIT + gpu.GRACE < 360


def test_every_question_asks_items_that_exist():
    names = {item.name for item in gpu_parts.items(None)}
    assert {item for question in gpu_summary.questions() for item in question.items} <= names


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_the_command_says_what_to_do(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "found.json")]) == 2
    assert capsys.readouterr() == ("", f"{gpu.NO_DEVICE}\n") and not list(tmp_path.iterdir())


def test_what_fails_is_recorded_and_the_process_goes_on(lab, capsys):
    def job(lab):
        yield "Rows", {"figure": 1.0}
        raise RuntimeError("not on this device")

    records = []
    options = gpu.arguments().parse_args(["--device", "cpu"])
    options.deadline = 2e10
    item = gpu_parts.Item(6, "batch of 8", job, 0)
    assert gpu.measure(item, lab, lambda kind, **values: records.append({"kind": kind, **values}), options)
    assert [record["kind"] for record in records] == ["begin", "row", "end"] and "not on this device" in records[-1]["error"]["traceback"]
    (row,) = gpu_summary.summary(records)
    assert row["question"] == "6 batch of 8 over one item" and row["figure"] == "FAILED: RuntimeError: not on this device"
    assert "FAILED: RuntimeError" in capsys.readouterr().out


def test_what_was_not_reached_or_left_out_is_a_row():
    end = {"kind": "end", "item": "reference, small 30 s", "part": 2, "seconds": 0, "error": None, "skipped": "no checkout"}
    records = [{"kind": "items", "items": {"training step": 6, "draws": 2}, "groups": ["rest"]}, end]
    rows = {row["question"]: row["figure"] for row in gpu_summary.summary(records)}
    assert rows == {"6 training step": "NOT REACHED", "2 draws": "NOT REACHED", "2 reference, small 30 s": "skipped: no checkout"}


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
        write(path, {"kind": "items", "items": {"a": 1, "b": 1}, "groups": ["main"]}, {"kind": "begin", "item": "a", "part": 1})
        return -11

    def finishes(path: Path) -> int:
        write(path, {"kind": "begin", "item": "b", "part": 1}, {"kind": "end", "item": "b", "part": 1, "seconds": 1, "error": None})
        return 0

    workers += [dies, finishes]
    gpu.supervise(options, records)
    text = "\n".join(gpu.tables(gpu.read(records)))
    assert "| 1 a | FAILED: Process: ended with -11 |" in text
    assert "NOT REACHED" not in text
    assert groups == ["main", "main"]


def test_a_worker_that_begins_nothing_is_not_tried_again(supervisor):
    options, records, workers, groups = supervisor
    workers.append(lambda path: 1)
    gpu.supervise(options, records)
    assert groups == [group for group in gpu.GROUPS if group != gpu.SERVER_GROUP]
    assert "| 0 the process of 'main' | FAILED: Process: ended with 1 |" in "\n".join(gpu.tables(gpu.read(records)))


def test_half_a_line_is_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind": "begin", "item": "a"}\n{"kind": "ro')
    assert gpu.read(path) == [{"kind": "begin", "item": "a"}]
