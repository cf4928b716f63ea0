"""SA3_Compile: CUDA graphs under our sampler and core's, a reason where they cannot be used; and core's TorchCompileModel."""

import importlib

import pytest
import torch
from core_support import fake_captures, rel_error
from lora_support import write_lora

ROUNDING = 1e-5


@pytest.fixture
def captures(sa3, monkeypatch) -> list:
    return fake_captures(monkeypatch, importlib.import_module("sa3_pack.sa3_core.backends.graphs"))


def graphed(sa3, model, how="auto"):
    return sa3.run("SA3_Compile", model=model, when="in background", how=how)[0]


def through_core(comfy, model, positive, latent) -> torch.Tensor:
    with torch.inference_mode():
        return comfy.nodes.KSampler().sample(model, 3, 2, 1.0, "euler", "simple", positive, positive, latent)[0]["samples"]


@pytest.mark.parametrize("variant", ["small-base", "medium"])
def test_a_run_with_graphs_has_the_same_bytes_and_is_recorded(sa3, load, captures, variant):
    parts, settings = load(variant), {"seed": 3, "steps": 3, "cfg": 3.0}
    positive, latent = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0)
    plain, before = sa3.sample(parts.model, positive, latent, **settings)
    out, info = sa3.sample(graphed(sa3, parts.model), positive, latent, **settings)
    assert torch.equal(out["samples"], plain["samples"]) and info["compiled"] == "graphed" and "compiled" not in before
    assert len(captures) == 1
    assert torch.equal(sa3.sample(parts.model, positive, latent, **settings)[0]["samples"], plain["samples"])  # the other MODEL stays
    assert len(captures) == 1


@pytest.mark.parametrize("variant", ["small", "small-base", "medium"])
def test_cores_samplers_use_the_graphs_too(sa3, load, comfy, captures, variant):
    parts = load(variant)
    positive, latent, model = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), graphed(sa3, parts.model)
    assert torch.equal(through_core(comfy, model, positive, latent), through_core(comfy, parts.model, positive, latent))
    assert sa3.host.run_options.read(model.model_options).graphs.state == "graphed" and len(captures) == 1


def test_graphs_are_discarded_when_the_weights_leave_the_device(sa3, load, captures):
    parts = load("small")
    model = graphed(sa3, parts.model)
    sa3.sample(model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=2)
    graphs = sa3.host.run_options.read(model.model_options).graphs
    assert graphs._steps
    model.detach()
    assert not graphs._steps


def test_weights_that_are_cast_in_every_step_are_not_recorded_and_the_node_says_so(sa3, load, captures, monkeypatch):
    parts = load("small")
    layer = parts.model.model.diffusion_model.transformer.layers[0].self_attn.to_out
    monkeypatch.setattr(layer, "comfy_cast_weights", True)
    out, info = sa3.sample(graphed(sa3, parts.model), sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=2)
    assert "converted" in info["compiled"] and "CUDA graphs" in info["warnings"][-1] and not captures
    plain, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=2)
    assert torch.equal(out["samples"], plain["samples"])


@pytest.mark.parametrize(
    ("how", "reason"), [("auto", "for CUDA devices"), ("CUDA graphs", "leave it out"), ("torch.compile", "TorchCompileModel")]
)
def test_a_run_without_graphs_says_why_once(sa3, load, how, reason):
    parts = load("small")
    positive, latent = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0)
    out, info = sa3.sample(graphed(sa3, parts.model, how), positive, latent, steps=2)
    assert info["compiled"].startswith("not graphed: ") and reason in info["compiled"]
    assert [warning for warning in info["warnings"] if reason in warning] == [
        f"This run went without CUDA graphs: {info['compiled'].removeprefix('not graphed: ')}."
    ]
    assert torch.equal(out["samples"], sa3.sample(parts.model, positive, latent, steps=2)[0]["samples"])


def test_of_two_nodes_the_last_one_counts(sa3, load, captures):
    parts = load("small")
    for first, second, state in (("torch.compile", "auto", "graphed"), ("auto", "torch.compile", "not graphed: ")):
        model = graphed(sa3, graphed(sa3, parts.model, first), second)
        _, info = sa3.sample(model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=2)
        assert info["compiled"].startswith(state)


def test_a_saved_workflow_keeps_every_choice(sa3, load):
    for when in ("in background", "before first run"):
        assert sa3.run("SA3_Compile", model=load("small").model, when=when)
    with sa3.refused("how", "somehow", "CUDA graphs"):
        sa3.run("SA3_Compile", model=load("small").model, when="in background", how="somehow")
    for how in ("auto", "torch.compile"):
        with sa3.refused("MODEL"):
            sa3.run("SA3_Compile", model=object(), when="in background", how=how)


def compiled(model, backend: str):
    """Through core's node, whose list of backends is not checked here: "eager" needs no compiler."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return TorchCompileModel.execute(model, backend).args[0]


def with_loras(sa3, parts, base_directory):
    """A LoRA in the weights, and one that is scheduled."""
    folder = base_directory / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    module, model = parts.model.model, parts.model
    for kind, start in (("lora", 0.0), ("dora-rows", 0.5)):
        name = write_lora(folder / f"compiled-{kind}.safetensors", module, kind).name
        model = sa3.run("SA3_LoRAStack", model=model, lora=name, start=start, seconds_strength=0)[0]
    return model


@pytest.mark.parametrize(("variant", "loras"), [("small-base", True), ("medium", False)])
def test_cores_torch_compile_computes_the_same(sa3, load, base_directory, variant, loras):
    parts, settings = load(variant), {"seed": 3, "steps": 2, "cfg": 3.0}
    positive, latent = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0)
    model = with_loras(sa3, parts, base_directory) if loras else parts.model
    plain, _ = sa3.sample(model, positive, latent, **settings)
    out, _ = sa3.sample(compiled(model, "eager"), positive, latent, **settings)
    assert rel_error(out["samples"], plain["samples"]) < ROUNDING
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
