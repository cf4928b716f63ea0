"""The recipe of the demo, all stages at a size of seconds: what it writes loads and generates, and it goes on from a finished model."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import sa3_core
from sa3_core.training import autoencoder
from sa3_core.training.loop import Settings

RECIPE = Path(__file__).parents[2] / "assets" / "make_demo.py"


@pytest.fixture
def recipe(monkeypatch):
    """The script as a module, with two steps where it has thousands."""
    spec = importlib.util.spec_from_file_location("make_demo", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    short = Settings(steps=2, warmup=1, record_every=1, save_every=2)
    monkeypatch.setattr(module, "CLIPS", 12)
    monkeypatch.setattr(module, "WAVEFORM", (short, autoencoder.Weights()))
    monkeypatch.setattr(module, "TEXTURE", (short, autoencoder.Weights(spectral=0.5, spectral_from=-1, spectral_full=0, saturating=True)))
    monkeypatch.setattr(module, "TRANSFORMER", (short, {"short": 0.5, "long": 0.5}))
    monkeypatch.setattr(module, "RHYTHM", (short, {"short": 0.5, "beats": 0.5}))
    windows = {
        "short": module.Window(32, (1.0, 1.4), 4, 2),
        "long": module.Window(48, (1.5, 2.0), 4, 2),
        "beats": module.Window(32, (1.0, 1.4), 4, 2, ("kick", "beep"), 0.8),
    }
    monkeypatch.setattr(module, "WINDOWS", windows)
    return module


def make(recipe, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["make_demo.py", "--threads", "1", *map(str, arguments)])
    recipe.main()


def test_one_command_goes_from_nothing_to_a_model_that_generates(recipe, monkeypatch, tmp_path):
    make(recipe, monkeypatch, "--work", tmp_path / "work", "--out", tmp_path / "out")
    model = sa3_core.load(tmp_path / "out")
    (clip,) = model.generate("a low tone", duration=0.5, steps=2, padding=0.0).audio
    assert clip.shape == (2, 22050) and bool(torch.isfinite(clip).all())
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"waveform.png", "texture.png", "transformer.png", "rhythm.png"}

    again = tmp_path / "again"
    make(recipe, monkeypatch, "--work", tmp_path / "work", "--out", again)  # everything is there: nothing is trained twice
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_training_goes_on_from_a_finished_model(recipe, monkeypatch, tmp_path):
    make(recipe, monkeypatch, "--work", tmp_path / "work", "--out", tmp_path / "out", "--start", "demo")
    demo, made = sa3_core.load("demo"), sa3_core.load(tmp_path / "out")
    for found, before in zip(made.module.parameters(), demo.module.parameters(), strict=True):
        assert not found.numel() or float((found - before).abs().max()) < 0.01  # two steps away
