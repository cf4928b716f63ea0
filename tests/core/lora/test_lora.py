"""LoRA: official types against recordings, stacks against successive adapters, files of every format, invalid files."""

import concurrent.futures
import json
import random
from dataclasses import replace

import pytest
import torch
from core_support import DATA, lay_out, recorded, refused, rel_error, release_dict
from lora_support import KINDS, latents, native_name, tensors_of, write_lora
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core import pipeline
from sa3_core.checkpoints.tensors import save
from sa3_core.lora import convert as lora_convert
from sa3_core.lora import formats as lora_files
from sa3_core.lora.algebra import MODES, AdaptedWeight, adapter_of, apply, apply_stack, compose, svd_bases
from sa3_core.lora.merge import merge
from sa3_core.lora.stack import SECONDS, Stack, targets

TIGHT = 1e-5
CASES = json.loads((DATA / "lora.json").read_text())


def case_tensors(case) -> dict:
    stored, key = recorded("lora"), case["key"] + "."
    return {
        name.removeprefix(key): t for name, t in stored.items() if name.startswith(key) and ".out." not in name and not name.endswith(".W")
    }


def inputs_of(model, seed: int = 0, batch: int = 1):
    g = torch.Generator().manual_seed(seed)
    cond = model.condition(model.encode_text(["a drum"] * batch), [1.0] * batch)
    x = torch.randn(batch, model.config.same.latent_dim, 12, generator=g)
    return x, cond.cross_attn, cond.global_cond


def velocity(model, t=0.7, **more):
    x, *cond = inputs_of(model)
    return model.velocity(x, torch.tensor([t]), *cond, **more)


# The algebra


@pytest.mark.parametrize("case", CASES, ids=[case["key"] for case in CASES])
def test_recorded(case):
    weight, stored = recorded("lora")[f"{case['key']}.W"], recorded("lora")
    for strength in case["strengths"]:
        out = apply(weight, case["adapter"], case_tensors(case), strength, alpha=case["alpha"], rank=case["rank"])
        assert rel_error(out, stored[f"{case['key']}.out.{strength}"]) < TIGHT
        assert (out is weight) == (strength == 0)


def reference(weight, kind, tensors, scale):
    """W' of each adapter type by its definition, in float64."""
    w, t = weight.double(), {name: tensor.double() for name, tensor in tensors.items()}
    update = t["U"] @ t["M_xs"] @ t["V"].T if "M_xs" in t else t["lora_B"] @ t["lora_A"]
    v, name = w + scale * update, kind.removesuffix("-xs")
    if name in ("dora", "dora-rows"):
        return t["magnitude"][:, None] * v / (v.norm(dim=1, keepdim=True) + 1e-12)
    if name == "dora-cols":
        return t["magnitude"] * v / (v.norm(dim=0, keepdim=True) + 1e-12)
    if name == "bora":
        v = t["magnitude_r"][:, None] * v / (v.norm(dim=1, keepdim=True) + 1e-12)
        return t["magnitude_c"] * v / (v.norm(dim=0, keepdim=True) + 1e-12)
    return v


@pytest.mark.parametrize("seed", range(12))
def test_a_stack_of_eight_equals_successive_adapters(seed):
    rng = random.Random(seed)
    out, inner = rng.choice([(24, 16), (7, 31), (16, 16)])
    weight = torch.randn(out, inner, generator=torch.Generator().manual_seed(seed))
    kinds = rng.sample(KINDS, len(KINDS))[:8]
    entries, chained = [], weight.double()
    for i, kind in enumerate(kinds):
        rank, alpha, strength, mode = rng.randint(1, 6), rng.uniform(0.5, 8), rng.choice([0.3, 1.0, -0.7, 1.7]), rng.choice(MODES)
        tensors = tensors_of(kind, weight, rank, 100 * seed + i)
        entries.append((adapter_of(kind, tensors, alpha), strength, mode))
        scale = alpha / rank * strength
        if mode == "chain":
            chained = reference(chained, kind, tensors, scale)
        else:
            chained = chained + reference(weight, kind, tensors, scale) - weight
    assert rel_error(apply_stack(weight, entries), chained) < TIGHT
    x = torch.randn(3, 5, inner, generator=torch.Generator().manual_seed(1))
    bias = torch.linspace(-1, 1, out)
    adapted = compose(weight, entries)
    forward = adapted.linear(x, lambda rows: torch.nn.functional.linear(rows, weight, bias), bias)
    assert rel_error(forward, x.double() @ chained.T + bias) < TIGHT
    assert rel_error(adapted.linear(x, lambda rows: rows @ weight.T, None), x.double() @ chained.T) < TIGHT


def test_a_chain_needs_a_single_term():
    weight = torch.randn(6, 5)
    entries = [(adapter_of(kind, tensors_of(kind, weight, 2, i)), 1.0, "chain") for i, kind in enumerate(KINDS)]
    assert len(compose(weight, entries).terms) == 1
    assert len(compose(weight, [(adapter, s, "sum") for adapter, s, _ in entries if adapter.kind != "bora"]).terms) <= 2


def test_order_and_mode_matter_only_where_norms_change():
    weight = torch.randn(10, 8)
    a, b = (adapter_of("lora", tensors_of("lora", weight, 2, i)) for i in (1, 2))
    d = adapter_of("dora-rows", tensors_of("dora-rows", weight, 2, 3))

    def stacked(*adapters, mode="chain"):
        return apply_stack(weight, [(adapter, 1.0, mode) for adapter in adapters])

    assert rel_error(stacked(a, b), stacked(b, a)) < TIGHT and rel_error(stacked(a, b), stacked(a, b, mode="sum")) < TIGHT
    assert rel_error(stacked(a, d), stacked(d, a)) > 1e-3 and rel_error(stacked(a, d), stacked(a, d, mode="sum")) > 1e-3
    assert rel_error(stacked(a, d, mode="sum"), stacked(d, a, mode="sum")) < TIGHT


def test_inactive_adapters_return_the_weight_itself():
    weight = torch.randn(4, 3)
    adapter = adapter_of("bora", tensors_of("bora", weight, 1, 0))
    assert apply_stack(weight, [(adapter, 0.0, "chain"), (adapter, 0.0, "sum")]) is weight
    assert AdaptedWeight().weight(weight).equal(weight)


def test_sixteen_bit_weights_are_computed_in_float32():
    weight = torch.randn(24, 16).bfloat16()
    tensors = tensors_of("bora", weight, 2, 0)
    found = apply(weight, "bora", tensors)
    assert found.dtype == torch.bfloat16 and found.equal(apply(weight.float(), "bora", tensors).bfloat16())


def test_svd_bases_have_the_signs_of_the_trainer():
    weight = torch.randn(9, 6)
    u, v = svd_bases(weight, 4)
    assert bool((u.gather(0, u.abs().argmax(0)[None]) > 0).all())
    s = torch.linalg.svdvals(weight)[:4]
    assert rel_error(weight @ v, u * s) < TIGHT
    m = {"M_xs": torch.randn(4, 4)}
    assert rel_error(apply(weight, "lora-xs", m), apply(weight, "lora-xs", {**m, "U": u, "V": v})) < TIGHT


@pytest.mark.parametrize(("shape", "kind"), [((1, 16), "dora-cols"), ((16, 1), "dora-rows"), ((16,), "dora-rows")])
def test_the_magnitudes_shape_decides_the_axis_of_legacy_dora(shape, kind):
    weight = torch.randn(16, 16)
    tensors = tensors_of("dora-rows", weight, 2, 0)
    legacy = {**tensors, "magnitude": tensors["magnitude"].reshape(shape)}
    assert apply(weight, "dora", legacy).equal(apply(weight, kind, tensors))


# On a model


@pytest.mark.parametrize("kind", KINDS)
def test_add_and_remove_a_lora(model, tmp_path, kind):
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    still = velocity(model)
    path = write_lora(tmp_path / "a.safetensors", model.module, kind, baked_norms=True, base_model="small-music-base")
    report = model.add_lora(path)
    count = len(targets(model.module))
    assert f"{count} of {count} layers" in report and "small-music-base" in report and "rank 2" in report
    for layer, module in targets(model.module).items():
        stem = f"{native_name(layer)}.parametrizations.weight.0."
        tensors = {name.removeprefix(stem): t for name, t in load_file(path).items() if name.startswith(stem)}
        name = f"conditioner.{layer}.weight" if layer == SECONDS else f"model.model.{layer}.weight"
        assert rel_error(module.weight, apply(before[name], kind, tensors)) < TIGHT
    assert rel_error(velocity(model), still) > 1e-3
    model.remove_loras()
    after = model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and velocity(model).equal(still)


def test_the_real_releases_have_the_official_number_of_layers():
    for name, count in (("small-music", 193), ("medium", 229)):
        assert len(targets(sa3_core.build(release_dict(name)))) == count


def test_strength_zero_changes_nothing(model, tmp_path):
    without = latents(model)
    for kind in ("lora", "bora"):
        model.add_lora(write_lora(tmp_path / f"{kind}.safetensors", model.module, kind), strength=0.0)
        model.add_lora(tmp_path / f"{kind}.safetensors", strength=0.0, curve=[0.5, 1.0])
    assert latents(model).equal(without)


@pytest.mark.parametrize("variant", ["small", "medium"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_merged_and_scheduled_adapters_agree(variant, cfg, tmp_path):
    model = sa3_core.load(lay_out(tmp_path / "m", variant))
    files = [write_lora(tmp_path / f"{kind}.safetensors", model.module, kind, seed=i) for i, kind in enumerate(KINDS)]
    for modes in (["chain"] * 9, ["sum", "chain"] * 5):
        results = []
        for curve in (None, [1.0, 1.0, 1.0]):
            for file, mode in zip(files[1::2] if cfg > 1 else files, modes, strict=False):
                model.add_lora(file, 0.6, seconds_strength=0.0, mode=mode, curve=curve)
            assert bool(model.loras.scheduled) == (curve is not None) and bool(model.loras.patches()) == (curve is None)
            results.append(latents(model, cfg=cfg, negative_prompt="noise", apg=0.5))
            model.remove_loras()
        assert rel_error(results[1], results[0]) < TIGHT


def test_a_constant_lora_above_a_scheduled_one_keeps_its_place(model, tmp_path):
    a, b, c = (
        write_lora(tmp_path / f"{i}.safetensors", model.module, kind, seed=i) for i, kind in enumerate(["dora-rows", "lora", "dora-cols"])
    )
    results = []
    for curve in (None, [1.0]):
        model.add_lora(a)
        model.add_lora(b, curve=curve)
        model.add_lora(c, seconds_strength=0)
        results.append(latents(model))
        model.remove_loras()
    assert rel_error(results[1], results[0]) < TIGHT


def test_two_threads_use_one_model_with_a_scheduled_lora(model, tmp_path):
    """Each thread gets the same result as alone, and the weights do not change."""
    model.add_lora(write_lora(tmp_path / "a.safetensors", model.module, "dora-rows"), interval=(0.3, 0.9), curve=[1.0, 0.2, 0.7])

    def run(seed):
        with torch.inference_mode():
            return model.generate("a drum", 0.5, steps=6, seed=seed, return_latents=True, cfg=2.0).latents

    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    wanted = [run(seed) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, list(range(6)) * 2))
    assert all(map(torch.equal, found, wanted * 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_interval(model, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", model.module, "dora-rows", only=lambda layer: layer != SECONDS)
    without = {t: velocity(model, t) for t in (0.2, 0.5, 0.9, 1.0)}
    plain = latents(model)
    model.add_lora(path)
    always, constant = {t: velocity(model, t) for t in without}, latents(model)
    model.remove_loras()
    model.add_lora(path, interval=(0.5, 0.9))
    for t in without:
        assert velocity(model, t).equal(without[t]) if t in (0.2, 1.0) else rel_error(velocity(model, t), always[t]) < TIGHT
    model.remove_loras()
    model.add_lora(path, interval=(0, 1))
    assert rel_error(latents(model), constant) < TIGHT
    model.remove_loras()
    model.add_lora(path, interval=(0.999991, 0.999992))
    assert latents(model).equal(plain)


def test_items_at_different_noise_levels(model, tmp_path):
    model.add_lora(write_lora(tmp_path / "a.safetensors", model.module), interval=(0.5, 1.0), seconds_strength=0)
    model.add_lora(write_lora(tmp_path / "b.safetensors", model.module, "bora", seed=1), curve=[0.2, 1.0], seconds_strength=0)
    x, cross, glob = inputs_of(model, batch=4)
    t = torch.tensor([0.2, 0.9, 0.9, 0.4])
    local = torch.randn(4, model.config.dit.local_dim, 12)
    together = model.velocity(x, t, cross, glob, local, cfg=2.0)
    for i in range(4):
        alone = model.velocity(x[i : i + 1], t[i : i + 1], cross[i : i + 1], glob[i : i + 1], local[i : i + 1], cfg=2.0)
        assert rel_error(together[i : i + 1], alone) < TIGHT


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([0.0, 0.5, 1.0], [0, 0.5, 1]), ([0.0, 0.5, 1.0, 9.0], [0, 0.5, 1]), ([0.0, 1.0], [0, 0.5, 1]), ([2.0], [2, 2, 2])],
)
def test_curve_over_the_steps(model, tmp_path, curve, expected):
    model.add_lora(write_lora(tmp_path / "a.safetensors", model.module), curve=curve)
    sigmas = torch.tensor([[1.0, 0.7, 0.3, 0.0]])
    (stacked,) = model.loras.loras
    assert stacked.strengths_at(sigmas[0, :3], sigmas.expand(3, -1)) == pytest.approx(expected)
    assert stacked.strengths_at(torch.tensor([0.5]), sigmas) == pytest.approx(expected[1:2])  # held between the levels


def test_skipped_layers_and_the_seconds_embedder(model, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", model.module)
    before = {name: module.weight for name, module in targets(model.module).items()}
    model.add_lora(path, skip_layers="layers.[0-1].ff, to_cond_embed", seconds_strength=0.0)
    changed = {name for name, module in targets(model.module).items() if module.weight is not before[name]}
    same = {name for name in before if "layers.0.ff" in name or "layers.1.ff" in name or "to_cond_embed" in name or name == SECONDS}
    assert changed == set(before) - same
    report = model.add_lora(path, interval=(0.2, 0.4), seconds_strength=0.5)
    assert "Warning" not in report and targets(model.module)[SECONDS].weight is not before[SECONDS]
    assert "seconds embedder" in model.add_lora(path, skip_layers=["layers"])


def test_include_exclude_and_ranks_of_layers(model, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", model.module, include=["layers.[0-0]."], exclude=["to_qkv"])
    tensors = load_file(path)
    key = next(name for name in tensors if "layers.0.ff.ff.2" in name).rsplit(".", 1)[0]
    tensors |= {
        f"{key}.lora_A": torch.randn(5, tensors[f"{key}.lora_A"].shape[1]),
        f"{key}.lora_B": torch.randn(tensors[f"{key}.lora_B"].shape[0], 5),
    }
    tensors[f"{key}.baked_vnorm_row"] = torch.ones(3)
    config = {"include": ["layers.[0-0]."], "exclude": ["to_qkv"]}
    save_file(tensors, path, {"lora_config": json.dumps(config)})
    found = lora_files.read_lora(path)
    assert all("layers.0." in layer and "to_qkv" not in layer for layer in found.layers) and found.ranks == [2, 5]
    assert all(adapter.scale == 1 for adapter in found.layers.values())
    model.add_lora(path)


# Files


@pytest.mark.parametrize(
    ("kind", "layout"), [(k, f) for k in ("lora", "dora-rows", "dora-cols", "bora", "lora-xs") for f in lora_convert.LAYOUTS]
)
def test_formats_round_trip(model, tmp_path, kind, layout):
    path = write_lora(tmp_path / "a.safetensors", model.module, kind, alpha=3, base_model="small-music-base")
    if (kind, layout) in {("dora-cols", "peft"), ("bora", "peft"), ("bora", "comfyui")}:
        with refused(kind):
            lora_convert.convert(path, tmp_path / "b.safetensors", layout)
        return
    there = lora_convert.convert(path, tmp_path / ("b" if layout == "peft" else "b.safetensors"), layout)
    back = lora_convert.convert(there, tmp_path / "c.safetensors")
    wanted, other = lora_files.read_lora(path), lora_files.read_lora(there)
    assert other.layout == layout and other.base == "small-music-base"
    for found in (other, lora_files.read_lora(back)):
        assert set(found.layers) == set(wanted.layers)
        for layer, adapter in wanted.layers.items():
            weight = targets(model.module)[layer].weight
            assert (
                rel_error(apply_stack(weight, [(found.layers[layer], 1.0, "chain")]), apply_stack(weight, [(adapter, 1.0, "chain")])) < 2e-3
            )
    with refused("exists already"):
        lora_convert.convert(path, tmp_path / "c.safetensors")


def respelled(path, target, spell):
    tensors = load_file(path)
    save_file({spell(name): tensor for name, tensor in tensors.items()}, target, lora_files.TensorFile(path).metadata())
    return target


def kohya(name: str) -> str:
    layer, _, rest = name.removeprefix("diffusion_model.").partition(".lora_" if ".lora_" in name else ".alpha")
    return f"lora_unet_{layer.replace('.', '_')}" + (f".lora_{rest}" if rest else ".alpha")


def test_spellings_of_layers(model, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", model.module)
    comfy = lora_convert.convert(path, tmp_path / "comfy.safetensors", "comfyui")
    spellings = [
        respelled(path, tmp_path / "bare.safetensors", lambda name: name.removeprefix("model.")),
        respelled(path, tmp_path / "full.safetensors", lambda name: f"model.{name}"),
        respelled(comfy, tmp_path / "ab.safetensors", lambda name: name.replace("lora_down", "lora_A").replace("lora_up", "lora_B")),
        respelled(comfy, tmp_path / "kohya.safetensors", kohya),
    ]
    model.add_lora(path)
    wanted = velocity(model)
    for other in spellings:
        model.remove_loras()
        assert f"{len(targets(model.module))} of" in model.add_lora(other)
        assert rel_error(velocity(model), wanted) < TIGHT


def test_peft_scaling(tmp_path):
    (tmp_path / "p").mkdir()
    layers = ["to_cond_embed.0", "to_global_embed.0", "to_global_embed.2"]
    tensors = {f"base_model.model.{layer}.lora_{part}.weight": torch.ones(4, 4) for layer in layers for part in "AB"}
    save_file(tensors, tmp_path / "p" / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"to_cond_embed.0": 2}}
    (tmp_path / "p" / "adapter_config.json").write_text(json.dumps(config))
    found = lora_files.read_lora(tmp_path / "p").layers
    assert found["to_global_embed.0"].scale == 4 and found["to_cond_embed.0"].scale == 1


def without_bases(path, target):
    tensors = {name: tensor for name, tensor in load_file(path).items() if name.rsplit(".", 1)[1] not in "UV"}
    save_file(tensors, target, lora_files.TensorFile(path).metadata())
    return target


def test_bases_of_xs_files(model, folder, tmp_path):
    path = without_bases(
        write_lora(tmp_path / "full.safetensors", model.module, "lora-xs", base_model="small-music"), tmp_path / "a.safetensors"
    )
    assert "Warning" not in model.add_lora(path)
    own = velocity(model)
    model.remove_loras()
    other = without_bases(
        write_lora(tmp_path / "f2.safetensors", model.module, "lora-xs", base_model="small-sfx-base"), tmp_path / "b.safetensors"
    )
    assert "bases are taken from" in model.add_lora(other)
    model.remove_loras()
    assert "bases are taken from" not in model.add_lora(path, base=folder)
    model.remove_loras()
    bases = {}
    for layer, module in targets(model.module).items():
        u, v = svd_bases(module.weight.flatten(1), 2)
        bases[f"{'conditioner' if layer == SECONDS else 'model.model'}.{layer}.weight"] = {"U": u, "V": v}
    torch.save(bases, tmp_path / "svd_bases.pt")
    (tmp_path / "with").mkdir()
    lora_convert.convert_bases(tmp_path / "svd_bases.pt", tmp_path / "with" / "svd_bases.safetensors")
    (tmp_path / "with" / "b.safetensors").write_bytes(other.read_bytes())
    assert "bases are taken from" not in model.add_lora(tmp_path / "with" / "b.safetensors")
    assert rel_error(velocity(model), own) < 1e-4


def test_pickles_are_refused_but_can_be_converted(model, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", model.module, "dora-rows", alpha=3)
    torch.save({"state_dict": load_file(path), "lora_config": {"rank": 2, "alpha": 3, "adapter_type": "dora-rows"}}, tmp_path / "a.ckpt")
    with refused("pickled", "SA3_LoRAConvert"):
        model.add_lora(tmp_path / "a.ckpt")
    made = lora_convert.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert "dora-rows" in model.add_lora(made) and lora_files.read_lora(made).layers["to_cond_embed.0"].scale == 1.5
    torch.save({"state_dict": load_file(path), "lora_config": {"x": refused}}, tmp_path / "evil.ckpt")
    with refused("not read"):
        lora_convert.convert(tmp_path / "evil.ckpt", tmp_path / "c.safetensors")


def edited(path, change, config=None):
    tensors, text = load_file(path), lora_files.TensorFile(path).metadata()["lora_config"]
    change(tensors)
    save_file(tensors, path, {"lora_config": json.dumps(json.loads(text) | (config or {}))})
    return path


def first(tensors, part):
    return next(name for name in sorted(tensors) if name.endswith(part))


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda t: t[first(t, "lora_A")].fill_(float("nan")), None, ["NaN", "lora_A"]),
        (lambda t: t.update({first(t, "lora_A"): t[first(t, "lora_A")].double().fill_(1e300)}), None, ["beyond float32", "lora_A"]),
        (lambda t: t.pop(first(t, "lora_B")), None, ["lora_B", "missing"]),
        (lambda t: t.update({first(t, "lora_A"): torch.zeros(3, 5)}), None, ["one rank"]),
        (lambda t: t.update({first(t, "lora_A"): torch.zeros(2, 5)}), None, ["does not fit", "2"]),
        (lambda t: t.update({"model.x.hada_w1_a": torch.zeros(2)}), None, ["hada_w1_a"]),
        (lambda t: None, {"adapter_type": "loha"}, ["loha", "dora-rows"]),
        (lambda t: None, {"alpha": "big"}, ["alpha", "big"]),
        (lambda t: None, {"include": ["nothing"]}, ["include"]),
    ],
)
def test_invalid_files(model, tmp_path, change, config, words):
    path = edited(write_lora(tmp_path / "a.safetensors", model.module), change, config)
    before = velocity(model)
    with refused(*words):
        model.add_lora(path)
    assert velocity(model).equal(before)


def test_foreign_models_and_invalid_settings(model, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", model.module)
    other = sa3_core.load(lay_out(tmp_path / "m", "medium"))
    theirs = write_lora(tmp_path / "medium.safetensors", other.module, base_model="medium-base")
    with refused("does not fit", "medium-base", "small"):
        model.add_lora(theirs)
    with refused("does not fit", "medium family", "small family", "256"):
        model.add_lora(write_lora(tmp_path / "unnamed.safetensors", other.module))
    with refused("fits no layer"):
        model.add_lora(respelled(path, tmp_path / "x.safetensors", lambda name: f"unet.{name}"))
    for settings, words in (
        ({"mode": "add"}, ["add", "chain"]), ({"interval": (0.9, 0.1)}, ["0.9", "start <= end"]),
        ({"strength": float("nan")}, ["strength"]),
        ({"skip_layers": "e"}, ["none of its"]), ({"curve": [[1.0]]}, ["curve"]), ({"curve": []}, ["curve"]),
    ):  # fmt: skip
        with refused(*words):
            model.add_lora(path, **settings)
    (tmp_path / "t.safetensors").write_bytes(path.read_bytes()[:500])
    with refused("safetensors"):
        model.add_lora(tmp_path / "t.safetensors")
    with refused("does not exist"):
        model.add_lora(tmp_path / "none.safetensors")


def test_a_strength_beyond_the_range_of_the_weights_changes_and_writes_nothing(model, folder, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", model.module)
    model.add_lora(path, 0.5)
    before, report = velocity(model), model.loras.describe()
    with refused("exceeds the range", "strength"):
        model.add_lora(path, 1e41)
    assert velocity(model).equal(before) and model.loras.describe() == report
    with refused("merged tensor", "exceeds the range"):
        merge(folder, Stack().with_lora(replace(model.loras.loras[0], strength=1e41)), tmp_path / "loud")
    assert not list(tmp_path.glob("*loud*"))


def test_an_interrupted_change_of_the_stack_leaves_the_one_before(model, tmp_path, monkeypatch):
    path = write_lora(tmp_path / "a.safetensors", model.module)
    model.add_lora(path, 0.5)
    before, calls, apply = velocity(model), [], pipeline.apply_stack

    def interrupted(weight, entries):
        calls.append(weight)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return apply(weight, entries)

    monkeypatch.setattr(pipeline, "apply_stack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.add_lora(path, 0.3)
    assert velocity(model).equal(before) and len(model.loras.loras) == 1
    model.remove_loras()


def test_a_file_with_infinite_values_is_not_written(tmp_path):
    with refused("exceeds the range of torch.float16"):
        save(tmp_path / "a.safetensors", {"x": torch.tensor([1e6]).half()})
    assert not list(tmp_path.iterdir())


def test_merge(model, folder, tmp_path):
    model.add_lora(write_lora(tmp_path / "a.safetensors", model.module, "bora"), 0.7)
    model.add_lora(write_lora(tmp_path / "b.safetensors", model.module, "lora", seed=1), mode="sum", seconds_strength=0)
    wanted = velocity(model)
    file = merge(folder, model.loras, tmp_path / "merged-small-music")
    merged = sa3_core.load(file.parent)
    assert rel_error(velocity(merged), wanted) < 2e-2  # the release is stored in 16 bits
    stored, base = load_file(file), load_file(folder / "model.safetensors")
    assert all(stored[name].dtype == base[name].dtype for name in stored)
    assert stored["pretransform.model.bottleneck.running_std"].equal(base["pretransform.model.bottleneck.running_std"])
    with refused("exists already"):
        merge(folder, model.loras, tmp_path / "merged-small-music")
    model.add_lora(tmp_path / "a.safetensors", interval=(0, 0.5))
    with refused("a.safetensors", "noise levels"):
        merge(folder, model.loras, tmp_path / "x")
    assert not (tmp_path / "x").exists()
