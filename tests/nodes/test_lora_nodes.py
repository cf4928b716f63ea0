"""LoRA nodes: both ways to apply, patches that leave no trace, clones, partial loads, and the tools for files."""

import importlib
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from core_support import randn, rel_error
from lora_support import KINDS, PRODUCTS, write_lora, write_products
from node_support import FOLDERS, same_weights, weights
from safetensors.torch import load_file, save_file

TIGHT = 1e-5
ALWAYS = torch.ones(2)  # a curve that changes nothing, but makes a row a scheduled one


@pytest.fixture(scope="module")
def folder(base_directory):
    path = base_directory / "models" / "loras"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def files(load, folder) -> dict[str, str]:
    """One tiny LoRA of each type for the tiny small model, by type."""
    module = load("small").model.model
    return {kind: write_lora(folder / f"{kind}.safetensors", module, kind, seed=i).name for i, kind in enumerate(KINDS)}


@pytest.fixture(params=["whole", "one byte"])
def loading(comfy, monkeypatch, request):
    """ComfyUI loads the model as a whole, or leaves all it can behind and casts it in, layer by layer."""
    comfy.management.unload_all_models()
    if request.param == "one byte":
        whole = comfy.management.LoadedModel.model_load

        def least(loaded, budget=0, force_patch_weights=False):
            return whole(loaded, 1, force_patch_weights)

        monkeypatch.setattr(comfy.management.LoadedModel, "model_load", least)
    yield request.param
    comfy.management.unload_all_models()


def run(sa3, parts, model, cfg=2.0, latent=None, **inputs) -> torch.Tensor:
    latent = latent or sa3.empty(0.5, padding=0.5)
    out, info = sa3.sample(model, sa3.prompt(parts.clip, "rain"), latent, steps=3, cfg=cfg, **inputs)
    return SimpleNamespace(samples=out["samples"], info=info)


def stack(sa3, model, *names, **widgets):
    for name in names:
        model, report = sa3.run("SA3_LoRAStack", model=model, lora=name, **widgets)
    return model, report


def test_patches_and_the_forward_pass_agree(sa3, comfy, load, files, loading):
    parts = load("small")
    before, plain = weights(parts.model.model), run(sa3, parts, parts.model).samples
    names = list(files.values())
    patched, report = stack(sa3, parts.model, *names, strength=0.7, seconds_strength=0.0)
    assert len(report.splitlines()) == len(names) and patched.patches and not parts.model.patches
    constant = run(sa3, parts, patched).samples
    assert bool(parts.model.model.model_lowvram) == (loading == "one byte")
    beside, _ = stack(sa3, parts.model, *names, strength=0.7, seconds_strength=0.0, curve=ALWAYS)
    assert not beside.patches
    scheduled = run(sa3, parts, beside).samples
    assert rel_error(scheduled, constant) < TIGHT and rel_error(constant, plain) > 1e-3
    mixed, _ = stack(sa3, parts.model, *names[:4], strength=0.7, seconds_strength=0.0)
    mixed, _ = stack(sa3, mixed, *names[4:], strength=0.7, seconds_strength=0.0, curve=ALWAYS)
    assert mixed.patches and rel_error(run(sa3, parts, mixed).samples, constant) < TIGHT
    assert run(sa3, parts, parts.model).samples.equal(plain)
    comfy.management.unload_all_models()
    assert same_weights(parts.model.model, before)


def test_the_node_and_the_pipeline_agree(sa3, load, pipeline, files, folder):
    parts, model = load("small"), pipeline("small")
    stacked = parts.model
    try:
        for kind, start, end, mode in (("dora-rows", 0, 1, "chain"), ("lora", 0.3, 1, "chain"), ("bora", 0, 0.8, "sum")):
            stacked, report = stack(sa3, stacked, files[kind], start=start, end=end, mode=mode, seconds_strength=0)
            described = model.add_lora(folder / files[kind], interval=(start, end), mode=mode, seconds_strength=0)
        assert report == described
        wanted = model.generate("rain", duration=0.5, padding=0.5, steps=3, cfg=2.0, return_latents=True)
    finally:
        model.remove_loras()
    found = run(sa3, parts, stacked)
    assert rel_error(found.samples, wanted.latents) < TIGHT
    assert found.info["loras"] == json.loads(json.dumps(wanted.info["loras"])) and len(found.info["loras"]) == 3


def test_strength_zero_and_an_interval_never_met(sa3, load, files):
    parts = load("small")
    plain = run(sa3, parts, parts.model).samples
    zero, report = stack(sa3, parts.model, files["bora"], strength=0.0)
    assert not zero.patches and "0 of" in report and run(sa3, parts, zero).samples.equal(plain)
    never, _ = stack(sa3, parts.model, files["lora"], start=0.98, end=0.99, seconds_strength=0)
    assert run(sa3, parts, never).samples.equal(plain)


def test_clones_are_apart_and_foreign_patches_stay(sa3, load, files):
    parts = load("small")
    key = "diffusion_model.transformer.layers.0.self_attn.to_qkv.weight"
    foreign = parts.model.clone()
    foreign.add_patches({key: ("diff", (0.1 * randn(*parts.model.model.state_dict()[key].shape),))})
    a, _ = stack(sa3, foreign, files["dora-rows"])
    b, _ = stack(sa3, a, files["lora"])
    assert len(a.patches[key]) == len(b.patches[key]) == 2 and len(foreign.patches[key]) == 1
    assert a.patches[key][1][1] is not b.patches[key][1][1] and a.patches_uuid != b.patches_uuid
    results = [run(sa3, parts, model).samples for model in (parts.model, foreign, a, b)]
    assert all(rel_error(results[i], results[i - 1]) > 1e-4 for i in (1, 2, 3))
    assert run(sa3, parts, a.clone()).samples.equal(results[2]) and run(sa3, parts, parts.model).samples.equal(results[0])


def test_items_of_a_batch_follow_their_own_levels(sa3, load, files):
    parts = load("small")
    model, _ = stack(sa3, parts.model, files["lora"], start=0.5, seconds_strength=0)
    model, _ = stack(sa3, model, files["dora-cols"], curve=torch.tensor([1.0, 0.2, 0.6, 0.0]), seconds_strength=0)
    both = sa3.empty(0.5, batch_size=2, seconds_per_item="0.5, 1.5", padding=0.5)
    sigmas = torch.tensor([[1.0, 0.8, 0.4, 0.0], [1.0, 0.45, 0.3, 0.0]])
    together = run(sa3, parts, model, latent=both, sigmas=sigmas).samples
    alone = run(sa3, parts, model, latent=sa3.empty(0.5, padding=0.5), sigmas=sigmas[0]).samples
    assert rel_error(together[:1, :, : alone.shape[-1]], alone) < 1e-4


def test_core_samplers_meet_the_schedule(sa3, comfy, load, files):
    parts = load("small")
    model, _ = stack(sa3, parts.model, files["dora-rows"], files["lora"], seconds_strength=0, curve=torch.tensor([1.0, 0.0]))
    constant, _ = stack(sa3, parts.model, files["dora-rows"], files["lora"], seconds_strength=0)
    prompt, latent, cls = sa3.prompt(parts.clip, "rain"), {"type": "audio"}, comfy.nodes.KSampler
    latent["samples"] = torch.zeros(1, parts.model.model.sa3_config.same.latent_dim, 8)

    def sampled(patcher):
        with torch.inference_mode():
            return cls().sample(patcher, 1, 2, 1.0, "euler", "simple", prompt, prompt, latent, 1.0)[0]["samples"]

    results = [sampled(patcher) for patcher in (parts.model, model, constant)]
    assert all(rel_error(results[i], results[j]) > 1e-4 for i, j in ((0, 1), (1, 2), (0, 2)))


def test_half_precision(sa3, load, files):
    parts = load("small", "bf16")
    constant, _ = stack(sa3, parts.model, files["dora-rows"], files["lora"], seconds_strength=0)
    scheduled, _ = stack(sa3, parts.model, files["dora-rows"], files["lora"], seconds_strength=0, curve=ALWAYS)
    assert rel_error(run(sa3, parts, scheduled).samples, run(sa3, parts, constant).samples) < 0.1


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("magnitudes", ["", "rows", "cols"])
@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_loha_and_lokr_as_core_computes_them(sa3, comfy, load, folder, form, magnitudes, strength):
    """The weights of SA3_LoRAStack and of ComfyUI's own adapters, for one file."""
    parts, core = load("small"), importlib.import_module("comfy.lora")
    inner = parts.model.model
    path = write_products(folder / "product.safetensors", inner, form, 2, 3, 5, magnitudes)
    wanted = parts.model.clone()
    wanted.add_patches(core.load_lora(load_file(path), core.model_lora_keys_unet(inner, {})), strength)
    found, report = stack(sa3, parts.model, path.name, strength=strength)
    assert form[:4] in report and len(wanted.patches) == len(found.patches) - 1  # core has no name for the duration embedder
    for key, patches in wanted.patches.items():
        weight = inner.state_dict()[key].float()
        one, other = (core.calculate_weight(p, weight.clone(), key) for p in (patches, found.patches[key]))
        assert rel_error(other, one) < TIGHT and rel_error(one, weight) > 1e-3


def test_loha_and_lokr_both_ways(sa3, load, folder, loading):
    parts = load("small")
    names = [write_products(folder / f"{form}.safetensors", parts.model.model, form, 3, 2, i).name for i, form in enumerate(PRODUCTS)]
    constant, _ = stack(sa3, parts.model, *names, strength=0.5, seconds_strength=0.0)
    scheduled, _ = stack(sa3, parts.model, *names, strength=0.5, seconds_strength=0.0, start=1e-6)
    plain, one, other = (run(sa3, parts, model).samples for model in (parts.model, constant, scheduled))
    assert not scheduled.patches and rel_error(other, one) < TIGHT and rel_error(one, plain) > 1e-3


def test_core_moves_the_tensors_of_a_patch(sa3, load, files, folder):
    """Newer versions of core stage a patch on the device by rebuilding it with copies of its tensors; a merge reads only those."""
    parts, core = load("small"), importlib.import_module("comfy.lora")
    if not hasattr(core, "prefetch_prepared_value"):
        pytest.skip("This ComfyUI stages no patches.")
    names = [
        write_products(folder / f"{form}.safetensors", parts.model.model, form, 3, 2, i, "rows").name for i, form in enumerate(PRODUCTS)
    ]
    model, _ = stack(sa3, parts.model, files["bora"], files["lora"], *names, strength=0.5)
    for key, patches in model.patches.items():
        ((strength, patch, *rest),) = patches
        core.prefetch_prepared_value(patch, size := [0], None, None, False)
        buffer = torch.zeros(size[0], dtype=torch.uint8)
        moved = core.prefetch_prepared_value(patch, [0], buffer, None, True)
        weight = parts.model.model.state_dict()[key].float()
        one, other = (core.calculate_weight([(strength, adapter, *rest)], weight.clone(), key) for adapter in (patch, moved))
        assert torch.equal(one, other) and not torch.equal(one, weight)
        buffer.zero_()
        assert not core.calculate_weight([(strength, moved, *rest)], weight.clone(), key).any()  # magnitudes of 0


def test_loha_info_convert_and_merge(sa3, load, folder, base_directory):
    parts = load("small")
    path = write_products(folder / "loha.safetensors", parts.model.model, "loha", 3)
    (text,) = sa3.run("SA3_LoRAInfo", lora=path.name)
    assert "loha, rank 3" in text and "comfyui" in text
    with sa3.refused("loha", "not converted"):
        sa3.run("SA3_LoRAConvert", lora=path.name, format="native", name="x")
    model, _ = stack(sa3, parts.model, path.name)
    sa3.run("SA3_LoRAMerge", model=model, name="merged-small-music-loha")
    try:
        merged = sa3.load(file="merged-small-music-loha")
        assert rel_error(run(sa3, merged, merged.model).samples, run(sa3, parts, model).samples) < 0.05  # stored in 16 bits
    finally:
        shutil.rmtree(base_directory / "models" / "checkpoints" / "merged-small-music-loha")


@pytest.fixture
def pickled(files, folder) -> str:
    """A LoRA as the trainer once wrote them."""
    torch.save({"state_dict": load_file(folder / files["lora"]), "lora_config": {"rank": 2}}, folder / "old.ckpt")
    return "old.ckpt"


def test_bad_input(sa3, load, files, pickled):
    parts = load("small")
    with sa3.refused("not in ComfyUI's folder"):
        stack(sa3, parts.model, "none.safetensors")
    with sa3.refused("not Stable Audio 3"):
        stack(sa3, SimpleNamespace(model=torch.nn.Identity()), files["lora"])
    with sa3.refused("pickled", "SA3_LoRAConvert"):
        stack(sa3, parts.model, pickled)
    with sa3.refused("small family", "medium", "does not fit"):
        stack(sa3, load("medium").model, files["lora"])
    with sa3.refused("plain file name"):
        sa3.run("SA3_LoRAConvert", lora=files["lora"], name="../x")


def test_a_replaced_file_is_noticed(sa3, load, folder):
    module = load("small").model.model
    cls, parts = sa3.classes["SA3_LoRAStack"], load("small")
    path = write_lora(folder / "changing.safetensors", module)
    first, one = cls.fingerprint_inputs(lora=path.name, strength=1.0), stack(sa3, parts.model, path.name)[0]
    assert cls.fingerprint_inputs(lora=path.name, strength=1.0) == first
    tensors = {name: tensor * 2 for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"lora_config": '{"rank": 2, "adapter_type": "lora"}'})
    second = cls.fingerprint_inputs(lora=path.name, strength=1.0)
    assert second != first
    stat = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (stat.st_mtime_ns, stat.st_size)
    assert cls.fingerprint_inputs(lora=path.name, strength=1.0) != second, "the same name, size and time, another file"
    assert rel_error(run(sa3, parts, stack(sa3, parts.model, path.name)[0]).samples, run(sa3, parts, one).samples) > 1e-4


def test_info_convert_and_merge(sa3, load, files, pickled, folder, base_directory):
    parts = load("small")
    (text,) = sa3.run("SA3_LoRAInfo", lora=files["bora"])
    assert "bora" in text and "rank 2" in text and "native" in text
    (made,) = sa3.run("SA3_LoRAConvert", lora=files["dora-rows"], format="comfyui", name="as_comfyui")
    assert made == str(folder / "as_comfyui.safetensors")
    with sa3.refused("exists already"):
        sa3.run("SA3_LoRAConvert", lora=files["dora-rows"], format="comfyui", name="as_comfyui")
    (made,) = sa3.run("SA3_LoRAConvert", lora=pickled, name="new")
    assert "lora" in sa3.run("SA3_LoRAInfo", lora="new.safetensors")[0] and made.endswith("new.safetensors")
    model, _ = stack(sa3, parts.model, files["bora"], "as_comfyui.safetensors")
    wanted = run(sa3, parts, model).samples
    sa3.run("SA3_LoRAMerge", model=model, name="merged-small-music-blend")
    try:
        merged = sa3.load(file="merged-small-music-blend")
        assert rel_error(run(sa3, merged, merged.model).samples, wanted) < 0.05  # stored in 16 bits
    finally:
        shutil.rmtree(base_directory / "models" / "checkpoints" / "merged-small-music-blend")
    with sa3.refused("no LoRA"):
        sa3.run("SA3_LoRAMerge", model=parts.model, name="x")
    assert FOLDERS["small"] in str(parts.model.model.sa3_path)


@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_a_graphed_model_takes_loras_and_lets_them_go(sa3, comfy, load, files, loading, kind, monkeypatch):
    core = importlib.import_module("sa3_pack.sa3_core.backends.graphs")
    monkeypatch.setattr(core, "capture", lambda function, device, pool: function)  # without a GPU
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool")
    monkeypatch.setattr(core.Graphs, "_unusable", staticmethod(lambda x: ""))
    parts = load("small")
    (graphed,) = sa3.run("SA3_Compile", model=parts.model, when="in background")
    constant, scheduled = stack(sa3, graphed, files[kind])[0], stack(sa3, graphed, files[kind], curve=ALWAYS)[0]
    for model, expected in ((graphed, "graphed"), (constant, "graphed"), (scheduled, "scheduled"), (graphed, "graphed")):
        plain = {id(graphed): parts.model, id(constant): stack(sa3, parts.model, files[kind])[0]}.get(id(model), constant)
        made, wanted = run(sa3, parts, model), run(sa3, parts, plain)
        assert rel_error(made.samples, wanted.samples) < TIGHT
        assert ("converted" if loading == "one byte" else expected) in made.info["compiled"]
