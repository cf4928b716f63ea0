"""Packed weights: the same sound, whatever changes between runs; where they cannot be, a run says so and goes without."""

import gc
import weakref

import pytest
import torch
from core_support import needs_mkl, rel_error
from lora_support import write_lora

from sa3_core.packed import Packed

ROUNDING = 1e-5


@pytest.fixture(params=["small-base", "medium"])
def model(load_model, request):
    model = load_model(request.param)
    yield model
    model.compiled = None
    model.remove_loras()


def run(model, seconds=1.0, prompt="rain", **options):
    return model.generate(prompt, seconds, seed=3, **{"steps": 2, "cfg": 3.0, "return_latents": True, **options}).latents


@needs_mkl
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_packed_run_is_the_same_up_to_rounding_and_the_same_bytes_each_time(model, cfg):
    lengths = 1.0, 2.0, 1.0
    plain = [run(model, seconds, cfg=cfg) for seconds in lengths]
    weights = model.compile(compiled=Packed())
    packed = [run(model, seconds, cfg=cfg) for seconds in lengths]
    assert all(rel_error(one, other) < ROUNDING for one, other in zip(packed, plain, strict=True)) and weights.state == "packed"
    assert torch.equal(packed[0], packed[2])


@needs_mkl
def test_an_item_of_a_batch_is_the_item_alone(model):
    model.compile(compiled=Packed())
    together = run(model, prompt=["rain", "a kick"])
    assert rel_error(together[:1], run(model)) < ROUNDING and together.shape[0] == 2


@needs_mkl
@pytest.mark.parametrize("inference", [False, True])
def test_weights_that_are_changed_in_place_or_replaced_are_packed_again(model, inference, tmp_path):
    model.compile(compiled=Packed())
    before = run(model)
    weight = model.dit.transformer.layers[0].ff.ff[2].weight
    kept = weight.detach().clone()
    with torch.inference_mode(inference), torch.no_grad():
        weight.mul_(0.5)
    changed = run(model)
    packed, model.compiled = model.compiled, None
    assert rel_error(changed, run(model)) < ROUNDING < rel_error(changed, before)
    with torch.no_grad():
        weight.copy_(kept)
    model.compiled = packed
    assert torch.equal(run(model), before)
    model.add_lora(write_lora(tmp_path / "one.safetensors", model.module))
    adapted, model.compiled = run(model), None
    assert rel_error(adapted, run(model)) < ROUNDING < rel_error(adapted, before)


@needs_mkl
def test_a_second_run_packs_nothing(model, monkeypatch):
    model.compile(compiled=Packed())
    run(model)
    monkeypatch.setattr("sa3_core.packed._Weight", None)
    run(model)


@needs_mkl
def test_a_run_that_was_stopped_leaves_the_next_one_right(model):
    plain = run(model)
    packed = model.compile(compiled=Packed())
    with pytest.raises(KeyboardInterrupt):
        run(model, callback=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert rel_error(run(model), plain) < ROUNDING and packed.state == "packed"
    model.compiled = None
    assert torch.equal(run(model), plain)


@needs_mkl
def test_the_second_copy_goes_with_the_object_that_keeps_it(model):
    packed = model.compile(compiled=Packed())
    run(model)
    copies = [weakref.ref(kept) for kept in packed._weights.values()]
    assert copies
    model.compiled = packed = None
    gc.collect()
    assert not any(copy() for copy in copies)


def test_what_stands_in_the_way_is_told_and_the_run_is_the_plain_one(model, monkeypatch, tmp_path):
    plain = run(model)

    def told(*words, **options):
        packed = model.compile(compiled=Packed(**options))
        assert torch.equal(run(model), plain) and all(word in packed.obstacle for word in words), packed.obstacle
        assert packed.state == f"not packed: {packed.obstacle}"

    told("0.0 GB are free", free=lambda: 1000)
    with monkeypatch.context() as patched:
        patched.delattr(torch.ops.mkl, "_mkl_linear", raising=False)
        patched.setattr(type(torch.ops.mkl), "__getattr__", lambda self, name: (_ for _ in ()).throw(AttributeError(name)))
        told("no MKL")
    model.compiled = None
    model.add_lora(write_lora(tmp_path / "one.safetensors", model.module), interval=(0.5, 1.0))
    plain = run(model)
    told("comes and goes")


def test_16_bits_are_not_packed_and_it_is_told(load_model):
    model = load_model("small-base")
    packed = Packed()
    assert all(len(packed._linears(layer)) == 6 for layer in model.dit.transformer.layers)
    half = [torch.nn.Linear(2, 2, dtype=torch.bfloat16)]
    assert "bfloat16" in packed._obstacle(half) and "cpu" in packed._obstacle(half)
