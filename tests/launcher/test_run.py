"""The command itself, as a process, against a fake ComfyUI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest


def command(pack: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(pack / "run.py"), *map(str, arguments)]


def run(pack: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(pack, *arguments), capture_output=True, text=True, timeout=120)


def workflow(folder: Path, kind: str) -> Path:
    """One node that takes the prompt, one of the fake's kinds."""
    graph = {
        "7": {"class_type": "SA3_TextEncode", "inputs": {"text": "", "seconds": 1}},
        "9": {"class_type": kind, "inputs": {}, "_meta": {"title": "The Node"}},
    }
    file = folder / "workflow.json"
    file.write_text(json.dumps(graph))
    return file


def test_a_users_comfyui_generates_the_file(pack: Path, tree: Path, tmp_path: Path):
    before = {file for file in tree.rglob("*")}
    done = run(pack, "a prompt", "--comfyui", tree, "--python", sys.executable, "--workflow", workflow(tmp_path, "Say"))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]) == pack / "output" / "audio" / "a_00001_.flac"
    assert (pack / "output" / "audio" / "a_00001_.flac").is_file()
    assert "[run] The Node: step 3/3" in done.stderr
    assert {file for file in tree.rglob("*")} == before
    paths = json.loads((pack / ".run/home/extra_model_paths.yaml").read_text())
    assert paths["models0"]["checkpoints"] == str(tree / "models" / "checkpoints")


def test_prompt_and_output_are_passed_on(pack: Path, tree: Path, tmp_path: Path):
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"1": {"class_type": "SA3_TextEncode", "inputs": {"text": "old"}}}))
    done = run(pack, "--inside", tree, "--workflow", file, "--output", tmp_path / "here", "--", "-a prompt")
    assert json.loads(Path(done.stdout.strip()).read_text()) == {"text": "-a prompt"}
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "here")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("Boom", "run.py: Boom: seconds must be positive, got -1"),
        ("Bad", "run.py: Bad (node 9): Value -1 smaller than min of 0: seconds"),
        ("Die", "the fake is dying"),
    ],
)
def test_failure_is_a_sentence(pack: Path, tree: Path, tmp_path: Path, kind: str, words: str):
    done = run(pack, "x", "--inside", tree, "--workflow", workflow(tmp_path, kind))
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["x", "--comfyui", "/no/such"], ["x", "--inside", "/x", "--workflow", "/no/such.json"]])
def test_unusable_path_is_a_sentence(pack: Path, arguments: list[str]):
    done = run(pack, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("run.py: ") and "/no/such" in done.stderr


def test_no_prompt_is_a_usage_error(pack: Path):
    assert run(pack).returncode == 2


def test_an_output_that_is_no_folder_is_refused_before_anything_is_installed(pack: Path):
    done = run(pack, "x", "--output", f"{__file__}/below")
    assert done.returncode == 2 and "is not a folder" in done.stderr


BENCHMARK = """\"\"\"Measure one thing.

    python benchmarks/one.py [anything]
\"\"\"

import os, sys
print(sys.argv[1:], os.environ["SA3_COMFYUI"])
sys.exit(5)
"""


@pytest.fixture
def benchmarks(pack: Path) -> Path:
    """The folder of benchmarks: a script, and a module that is none."""
    folder = pack / "benchmarks"
    folder.mkdir()
    (folder / "one.py").write_text(BENCHMARK)
    (folder / "shared.py").write_text('"""What the benchmarks share."""\n')
    return folder


def test_a_benchmark_gets_its_arguments_and_its_status_is_returned(pack: Path, tree: Path, benchmarks: Path):
    done = run(pack, "--comfyui", tree, "--python", sys.executable, "--benchmark", "one", "a", "--help", "--seed", "3")
    assert (done.returncode, done.stdout) == (5, f"['a', '--help', '--seed', '3'] {tree}\n"), done.stderr


def test_benchmarks_are_listed_without_a_set_up(pack: Path, benchmarks: Path):
    done = run(pack, "--benchmark")
    assert (done.returncode, done.stdout) == (0, "one  Measure one thing.\n"), done.stderr
    assert not (pack / ".run").exists()


def test_an_unknown_benchmark_is_a_sentence(pack: Path, benchmarks: Path):
    done = run(pack, "--benchmark", "shared", "x")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "run.py: there is no benchmark 'shared'; there are one\n")
    assert not (pack / ".run").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_stops_comfyui_too(pack: Path, tree: Path, tmp_path: Path, number: signal.Signals, status: int):
    arguments = command(pack, "x", "--inside", tree, "--workflow", workflow(tmp_path, "Wait"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeded = partial(signal.signal, number, signal.SIG_DFL)  # a shell's background job ignores SIGINT, and so do its children
    with subprocess.Popen(arguments, **pipes, preexec_fn=heeded) as process:
        for line in process.stderr:
            if "The Node: step 1/2" in line:
                break
        servers = psutil.Process(process.pid).children()
        assert len(servers) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert "Traceback" not in err
    assert not servers[0].is_running()
