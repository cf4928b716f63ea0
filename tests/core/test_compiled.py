"""Compiled layers: made behind the runs, used from the next run on, the same sound; never in the way."""

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


def test_the_first_run_goes_as_it_is_and_the_next_is_compiled_whatever_its_length(model):
    plain, longer = run(model), run(model, 2.0)
    layers = model.compile(compiled=Compiled(backend="eager"))
    assert torch.equal(run(model), plain) and layers.state == "not compiled yet"
    layers.join()
    assert rel_error(run(model), plain) < ROUNDING and layers.state == "compiled"
    assert rel_error(run(model, 2.0), longer) < ROUNDING and layers.state == "compiled"
    assert torch.equal(run(model), run(model))


@pytest.mark.parametrize("variant", ["small-base", "medium-base"])
def test_one_graph_serves_every_number_of_tokens(load_model, variant):
    """Through torch's own decompositions, which look closer at numbers than a backend that leaves the graph as it is."""
    torch._dynamo.reset()
    net, layers = load_model(variant).dit, Compiled(backend="aot_eager_decomp_partition")
    c, made = net.config, []
    with torch.inference_mode():
        for frames in range(20, 37):
            inputs = net.prepare(randn(1, 8, c.cond_dim), randn(1, c.global_dim), torch.zeros(1, c.local_dim, frames), frames)
            x, t = randn(1, c.io_channels, frames), torch.tensor([0.5])
            with layers.run(wait=True):
                out = layers.velocity(net, x, t, inputs)
            made.append(graphs())
            assert layers.state == "compiled" and rel_error(out, net(x, t, inputs)) < ROUNDING
    assert len(set(made)) == 1, made


def test_a_run_without_guidance_and_one_under_inference_mode_are_other_kinds(model):
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


def test_what_becomes_ready_during_a_run_waits_for_the_next(model):
    layers, states = model.compile(compiled=Compiled(backend="eager")), []

    def callback(step, total, denoised):
        states.append(layers.state)
        layers._compile(dict(layers._missing))  # as the worker would, in the middle of the run

    run(model, callback=callback)
    assert states == ["not compiled yet"] * 2
    layers.join()
    run(model, callback=lambda *_: states.append(layers.state))
    assert states[2:] == ["compiled"] * 2


def test_groups_of_several_sizes_are_kinds_of_their_own(model, monkeypatch):
    prompts = ["rain", "wind", "a kick"]

    def together():
        return model.generate(prompts, 1.0, seed=3, steps=2, cfg=1.0, return_latents=True).latents

    plain = together()
    monkeypatch.setattr(type(model.dit), "_items_at_once", lambda self, inputs: 2)
    layers = model.compile(compiled=Compiled(backend="eager"))
    together()
    layers.join()
    before = graphs()
    assert rel_error(together(), plain) < ROUNDING and layers.state == "compiled"
    assert graphs() == before, "something was compiled during the run"


KINDS = {  # of runs that look alike, and are not to torch
    "guided, then two without": [{"cfg": 3.0}, {"cfg": 1.0, "prompt": ["rain", "wind"]}],
    "a short prompt, then a long one": [{"prompt": "a"}, {"prompt": "rain on a tin roof, distant thunder, a dog barks"}],
    "inpainting two, then guided": [{"cfg": 1.0, "prompt": ["a", "b"], "inpaint": True}, {"prompt": ["a", "b"], "inpaint": True}],
    "inpainting one of another length": [{"inpaint": True}, {"inpaint": True, "seconds": 2.0}],
}


@pytest.mark.parametrize(("case", "inference"), [*((case, False) for case in KINDS), ("guided, then two without", True)])
def test_nothing_is_compiled_during_a_run_that_counts_as_compiled(model, case, inference, monkeypatch):
    monkeypatch.setattr(cpu, "CONTEXT_MULTIPLE", 2)  # so that numbers of rows differ
    tone = (44100, 0.1 * torch.sin(torch.arange(44100) / 20).expand(2, -1))

    def one(prompt="rain", cfg=3.0, seconds=1.0, inpaint=False):
        options = {"regions": [(0.2, 0.5)], "source_audio": tone} if inpaint else {}
        with torch.inference_mode(inference):
            return model.generate(prompt, seconds, seed=3, steps=2, cfg=cfg, return_latents=True, **options).latents

    layers = model.compile(compiled=Compiled(backend="eager"))
    for settings in KINDS[case]:
        for _ in range(2):
            before = graphs()
            one(**settings)
            assert layers.state == "not compiled yet" or graphs() == before, settings
            layers.join()
        assert layers.state == "compiled"


def test_runs_beside_the_compiler_go_as_they_are(model, monkeypatch):
    layers = model.compile(compiled=Compiled(backend="eager"))
    run(model)
    layers.join()
    monkeypatch.setattr(Compiled, "busy", True)
    run(model)
    assert layers.state == "not compiled yet"


def test_one_failure_leaves_the_other_kinds_alone(model):
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
    compiled_one = run(model)

    def broken(*args):
        raise RuntimeError("no")

    layers._function = broken
    plain = run(model, cfg=1.0)
    assert "no" in layers.reason
    del layers._function
    assert torch.equal(run(model), compiled_one) and layers.state == "compiled"
    assert torch.equal(run(model, cfg=1.0), plain) and "no" in layers.reason


def test_a_second_object_makes_no_graphs_anew(model):
    model.compile(wait=True, compiled=Compiled(backend="eager"))
    run(model)
    before = graphs()
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
    run(model)
    assert layers.state == "compiled" and graphs() == before


def test_a_run_that_was_stopped_keeps_nothing(model):
    layers = model.compile(compiled=Compiled(backend="eager"))
    with pytest.raises(KeyboardInterrupt):
        run(model, callback=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not layers._missing and not layers.busy and not layers._running


def test_lack_of_memory_is_no_fault_of_the_compiler(model):
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))

    def full(*args):
        raise torch.OutOfMemoryError("full")

    layers._function = full
    with pytest.raises(torch.OutOfMemoryError):
        run(model)
    del layers._function
    run(model)
    assert layers.state == "compiled"


def test_a_run_may_wait_and_says_so(model):
    plain, said = run(model), []
    layers = model.compile(wait=True, compiled=Compiled(said.append, "eager"))
    assert rel_error(run(model), plain) < ROUNDING and layers.state == "compiled" and said == ["compiling the transformer"]
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


def test_a_compiler_that_fails_is_no_obstacle_and_is_told_once(model, caplog):
    def broken(*args):
        raise RuntimeError("no compiler here\nand much more")

    plain = run(model)
    layers = model.compile(wait=True, compiled=Compiled(backend=broken))
    assert torch.equal(run(model), plain) and torch.equal(run(model), plain)
    assert "no compiler here" in layers.reason and "much more" not in layers.reason and layers.reason in layers.state
    layers.retry()
    layers._backend = "eager"
    del layers._function
    run(model)
    assert layers.state == "compiled" and not layers.reason
    assert sum("could not be compiled" in record.message for record in caplog.records) == 1


def test_another_packs_settings_are_no_obstacle_and_stay(model):
    with torch._dynamo.config.patch(suppress_errors=True):
        layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
        run(model)
        assert layers.state == "compiled" and torch._dynamo.config.suppress_errors


def test_a_lora_that_comes_and_goes_runs_as_it_is_and_it_is_told(model, tmp_path):
    model.add_lora(write_lora(tmp_path / "one.safetensors", model.module), interval=(0.5, 1.0))
    plain = run(model)
    layers = model.compile(wait=True, compiled=Compiled(backend="eager"))
    assert torch.equal(run(model), plain) and "scheduled" in layers.reason
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


def test_a_copy_of_a_layer_has_no_ties_to_the_model(model):
    layer = model.dit.transformer.layers[0]
    twin = compiled._copy(layer)
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), layer.parameters(), strict=True))
