"""The benchmarks on tiny models: every table is printed, with a figure where one belongs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.extend(str(path) for path in (ROOT, ROOT / "tests" / "core") if str(path) not in sys.path)

from core_support import lay_out

from benchmarks import products
from benchmarks import run as comparison

LONG = bool(os.environ.get("SA3_LONG"))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
LOADING = """
import types, torch

class Network(torch.nn.Module):
    def forward(self, x):
        return x * 0.5

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = types.SimpleNamespace(dtype=torch.float32)
    def forward(self, prompts, device):
        return torch.zeros(len(prompts), 8)

def load_diffusion_cond(config, path, device):
    (prompt,) = [part for part in config["model"]["conditioning"]["configs"] if part["id"] == "prompt"]
    assert prompt["config"]["repo_id"] in path and prompt["config"]["subfolder"] == "t5gemma-b-b-ul2" and device == "cpu"
    model = torch.nn.Module()
    model.model, model.diffusion_objective = Network(), "rf_denoiser"
    model.conditioner, model.pretransform = torch.nn.Module(), torch.nn.Module()
    model.conditioner.conditioners = torch.nn.ModuleDict({"prompt": Words()})
    model.pretransform.decode = lambda z, chunked=None: z.repeat_interleave(4096, 2)[:, :2]
    return model
"""
MODEL = """
import torch

class StableAudioModel:
    def __init__(self, model, config, device, half):
        self.model = model
    def generate(self, prompt, duration, batch_size, steps, seed, cfg_scale, disable_tqdm):
        z = torch.ones(batch_size, 32, 16)
        for _ in range(steps):
            z = self.model.model.forward(z)
        return self.model.pretransform.decode(z, chunked=None)
"""


def run(script: str, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables by their first cell."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {first: [one.strip() for one in rest] for first, *rest in lines}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What stands in for the public code: its names, and next to no work."""
    package = tmp_path / "checkout" / "stable_audio_3"
    package.mkdir(parents=True)
    for name, text in {"__init__.py": "", "loading_utils.py": LOADING, "model.py": MODEL}.items():
        (package / name).write_text(text)
    return package.parent


@pytest.fixture
def models(tmp_path: Path) -> Path:
    lay_out(tmp_path / "models" / "checkpoints" / "stable-audio-3-small-music", "small")
    return tmp_path / "models"


JOB = ["--seconds", "0.6", "--steps", "2", "--repeat", "2"]


def test_one_run_compares_everything(comfyui_tree: Path, models: Path, checkout: Path):
    formats = ["fp32", "bf16"] if LONG else ["fp32"]  # each is two processes more
    asked = ["--dtype", ",".join(formats), "--reference", str(checkout), "--batch", "3", "--server", "--comfyui", str(comfyui_tree)]
    code, text = run("run.py", "--models", str(models), *JOB, *asked)
    assert code == 0, text
    found, mine = rows(text), [f"ours {name}" for name in formats]
    assert found["stage"] == [*mine, "reference fp32", "ComfyUI fp32"]
    for stage in ("text encode", "step", "decode", "whole run"):
        assert all(re.match(r"\d+\.\d+ s \(", one) for one in found[stage]), (stage, found[stage])
    assert all("MB" in one for one in (*found["load"][: len(mine)], found["first run"][-1]))
    ratios = [f"reference fp32 over {name}, {stage}" for name in mine for stage in ("step", "whole run")]
    for ratio in [*ratios, "ComfyUI over ours fp32, whole run"]:
        assert all(float(one) >= 0 for one in found[ratio]) and len(found[ratio]) == 3  # the stand-in takes next to no time
    own = [name for name in found if "over its own matrix products" in name]
    batch = [name for name in found if "3 items in one batch" in name]
    assert len(own) == len(batch) == len(mine) and all(float(found[name][0]) > 0 for name in own + batch)
    assert not LONG or float(found["ours bf16"][0]) > 0.99  # cosine against ours fp32
    assert float(found["reference fp32"][0]) < 0.9


@pytest.mark.skipif(not LONG, reason="takes half a minute; SA3_LONG=1 runs it")
def test_without_a_reference_ours_alone(models: Path):
    code, text = run("run.py", "--models", str(models), *JOB, "--dtype", "bf16")
    found = rows(text)
    assert code == 0 and found["stage"] == ["ours bf16"], text
    assert not any(name.startswith("reference") for name in found)


@pytest.mark.parametrize(
    ("option", "words"), [("--reference", "not a checkout of Stability-AI/stable-audio-3"), ("--comfyui", "no ComfyUI")]
)
def test_what_is_not_there_is_said_before_any_work(option: str, words: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *JOB, "--server", option, str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        comparison.main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and words in said.err and str(tmp_path) in said.err and not said.out  # a run first names the machine


@pytest.mark.skipif(not LONG, reason="takes half a minute; SA3_LONG=1 runs it")
def test_precision_knows_which_format_is_the_coarser():
    code, text = run("precision.py", "medium", "--steps", "2", "--seconds", "0.5")
    assert code == 0, text
    found = rows(text)
    assert found["fp16"] == ["bf16"]  # the head, whose first cell is empty
    for name in ("text encoder: embeddings", "transformer: one forward", "run, all in 16 bits: latents"):
        fine, coarse = (float(one.split()[0]) for one in found[name])
        assert fine < coarse < 0.1 and (fine > 0) == (name != "text encoder: embeddings")  # which computes in float32 beside fp16
    fine, coarse = (float(one.split()[0]) for one in found["SAME: decode of the same latents"])
    assert fine > coarse > 20


@pytest.mark.skipif(not products.has_onednn(torch.float32), reason="this build of torch has no oneDNN")
def test_products_name_the_maker(monkeypatch, capsys):
    monkeypatch.setattr(products, "SIZES", {"a small one": (4, 8, 16)})
    products.main(["--threads", str(torch.get_num_threads()), "--repeat", "1"])
    text = capsys.readouterr().out
    assert f"chosen on this processor: {products.chosen(torch.float32)}" in text and "packed" not in text
    assert all(float(one) >= 0 for one in rows(text)["a small one"])
