"""The weights are ComfyUI's to load, offload, patch and free; none of it changes what is computed."""

import pytest
import torch
from core_support import FAMILIES, randn, rel_error
from node_support import same_weights, weights

ROUNDING = 1e-5  # what is cast in goes through torch's own product, what is loaded through the fastest one
PATCHED = "diffusion_model.transformer.layers.0.self_attn.to_qkv.weight"


@pytest.fixture
def half_of_the_weights(comfy, monkeypatch):
    """ComfyUI believes that only half of each model fits beside the computation; the rest is cast in, layer by layer."""
    whole = comfy.management.LoadedModel.model_load

    def half(loaded, budget=0, force_patch_weights=False):
        return whole(loaded, loaded.model.model_size() // 2, force_patch_weights)

    comfy.management.unload_all_models()
    monkeypatch.setattr(comfy.management.LoadedModel, "model_load", half)
    yield
    comfy.management.unload_all_models()


def shares(model) -> tuple[int, int]:
    """How many modules are loaded for good, and how many are cast in at each use."""
    modules = list(model.modules())
    return sum(hasattr(m, "comfy_patched_weights") for m in modules), sum(hasattr(m, "prev_comfy_cast_weights") for m in modules)


def run(sa3, parts, model=None, cfg=3.0) -> torch.Tensor:
    out, _ = sa3.sample(model or parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.5), steps=3, cfg=cfg)
    return out["samples"]


@pytest.fixture
def resident(comfy, load, sa3):
    """resident(variant): the parts, and the latents of a run with all weights loaded."""

    def made(variant: str):
        comfy.management.unload_all_models()
        return load(variant), run(sa3, load(variant))

    return made


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_partial_load_computes_the_same(sa3, comfy, resident, request, variant):
    parts, wanted = resident(variant)
    before = weights(parts.model.model)
    request.getfixturevalue("half_of_the_weights")
    found = run(sa3, parts)
    loaded, cast = shares(parts.model.model)
    assert parts.model.model.model_lowvram and loaded and cast
    assert 0 < parts.model.loaded_size() < parts.model.model_size()
    assert rel_error(found, wanted) < ROUNDING
    comfy.management.unload_all_models()
    assert shares(parts.model.model) == (0, 0) and same_weights(parts.model.model, before)


@pytest.mark.parametrize("variant", FAMILIES)
def test_text_encoder_and_autoencoder_too(sa3, comfy, resident, request, variant):
    parts, latents = resident(variant)
    latent = {"samples": latents, "type": "audio", "sa3_seconds": [1.5]}
    text, (audio,) = sa3.prompt(parts.clip, "rain")[0][0], sa3.decode(latent, parts.vae)
    request.getfixturevalue("half_of_the_weights")
    assert rel_error(sa3.prompt(parts.clip, "rain")[0][0], text) < 1e-6
    assert rel_error(sa3.decode(latent, parts.vae)[0]["waveform"], audio["waveform"]) < 1e-6
    assert shares(parts.vae.first_stage_model)[1]


def test_memory_taken_back_during_a_session(sa3, comfy, resident):
    parts, wanted = resident("medium")
    parts.model.partially_unload(parts.model.offload_device, parts.model.model_size() // 2)
    assert shares(parts.model.model)[1]
    assert rel_error(run(sa3, parts), wanted) < 1e-6


@pytest.mark.parametrize("partly", [False, True], ids=["whole", "partly"])
def test_a_patched_clone_and_its_origin(sa3, comfy, resident, request, partly):
    parts, wanted = resident("small")
    before = weights(parts.model.model)
    clone = parts.model.clone()
    change = 0.1 * randn(*before[PATCHED].shape, seed=1)
    assert clone.add_patches({PATCHED: ("diff", (change,))}, 1.0) == [PATCHED]
    weight = dict(parts.model.model.named_parameters())[PATCHED]
    with torch.inference_mode():
        weight += change
        by_hand = run(sa3, parts)
        weight.copy_(before[PATCHED])
    if partly:
        request.getfixturevalue("half_of_the_weights")
    patched = run(sa3, parts, clone)
    assert rel_error(patched, by_hand) < 1e-5 and rel_error(patched, wanted) > 1e-3
    assert rel_error(run(sa3, parts), wanted) < (ROUNDING if partly else 1e-6)
    comfy.management.unload_all_models()
    assert same_weights(parts.model.model, before)


def test_a_patch_of_the_conditioner_reaches_the_run(sa3, resident):
    parts, wanted = resident("small")
    key = "conditioner.conditioners.seconds_total.embedder.embedding.1.weight"
    clone = parts.model.clone()
    assert clone.add_patches({key: ("diff", (randn(*parts.model.model.state_dict()[key].shape),))}, 0.1) == [key]
    assert rel_error(run(sa3, parts, clone), wanted) > 1e-3
    assert rel_error(run(sa3, parts), wanted) < 1e-6


def test_detaching_leaves_the_weights_bit_for_bit(sa3, resident):
    parts, _ = resident("medium")
    before = weights(parts.model.model)
    clone = parts.model.clone()
    clone.add_patches({PATCHED: ("diff", (randn(*before[PATCHED].shape),))}, 0.5)
    run(sa3, parts, clone)
    clone.detach()
    assert same_weights(parts.model.model, before)


def test_what_a_run_needs_grows_with_its_length_and_batch(load):
    model = load("small").model.model
    one, longer, more = (model.memory_required(shape) for shape in ([1, 32, 100], [1, 32, 400], [4, 32, 100]))
    assert one < longer < 4 * one and more == 4 * one


def test_a_stopped_run_leaves_everything_usable(sa3, comfy, resident, monkeypatch):
    parts, wanted = resident("small-base")
    calls, forward = [], sa3.core.dit.DiT.forward

    def stopped(self, *args):
        calls.append(comfy.management.interrupt_current_processing(len(calls) == 1))
        return forward(self, *args)

    monkeypatch.setattr(sa3.core.dit.DiT, "forward", stopped)
    with pytest.raises(comfy.management.InterruptProcessingException):
        run(sa3, parts)
    assert len(calls) == 2  # the step that was running came to its end, no other began
    monkeypatch.undo()
    assert torch.equal(run(sa3, parts), wanted)
