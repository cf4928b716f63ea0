"""A recorded step replays what the network computes, whatever the run hands in. A stand-in for the recording works without a GPU."""

import pytest
import torch
from core_support import FAMILIES, randn

import sa3_core
from sa3_core.backends import graphs
from sa3_core.backends.graphs import Graphs, key_of, tensors_of, with_tensors
from sa3_core.models.conditions import Conditions

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def recordings(monkeypatch):
    """Recordings that work on a CPU: a replay computes from the same buffers into the same result. The list of all that were made."""
    made = []

    def record(function, device, pool):
        function()
        made.append(function)
        return function

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "new_pool", lambda: "a pool")
    monkeypatch.setattr(Graphs, "_unusable", staticmethod(lambda x: ""))
    return made


def inputs_of(model, batch: int, frames: int, lengths=None, local=False, seed=1) -> Conditions:
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
def test_replays_are_the_network(model, variant, recordings, lengths, local):
    graphs = Graphs()
    with torch.no_grad():
        for seed in (1, 10):  # two runs of one shape
            inputs = inputs_of(model, 2, 20, lengths, local, seed)
            for step, t in enumerate((0.9, 0.5, 0.5, 0.1)):
                x, times = x_of(model, 2, 20, seed + step), torch.tensor([t, t])
                assert torch.equal(graphs.velocity(model.dit, x, times, inputs), model.dit(x, times, inputs))
    assert len(recordings) == 1


def test_results_of_earlier_steps_stay(load_model, recordings):
    """heun and rk4 hold several velocities at a time."""
    model, graphs = load_model("small"), Graphs()
    inputs, t = inputs_of(model, 1, 12), torch.tensor([0.5])
    with torch.no_grad():
        found = [graphs.velocity(model.dit, x_of(model, 1, 12, seed), t, inputs) for seed in range(4)]
        wanted = [model.dit(x_of(model, 1, 12, seed), t, inputs) for seed in range(4)]
    assert all(map(torch.equal, found, wanted))


def test_guidance_that_comes_and_goes_keeps_a_recording_for_each(load_model, recordings):
    model, graphs = load_model("small"), Graphs()
    one, two = inputs_of(model, 1, 12, seed=1), inputs_of(model, 1, 12, seed=5)
    both = Conditions.join([one, two])
    with torch.no_grad():
        for step in range(3):
            for inputs in (one, both):
                x, t = x_of(model, inputs.batch, 12, step), torch.full((inputs.batch,), 0.4 + step / 10)
                assert torch.equal(graphs.velocity(model.dit, x, t, inputs), model.dit(x, t, inputs))
    assert len(recordings) == 2


def test_other_weights_or_shapes_are_recorded_again(release, recordings):
    model, graphs = sa3_core.load(release("small")), Graphs()
    inputs, t = inputs_of(model, 1, 12), torch.tensor([0.5])
    layer = model.dit.transformer.layers[0].self_attn.to_qkv
    with torch.no_grad():
        for _ in range(2):
            graphs.velocity(model.dit, x_of(model, 1, 12, 1), t, inputs)
        layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)
        changed = inputs_of(model, 1, 12)
        for _ in range(2):
            assert torch.equal(graphs.velocity(model.dit, x_of(model, 1, 12, 1), t, changed), model.dit(x_of(model, 1, 12, 1), t, changed))
        longer = inputs_of(model, 1, 16)
        assert torch.equal(graphs.velocity(model.dit, x_of(model, 1, 16, 1), t, longer), model.dit(x_of(model, 1, 16, 1), t, longer))
    assert len(recordings) == 3


def test_no_more_than_a_few_are_kept(load_model, recordings):
    model, graphs = load_model("small"), Graphs()
    with torch.no_grad():
        for frames in range(8, 24, 2):
            graphs.velocity(model.dit, x_of(model, 1, frames, 1), torch.tensor([0.5]), inputs_of(model, 1, frames))
    assert len(recordings) == 8 and len(graphs._steps) == graphs.KEPT_GRAPHS
    graphs.clear()
    assert not graphs._steps


@pytest.mark.parametrize("variant", FAMILIES)
def test_buffers_hold_all_that_a_step_reads(model, variant):
    inputs = inputs_of(model, 2, 12, [12, 9], local=True)
    copies = with_tensors(inputs, [part.clone() for part in tensors_of(inputs)])
    assert [part.shape for part in tensors_of(copies)] == [part.shape for part in tensors_of(inputs)]
    x, t = x_of(model, 2, 12, 3), torch.tensor([0.3, 0.8])
    assert key_of(model.dit, x, copies) == key_of(model.dit, x, inputs)
    with torch.no_grad():
        assert torch.equal(model.dit(x, t, copies), model.dit(x, t, inputs))


@pytest.mark.parametrize(("error", "state"), [(RuntimeError("CUDA error: capture"), "not graphed"), (torch.OutOfMemoryError(), "")])
def test_a_recording_that_fails_costs_nothing_but_speed(load_model, recordings, monkeypatch, error, state):
    def fails(*args):
        raise error

    model, graphs = load_model("small"), Graphs()
    inputs, t = inputs_of(model, 1, 12), torch.tensor([0.5])
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(graphs, "record", fails)
        for seed in range(3):
            x = x_of(model, 1, 12, seed)
            assert torch.equal(graphs.velocity(model.dit, x, t, inputs), model.dit(x, t, inputs))
    assert graphs.state.startswith(state) and not graphs._steps
    graphs.retry()
    with torch.no_grad(), graphs.run():
        for _ in range(2):
            graphs.velocity(model.dit, x_of(model, 1, 12, 1), t, inputs)
    assert graphs.state == "graphed"


def test_a_cpu_goes_without_and_says_so(load_model):
    model = load_model("small")
    graphs, x, t, inputs = Graphs(), x_of(model, 1, 12, 1), torch.tensor([0.5]), inputs_of(model, 1, 12)
    with torch.no_grad(), graphs.run():
        assert torch.equal(graphs.velocity(model.dit, x, t, inputs), model.dit(x, t, inputs))
    assert "CUDA" in graphs.reason and graphs.state.startswith("not graphed")


@ON_GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("variant", FAMILIES)
def test_on_a_gpu_a_replay_is_the_same_bytes(release, variant, dtype):
    model = sa3_core.load(release(variant), device="cuda", dtype=dtype)
    wanted = model.generate(["rain", "a bell"], [1.0, 1.5], seed=2, steps=4, return_latents=True).latents
    graphs = model.compile(compiled=Graphs())
    for _ in range(2):
        found = model.generate(["rain", "a bell"], [1.0, 1.5], seed=2, steps=4, return_latents=True)
        assert torch.equal(found.latents, wanted) and "graphed" in graphs.state
