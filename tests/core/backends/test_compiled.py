"""Compiled layers: compiled in the background, used from the next run on, equal to eager ones; failures fall back to eager execution."""

import shutil

import pytest
import torch
import torch._dynamo.utils
from core_support import graphs, randn, recorded, rel_error
from lora_support import write_lora

from sa3_core.backends import compiled, cpu
from sa3_core.backends.compiled import Compiled

ROUNDING = 1e-5


@pytest.fixture
def model(load_model):
    torch._dynamo.reset()
    model = load_model("small-base")
    yield model
    if model.compiled is not None:
        model.compiled.join()
    model.compiled = None
    model.remove_loras()


def run(model, seconds=1.0, **options):
    return model.generate("rain", seconds, seed=3, **{"steps": 2, "cfg": 3.0, "return_latents": True, **options}).latents


def test_the_first_run_is_eager_and_later_ones_of_any_length_are_compiled(model):
    eager, longer = run(model), run(model, 2.0)
    layers = model.compile(compiled=Compiled(backend="eager"))
    assert torch.equal(run(model), eager) and layers.state == "not compiled yet"
    layers.join()
    assert rel_error(run(model), eager) < ROUNDING and layers.state == "compiled"
    assert rel_error(run(model, 2.0), longer) < ROUNDING and layers.state == "compiled"
    assert torch.equal(run(model), run(model))


@pytest.mark.parametrize("variant", ["small-base", "medium-base"])
def test_one_graph_serves_every_number_of_tokens(load_model, variant):
    """With torch's decompositions, which specialize on more numbers than the backend "eager"."""
    torch._dynamo.reset()
    net, layers = load_model(variant).dit, Compiled(backend="aot_eager_decomp_partition")
    c, counts = net.config, []
    with torch.inference_mode():
        for frames in range(20, 37):
            inputs = net.prepare(randn(1, 8, c.cond_dim), randn(1, c.global_dim), torch.zeros(1, c.local_dim, frames), frames)
            x, t = randn(1, c.io_channels, frames), torch.tensor([0.5])
            with layers.run(wait=True):
                out = layers.velocity(net, x, t, inputs)
            counts.append(graphs())
            assert layers.state == "compiled" and rel_error(out, net(x, t, inputs)) < ROUNDING
    assert len(set(counts)) == 1, counts


def test_guidance_and_inference_mode_are_part_of_the_cache_key(model):
    layers = model.compile(compiled=Compiled(backend="eager"))
    run(model)
    layers.join()
    run(model, cfg=1.0)
    assert layers.state == "not compiled yet"
    layers.join()
    with torch.inference_mode():
        run(model)
        assert layers.state == "not compiled yet"
        layers.join()
        run(model)
        assert layers.state == "compiled"
    run(model, cfg=1.0)
    assert layers.state == "compiled"


def test_a_graph_that_becomes_ready_during_a_run_serves_the_next(model):
    layers, states = model.compile(compiled=Compiled(backend="eager")), []

    def callback(step, total, denoised):
        states.append(layers.state)
        layers._compile_all(dict(layers._missing))  # as the worker would, in the middle of the run

    run(model, callback=callback)
    assert states == ["not compiled yet"] * 2
    layers.join()
    run(model, callback=lambda *_: states.append(layers.state))
    assert states[2:] == ["compiled"] * 2


def test_the_number_of_items_is_part_of_the_cache_key(model, monkeypatch):
    prompts = ["rain", "wind", "a kick"]

    def together():
        return model.generate(prompts, 1.0, seed=3, steps=2, cfg=1.0, return_latents=True).latents

    eager = together()
    monkeypatch.setattr(type(model.dit), "_items_at_once", lambda self, inputs: 2)
    layers = model.compile(compiled=Compiled(backend="eager"))
    together()
    layers.join()
    before = graphs()
    assert rel_error(together(), eager) < ROUNDING and layers.state == "compiled"
    assert graphs() == before, "something was compiled during the run"


ALIKE = {  # runs for which torch compiles different graphs
    "guided, then two without": [{"cfg": 3.0}, {"cfg": 1.0, "prompt": ["rain", "wind"]}],
    "a short prompt, then a long one": [{"prompt": "a"}, {"prompt": "rain on a tin roof, distant thunder, a dog barks"}],
    "inpainting two, then guided": [{"cfg": 1.0, "prompt": ["a", "b"], "inpaint": True}, {"prompt": ["a", "b"], "inpaint": True}],
    "inpainting one of another length": [{"inpaint": True}, {"inpaint": True, "seconds": 2.0}],
}


@pytest.mark.parametrize(("case", "inference"), [*((case, False) for case in ALIKE), ("guided, then two without", True)])
def test_nothing_is_compiled_during_a_compiled_run(model, case, inference, monkeypatch):
    monkeypatch.setattr(cpu, "CONTEXT_MULTIPLE", 2)  # gives contexts different numbers of rows
    tone = (44100, 0.1 * torch.sin(torch.arange(44100) / 20).expand(2, -1))

    def one(prompt="rain", cfg=3.0, seconds=1.0, inpaint=False):
        options = {"regions": [(0.2, 0.5)], "source_audio": tone} if inpaint else {}
        with torch.inference_mode(inference):
            return model.generate(prompt, seconds, seed=3, steps=2, cfg=cfg, return_latents=True, **options).latents

    layers = model.compile(compiled=Compiled(backend="eager"))
    for settings in ALIKE[case]:
        for _ in range(2):
            before = graphs()
            one(**settings)
            assert layers.state == "not compiled yet" or graphs() == before, settings
            layers.join()
        assert layers.state == "compiled"


def test_runs_are_eager_while_the_compiler_works(model, monkeypatch):
    layers = model.compile(compiled=Compiled(backend="eager"))
    run(model)
    layers.join()
    monkeypatch.setattr(Compiled, "busy", True)
    run(model)
    assert layers.state == "not compiled yet"


def test_a_failure_does_not_affect_other_cache_keys(model):
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
    compiled_one = run(model)

    def broken(*args):
        raise RuntimeError("no")

    layers._function = broken
    eager = run(model, cfg=1.0)
    assert "no" in layers.reason
    del layers._function
    assert torch.equal(run(model), compiled_one) and layers.state == "compiled"
    assert torch.equal(run(model, cfg=1.0), eager) and "no" in layers.reason


def test_a_second_object_reuses_the_graphs(model):
    model.compile(wait=True, compiled=Compiled(backend="eager"))
    run(model)
    before = graphs()
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
    run(model)
    assert layers.state == "compiled" and graphs() == before


def test_an_interrupted_run_compiles_nothing(model):
    layers = model.compile(compiled=Compiled(backend="eager"))
    with pytest.raises(KeyboardInterrupt):
        run(model, callback=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not layers._missing and not layers.busy and not layers._running


def test_an_out_of_memory_error_is_raised_and_not_recorded_as_a_failure(model):
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))

    def full(*args):
        raise torch.OutOfMemoryError("full")

    layers._function = full
    with pytest.raises(torch.OutOfMemoryError):
        run(model)
    del layers._function
    run(model)
    assert layers.state == "compiled"


def test_a_run_can_wait_for_the_compiler_and_reports_it(model):
    eager, said = run(model), []
    layers = model.compile(wait=True, compiled=Compiled(said.append, "eager"))
    assert rel_error(run(model), eager) < ROUNDING and layers.state == "compiled" and said == ["compiling the transformer"]
    run(model)
    assert len(said) == 1


def test_the_weights_may_change_and_move_between_runs(model):
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
    before = run(model)
    weight = model.dit.transformer.layers[0].ff.ff[2].weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(0.5)
    changed = run(model)
    model.compiled = None
    assert rel_error(changed, run(model)) < ROUNDING < rel_error(changed, before)
    with torch.no_grad():
        weight.copy_(kept)
    model.compiled = layers
    assert torch.equal(run(model), before)


def test_a_failing_compiler_is_reported_once_and_runs_are_eager(model, caplog):
    def broken(*args):
        raise RuntimeError("no compiler here\nand much more")

    eager = run(model)
    layers = model.compile(wait=True, compiled=Compiled(backend=broken))
    assert torch.equal(run(model), eager) and torch.equal(run(model), eager)
    assert "no compiler here" in layers.reason and "much more" not in layers.reason and layers.reason in layers.state
    layers.retry()
    layers._backend = "eager"
    del layers._function
    run(model)
    assert layers.state == "compiled" and not layers.reason
    assert sum("could not be compiled" in record.message for record in caplog.records) == 1


def test_another_packs_settings_are_overridden_and_restored(model):
    with torch._dynamo.config.patch(suppress_errors=True):
        layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
        run(model)
        assert layers.state == "compiled" and torch._dynamo.config.suppress_errors


def test_a_scheduled_lora_runs_eagerly_and_is_reported(model, tmp_path):
    model.add_lora(write_lora(tmp_path / "one.safetensors", model.module), interval=(0.5, 1.0))
    eager = run(model)
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
    assert torch.equal(run(model), eager) and "scheduled" in layers.reason
    model.remove_loras()
    run(model)
    assert layers.state == "compiled" and not layers.reason


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("variant", ["small", "medium"])
def test_compiled_layers_give_the_recorded_velocity(load_model, variant):
    model, golden = load_model(variant), recorded(f"{variant}/golden")
    layers = model.compile(wait=True)
    options = {"local_add": golden["dit.local_add"], "padding_mask": golden["dit.padding_mask"].bool()}
    try:
        with layers.run(wait=True):
            v = model.velocity(golden["dit.x"], golden["dit.t"], golden["dit.cross_attn"], golden["dit.global"], **options)
    finally:
        model.compiled = None
    valid = options["padding_mask"][:, None]
    assert layers.state == "compiled", layers.state
    assert rel_error(v * valid, golden["dit.v.padded"] * valid) < 1e-5


def test_a_copy_of_a_layer_shares_no_parameters(model):
    layer = model.dit.transformer.layers[0]
    twin = compiled._copy(layer)
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), layer.parameters(), strict=True))
