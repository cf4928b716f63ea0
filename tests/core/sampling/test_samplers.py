"""Laws of the samplers on velocities whose answer is known."""

import pytest
import torch
from core_support import randn, refused, rel_error

from sa3_core.sampling import samplers, schedule

NAMES = list(samplers.SAMPLERS)
STOCHASTIC = ["pingpong", "dpmpp-2m-sde", "dpmpp-3m-sde"]
DETERMINISTIC = [name for name in NAMES if name not in STOCHASTIC]
every_sampler = pytest.mark.parametrize("name", NAMES)
SIGMAS = schedule.build("logsnr", 8, length=300).double()
SHAPE = (2, 3, 5)


def noises(seed=9):
    i = 0
    while True:
        i += 1
        yield randn(*SHAPE, seed=seed + i, dtype=torch.float64)


def draw_from(iterator):
    return lambda t, t_next: next(iterator)


def towards(data):
    """The velocity of a world that holds nothing but `data`: (x - data) / t."""
    return lambda x, t: (x - data) / t.to(x.dtype)[:, None, None]


def bent(x, t):
    return torch.tanh(x + torch.sin(3 * t.to(x.dtype))[:, None, None])


@every_sampler
def test_a_world_of_one_clip_gives_that_clip(name):
    data = randn(*SHAPE, seed=1, dtype=torch.float64)
    x = samplers.sample(name, towards(data), randn(*SHAPE, dtype=torch.float64), SIGMAS, draw_from(noises()))
    # rk4 looks at 1e-5 instead of 0, where this velocity has a pole
    assert rel_error(x, data) < (1 if name == "rk4" else 1e-9)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_convergence_order(name, order):
    """Halving the step divides the error by 2**order on a smooth equation, over levels that stay clear of 0."""

    def error(steps):
        sigmas = torch.linspace(0.9, 0.3, steps + 1, dtype=torch.float64)
        return float((samplers.sample(name, bent, start, sigmas) - exact).norm())

    start = randn(*SHAPE, dtype=torch.float64)
    exact = samplers.sample("rk4", bent, start, torch.linspace(0.9, 0.3, 2001, dtype=torch.float64))
    assert error(8) / error(16) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp"])
def test_without_eta_every_solver_tends_to_the_same_ode(name):
    start = randn(*SHAPE, dtype=torch.float64)
    levels = torch.linspace(0.9, 0.05, 2001, dtype=torch.float64)
    exact = samplers.sample("rk4", bent, start, levels)
    assert rel_error(samplers.sample(name, bent, start, levels, eta=0.0), exact) < 1e-4


@every_sampler
def test_levels_per_item_equal_each_item_alone(name):
    per_item = torch.stack([SIGMAS, schedule.build("flux", 8, 0.7, 300).double()])
    start, draws = randn(*SHAPE, dtype=torch.float64), [next(noises(seed)) for seed in range(20)]
    together = samplers.sample(name, bent, start, per_item, draws)
    for i in range(2):
        alone = samplers.sample(name, bent, start[i : i + 1], per_item[i], [draw[i : i + 1] for draw in draws])
        assert rel_error(together[i], alone[0]) < 1e-12


@every_sampler
def test_the_callback_hears_every_step_with_its_prediction(name):
    heard = []
    out = samplers.sample(
        name, bent, randn(*SHAPE, dtype=torch.float64), SIGMAS, draw_from(noises()), callback=lambda *args: heard.append(args)
    )
    assert [(step, total) for step, total, _ in heard] == [(i, 8) for i in range(8)]
    assert all(denoised.shape == SHAPE for *_, denoised in heard)
    if name not in ("heun", "rk4"):  # the last step into 0 returns the prediction
        assert rel_error(heard[-1][2], out) < 1e-12


@every_sampler
def test_the_network_is_asked_at_true_times_of_every_item(name):
    times = []

    def velocity(x, t):
        assert t.shape == (2,) and t.device.type == "cpu"
        times.append(float(t[0]))
        return bent(x, t)

    samplers.sample(name, velocity, randn(*SHAPE, dtype=torch.float64), SIGMAS, draw_from(noises()))
    first = 1.0 if name in ("pingpong", "euler", "heun", "rk4", "dpmpp") else float(torch.tensor(1 - 1e-4, dtype=torch.float32))
    assert times[0] == first
    assert all(0 < t <= 1 for t in times)
    assert len(times) == {"heun": 15, "rk4": 32}.get(name, 8)


@every_sampler
def test_draws_are_taken_as_announced(name):
    taken = []

    def noise(t, t_next):
        taken.append((float(t[0]), float(t_next[0])))
        return torch.zeros(SHAPE, dtype=torch.float64)

    samplers.sample(name, bent, randn(*SHAPE, dtype=torch.float64), SIGMAS, noise)
    assert len(taken) == samplers.draws_per_run(name, 8)
    assert (len(taken) > 0) == (name in STOCHASTIC)
    assert all(t > t_next for t, t_next in taken)


@every_sampler
def test_levels_that_do_not_end_at_zero_need_a_draw_for_each_step(name):
    sigmas, taken = torch.tensor([0.9, 0.6, 0.4, 0.2]), []
    draws = [torch.zeros(SHAPE, dtype=torch.float64)] * samplers.draws_per_run(name, 3, ends_at_zero=False)
    out = samplers.sample(name, bent, randn(*SHAPE, dtype=torch.float64), sigmas, draws)
    assert bool(torch.isfinite(out).all())
    samplers.sample(name, bent, randn(*SHAPE, dtype=torch.float64), sigmas, lambda t, t_next: taken.append(t) or torch.zeros(SHAPE))
    assert len(taken) == len(draws) == (3 if name in STOCHASTIC else 0)


@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "dpmpp-3m-sde"])
def test_eta_zero_draws_nothing(name):
    samplers.sample(name, bent, randn(*SHAPE, dtype=torch.float64), SIGMAS, noise=None, eta=0.0)
    assert samplers.draws_per_run(name, 8, eta=0.0) == 0


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_draws_matter_except_the_last_of_pingpong(name):
    start, draws = randn(*SHAPE, dtype=torch.float64), [next(noises(seed)) for seed in range(8)]
    plain = samplers.sample(name, bent, start, SIGMAS, draws)
    for i in range(8):
        changed = [draw + 1 if j == i else draw for j, draw in enumerate(draws)]
        assert torch.equal(samplers.sample(name, bent, start, SIGMAS, changed), plain) == (i == 7)


@every_sampler
def test_an_exception_in_the_callback_stops_the_run(name):
    evaluated = []

    def velocity(x, t):
        evaluated.append(t)
        return bent(x, t)

    def stop(step, total, denoised):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samplers.sample(name, velocity, randn(*SHAPE, dtype=torch.float64), SIGMAS, draw_from(noises()), callback=stop)
    assert len(evaluated) == {"heun": 4, "rk4": 8}.get(name, 2)


@every_sampler
def test_one_step_works_and_the_start_is_not_changed(name):
    start = randn(*SHAPE, dtype=torch.float64)
    kept = start.clone()
    out = samplers.sample(name, bent, start, torch.tensor([1.0, 0.0]), draw_from(noises()))
    assert bool(torch.isfinite(out).all()) and torch.equal(start, kept)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3, 5), (1, 2, 3)])
def test_levels_of_another_shape_are_refused(shape):
    with refused("sigmas", "steps + 1"):
        samplers.sample("euler", bent, randn(*SHAPE), torch.ones(shape))


def test_an_unknown_sampler_is_refused():
    with refused("ddim", "pingpong", "dpmpp-3m-sde"):
        samplers.sample("ddim", bent, randn(*SHAPE), SIGMAS)


@pytest.mark.parametrize("noise", [None, [], [torch.zeros(SHAPE)] * 3], ids=["none", "empty", "three"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_too_few_draws_are_refused(name, noise):
    with refused(name, "draws"):
        samplers.sample(name, bent, randn(*SHAPE), SIGMAS, noise)
