"""SA3_Sampler: one run is the pipeline's run, whoever loads the weights and whatever the batch."""

import pytest
import torch
from core_support import FAMILIES, VARIANTS, OnDevice, needs_bfloat16, rel_error
from node_support import FOLDERS, same_weights, weights

RUN = 1e-4
SAME = 1e-5  # one computation met by two ways


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_nodes_and_the_pipeline_make_the_same(sa3, load, pipeline, variant):
    parts, seed = load(variant), 2**64 - 1
    out, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.5), seed=seed, steps=4)
    (audio,) = sa3.decode(out, parts.vae)
    latents = pipeline(variant).generate("rain", 1.5, seed=seed, steps=4, return_latents=True).latents
    clip = pipeline(variant).generate("rain", 1.5, seed=seed, steps=4).audio[0]
    assert rel_error(out["samples"], latents) < SAME
    assert audio["sample_rate"] == 44100 and rel_error(audio["waveform"][0].clamp(-1, 1), clip) < SAME


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_mixed_prompts_and_durations(sa3, load, pipeline, variant):
    parts, seconds, prompts = load(variant), [1.0, 2.7, 1.6], ["rain", "a dog barks, far away", "kick"]
    positive = sa3.prompt(parts.clip, "\n".join(prompts) + "\n", one_prompt_per_line=True)
    latent = sa3.empty(seconds_per_item="1, 2.7 1.6")
    negative = sa3.prompt(parts.clip, "hiss")
    out, info = sa3.sample(parts.model, positive, latent, seed=5, steps=3, cfg=3.0, negative=negative)
    whole = pipeline(variant).generate(prompts, seconds, "hiss", seed=5, steps=3, cfg=3.0, return_latents=True).latents
    assert info["seconds"] == seconds and info["prompt"] == prompts
    assert rel_error(out["samples"], whole) < SAME
    audio = sa3.decode(out, parts.vae)
    assert [clip["waveform"].shape for clip in audio] == [(1, 2, int(value * 44100)) for value in seconds]


def test_the_record_names_the_prompt_of_each_item(sa3, load, comfy):
    """Repeated in turn, joined where nodes combined prompts, and absent where another node encoded one."""
    parts = load("small")
    two, rain = sa3.prompt(parts.clip, "a\nb", one_prompt_per_line=True), sa3.prompt(parts.clip, "rain")

    def prompts(positive, items):
        return sa3.sample(parts.model, positive, sa3.empty(0.3, batch_size=items), steps=1)[1].get("prompt")

    assert prompts(two, 4) == ["a", "b", "a", "b"] and prompts([*two, *rain], 2) == ["a | rain", "b | rain"]
    (plain,) = comfy.nodes.CLIPTextEncode().encode(parts.clip, "rain")
    assert prompts(plain, 1) is None and prompts([*rain, *plain], 1) is None


@pytest.mark.parametrize("prompt", ["", "  ", "a (very:1.5) [loud] {kick|snare}"])
def test_a_prompt_is_taken_as_it_is(sa3, load, pipeline, prompt):
    parts = load("small")
    out, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, prompt), sa3.empty(1.0), steps=2)
    assert rel_error(out["samples"], pipeline("small").generate(prompt, 1.0, steps=2, return_latents=True).latents) < SAME


def test_an_empty_prompt_is_another_thing_than_none(sa3, load, comfy):
    parts = load("small")
    empty = sa3.prompt(parts.clip, "")
    (zeroed,) = comfy.nodes.ConditioningZeroOut().zero_out(empty)
    learned, _ = sa3.sample(parts.model, empty, sa3.empty(1.0), steps=2)
    nothing, _ = sa3.sample(parts.model, zeroed, sa3.empty(1.0), steps=2)
    assert rel_error(nothing["samples"], learned["samples"]) > 0.01


def test_an_empty_prompt_is_said_an_empty_negative_is_not(sa3, load, comfy):
    parts = load("small-base")
    empty, rain = sa3.prompt(parts.clip, ""), sa3.prompt(parts.clip, "rain")
    run = dict(latent=sa3.empty(0.5), steps=25, sampler="euler")
    assert "empty" in sa3.sample(parts.model, empty, **run)[1]["warnings"][0]
    assert sa3.sample(parts.model, rain, negative=empty, **run)[1]["warnings"] == []
    mixed = comfy.nodes.ConditioningConcat().concat(empty, rain)[0]
    assert sa3.sample(parts.model, mixed, **run)[1]["warnings"] == []


def test_no_negative_is_the_zeroed_one(sa3, load, comfy):
    parts = load("small-base")
    positive = sa3.prompt(parts.clip, "rain")
    (zeroed,) = comfy.nodes.ConditioningZeroOut().zero_out(positive)
    without, _ = sa3.sample(parts.model, positive, sa3.empty(1.0), steps=2, cfg=4.0)
    given, _ = sa3.sample(parts.model, positive, sa3.empty(1.0), steps=2, cfg=4.0, negative=zeroed)
    assert torch.equal(without["samples"], given["samples"])


@pytest.mark.parametrize(("variant", "steps", "sampler", "cfg"), [("small", 8, "pingpong", 1.0), ("medium-base", 50, "euler", 7.0)])
def test_zero_means_the_checkpoints_own(sa3, load, variant, steps, sampler, cfg):
    parts = load(variant)
    positive, latent = sa3.prompt(parts.clip, "rain"), sa3.empty(0.5, padding=0.0)
    own, info = sa3.sample(parts.model, positive, latent)
    said, _ = sa3.sample(parts.model, positive, latent, steps=steps, sampler=sampler, cfg=cfg)
    assert (info["steps"], info["sampler"], info["guidance"]["cfg"], info["warnings"]) == (steps, sampler, cfg, [])
    assert info["sigmas"][0] == 1 and info["sigmas"][-1] == 0 and len(info["sigmas"]) == steps + 1
    assert info["model"] == FOLDERS[variant] and info["seed"] == 0 and info["seconds"] == [0.5]
    assert torch.equal(own["samples"], said["samples"])


def test_the_same_again_and_another_seed(sa3, load):
    parts = load("medium")
    positive = sa3.prompt(parts.clip, "rain")
    first, again, other = (sa3.sample(parts.model, positive, sa3.empty(1.0), seed=seed, steps=3)[0]["samples"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert rel_error(other, first) > 0.1


@pytest.mark.parametrize("pick", [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("variant", FAMILIES)
def test_picked_items_are_made_again_alone(sa3, load, comfy, variant, pick):
    parts, (start, count) = load(variant), pick
    positive, latent = sa3.prompt(parts.clip, "rain"), sa3.empty(seconds_per_item="1.0, 2.7, 1.6")
    whole, _ = sa3.sample(parts.model, positive, latent, seed=11, steps=3)
    (picked,) = comfy.nodes.LatentFromBatch().frombatch(latent, start, count)
    alone, info = sa3.sample(parts.model, positive, picked, seed=11, steps=3)
    assert info["seconds"] == [1.0, 2.7, 1.6][start : start + count]
    frames = alone["samples"].shape[-1]
    assert rel_error(alone["samples"], whole["samples"][start : start + count, :, :frames]) < RUN


@pytest.mark.parametrize("item", range(3))
def test_a_picked_result_keeps_its_duration_and_its_sound(sa3, load, comfy, item):
    parts = load("small")
    whole, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(seconds_per_item="1.0, 2.7, 1.6"), steps=2)
    (picked,) = comfy.nodes.LatentFromBatch().frombatch(whole, item, 1)
    for noise in ("off", "seeded"):
        (alone,), all_of_them = sa3.decode(picked, parts.vae, noise=noise), sa3.decode(whole, parts.vae, noise=noise)
        assert rel_error(alone["waveform"], all_of_them[item]["waveform"]) < SAME


def test_a_batch_in_groups_is_the_whole_batch(sa3, load, monkeypatch):
    parts = load("medium-base")
    positive = sa3.prompt(parts.clip, "rain\nwind\nfire", one_prompt_per_line=True)
    latent = sa3.empty(seconds_per_item="1.0, 2.7, 1.6")
    whole, _ = sa3.sample(parts.model, positive, latent, steps=2)
    monkeypatch.setattr(sa3.host.sampling, "_group_size", lambda model, plan: 2)
    parted, _ = sa3.sample(parts.model, positive, latent, steps=2)
    assert rel_error(parted["samples"], whole["samples"]) < RUN


def test_variation_of_a_batch_item_keeps_its_source(sa3, load, comfy):
    parts = load("small")
    positive = sa3.prompt(parts.clip, "rain")
    whole, _ = sa3.sample(parts.model, positive, sa3.empty(seconds_per_item="1.0, 2.7"), steps=2)
    varied, _ = sa3.sample(parts.model, positive, whole, steps=4, noise_level=0.3, seed=9)
    (second,) = comfy.nodes.LatentFromBatch().frombatch(whole, 1, 1)
    alone, _ = sa3.sample(parts.model, positive, second, steps=4, noise_level=0.3, seed=9)
    assert rel_error(alone["samples"], varied["samples"][1:]) < RUN


@pytest.mark.parametrize(("cfg", "contexts"), [(1.0, 1), (3.0, 2)])
def test_constants_are_prepared_once_and_contexts_run_as_one_batch(sa3, load, monkeypatch, cfg, contexts):
    parts, calls = load("small"), {"prepare": [], "forward": []}
    for name, seen in calls.items():
        original = getattr(sa3.core.dit.DiT, name)

        def counted(self, *args, original=original, seen=seen):
            seen.append(len(args[0]))
            return original(self, *args)

        monkeypatch.setattr(sa3.core.dit.DiT, name, counted)
    sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(0.5, batch_size=2), steps=5, cfg=cfg)
    assert calls == {"prepare": [2] * contexts, "forward": [2 * contexts] * 5}


def test_combined_prompts_are_mixed_as_core_does(sa3, load, comfy):
    parts, latent = load("small"), sa3.empty(1.0)
    rain, dog = sa3.prompt(parts.clip, "rain"), sa3.prompt(parts.clip, "a dog barks")
    one, two, both, twice = (
        sa3.sample(parts.model, positive, latent, steps=1, sampler="euler")[0]["samples"] for positive in (rain, dog, rain + dog, rain * 2)
    )
    assert rel_error(twice, one) < 1e-5
    assert rel_error(both, (one + two) / 2) < 1e-5  # a single step is linear in the velocity


def test_concatenated_prompts_are_one_longer_prompt(sa3, load, comfy):
    parts = load("small")
    rain, dog = sa3.prompt(parts.clip, "rain"), sa3.prompt(parts.clip, "a dog barks")
    (joined,) = comfy.nodes.ConditioningConcat().concat(rain, dog)
    out, _ = sa3.sample(parts.model, joined, sa3.empty(1.0), steps=2)
    alone, _ = sa3.sample(parts.model, rain, sa3.empty(1.0), steps=2)
    assert bool(torch.isfinite(out["samples"]).all()) and rel_error(out["samples"], alone["samples"]) > 1e-3


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("variant", FAMILIES)
def test_16_bit_weights_come_close(sa3, load, variant, kind, record_property):
    results = []
    for parts in (load(variant, "fp32"), load(variant, kind)):
        latents, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.5), steps=4)
        assert latents["samples"].dtype == torch.float32
        results.append((latents["samples"].flatten(), sa3.decode(latents, parts.vae)[0]["waveform"].flatten()))
    for name, exact, close in zip(("latents", "audio"), *results, strict=True):
        cosine = float(torch.nn.functional.cosine_similarity(exact.double(), close.double(), dim=0))
        print(f"{variant} {kind} {name}: cosine {cosine:.6f}")
        assert cosine > 0.99


def test_a_run_leaves_its_inputs_and_the_weights_alone(sa3, load):
    parts = load("small-base")
    positive, latent, before = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), weights(parts.model.model)
    kept = [[embeddings.clone(), dict(values)] for embeddings, values in positive]
    sa3.sample(parts.model, positive, latent, steps=2, cfg=3.0)
    assert same_weights(parts.model.model, before)
    assert torch.equal(latent["samples"], torch.zeros_like(latent["samples"])) and set(latent) == set(sa3.empty(1.0))
    assert torch.equal(positive[0][0], kept[0][0]) and positive[0][1].keys() == kept[0][1].keys()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_seeds_out_of_range(sa3, load, seed):
    parts = load("small")
    with sa3.refused("seed", str(seed), str(2**64 - 1)):
        sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), seed=seed)


@needs_bfloat16
def test_products_with_a_bias_in_bfloat16_are_onednns_under_comfyui_too(sa3, load, monkeypatch):
    parts, seen, plain = load("small", "bf16"), [], sa3.core.cpu.onednn_linear
    latents, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=1)
    monkeypatch.setattr(sa3.core.cpu, "onednn_linear", lambda *args: seen.append(args[1]) or plain(*args))
    again, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(1.0), steps=1)
    layers = parts.model.model.diffusion_model.transformer.layers
    assert all(any(weight is module.weight for weight in seen) for layer in layers for module in (layer.ff.ff[0].proj, layer.ff.ff[2]))
    assert torch.equal(again["samples"], latents["samples"])
    seen.clear()
    sa3.decode(latents, parts.vae)
    assert seen


@pytest.mark.parametrize("capable", [True, False])
def test_16_bits_that_were_asked_for_are_computed_in_where_the_cpu_can(sa3, shelf, monkeypatch, capable):
    """Else ComfyUI casts all weights to fp32 in each step, which takes longer than fp32 itself."""
    monkeypatch.setattr(sa3.host.model, "computes_in", lambda dtype, device: capable)
    for kind in ("fp16", "bf16"):
        model = sa3.load(file="stable-audio-3-small-music", dtype=kind).model.model
        assert (model.compute_dtype == model.get_dtype()) is capable
    assert sa3.load(file="stable-audio-3-small-music").model.model.compute_dtype == torch.float32


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_no_step_waits_for_the_device(sa3, load, monkeypatch, cfg):
    """ComfyUI hands times over as tensors on the device; ours come along on the CPU."""
    parts, steps = load("small"), 4
    positive, latent = sa3.prompt(parts.clip, "rain"), sa3.empty(1.0)
    plain, _ = sa3.sample(parts.model, positive, latent, seed=1, steps=steps, cfg=cfg, preview="off")
    sample, counts = sa3.core.runs.samplers.sample, []

    def counted(name, velocity, x, *rest):
        def watched(x, t):
            before = len(OnDevice.reads)
            v = velocity(x, t)
            counts.append(OnDevice.reads[before:])
            return v

        return sample(name, watched, x.as_subclass(OnDevice), *rest).as_subclass(torch.Tensor)

    monkeypatch.setattr(sa3.host.sampling, "to_device", lambda t, device, dtype: t.clone().as_subclass(OnDevice))
    monkeypatch.setattr(sa3.core.runs.samplers, "sample", counted)
    monkeypatch.setattr(OnDevice, "reads", [])
    out, _ = sa3.sample(parts.model, positive, latent, seed=1, steps=steps, cfg=cfg, preview="off")
    assert counts == [[]] * steps
    assert bool(out["samples"].as_subclass(OnDevice).isfinite().all()) and OnDevice.reads[-1] == "__bool__"  # the count works
    assert torch.equal(out["samples"].as_subclass(torch.Tensor), plain["samples"])
