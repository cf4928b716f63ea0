"""LoHa and LoKr against their definitions, alone, in stacks, on a model; damaged files."""

import random

import pytest
import torch
from core_support import refused, rel_error
from lora_support import PRODUCTS, latents, product_delta, product_tensors, tensors_of, write_lora, write_products
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core.lora import convert as lora_convert
from sa3_core.lora import formats as lora_files
from sa3_core.lora.algebra import adapter_of, apply_stack, compose, map_tensors
from sa3_core.lora.merge import merge
from sa3_core.lora.products import product_adapter
from sa3_core.lora.stack import targets

EXACT = 1e-6
TIGHT = 1e-5


def adapter_from(tensors, alpha=None):
    return product_adapter({"magnitude" if name == "dora_scale" else name: t for name, t in tensors.items()}, alpha, "a layer")


def decomposed(weight, delta, magnitude, strength, rows):
    """ComfyUI's weight of a LoHa or LoKr layer with dora_scale, in float64: rows are relative to the norms of the weight before."""
    v, magnitude = weight + delta, magnitude.double().flatten()
    v = v * (magnitude / weight.norm(dim=1))[:, None] if rows else v * (magnitude / v.norm(dim=0))
    return weight + strength * (v - weight)


# The algebra


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("rank", [1, 2, 5, 16])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (14, 33), (20, 20), (24, 12, 1)])
def test_the_update_is_exact(form, rank, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(rank))
    tensors = product_tensors(form, weight, rank, 3)
    for alpha in (None, 3.0):
        adapter = adapter_from(tensors, alpha)
        up, down = adapter.update.factors(weight.double())
        assert adapter.update.shape == tuple(weight.flatten(1).shape) and up.shape[1] == down.shape[0] <= min(shape[:2])
        delta = product_delta(tensors, alpha)
        assert rel_error(adapter.scale * up @ down, delta) < 1e-14
        assert rel_error(apply_stack(torch.zeros(shape), [(adapter, -0.7, "chain")]), -0.7 * delta.view(shape)) < EXACT
        assert rel_error(apply_stack(weight, [(adapter, 0.6, "sum")]), weight + 0.6 * delta.view(shape)) < EXACT


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("magnitudes", ["rows", "cols"])
@pytest.mark.parametrize("shape", [(24, 16), (12, 12), (24, 12, 1)])
def test_magnitudes(form, magnitudes, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tensors = product_tensors(form, weight, 2, 4, magnitudes)
    adapter, delta = adapter_from(tensors, 3.0), product_delta(tensors, 3.0)
    assert adapter.kind == f"{form[:4]} (dora-{magnitudes})"
    for strength in (1.0, 0.4, -0.5):
        wanted = decomposed(weight.double().flatten(1), delta, tensors["dora_scale"], strength, magnitudes == "rows")
        assert rel_error(apply_stack(weight, [(adapter, strength, "chain")]), wanted.view(shape)) < EXACT


@pytest.mark.parametrize("seed", range(6))
def test_a_stack_with_other_types(seed):
    rng = random.Random(seed)
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(seed))
    entries, wanted = [], weight.double()
    for i, form in enumerate(rng.sample(PRODUCTS, 4)):
        magnitudes, mode, strength = rng.choice(["", "rows", "cols"]), rng.choice(["chain", "sum"]), rng.choice([0.3, 1.0, -0.7])
        tensors = product_tensors(form, weight, rng.randint(1, 6), i, magnitudes)
        entries.append((adapter_from(tensors, 2.0), strength, mode))
        before, delta = wanted if mode == "chain" else weight.double(), product_delta(tensors, 2.0)
        after = before + strength * delta
        if magnitudes:
            after = decomposed(before, delta, tensors["dora_scale"], strength, magnitudes == "rows")
        wanted = wanted + after - before
        t = {name: tensor.double() for name, tensor in tensors_of("lora", weight, 2, i).items()}
        entries.append((adapter_of("lora", {name: tensor.float() for name, tensor in t.items()}), 0.5, "chain"))
        wanted = wanted + 0.5 * t["lora_B"] @ t["lora_A"]
    assert rel_error(apply_stack(weight, entries), wanted) < TIGHT
    x, bias = torch.randn(3, 5, 16), torch.linspace(-1, 1, 24)
    forward = compose(weight, entries).linear(x, lambda rows: torch.nn.functional.linear(rows, weight, bias), bias)
    assert rel_error(forward, x.double() @ wanted.T + bias) < TIGHT


# On a model


@pytest.mark.parametrize("form", PRODUCTS)
def test_files_on_a_model(model, tmp_path, form):
    before = {name: layer.weight.detach().clone() for name, layer in targets(model.module).items()}
    spellings = [
        lambda layer: f"diffusion_model.{layer}",
        lambda layer: f"lora_unet_{layer.replace('.', '_')}",
        lambda layer: f"lycoris_{layer.replace('.', '_')}",
    ]
    for i, spell in enumerate(spellings):
        path = write_products(tmp_path / f"{i}.safetensors", model.module, form, alpha=3, spell=spell)
        report = model.add_lora(path, 0.7)
        assert f"{form[:4]}, rank" in report and f"{len(before)} of {len(before)} layers" in report
        stored = load_file(path)
        for layer, module in targets(model.module).items():
            tensors = {name.rpartition(".")[2]: t for name, t in stored.items() if name.rpartition(".")[0] == spell(layer)}
            delta = product_delta({name: t for name, t in tensors.items() if name != "alpha"}, 3)
            assert rel_error(module.weight, before[layer] + 0.7 * delta.view(before[layer].shape)) < EXACT
        model.remove_loras()
    lora = lora_files.read_lora(path)
    assert lora.kind == form[:4] and (form == "lokr" or lora.ranks == [2]) and "format: comfyui" in lora.details()
    for layout in lora_convert.LAYOUTS:
        with refused(form[:4], "not converted"):
            lora_convert.convert(path, tmp_path / "out.safetensors", layout)


@pytest.mark.parametrize("magnitudes", ["", "rows", "cols"])
def test_merged_and_scheduled_agree(model, tmp_path, magnitudes):
    files = [write_products(tmp_path / f"{i}.safetensors", model.module, form, 3, 2, i, magnitudes) for i, form in enumerate(PRODUCTS)]
    files.append(write_lora(tmp_path / "dora.safetensors", model.module, "dora-rows"))
    results = [latents(model, cfg=2.0)]
    for interval, curve in (((0, 1), None), ((0, 1), [1.0, 1.0]), ((1e-6, 1), None)):
        for i, file in enumerate(files):
            mode = "sum" if i % 2 else "chain"
            model.add_lora(file, 0.4, seconds_strength=0.0, mode=mode, interval=interval, curve=curve)
        assert bool(model.loras.scheduled) == (interval != (0, 1) or curve is not None)
        results.append(latents(model, cfg=2.0))
        model.remove_loras()
    assert rel_error(results[1], results[0]) > 1e-3
    assert rel_error(results[2], results[1]) < TIGHT and rel_error(results[3], results[1]) < TIGHT


def test_merge(model, folder, tmp_path):
    model.add_lora(write_products(tmp_path / "a.safetensors", model.module, "lokr 2", magnitudes="rows"), 0.7)
    model.add_lora(write_products(tmp_path / "b.safetensors", model.module, "loha", seed=1), mode="sum", seconds_strength=0)
    wanted = latents(model)
    merged = sa3_core.load(merge(folder, model.loras, tmp_path / "merged-small-music").parent)
    assert rel_error(latents(merged), wanted) < 2e-2  # the release is stored in 16 bits


# Damaged files


def changed(path, part, change, layer="to_cond_embed.0"):
    tensors = load_file(path)
    change(tensors, f"diffusion_model.{layer}.{part}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def put(value):
    return lambda tensors, name: tensors.update({name: value})


@pytest.mark.parametrize(
    ("form", "part", "change", "words"),
    [
        ("loha", "hada_w1_a", lambda t, name: t.pop(name), ["hada_w1_a", "missing", "loha"]),
        ("loha", "hada_w2_b", lambda t, name: t.pop(name), ["hada_w2_b", "missing"]),
        ("loha", "hada_w2_a", put(torch.ones(64)), ["hada_w2_a", "expected a matrix"]),
        ("loha", "hada_w2_a", put(torch.ones(64, 0)), ["hada_w2_a", "expected a matrix"]),
        ("loha", "hada_w2_a", put(torch.ones(64, 3)), ["hada_w2_a", "one rank"]),
        ("loha", "hada_w2_a", put(torch.ones(1, 2)), ["one shape"]),  # never broadcast
        ("loha", "hada_w1_a", lambda t, name: t[name].fill_(float("nan")), ["hada_w1_a", "NaN"]),
        ("loha", "hada_t1", put(torch.ones(2, 2, 1)), ["hada_t1", "Tucker"]),
        ("lokr 2", "lokr_t2", put(torch.ones(2, 2, 1)), ["lokr_t2", "Tucker"]),
        ("lokr 2", "lokr_w1", lambda t, name: t.pop(name), ["lokr_w1_a", "missing", "lokr"]),
        ("lokr 2", "lokr_w1_a", put(torch.ones(4, 2)), ["lokr_w1_a", "one adapter per layer"]),
        ("lokr 2", "lora_A", put(torch.ones(4, 2)), ["lora_A", "one adapter per layer"]),
        ("lokr 2", "hada_w1_a", put(torch.ones(4, 2)), ["missing"]),
        ("lokr", "lokr_w1", put(torch.ones(3, 3)), ["does not fit", "an update of"]),
        ("lokr 2", "dora_scale", put(torch.ones(5)), ["5 values", "columns"]),
        ("lokr 2", "alpha", put(torch.tensor(1e30)), ["alpha", "scale"]),
        ("lokr 2", "oft_blocks", put(torch.ones(2, 2)), ["oft_blocks", "LoHa", "LoKr", "PEFT", "official trainer"]),
    ],
)
def test_invalid_files(model, tmp_path, form, part, change, words):
    path = changed(write_products(tmp_path / "a.safetensors", model.module, form), part, change)
    before = {name: layer.weight for name, layer in targets(model.module).items()}
    with refused(*words):
        model.add_lora(path)
    assert all(layer.weight is before[name] for name, layer in targets(model.module).items())


def test_a_small_file_cannot_ask_for_a_large_update(model, tmp_path):
    """Two matrices of 4 MB, whose Kronecker product would have 4 TB. Reading them allocates at most twice the file."""
    path = write_products(tmp_path / "a.safetensors", model.module, "lokr")
    for part in ("lokr_w1", "lokr_w2"):
        changed(path, part, put(torch.ones(1000, 1000)))
    with refused("does not fit", "1000000 x 1000000"):
        model.add_lora(path)
    changed(path, "lokr_w1", put(torch.ones(1, 1_000_000)))
    adapter = lora_files.read_lora(path).layers["to_cond_embed.0"]
    sizes = []
    map_tensors(adapter, lambda tensor: sizes.append(tensor.numel()))
    assert sum(sizes) <= 2 * 2_000_000
    with refused("does not fit"):
        model.add_lora(path)


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_products_in_other_formats_are_refused(model, tmp_path, prefix):
    tensors = {f"{prefix}{name}": t for name, t in load_file(write_products(tmp_path / "a.safetensors", model.module)).items()}
    name = "peft.safetensors" if prefix else "adapter_model.safetensors"
    save_file(tensors, tmp_path / name)
    with refused("LoHa and LoKr", "peft"):
        model.add_lora(tmp_path / name)
