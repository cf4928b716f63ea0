"""Packed weights: the same sound, whatever changes between runs; where they cannot be, a run says so and goes without."""

import gc
import weakref

import pytest
import torch
from core_support import graphs, lay_out, needs_bfloat16, needs_mkl, rel_error
from lora_support import write_lora

import sa3_core
from sa3_core import operations
from sa3_core.compiled import Compiled
from sa3_core.packed import Packed, PackedAndCompiled

ROUNDING = 1e-5


def both(**options) -> PackedAndCompiled:
    torch._dynamo.reset()
    return PackedAndCompiled(Packed(**options), Compiled(backend="eager"))


ways = pytest.mark.parametrize(("make", "state"), [(Packed, "packed"), (both, "compiled; packed")], ids=["packed", "both"])


@pytest.fixture(params=["small-base", "medium"])
def model(load_model, request):
    model = load_model(request.param)
    yield model
    if model.compiled is not None:
        model.compiled.join()
    model.compiled = None
    model.remove_loras()


def run(model, seconds=1.0, prompt="rain", **options):
    return model.generate(prompt, seconds, seed=3, **{"steps": 2, "cfg": 3.0, "return_latents": True, **options}).latents


@needs_mkl
@ways
@pytest.mark.parametrize("onednn", [False, True], ids=["MKL", "oneDNN"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_packed_run_is_the_same_up_to_rounding_and_the_same_bytes_each_time(model, monkeypatch, cfg, onednn, make, state):
    monkeypatch.setattr(operations, "mkl_is_slow", lambda: onednn)
    lengths = 1.0, 2.0, 1.0
    plain = [run(model, seconds, cfg=cfg) for seconds in lengths]
    weights = model.compile(wait=True, compiled=make())
    packed = [run(model, seconds, cfg=cfg) for seconds in lengths]
    assert all(rel_error(one, other) < ROUNDING for one, other in zip(packed, plain, strict=True)) and weights.state == state
    assert torch.equal(packed[0], packed[2])


@needs_mkl
@ways
def test_an_item_of_a_batch_is_the_item_alone(model, make, state):
    model.compile(wait=True, compiled=make())
    together = run(model, prompt=["rain", "a kick"])
    assert rel_error(together[:1], run(model)) < ROUNDING and together.shape[0] == 2


@needs_mkl
@ways
@pytest.mark.parametrize("inference", [False, True])
def test_weights_that_are_changed_in_place_or_replaced_are_packed_again(model, inference, tmp_path, make, state):
    model.compile(wait=True, compiled=make())
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
@ways
def test_a_second_run_packs_nothing(model, monkeypatch, make, state):
    model.compile(wait=True, compiled=make())
    run(model)
    monkeypatch.setattr("sa3_core.packed._Weight", None)
    run(model)


@needs_mkl
@ways
def test_a_run_that_was_stopped_leaves_the_next_one_right(model, make, state):
    plain = run(model)
    packed = model.compile(wait=True, compiled=make())
    with pytest.raises(KeyboardInterrupt):
        run(model, callback=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert rel_error(run(model), plain) < ROUNDING and packed.state == state
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
    monkeypatch.setattr(operations, "mkl_is_slow", lambda: False)
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


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(2, 2, dtype=torch.float16), ("computes in float16 on cpu",)),
        (torch.zeros(2, 2, device="meta"), ("computes in float32 on meta",)),
        (torch.zeros(2, 2, dtype=torch.bfloat16), ("does not compute in bfloat16",)),
    ],
)
def test_what_nobody_packs_is_named(monkeypatch, weight, words):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    linear = torch.nn.Linear(2, 2, device="meta")
    linear.weight = torch.nn.Parameter(weight)
    assert all(word in Packed()._obstacle([linear]) for word in words)


def test_a_layer_packs_the_weights_of_a_step(load_model):
    assert all(len(Packed()._linears(layer)) == 6 for layer in load_model("small-base").dit.transformer.layers)


@needs_bfloat16
@ways
def test_bfloat16_is_packed_too(tmp_path, make, state):
    model = sa3_core.load(lay_out(tmp_path / "small-base", "small-base"), dtype=torch.bfloat16)
    plain = run(model)
    weights = model.compile(wait=True, compiled=make())
    packed = run(model)
    again, model.compiled = run(model), None
    assert rel_error(packed, plain) < 2e-2 and torch.equal(packed, again) and weights.state == state


@needs_mkl
def test_with_both_the_first_run_is_packed_and_the_next_one_compiled_as_well(model):
    model.compile(compiled=Packed())
    packed = run(model)
    layers = model.compile(compiled=both())
    assert torch.equal(run(model), packed) and layers.state == "not compiled yet; packed"
    layers.join()
    assert rel_error(run(model), packed) < ROUNDING and layers.state == "compiled; packed"


@needs_mkl
@pytest.mark.parametrize(("cfg", "items"), [(1.0, 1), (3.0, 2)])
def test_compiled_layers_take_the_packed_weights_whatever_the_length(model, monkeypatch, cfg, items):
    calls, product = [], Packed._product
    monkeypatch.setattr(Packed, "_product", lambda *args: calls.append(args) or product(*args))
    layers = model.compile(wait=True, compiled=both())
    run(model, cfg=cfg)
    before = graphs()
    calls.clear()
    run(model, 2.0, cfg=cfg)
    assert layers.state == "compiled; packed" and len(calls) == items * 2 * 6 * len(model.dit.transformer.layers)
    assert graphs() == before


@needs_mkl
def test_without_memory_to_pack_both_still_compiles(model):
    torch._dynamo.reset()
    model.compile(wait=True, compiled=Compiled(backend="eager"))
    compiled = run(model)
    layers = model.compile(wait=True, compiled=both(free=lambda: 1000))
    assert torch.equal(run(model), compiled)
    assert layers.state.startswith("compiled; not packed: they need") and layers.obstacle.startswith("they need")
    (remark,) = layers.remarks
    assert remark.startswith("This run went without packed weights: they need")


def test_what_stops_both_is_told_once(model, tmp_path):
    model.add_lora(write_lora(tmp_path / "one.safetensors", model.module), interval=(0.5, 1.0))
    plain = run(model)
    layers = model.compile(wait=True, compiled=both())
    assert torch.equal(run(model), plain) and layers.obstacle == "a LoRA comes and goes during the run"
    assert layers.remarks == [f"This run went without torch.compile and packed weights: {layers.obstacle}."]
