"""docs/api.md: its script runs, its tables are current, and its statements about ComfyUI's options hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from tools.docs import node_tables
from tools.launcher.server import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FAKE_SAGE = 'def sageattn(*args, **kwargs):\n    raise AssertionError("quantised attention was called")\n'


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes((np.sin(np.arange(44100) / 20) * 8000).astype("<i2").tobytes())
    return path


def command_for(server: Server, recording: Path, results: Path) -> list[str]:
    """The page's script, written next to the folder of the results, and its arguments."""
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (results.parent / "vary.py").write_text(script, encoding="utf-8")
    return [sys.executable, "-u", str(results.parent / "vary.py"), server.url, str(recording), str(results)]


def run_page(server: Server, recording: Path, results: Path) -> tuple[str, list[Path]]:
    """Run the page's script as a reader would: its standard output, and the files that it downloaded."""
    command = command_for(server, recording, results)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_PROXY": "*"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, sorted(results.iterdir())


def samples(path: Path) -> bytes:
    data = path.read_bytes()
    start = data.index(b"data", 12)
    return data[start + 8 :]


def test_the_script_and_the_options(comfy: Server, comfyui_tree: Path, recording: Path, tmp_path: Path):
    """With --disable-metadata and --use-sage-attention the audio is the same, and files contain no record."""
    output, (file,) = run_page(comfy, recording, tmp_path / "results")
    assert re.search(r"sample: (\d+) of \1\n", output) and str(file) in output
    assert b"sa3 " in file.read_bytes() and b"SA3_Sampler" in file.read_bytes() and b"Community License" in file.read_bytes()

    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sageattention.py").write_text(FAKE_SAGE)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "modules")}
    options = ["--disable-metadata", "--use-sage-attention"]
    with Server(comfyui_tree, tmp_path / "base", packs=[ROOT], arguments=options, environ=environ) as server:
        assert "sage attention" in server.log.read_text(errors="replace").lower()
        _, (bare,) = run_page(server, recording, tmp_path / "bare")
    assert samples(bare) == samples(file)
    assert not any(word in bare.read_bytes() for word in (b"sa3 ", b"SA3_", b"License", b"LIST"))


def test_the_script_ends_when_the_run_is_cancelled(comfy: Server, recording: Path, tmp_path: Path):
    recording.write_bytes(recording.read_bytes()[: 44 + 2 * 22050])  # another one: ComfyUI would reuse the result of the first
    command = command_for(comfy, recording, tmp_path / "results")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "NO_PROXY": "*"}}
    with subprocess.Popen(command, **pipes) as script:
        for line in script.stdout:
            if line.startswith("sample: "):
                comfy.interrupt()
                break
        _, errors = script.communicate(timeout=60)
    assert script.returncode == 1 and errors == "the run was cancelled\n"


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="no curl or no bash")
def test_the_curl_example_queues_a_graph(comfy: Server):
    (example,) = re.findall(r"```bash\n(echo .*?)\n", PAGE, re.S)
    command = ["bash", "-c", example.replace("http://127.0.0.1:8188", comfy.url)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "NO_PROXY": "*"})
    queued = json.loads(done.stdout)
    assert queued["node_errors"] == {}
    comfy.interrupt(queued["prompt_id"])


def test_the_tables_are_current(comfy: Server):
    assert node_tables.written(PAGE, comfy.object_info()) == PAGE, "run: python tools/docs/node_tables.py <server>"
