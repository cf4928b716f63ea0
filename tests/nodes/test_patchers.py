"""What ComfyUI asks of the patchers under MODEL, CLIP and VAE: clones with weights of their own, hooks, types by device."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from node_support import same_weights, weights

HALF = torch.float16


@pytest.fixture
def host(sa3) -> SimpleNamespace:
    names = ("acceleration", "clip", "model", "patchers", "sampling", "vae")
    return SimpleNamespace(**{name: importlib.import_module(f"sa3_pack.nodes.comfyui.{name}") for name in names})


def patcher_of(one, socket: str):
    return one.model if socket == "model" else getattr(one, socket).patcher


@pytest.mark.parametrize("disable_dynamic", [False, True])
@pytest.mark.parametrize("socket", ["model", "clip", "vae"])
@pytest.mark.parametrize("variant", ["small", "medium-base"])
def test_core_can_load_each_part_once_more(load, comfy, variant, socket, disable_dynamic):
    """As its TorchCompileModel, hooks and clones for several GPUs do: factory(*arguments), with disable_dynamic or without."""
    comfy.management.unload_all_models()  # takes back the patches that another test's run has applied to the shared weights
    patcher = patcher_of(load(variant), socket)
    factory, arguments = patcher.cached_patcher_init
    again = factory(*arguments, **({"disable_dynamic": True} if disable_dynamic else {}))
    assert again.model is not patcher.model and same_weights(again.model, weights(patcher.model))
    if hasattr(patcher, "is_dynamic"):  # a ComfyUI that knows of it
        assert patcher.clone().cached_patcher_init == patcher.cached_patcher_init
    assert again.cached_patcher_init[0] is factory


@pytest.fixture
def dynamic(monkeypatch):
    """dynamic(patcher): a patcher that says that ComfyUI stages its weights, with what such a one has for a clone that stays."""

    def make(patcher):
        def delegate():
            clone = patcher.clone()
            factory, arguments = patcher.cached_patcher_init
            clone.model = factory(*arguments, disable_dynamic=True).model
            return clone

        monkeypatch.setattr(patcher, "is_dynamic", lambda: True, raising=False)
        monkeypatch.setattr(patcher, "get_non_dynamic_delegate", delegate, raising=False)
        return patcher

    return make


def test_compile_takes_a_copy_that_stays_on_the_device(sa3, host, load, dynamic):
    one = load("small")
    positive, latent = sa3.prompt(one.clip, "rain"), sa3.empty(1.0)
    wanted, plain = sa3.sample(one.model, positive, latent, seed=4, steps=3)
    (compiled,) = sa3.run("SA3_Compile", model=dynamic(one.model), when="in background")
    assert compiled.model is not one.model.model
    found, info = sa3.sample(compiled, positive, latent, seed=4, steps=3)
    assert torch.equal(found["samples"], wanted["samples"])
    assert {name: info[name] for name in ("model", "file", "fingerprint")} == {n: plain[n] for n in ("model", "file", "fingerprint")}
    assert compiled.model.sa3_vae is one.model.model.sa3_vae  # live previews


def test_the_two_forms_of_clone_are_core_s_where_it_has_them(load):
    model = load("small").model
    if not hasattr(model, "is_dynamic"):
        pytest.skip("this ComfyUI has no dynamic VRAM")
    clone = model.clone(disable_dynamic=True, force_deepcopy=True)
    assert clone.model is not model.model and same_weights(clone.model, weights(model.model))


def hooked(model, **functions):
    """A clone with hooks of another pack's in its options."""
    clone = model.clone()
    clone.model_options = {**clone.model_options, **functions}
    return clone


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_hooks_before_and_after_guidance_run(sa3, load, cfg):
    one = load("small-base")
    positive, latent = sa3.prompt(one.clip, "rain"), sa3.empty(1.0)
    seen = []

    def before(args):
        seen.append(("before", args["cond_scale"]))
        return args["conds_out"]

    def after(args):
        seen.append(("after", args["cond_scale"]))
        return args["denoised"]

    wanted, _ = sa3.sample(one.model, positive, latent, seed=1, steps=2, cfg=cfg)
    both = hooked(one.model, sampler_pre_cfg_function=[before], sampler_post_cfg_function=[after])
    found, _ = sa3.sample(both, positive, latent, seed=1, steps=2, cfg=cfg)
    assert seen == [("before", cfg), ("after", cfg)] * 2
    assert torch.equal(found["samples"], wanted["samples"])
    halved = hooked(one.model, sampler_post_cfg_function=[lambda args: args["denoised"] / 2])
    other, _ = sa3.sample(halved, positive, latent, seed=1, steps=2, cfg=cfg)
    assert not torch.equal(other["samples"], wanted["samples"])


def test_a_hook_may_ask_for_the_negative_at_cfg_1(sa3, load):
    one = load("small")
    seen = []

    def after(args):
        seen.append(float(args["uncond_denoised"].abs().max()))
        return args["denoised"]

    model = hooked(one.model, sampler_post_cfg_function=[after], disable_cfg1_optimization=True)
    sa3.sample(model, sa3.prompt(one.clip, "rain"), sa3.empty(1.0), seed=1, steps=2, cfg=1.0)
    assert len(seen) == 2 and min(seen) > 0


def test_another_packs_guidance_replaces_ours_and_the_node_says_so(sa3, load):
    one = load("small-base")
    positive, latent = sa3.prompt(one.clip, "rain"), sa3.empty(1.0)
    own = sa3.run("SA3_Guidance", apg=0.0)[0]
    wanted, _ = sa3.sample(one.model, positive, latent, seed=1, steps=2, cfg=3.0, guidance=own)

    def plain_cfg(args):
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    found, info = sa3.sample(hooked(one.model, sampler_cfg_function=plain_cfg), positive, latent, seed=1, steps=2, cfg=3.0)
    assert float((found["samples"] - wanted["samples"]).norm() / wanted["samples"].norm()) < 1e-4  # ours without APG is plain cfg
    assert any("replaces SA3 Guidance" in warning for warning in info["warnings"])


@pytest.mark.parametrize(
    ("asked", "gpu", "bf16", "wanted"),
    [
        (None, False, True, torch.float32),
        (None, True, True, torch.bfloat16),
        (None, True, False, torch.float32),
        (HALF, True, True, torch.bfloat16),
        (HALF, True, False, torch.float32),
        (HALF, False, False, torch.float32),
        (torch.float32, True, True, torch.float32),
        (torch.bfloat16, False, True, torch.bfloat16),
    ],
)
def test_the_text_encoder_never_computes_in_float16(host, comfy, monkeypatch, asked, gpu, bf16, wanted):
    device = torch.device("cuda" if gpu else "cpu")
    monkeypatch.setattr(comfy.management, "text_encoder_device", lambda: device)
    monkeypatch.setattr(comfy.management, "should_use_bf16", lambda *args, **kwargs: bf16)
    assert host.clip.encoder_dtype(asked) == wanted


def test_a_float64_model_is_the_float32_one(sa3, load, monkeypatch):
    from comfy.cli_args import args

    one = load("medium")
    positive, latent = sa3.prompt(one.clip, "rain"), sa3.empty(1.0)
    wanted, _ = sa3.sample(one.model, positive, latent, seed=1, steps=4)
    monkeypatch.setattr(args, "fp64_unet", True)
    exact = sa3.load(file="stable_audio_3_medium")
    found, info = sa3.sample(exact.model, positive, latent, seed=1, steps=4)
    assert info["dtype"] == "float64"
    assert float((found["samples"] - wanted["samples"]).norm() / wanted["samples"].norm()) < 1e-4


def test_a_float16_model_says_what_its_text_encoder_computes_in(sa3, load):
    one = load("small", "fp16")
    assert one.model.model.get_dtype() == HALF and one.clip.cond_stage_model.encoder.model.dtype == torch.float32
    _, info = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), sa3.empty(1.0), seed=1, steps=1)
    assert info["dtype"] == "float16" and info["text_encoder_dtype"] == "float32"


@pytest.mark.parametrize("fits", [1, 2, 8])
def test_items_are_decoded_together_where_they_fit(sa3, load, monkeypatch, fits):
    one = load("medium")
    latent = sa3.empty(seconds_per_item="1, 1, 1, 2, 2, 1", batch_size=6)
    latent, _ = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), latent, seed=1, steps=1)[0], None
    wanted = sa3.decode(latent, one.vae)
    batches = []
    decode = one.vae.first_stage_model.decode
    monkeypatch.setattr(one.vae, "items_at_once", lambda frames, chunk: fits)
    monkeypatch.setattr(one.vae.first_stage_model, "decode", lambda z, *rest: batches.append(len(z)) or decode(z, *rest))
    found = sa3.decode(latent, one.vae)
    assert batches == {1: [1] * 6, 2: [2, 1, 2, 1], 8: [3, 2, 1]}[fits]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours["waveform"], theirs["waveform"], atol=1e-5)


def test_memory_estimates_follow_the_chunk_and_the_type(load, comfy, monkeypatch):
    vae, loads = load("medium").vae, []
    monkeypatch.setattr(comfy.management, "load_models_gpu", lambda models, memory_required, **more: loads.append(memory_required))
    half = load("medium", "fp16").vae
    for one, chunk in ((vae, 32), (vae, 64), (half, 64)):
        one._load(2, 200, chunk)
    small, large, narrow = loads
    assert large == 2 * small and large / 2 < narrow < large


@pytest.mark.parametrize("part", ["latents", "decoded samples"])
def test_an_overflow_in_sixteen_bits_is_repeated_in_float32_said_and_recorded(sa3, host, shelf, monkeypatch, part):
    monkeypatch.setattr(host.model, "computes_in", lambda dtype, device: True)
    one = sa3.load(file="stable-audio-3-small-music", dtype="fp16")
    same = one.vae.first_stage_model
    blocks = one.model.model.diffusion_model.transformer.layers if part == "latents" else same.decoder.layers[3].transformers
    with torch.inference_mode():
        for block in blocks:  # each adds this to the residual stream
            block.ff.ff[2].bias.fill_(6e4)
    latent, info = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), sa3.empty(1.0), seed=1, steps=2)
    assert torch.isfinite(latent["samples"]).all()
    assert bool([w for w in info["warnings"] if "float32" in w]) == (part == "latents")
    audio = sa3.decode(latent, one.vae)[0]
    assert torch.isfinite(audio["waveform"]).all()
    assert one.model.model.compute_dtype == HALF  # the next run is a 16-bit one again
