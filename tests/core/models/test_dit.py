"""The transformer: padding has no effect, and the constants of a run are computed once."""

from collections import Counter

import pytest
import torch
from core_support import FAMILIES, randn, recorded, refused, rel_error, watched

from sa3_core.backends import cpu
from sa3_core.backends.cpu import CPU

T = 24


@pytest.fixture
def case(variant):
    """x, t, cross_attn, global_cond, local_add of two items."""
    golden = recorded(f"{variant}/golden")
    return {name: golden[f"dit.{name}"] for name in ("x", "t", "cross_attn", "global", "local_add")}


def velocity(model, case, items=slice(None), frames=T, **options):
    x, t, cross, glob, local = (case[name][items] for name in ("x", "t", "cross_attn", "global", "local_add"))
    return model.velocity(x[..., :frames], t, cross, glob, local[..., :frames], **options)


def mask_of(*lengths):
    return torch.arange(T)[None] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("lengths", [(24, 24), (24, 9), (1, 24), (17, 16), (5, 5)])
@pytest.mark.parametrize("variant", FAMILIES)
def test_a_padded_item_equals_the_item_cut_to_its_length(model, case, variant, lengths):
    together = velocity(model, case, padding_mask=mask_of(*lengths))
    for i, n in enumerate(lengths):
        alone = velocity(model, case, slice(i, i + 1), n)
        assert rel_error(together[i, :, :n], alone[0]) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_values_of_padded_frames_have_no_effect(model, case, variant):
    mask = mask_of(24, 9)
    baseline = velocity(model, case, padding_mask=mask)
    noisy = {**case, "x": case["x"].clone(), "local_add": case["local_add"].clone()}
    noisy["x"][1, :, 9:], noisy["local_add"][1, :, 9:] = 1e3, -1e3
    out = velocity(model, noisy, padding_mask=mask)
    assert torch.equal(out[0], baseline[0]) and torch.equal(out[1, :, :9], baseline[1, :, :9])
    # without the mask they have one
    assert rel_error(velocity(model, noisy)[1, :, :9], velocity(model, case)[1, :, :9]) > 1e-2


@pytest.mark.parametrize("rows", [0, 1, 2, 64], ids=lambda rows: f"{rows} padding rows")
@pytest.mark.parametrize("variant", FAMILIES)
def test_padding_rows_change_nothing(model, case, variant, rows, monkeypatch):
    baseline, masked = velocity(model, case), velocity(model, case, padding_mask=mask_of(21, 9))
    monkeypatch.setattr(CPU, "padded_rows", lambda self, tokens: tokens + rows)
    assert rel_error(velocity(model, case), baseline) < 1e-5
    assert rel_error(velocity(model, case, padding_mask=mask_of(21, 9)), masked) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_products_have_a_multiple_of_eight_rows(model, case, variant):
    """For every length: oneDNN is slow if it cannot split the rows into equal tiles."""
    seen = set()
    layer = model.dit.transformer.layers[0]
    products = layer.self_attn.to_qkv, layer.self_attn.to_out, layer.cross_attn.to_q, layer.ff.ff[2]
    with watched((product, lambda x: seen.add(x.shape[1])) for product in products):
        for frames in range(1, T + 1):
            velocity(model, case, frames=frames)
    assert len(seen) > 2 and all(rows % 8 == 0 for rows in seen)


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_batch_item_equals_itself_alone(model, case, variant):
    together = velocity(model, case)
    for i in range(2):
        assert rel_error(together[i], velocity(model, case, slice(i, i + 1))[0]) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_local_input_of_zeros_is_present(model, case, variant):
    """Zeros are embedded as one row, negligibly small numbers as all rows. An absent input is different."""
    one_row, all_rows = (velocity(model, {**case, "local_add": torch.full_like(case["local_add"], value)}) for value in (0.0, 1e-30))
    assert rel_error(one_row, all_rows) < 1e-5
    absent = model.velocity(case["x"], case["t"], case["cross_attn"], case["global"])
    assert rel_error(absent, one_row) > 1e-3


@pytest.mark.parametrize("variant", FAMILIES)
def test_every_input_has_an_effect(model, case, variant):
    baseline = velocity(model, case)
    for name in case:
        assert rel_error(velocity(model, {**case, name: case[name] * 0.9}), baseline) > 1e-4, name


@pytest.mark.parametrize("mask", [[[False] * T] * 2, [[True] * 5 + [False] + [True] * (T - 6)] * 2, [[False] + [True] * (T - 1)] * 2])
def test_a_padding_mask_hides_the_end_only(load_model, mask):
    case = {name: recorded("small/golden")[f"dit.{name}"] for name in ("x", "t", "cross_attn", "global", "local_add")}
    with refused("padding mask", "expected them first"):
        velocity(load_model("small"), case, padding_mask=torch.tensor(mask))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("variant", FAMILIES)
def test_constants_of_a_run_are_computed_once(model, variant, cfg):
    """Calls of each Linear in a run of 2 and of 6 steps: what does not depend on x or t must not be called more often."""

    def calls(steps):
        counted = Counter()
        leaves = [(name, module) for name, module in model.module.named_modules() if not list(module.children())]
        rain = (44100, randn(2, 30_000) * 0.1)
        with watched((module, lambda *_, name=name: counted.update([name])) for name, module in leaves):
            model.generate("rain", 1.0, steps=steps, cfg=cfg, sampler="euler", padding=0, source_audio=rain, regions=[(0.2, 0.5)])
        return counted

    few, many = calls(2), calls(6)
    constant = ("to_cond_embed", "to_kv", "cross_attn.k_norm", "to_local_embed", "to_global_embed", "conditioner", "pretransform")
    names = [name for name in few if any(part in name for part in constant)]
    assert all(sum(part in name for name in names) for part in constant)
    assert {name: many[name] - few[name] for name in names if many[name] != few[name]} == {}
    inside = "model.model.transformer.layers.0.self_attn.to_qkv"
    assert (few[inside], many[inside]) == (2, 6)  # guidance runs both contexts as one batch


def test_the_same_time_is_embedded_once(load_model):
    model, case = load_model("small"), recorded("small/golden")
    inputs = model.dit.prepare(case["dit.cross_attn"], case["dit.global"], None, T)
    assert model.dit.modulation(case["dit.t"], inputs) is model.dit.modulation(case["dit.t"].clone(), inputs)
    assert model.dit.modulation(case["dit.t"] * 0.5, inputs) is not model.dit.modulation(case["dit.t"], inputs)


@pytest.mark.parametrize("variant", FAMILIES)
def test_equal_context_rows_are_computed_once(model, case, variant, monkeypatch):
    """On the CPU equal rows of the context share a key; elsewhere every row has its own."""
    case["cross_attn"][:, 4:-1] = case["cross_attn"][:, 4:5]
    negative = torch.zeros_like(case["cross_attn"])
    negative[:, :9] = case["cross_attn"][:, -1:].flip(0)
    options = {"cfg": 4.0, "negative_cross_attn": negative}
    once = velocity(model, case), velocity(model, case, **options)
    monkeypatch.setattr(CPU, "distinct_rows", lambda self, rows: (rows, None))
    for short, whole in zip(once, (velocity(model, case), velocity(model, case, **options)), strict=True):
        assert rel_error(short, whole) < 1e-5


@pytest.mark.parametrize("frames", range(1, T + 1))
def test_the_items_computed_together_fit_into_a_reused_block_of_memory(load_model, monkeypatch, frames):
    model = load_model("small")
    c = model.config.dit
    row = 2 * int(c.width * c.ff_mult) * 4  # bytes of the widest activation
    monkeypatch.setattr(cpu, "REUSED_BLOCK", 8 * 40 * row)  # a block of exactly this size is not reused
    with torch.no_grad():
        inputs = model.dit.prepare(randn(3, 8, c.cond_dim), randn(3, c.global_dim), None, frames)
        items = model.dit._items_at_once(inputs)
    rows = CPU().padded_rows(frames + c.memory_tokens)
    assert items * rows < 8 * 40 <= (items + 1) * rows


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("variant", FAMILIES)
def test_a_batch_too_large_for_reused_memory_is_computed_in_groups(model, case, monkeypatch, cfg):
    options = {"padding_mask": mask_of(24, 9), "cfg": cfg}
    together = velocity(model, case, **options)
    monkeypatch.setattr(cpu, "REUSED_BLOCK", 1)
    with torch.no_grad():
        grouped = velocity(model, case, **options)
    assert rel_error(grouped, together) < 1e-5
    baseline = {name: case[name] for name in ("cross_attn", "global")}
    with torch.no_grad():
        inputs = model.dit.prepare(*baseline.values(), case["local_add"], T)
        apart = [model.dit(case["x"][i : i + 1], case["t"][i : i + 1], inputs.pick([i])) for i in range(2)]
        assert torch.equal(model.dit(case["x"], case["t"], inputs), torch.cat(apart))
        assert len(inputs.cache.parts) == 2  # computed once per run
        assert torch.equal(model.dit(case["x"], case["t"], inputs), torch.cat(apart)) and len(inputs.cache.parts) == 2
