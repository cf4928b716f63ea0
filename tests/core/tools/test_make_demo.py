"""The recipe of the demo models with tiny settings: its models load and generate."""

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sa3_core
from tools.demo.trainer import Settings

RECIPE = Path(__file__).parents[3] / "tools" / "demo" / "make_demo.py"


@pytest.fixture
def recipe(monkeypatch):
    """The script as a module, with two steps per phase."""
    spec = importlib.util.spec_from_file_location("make_demo", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_demo", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    short = Settings(steps=2, warmup=1, record_every=1, save_every=2)
    monkeypatch.setattr(module, "CLIPS", 12)
    for name, base in module.BASES.items():
        same = {phase: (short, weights) for phase, (_, weights) in base.same.items()}
        transformer = {phase: (short, {"short": 0.5, "long": 0.2, "beats": 0.3}) for phase in base.transformer}
        monkeypatch.setitem(module.BASES, name, replace(base, same=same, transformer=transformer))
    for name, post in module.POST_TRAINED.items():
        monkeypatch.setitem(module.POST_TRAINED, name, replace(post, paths={"short": 2, "long": 2}, steps=3, settings=short))
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


@pytest.mark.skipif(not os.environ.get("SA3_LONG"), reason="takes half a minute; SA3_LONG=1 runs it")
def test_one_command_trains_models_that_generate(recipe, monkeypatch, tmp_path):
    make(recipe, monkeypatch, "--work", tmp_path / "work", "--out", tmp_path / "out")
    make(recipe, monkeypatch, "--work", tmp_path / "work", "--out", tmp_path / "out", "--model", "demo-post-trained")
    for name, objective, differential in (
        ("demo", "rectified_flow", False),
        ("demo-medium", "rectified_flow", True),
        ("demo-post-trained", "rf_denoiser", False),
    ):
        model = sa3_core.load(tmp_path / "out" / name)
        assert (model.config.objective, model.config.dit.differential) == (objective, differential)
        assert (model.config.same.encoder.window is not None) == differential
        (clip,) = model.generate("a low tone", duration=0.5, steps=2, padding=0.0).audio
        assert clip.shape == (2, 22050) and bool(torch.isfinite(clip).all())
        if name in sa3_core.DEMOS:
            pictures = {path.name for path in sa3_core.DEMOS[name].glob("*.png")}
            assert {path.name for path in (tmp_path / "out" / name).glob("*.png")} == pictures

    again = tmp_path / "again"
    make(recipe, monkeypatch, "--work", tmp_path / "work", "--out", again)  # everything is cached: nothing is trained again
    for name in sa3_core.DEMOS:
        assert (again / name / "model.safetensors").read_bytes() == (tmp_path / "out" / name / "model.safetensors").read_bytes()


def test_training_starts_from_another_model(recipe, monkeypatch, tmp_path):
    arguments = ("--work", tmp_path / "work", "--out", tmp_path / "out", "--start", "demo", "--model", "demo")
    make(recipe, monkeypatch, *arguments)
    demo, trained = sa3_core.load("demo"), sa3_core.load(tmp_path / "out" / "demo")
    for after, before in zip(trained.module.parameters(), demo.module.parameters(), strict=True):
        assert not after.numel() or float((after - before).abs().max()) < 0.01  # two steps away


def test_the_medium_family_inherits_weights_of_the_small_one(recipe):
    """The first attention of a differential pair gets the weights; the autoencoder gives almost the same latents."""
    small = sa3_core.load("demo")
    torch.manual_seed(0)
    medium = recipe.ConditionedDiT(recipe.parse(recipe.demo_config.model("medium", "rectified_flow")), device="cpu", dtype=torch.float32)
    recipe.inherit(medium, small.module.state_dict())
    width = medium.config.dit.width
    for layer, source in zip(medium.dit.transformer.layers, small.dit.transformer.layers, strict=True):
        assert torch.equal(layer.self_attn.to_qkv.weight[: 3 * width], source.self_attn.to_qkv.weight)
        assert torch.equal(layer.cross_attn.to_q.weight[:width], source.cross_attn.to_q.weight)
        keys, values = source.cross_attn.to_kv.weight.chunk(2)
        assert torch.equal(layer.cross_attn.to_kv.weight[:width], keys)
        assert torch.equal(layer.cross_attn.to_kv.weight[2 * width :], values)
        assert torch.equal(layer.ff.ff[2].weight, source.ff.ff[2].weight)

    same = recipe.build(recipe.demo_config.autoencoder("medium"), device="cpu", dtype=torch.float32)
    recipe.inherit(same, small.autoencoder.state_dict())
    tone = recipe.corpus.clip(101, 0, 2.0, "tone").audio[None, :, : 40 * recipe.FRAME]
    with torch.no_grad():
        assert float((same.encode(tone) - small.encode(tone)).square().mean()) < 0.05  # of latents of unit variance
