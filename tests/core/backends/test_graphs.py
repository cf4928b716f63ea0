"""Captured steps compute what the network computes, for all conditions. Capturing is replaced where there is no GPU."""

from dataclasses import replace

import pytest
import torch
from core_support import FAMILIES, fake_captures, randn

import sa3_core
from sa3_core.backends import graphs
from sa3_core.backends.graphs import Graphs, cache_key, tensors_of, with_tensors
from sa3_core.models.conditions import Conditions

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def captures(monkeypatch):
    return fake_captures(monkeypatch, graphs)


def conditions_of(model, batch: int, frames: int, lengths=None, local=False, seed=1) -> Conditions:
    config = model.config
    context = randn(batch, config.conditioning.max_tokens + 1, config.conditioning.cond_dim, seed=seed)
    filled = randn(batch, config.dit.local_dim, frames, seed=seed + 1) if local else torch.zeros(batch, config.dit.local_dim, frames)
    with torch.no_grad():
        return model.dit.prepare(context, randn(batch, config.conditioning.cond_dim, seed=seed + 2), filled, frames, lengths)


def x_of(model, batch: int, frames: int, seed: int) -> torch.Tensor:
    return randn(batch, model.config.same.latent_dim, frames, seed=seed)


@pytest.mark.parametrize("lengths", [None, [20, 13]])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("variant", FAMILIES)
def test_replays_equal_the_network(model, variant, captures, lengths, local):
    accelerator = Graphs()
    with torch.no_grad():
        for seed in (1, 10):  # two runs of one shape
            conditions = conditions_of(model, 2, 20, lengths, local, seed)
            for step, t in enumerate((0.9, 0.5, 0.5, 0.1)):
                x, times = x_of(model, 2, 20, seed + step), torch.tensor([t, t])
                assert torch.equal(accelerator.velocity(model.dit, x, times, conditions), model.dit(x, times, conditions))
    assert len(captures) == 1


def test_a_replay_does_not_overwrite_earlier_results(load_model, captures):
    """heun and rk4 use several velocities at a time."""
    model, accelerator = load_model("small"), Graphs()
    conditions, t = conditions_of(model, 1, 12), torch.tensor([0.5])
    with torch.no_grad():
        found = [accelerator.velocity(model.dit, x_of(model, 1, 12, seed), t, conditions) for seed in range(4)]
        wanted = [model.dit(x_of(model, 1, 12, seed), t, conditions) for seed in range(4)]
    assert all(map(torch.equal, found, wanted))


def test_guidance_within_an_interval_has_a_graph_of_its_own(load_model, captures):
    model, accelerator = load_model("small"), Graphs()
    one, two = conditions_of(model, 1, 12, seed=1), conditions_of(model, 1, 12, seed=5)
    both = Conditions.join([one, two])
    with torch.no_grad():
        for step in range(3):
            for conditions in (one, both):
                x, t = x_of(model, conditions.batch, 12, step), torch.full((conditions.batch,), 0.4 + step / 10)
                assert torch.equal(accelerator.velocity(model.dit, x, t, conditions), model.dit(x, t, conditions))
    assert len(captures) == 2


def test_other_weights_or_shapes_are_captured_again(release, captures):
    model, accelerator = sa3_core.load(release("small")), Graphs()
    conditions, t = conditions_of(model, 1, 12), torch.tensor([0.5])
    layer = model.dit.transformer.layers[0].self_attn.to_qkv
    with torch.no_grad():
        for _ in range(2):
            accelerator.velocity(model.dit, x_of(model, 1, 12, 1), t, conditions)
        layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)
        changed = conditions_of(model, 1, 12)
        for _ in range(2):
            assert torch.equal(
                accelerator.velocity(model.dit, x_of(model, 1, 12, 1), t, changed), model.dit(x_of(model, 1, 12, 1), t, changed)
            )
        longer = conditions_of(model, 1, 16)
        assert torch.equal(accelerator.velocity(model.dit, x_of(model, 1, 16, 1), t, longer), model.dit(x_of(model, 1, 16, 1), t, longer))
    assert len(captures) == 3


def test_the_number_of_graphs_is_limited(load_model, captures):
    model, accelerator = load_model("small"), Graphs()
    with torch.no_grad():
        for frames in range(8, 24, 2):
            accelerator.velocity(model.dit, x_of(model, 1, frames, 1), torch.tensor([0.5]), conditions_of(model, 1, frames))
    assert len(captures) == 8 and len(accelerator._steps) == graphs.MAX_GRAPHS
    accelerator.clear()
    assert not accelerator._steps


@pytest.mark.parametrize("variant", FAMILIES)
def test_buffers_contain_every_tensor_that_a_step_reads(model, variant):
    conditions = conditions_of(model, 2, 12, [12, 9], local=True)
    copies = with_tensors(conditions, [part.clone() for part in tensors_of(conditions)])
    assert [part.shape for part in tensors_of(copies)] == [part.shape for part in tensors_of(conditions)]
    x, t = x_of(model, 2, 12, 3), torch.tensor([0.3, 0.8])
    assert cache_key(model.dit, x, copies) == cache_key(model.dit, x, conditions)
    with torch.no_grad():
        assert torch.equal(model.dit(x, t, copies), model.dit(x, t, conditions))


@pytest.mark.parametrize(("error", "state"), [(RuntimeError("CUDA error: capture"), "not graphed"), (torch.OutOfMemoryError(), "")])
def test_a_failed_capture_falls_back_to_eager_execution(load_model, captures, monkeypatch, error, state):
    def fails(*args):
        raise error

    model, accelerator = load_model("small"), Graphs()
    conditions, t = conditions_of(model, 1, 12), torch.tensor([0.5])
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(graphs, "capture", fails)
        for seed in range(3):
            x = x_of(model, 1, 12, seed)
            assert torch.equal(accelerator.velocity(model.dit, x, t, conditions), model.dit(x, t, conditions))
    assert accelerator.state.startswith(state) and not accelerator._steps


def test_a_run_reports_all_its_parts(load_model, captures):
    """A scheduled LoRA, which may be off in some steps, and a transformer that the host changes."""
    obstacles = []
    model, accelerator = load_model("small"), Graphs(lambda dit: obstacles[0] if obstacles else "")
    conditions, t = conditions_of(model, 1, 12), torch.tensor([0.5])

    def step(conditions: Conditions) -> None:
        x = x_of(model, 1, 12, 1)
        assert torch.equal(accelerator.velocity(model.dit, x, t, conditions), model.dit(x, t, conditions))

    assert accelerator.state == "not used yet"
    with torch.no_grad():
        with accelerator.run():
            for _ in range(2):
                step(conditions)
            with accelerator.run():  # part of the outer run
                step(replace(conditions, adapters={"preprocess_conv": model.dit.preprocess_conv}))
        assert accelerator.state == f"partly graphed: {graphs.SCHEDULED}" and accelerator.reason == graphs.SCHEDULED
        obstacles.append("the weights are elsewhere")
        with accelerator.run():
            step(conditions_of(model, 1, 12, seed=7))
        assert accelerator.state == "not graphed: the weights are elsewhere"
        obstacles.clear()
        with accelerator.run():
            step(conditions)
        assert accelerator.state == "graphed" and accelerator.reason == "" and len(captures) == 1


def test_a_cpu_computes_eagerly_and_reports_why(load_model):
    model = load_model("small")
    accelerator, x, t, conditions = Graphs(), x_of(model, 1, 12, 1), torch.tensor([0.5]), conditions_of(model, 1, 12)
    with torch.no_grad(), accelerator.run():
        assert torch.equal(accelerator.velocity(model.dit, x, t, conditions), model.dit(x, t, conditions))
    assert "CUDA" in accelerator.reason and accelerator.state.startswith("not graphed")


@ON_GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("variant", FAMILIES)
def test_a_replay_on_a_gpu_is_bitwise_equal(release, variant, dtype):
    model = sa3_core.load(release(variant), device="cuda", dtype=dtype)
    wanted = model.generate(["rain", "a bell"], [1.0, 1.5], seed=2, steps=4, return_latents=True).latents
    accelerator = model.compile()
    for _ in range(2):
        found = model.generate(["rain", "a bell"], [1.0, 1.5], seed=2, steps=4, return_latents=True)
        assert torch.equal(found.latents, wanted) and "graphed" in accelerator.state
