"""Guidance against the formula on data predictions, and its laws: per item, over valid frames only."""

import pytest
import torch
from core_support import FAMILIES, randn, recorded, refused, rel_error

from sa3_core.sampling.guidance import Guidance

KNOBS = [
    {"apg": 0.0},
    {"apg": 1.0},
    {"apg": 0.4},
    {"apg": 0.0, "rescale": 0.7},
    {"apg": 0.0, "norm_threshold": 1.5},
    {"apg": 0.6, "rescale": 0.3, "norm_threshold": 2.0},
]
LENGTHS = [12, 7, 1]
every_knob = pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: "-".join(f"{k}{v}" for k, v in knobs.items()))


@pytest.fixture
def inputs():
    x, v_cond, v_uncond = (randn(3, 5, 12, seed=i) for i in range(3))
    return x, torch.tensor([0.9, 0.5, 0.05]), v_cond, v_uncond


def definition(guidance, x, t, v_cond, v_uncond):
    """One item, every frame valid: the spec's formula on data predictions, in float64."""
    x, t, v_cond, v_uncond = (value.double() for value in (x, t, v_cond, v_uncond))
    conditioned = x - t * v_cond
    diff = conditioned - (x - t * v_uncond)
    if guidance.norm_threshold > 0:
        diff = diff * min(1.0, guidance.norm_threshold / float(diff.norm()))
    orthogonal = diff - (diff * conditioned).sum() / conditioned.square().sum() * conditioned
    used = guidance.apg * orthogonal + (1 - guidance.apg) * diff
    v = (x - (conditioned + (guidance.cfg - 1) * used)) / t
    return guidance.rescale * v * v_cond.std(0) / v.std(0) + (1 - guidance.rescale) * v


@every_knob
def test_each_item_follows_the_formula_over_its_valid_frames(inputs, knobs):
    x, t, v_cond, v_uncond = inputs
    guidance = Guidance(5.0, **knobs)
    out = guidance.combine(x, t, v_cond, v_uncond, LENGTHS)
    for i, n in enumerate(LENGTHS):
        wanted = definition(guidance, x[i, :, :n], t[i], v_cond[i, :, :n], v_uncond[i, :, :n])
        assert rel_error(out[i, :, :n], wanted) < 1e-5


@every_knob
def test_padded_frames_do_not_matter(inputs, knobs):
    x, t, v_cond, v_uncond = inputs
    guidance = Guidance(5.0, **knobs)
    plain = guidance.combine(x, t, v_cond, v_uncond, LENGTHS)
    hidden = torch.arange(12)[None] >= torch.tensor(LENGTHS)[:, None]
    for noisy in ((x + 100 * hidden[:, None], t, v_cond, v_uncond), (x, t, v_cond - 100 * hidden[:, None], v_uncond)):
        out = guidance.combine(*noisy, LENGTHS)
        for i, n in enumerate(LENGTHS):
            assert torch.equal(out[i, :, :n], plain[i, :, :n])


@every_knob
def test_a_batch_item_equals_itself_alone(inputs, knobs):
    guidance = Guidance(5.0, **knobs)
    together = guidance.combine(*inputs)
    for i in range(3):
        assert rel_error(together[i], guidance.combine(*(value[i : i + 1] for value in inputs))[0]) < 1e-6


@every_knob
def test_scale_one_is_the_conditioned_velocity(inputs, knobs):
    assert rel_error(Guidance(1.0, **knobs).combine(*inputs), inputs[2]) < 1e-6


def used(guidance, x, t, v_cond, v_uncond):
    return (v_cond - guidance.combine(x, t, v_cond, v_uncond)) * t[:, None, None] / (guidance.cfg - 1)


def test_full_apg_is_orthogonal_to_the_prediction(inputs):
    x, t, v_cond, _ = inputs
    direction, prediction = used(Guidance(3.0, apg=1.0), *inputs), x - t[:, None, None] * v_cond
    cosine = (direction * prediction).sum((1, 2)) / direction.flatten(1).norm(dim=1) / prediction.flatten(1).norm(dim=1)
    assert float(cosine.abs().max()) < 1e-5


def test_the_norm_threshold_caps_each_item(inputs):
    free = used(Guidance(3.0, apg=0.0), *inputs).flatten(1).norm(dim=1)
    threshold = float(free.sort().values[1])
    capped = used(Guidance(3.0, apg=0.0, norm_threshold=threshold), *inputs).flatten(1).norm(dim=1)
    assert rel_error(capped, free.clamp(max=threshold)) < 1e-5
    assert int((free > threshold).sum()) == 1


def test_full_rescale_restores_the_spread_of_each_frame(inputs):
    out = Guidance(9.0, apg=0.0, rescale=1.0).combine(*inputs)
    assert rel_error(out.std(1), inputs[2].std(1)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_interval_is_inclusive_and_each_item_has_its_own_time(dtype):
    t = torch.tensor([0.29, 0.3, 0.5, 0.8, 0.81], dtype=dtype)
    x, v_cond, v_uncond = (randn(5, 4, 6, seed=i) for i in range(3))
    out = Guidance(2.0, start=0.3, end=0.8).apply(x, t, v_cond, v_uncond)
    everywhere = Guidance(2.0).combine(x, t, v_cond, v_uncond)
    for i, inside in enumerate([False, True, True, True, False]):
        assert torch.equal(out[i], everywhere[i] if inside else v_cond[i])


@pytest.mark.parametrize("variant", FAMILIES)
def test_through_the_network(load_model, variant):
    model, golden = load_model(variant), recorded(f"{variant}/golden")
    args = [golden[f"dit.{name}"] for name in ("x", "t", "cross_attn", "global", "local_add")]
    plain = model.velocity(*args)
    assert torch.equal(model.velocity(*args, cfg=1.0, apg=0.3, rescale=0.5, norm_threshold=1.0), plain)
    assert torch.equal(model.velocity(*args, cfg=3.0, cfg_interval=(0.0, 1e-6)), plain)
    assert rel_error(model.velocity(*args, cfg=3.0, negative_cross_attn=args[2]), plain) < 1e-5  # the same prompt on both sides
    zeros = torch.zeros_like(args[2])
    assert torch.equal(model.velocity(*args, cfg=3.0, negative_cross_attn=zeros), model.velocity(*args, cfg=3.0))
    assert rel_error(model.velocity(*args, cfg=3.0), plain) > 1e-3
    # cfg 0 is the unconditional prediction
    unconditional = model.velocity(*args[:2], zeros, *args[3:])
    assert rel_error(model.velocity(*args, cfg=0.0, apg=0.0), unconditional) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_in_velocity_the_first_items_time_decides_as_in_the_public_code(load_model, variant):
    model, golden = load_model(variant), recorded(f"{variant}/golden")
    x, *rest = [golden[f"dit.{name}"] for name in ("x", "cross_attn", "global", "local_add")]
    options = {"cfg": 3.0, "cfg_interval": (0.5, 1.0)}
    outside, inside = torch.tensor([0.2, 0.9]), torch.tensor([0.9, 0.2])
    assert torch.equal(model.velocity(x, outside, *rest, **options), model.velocity(x, outside, *rest))
    assert rel_error(model.velocity(x, inside, *rest, **options), model.velocity(x, inside, *rest, cfg=3.0)) < 1e-6


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_batch_item_equals_itself_alone_through_the_network(load_model, variant):
    model, golden = load_model(variant), recorded(f"{variant}/golden")
    args = [golden[f"dit.{name}"] for name in ("x", "t", "cross_attn", "global", "local_add")]
    knobs = {"cfg": 4.0, "apg": 0.6, "rescale": 0.3, "norm_threshold": 2.0}
    mask = torch.arange(24)[None] < torch.tensor([[24], [11]])
    together = model.velocity(*args, padding_mask=mask, **knobs)
    for i, n in enumerate([24, 11]):
        x, t, cross, glob, local = (value[i : i + 1] for value in args)
        alone = model.velocity(x[..., :n], t, cross, glob, local[..., :n], **knobs)
        assert rel_error(together[i, :, :n], alone[0]) < 1e-5


@pytest.mark.parametrize("name", ["apg", "rescale", "start", "end", "cfg", "norm_threshold"])
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_values_out_of_range_are_refused(name, value):
    with refused("guidance", name, value):
        Guidance(**{name: value})


@pytest.mark.parametrize("name", ["apg", "rescale", "start", "end"])
def test_shares_end_at_one(name):
    with refused(name, 1.5, "0 to 1"):
        Guidance(**{name: 1.5})


def test_an_interval_that_ends_before_it_starts_is_refused():
    with refused("interval", 0.8, 0.2):
        Guidance(start=0.8, end=0.2)
