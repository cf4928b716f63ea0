"""SA3_Compile: the same sound under our sampler and core's, and words where it could not be done."""

import importlib

import pytest
import torch
from core_support import rel_error

ROUNDING = 1e-5


@pytest.fixture
def shared(sa3, monkeypatch):
    """The pack's compiled layers, on a backend that needs no compiler."""
    host = importlib.import_module("sa3_pack.nodes.comfyui.acceleration")
    layers = importlib.import_module("sa3_pack.sa3_core.backends.compiled").Compiled(backend="eager")
    monkeypatch.setattr(host, "shared_compiled", layers)
    return layers


def compiled(sa3, model, when="before first run"):
    return sa3.run("SA3_Compile", model=model, when=when, how="torch.compile")[0]


def through_core(comfy, model, positive, latent) -> torch.Tensor:
    with torch.inference_mode():
        return comfy.nodes.KSampler().sample(model, 3, 2, 1.0, "euler", "simple", positive, positive, latent)[0]["samples"]


@pytest.mark.parametrize("variant", ["small-base", "medium"])
def test_a_faster_run_makes_the_same_and_is_recorded(sa3, load, shared, variant):
    parts, settings = load(variant), {"seed": 3, "steps": 2, "cfg": 3.0}
    positive, latent = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0)
    plain, before = sa3.sample(parts.model, positive, latent, **settings)
    out, info = sa3.sample(compiled(sa3, parts.model), positive, latent, **settings)
    assert rel_error(out["samples"], plain["samples"]) < ROUNDING and info["compiled"] == "compiled" and "compiled" not in before
    assert torch.equal(sa3.sample(parts.model, positive, latent, **settings)[0]["samples"], plain["samples"])  # the other MODEL stays


def test_behind_the_first_run_the_next_one_is_compiled(sa3, load, shared):
    parts = load("small")
    positive, latent, model = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), compiled(sa3, parts.model, "in background")
    plain = sa3.sample(parts.model, positive, latent, seed=3, steps=2)[0]["samples"]
    first, info = sa3.sample(model, positive, latent, seed=3, steps=2)
    assert torch.equal(first["samples"], plain) and info["compiled"] == "not compiled yet"
    shared.join()
    second, info = sa3.sample(model, positive, latent, seed=3, steps=2)
    assert rel_error(second["samples"], plain) < ROUNDING and info["compiled"] == "compiled"


@pytest.mark.parametrize("variant", ["small", "small-base", "medium"])
def test_cores_samplers_are_faster_too(sa3, load, comfy, shared, variant):
    parts = load(variant)
    positive, latent, model = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), compiled(sa3, parts.model)
    plain = through_core(comfy, parts.model, positive, latent)
    assert rel_error(through_core(comfy, model, positive, latent), plain) < ROUNDING
    assert sa3.host.run_options.read(model.model_options).accelerator.state == "compiled"


def test_weights_that_are_cast_in_every_step_are_not_compiled_and_it_is_said(sa3, load, shared, monkeypatch):
    parts = load("small")
    layer = parts.model.model.diffusion_model.dit.transformer.layers[0].self_attn.to_out
    monkeypatch.setattr(layer, "comfy_cast_weights", True)
    out, info = sa3.sample(compiled(sa3, parts.model), sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=2)
    assert "converted" in info["compiled"] and "torch.compile" in info["warnings"][-1]
    plain, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=2)
    assert torch.equal(out["samples"], plain["samples"])


def test_two_of_them_are_one_and_the_last_one_counts(sa3, load, shared):
    parts = load("small")
    model = compiled(sa3, compiled(sa3, parts.model, "in background"))
    _, info = sa3.sample(model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=2)
    assert info["compiled"] == "compiled"


@pytest.mark.parametrize(("device", "accelerator"), [("cpu", "Compiled"), ("mps", "Compiled"), ("cuda", "Graphs")])
def test_auto_is_cuda_graphs_on_a_gpu_that_has_them(sa3, load, comfy, shared, monkeypatch, device, accelerator):
    monkeypatch.setattr(importlib.import_module("comfy.model_management"), "get_torch_device", lambda: torch.device(device))
    model = sa3.run("SA3_Compile", model=load("small").model, when="before first run")[0]
    assert type(sa3.host.run_options.read(model.model_options).accelerator).__name__ == accelerator


def test_an_unknown_choice_is_refused(sa3, load):
    with sa3.refused("how", "somehow", "CUDA graphs"):
        sa3.run("SA3_Compile", model=load("small").model, when="in background", how="somehow")
    with sa3.refused("when", "sometime", "in background"):
        sa3.run("SA3_Compile", model=load("small").model, when="sometime")
    with sa3.refused("MODEL"):
        sa3.run("SA3_Compile", model=object())
