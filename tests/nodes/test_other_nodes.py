"""Nodes of other packs on a MODEL: what they patch has an effect, or a warning says that it has none; the pack's own settings stay."""

import importlib

import pytest
import torch
from core_support import randn, rel_error
from lora_support import write_lora

SETTINGS = {"seed": 1, "steps": 3}


def sample(sa3, parts, model, **settings):
    return sa3.sample(model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), **SETTINGS, **settings)


def through_core(comfy, sa3, parts, model) -> torch.Tensor:
    positive = sa3.prompt(parts.clip, "rain")
    with torch.inference_mode():
        return comfy.nodes.KSampler().sample(model, 3, 3, 1.0, "euler", "simple", positive, positive, sa3.empty(1.0))[0]["samples"]


@pytest.fixture
def scheduled(sa3, load, comfy, base_directory):
    """A MODEL with a LoRA that acts at low noise levels only."""
    module = load("small-base").model.model
    write_lora(base_directory / "models" / "loras" / "other_nodes.safetensors", module, seed=3)
    comfy.folder_paths.filename_list_cache.clear()
    return sa3.run("SA3_LoRAStack", model=load("small-base").model, lora="other_nodes.safetensors", end=0.7)[0]


def in_every_step(model):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **{**args["c"], "transformer_options": {}})
    )
    return clone


def before_the_run(model):
    clone = model.clone()
    clone.model_options = {**clone.model_options, "transformer_options": {"other": 1}}
    return clone


@pytest.mark.parametrize("replaced", [in_every_step, before_the_run])
def test_a_scheduled_lora_survives_replaced_transformer_options(sa3, load, comfy, scheduled, replaced):
    parts, model = load("small-base"), replaced(scheduled)
    wanted, found = sample(sa3, parts, scheduled, cfg=3.0), sample(sa3, parts, model, cfg=3.0)
    assert rel_error(found[0]["samples"], wanted[0]["samples"]) < 1e-5 and found[1]["loras"] == wanted[1]["loras"]
    assert rel_error(through_core(comfy, sa3, parts, model), through_core(comfy, sa3, parts, scheduled)) < 1e-5
    assert "sa3" not in parts.model.model_options


@pytest.mark.parametrize("layer", ["transformer.layers.0.cross_attn.to_kv", "to_cond_embed.0", "to_global_embed.0", "preprocess_conv"])
@pytest.mark.parametrize("how", ["weight", "hook", "object"])
def test_a_patch_of_a_layer_takes_effect_and_leaves_nothing_behind(sa3, load, how, layer):
    parts = load("small")
    name = f"diffusion_model.{layer}"
    plain, model, module = sample(sa3, parts, parts.model)[0], parts.model.clone(), parts.model.model.get_submodule(name)
    hook = None
    if how == "weight":
        assert model.add_patches({f"{name}.weight": (randn(*module.weight.shape),)})
    elif how == "object":
        forward = module.forward
        model.add_object_patch(f"{name}.forward", lambda x: forward(x) * 1.5)
    else:
        hook = module.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
    patched = sample(sa3, parts, model)[0]
    if hook is not None:
        hook.remove()
    assert rel_error(patched["samples"], plain["samples"]) > 1e-5
    assert torch.equal(sample(sa3, parts, parts.model)[0]["samples"], plain["samples"])


@pytest.mark.parametrize("place", ["OUTER_SAMPLE", "CALC_COND_BATCH", "APPLY_MODEL", "DIFFUSION_MODEL"])
def test_a_wrapper_runs(sa3, load, place):
    from comfy.patcher_extension import WrappersMP

    parts, calls = load("small"), []
    model = parts.model.clone()
    model.add_wrapper(getattr(WrappersMP, place), lambda call, *args, **kwargs: calls.append(1) or call(*args, **kwargs))
    found, plain = sample(sa3, parts, model)[0], sample(sa3, parts, parts.model)[0]
    assert torch.equal(found["samples"], plain["samples"]) and len(calls) == (1 if place == "OUTER_SAMPLE" else 3)


def test_easycache_skips_steps(sa3, load):
    parts, steps = load("small"), []
    node = importlib.import_module("comfy_extras.nodes_easycache").EasyCacheNode
    model = node.execute(parts.model, 1e6, 0.0, 1.0, False).args[0]
    hook = parts.model.model.diffusion_model.transformer.layers[0].register_forward_hook(lambda *args: steps.append(1))
    found = sa3.sample(model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), seed=1, steps=8, sampler="euler")[0]
    hook.remove()
    assert 0 < len(steps) < 8 and torch.isfinite(found["samples"]).all()


@pytest.mark.parametrize("how", ["attention", "block"])
def test_patches_without_effect_are_reported(sa3, load, how):
    parts = load("small")
    model = parts.model.clone()
    if how == "attention":
        model.set_model_attn1_patch(lambda q, k, v, options: (q, k, v))
    else:
        model.set_model_patch_replace(lambda args, more: args, "dit", "double_block", 0)
    assert any("no effect" in warning for warning in sample(sa3, parts, model)[1]["warnings"])
    assert not any("no effect" in warning for warning in sample(sa3, parts, parts.model)[1]["warnings"])


@pytest.fixture
def core_lora(sa3, load, comfy, base_directory):
    """(native, ComfyUI) files of the same LoRA, and the MODEL with it in SA3_LoRAStack."""
    model, native = load("small").model, base_directory / "models" / "loras" / "for_core.safetensors"
    if not native.exists():  # written once: later, the weights that its size depends on may have patches
        write_lora(native, model.model, seed=5, only=lambda layer: not layer.startswith("conditioners."))
        comfy.folder_paths.filename_list_cache.clear()
        sa3.run("SA3_LoRAConvert", lora=native.name, format="comfyui", name="for_core_comfyui")
    comfy.folder_paths.filename_list_cache.clear()
    return native.name, "for_core_comfyui.safetensors", sa3.run("SA3_LoRAStack", model=model, lora=native.name)[0]


def unmatched(info: dict) -> int:
    return sum("changed no layer" in warning for warning in info["warnings"])


def test_core_s_lora_loader_is_our_stack(sa3, load, comfy, core_lora):
    parts, (_, file, stacked) = load("small"), core_lora
    (model,) = comfy.nodes.LoraLoaderModelOnly().load_lora_model_only(parts.model, file, 1.0)
    (out, info), (ours, _) = sample(sa3, parts, model), sample(sa3, parts, stacked)
    assert rel_error(out["samples"], ours["samples"]) < 1e-5 and unmatched(info) == 0
    key = "weights_patched_by_other_nodes"
    assert info[key] > 10 and key not in sample(sa3, parts, stacked)[1]
    assert rel_error(out["samples"], sample(sa3, parts, parts.model)[0]["samples"]) > 1e-2


@pytest.mark.parametrize("model_and_clip", [False, True])
def test_a_lora_that_core_does_not_understand_is_not_silent(sa3, load, comfy, core_lora, model_and_clip):
    parts, (native, file, stacked) = load("small"), core_lora
    loader = comfy.nodes.LoraLoader().load_lora if model_and_clip else None

    def apply(model, name):
        if loader:
            return loader(model, parts.clip, name, 1.0, 1.0)[0]
        return comfy.nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]

    for model in (apply(parts.model, native), apply(apply(parts.model, file), native), apply(stacked, native)):
        assert unmatched(sample(sa3, parts, model)[1]) == 1
    assert unmatched(sample(sa3, parts, apply(apply(parts.model, file), file))[1]) == 0


def test_core_s_bypass_lora_loader(sa3, load, comfy, core_lora):
    bypass = getattr(importlib.import_module("comfy.sd"), "load_bypass_lora_for_models", None)
    if bypass is None:
        pytest.skip("this ComfyUI has no bypass mode of LoRAs")
    parts, (_, file, stacked) = load("small"), core_lora
    model, _ = bypass(parts.model, None, comfy.utils.load_torch_file(comfy.folder_paths.get_full_path("loras", file)), 1.0, 0.0)
    assert rel_error(sample(sa3, parts, model)[0]["samples"], sample(sa3, parts, stacked)[0]["samples"]) < 1e-5


def test_a_merge_leaves_out_no_lora_of_another_loader(sa3, load, comfy, core_lora):
    parts, (_, file, stacked) = load("small"), core_lora
    for model in (parts.model, stacked):
        (patched,) = comfy.nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)
        with sa3.refused("another node has patched", "SA3_LoRAStack"):
            sa3.run("SA3_LoRAMerge", model=patched, name="both")


def test_a_lora_of_another_size_is_said(sa3, load, comfy, core_lora):
    (model,) = comfy.nodes.LoraLoaderModelOnly().load_lora_model_only(load("medium").model, core_lora[1], 1.0)
    warnings = sample(sa3, load("medium"), model)[1]["warnings"]
    assert any("layers of other sizes, which have no effect" in warning for warning in warnings)
