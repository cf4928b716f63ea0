"""Laws of the noise levels, over random parameters."""

import random

import pytest
import torch
from core_support import refused

from sa3_core.sampling import schedule

KINDS = ["identity", "logsnr", "flux", "full"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def draw(kind: str, rng: random.Random) -> dict:
    """Parameters of a family as a user might set them, with the noise end noisier than the data end."""
    low = rng.choice([16, 64, 256])
    return {
        "identity": {},
        "logsnr": {
            "anchor_length": rng.choice([100, 2000]), "anchor_logsnr": rng.uniform(-7, -3), "rate": rng.uniform(0, 0.3),
            "logsnr_end": rng.uniform(1, 4),
        },
        "flux": {"min_length": low, "max_length": low * 16, "alpha_min": rng.uniform(0.5, 7), "alpha_max": rng.uniform(0.5, 7)},
        "full": {
            "base_shift": rng.uniform(0, 1), "max_shift": rng.uniform(0.5, 2), "min_length": low, "max_length": low * 16,
            "use_sine": rng.random() < 0.5,
        },
    }[kind]  # fmt: skip


def cases(kind, count=40):
    rng = random.Random(kind)
    for _ in range(count):
        yield rng.choice([1, 2, 8, 50, 200]), rng.choice([0.05, 0.3, 0.6, 0.95, 1.0]), rng.randint(1, 5000), draw(kind, rng)


@every_kind
def test_scaled_levels_fall_from_exactly_sigma_max_to_exactly_zero(kind):
    for steps, sigma_max, length, params in cases(kind):
        sigmas = schedule.build(kind, steps, sigma_max, length, **params)
        assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
        assert float(sigmas[0]) == float(torch.tensor(sigma_max)) and float(sigmas[-1]) == 0
        assert bool((sigmas.diff() <= 0).all()) and bool((sigmas[:-1] > 0).all()), (steps, sigma_max, length, params)


@every_kind
def test_reference_levels_have_the_same_end_points(kind):
    for steps, sigma_max, length, params in cases(kind):
        sigmas = schedule.build(kind, steps, sigma_max, length, mode="reference", **params)
        assert sigmas.shape == (steps + 1,)
        assert float(sigmas[0]) == float(torch.tensor(sigma_max)) and float(sigmas[-1]) == 0


@every_kind
def test_modes_agree_from_pure_noise(kind):
    for steps, _, length, params in cases(kind, 10):
        scaled, reference = (schedule.build(kind, steps, 1.0, length, mode, **params) for mode in ("scaled", "reference"))
        assert torch.equal(scaled, reference)


@every_kind
def test_scaled_is_the_full_schedule_times_sigma_max(kind):
    for steps, sigma_max, length, params in cases(kind, 10):
        scaled = schedule.build(kind, steps, sigma_max, length, **params)
        assert torch.allclose(scaled, schedule.build(kind, steps, 1.0, length, **params) * sigma_max, rtol=1e-6, atol=0)


def test_the_public_fault_is_kept_in_reference_only():
    reference = schedule.build("logsnr", 8, 0.6, 300, mode="reference")
    scaled = schedule.build("logsnr", 8, 0.6, 300)
    assert float(reference[1]) > 0.9 > 0.6 > float(scaled[1])


@every_kind
@pytest.mark.parametrize("mode", ["scaled", "reference"])
def test_lengths_per_item_equal_each_alone(kind, mode):
    lengths = [1, 70, 323, 4096, 9000]
    for steps, sigma_max, _, params in cases(kind, 10):
        together = schedule.build(kind, steps, sigma_max, torch.tensor(lengths), mode, **params)
        assert together.shape == (len(lengths), steps + 1)
        for row, length in zip(together, lengths, strict=True):
            alone = schedule.build(kind, steps, sigma_max, length, mode, **params)
            assert torch.allclose(row, alone, rtol=0, atol=1e-7)  # torch's vector kernels may differ from each other in the last bit


def test_one_length_in_a_tensor_still_gives_a_row_per_item():
    assert schedule.build("logsnr", 4, length=torch.tensor([100])).shape == (1, 5)
    assert schedule.build("logsnr", 4, length=torch.tensor(100)).shape == (5,)
    assert schedule.build("identity", 4).shape == (5,)


def test_the_models_default_in_eight_steps():
    wanted = [1, 0.9944, 0.9845, 0.9579, 0.8909, 0.7455, 0.5125, 0.2739, 0]
    assert schedule.build("logsnr", 8, length=500).tolist() == pytest.approx(wanted, abs=6e-5)


def test_longer_clips_get_more_noise():
    """logsnr with a rate, flux and full all shift towards noise as the length grows."""
    for kind, params in {"logsnr": {"rate": 0.3}, "flux": {"alpha_min": 2.0, "alpha_max": 6.0}, "full": {}}.items():
        short, long = schedule.build(kind, 8, length=torch.tensor([300, 3000]), **params)
        assert bool((long[1:-1] > short[1:-1]).all()), kind


def test_flux_clamps_its_length_and_equal_alphas_ignore_it():
    params = {"min_length": 100, "max_length": 1000, "alpha_min": 2.0, "alpha_max": 5.0}
    below, low, high, above = schedule.build("flux", 6, length=torch.tensor([10, 100, 1000, 9999]), **params)
    assert torch.equal(below, low) and torch.equal(high, above) and not torch.equal(low, high)
    same = schedule.build("flux", 6, length=torch.tensor([10, 9999]))
    assert torch.equal(same[0], same[1])


def test_identity_is_linear():
    assert torch.equal(schedule.build("identity", 4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "8"])
def test_impossible_steps_are_refused(steps):
    with refused("steps", steps):
        schedule.build("identity", steps)


@pytest.mark.parametrize("sigma_max", [0, -0.1, 1.01, float("nan")])
def test_impossible_noise_levels_are_refused(sigma_max):
    with refused("noise level", sigma_max):
        schedule.build("identity", 4, sigma_max)


def test_unknown_names_are_refused():
    with refused("karras", "logsnr", "flux"):
        schedule.build("karras", 4, length=100)
    with refused("shifted", "scaled", "reference"):
        schedule.build("identity", 4, mode="shifted")
    with refused("flux", "alpha", "alpha_min"):
        schedule.build("flux", 4, length=100, alpha=3)
    with refused("identity", "rate", "none"):
        schedule.build("identity", 4, rate=3)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_family_that_needs_a_length_says_so(kind):
    with refused(kind, "length"):
        schedule.build(kind, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_must_be_finite(value):
    with refused("rate", value, "finite"):
        schedule.build("logsnr", 4, length=100, rate=value)


@pytest.mark.parametrize("steps", [float("nan"), float("inf")])
def test_steps_must_be_finite(steps):
    with refused("steps", steps):
        schedule.build("identity", steps)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("flux", {"alpha_min": 0.0}),
        ("flux", {"alpha_max": -1.0}),
        ("flux", {"min_length": 0}),
        ("logsnr", {"anchor_length": 0, "rate": 0.1}),
        ("logsnr", {"anchor_length": -5, "rate": 0.1}),
        ("full", {"min_length": 256, "max_length": 256}),
    ],
    ids=str,
)
def test_parameters_outside_a_familys_domain_are_refused(kind, params):
    with refused(*(name for name in params if name != "rate")):
        schedule.build(kind, 4, length=100, **params)
