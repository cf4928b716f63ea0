"""Schedule, guidance, samplers, batches and the graph's own currency."""

import pytest
import torch


def rel(found, wanted) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


SAMPLERS = ["pingpong", "euler", "heun", "rk4", "dpmpp", "dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m-sde"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variant", ["small", "medium-base"])
def test_our_samplers_in_cores_custom_sampler_are_our_own_runs(sa3, load, comfy, variant, sampler):
    """SamplerCustomAdvanced draws the seed's initial noise; our SAMPLER continues that stream, so item 0 comes out the same."""
    one = load(variant)
    positive = sa3.prompt(one.clip, "slow bell")
    latent = {"samples": torch.zeros(1, one.model.model.sa3_config.same.latent_dim, 14)}
    sigmas = sa3.run("SA3_Schedule", kind="logsnr", steps=5)[0]
    ours, _ = sa3.sample(one.model, positive, latent, seed=7, cfg=1.0, sampler=sampler, sigmas=sigmas)
    chosen = sa3.run("SA3_SamplerSelect", sampler=sampler, eta=1.0)[0]
    custom = comfy.custom
    with torch.inference_mode():
        guider = custom.BasicGuider.execute(one.model, positive)[0]
        noise = custom.RandomNoise.execute(7)[0]
        theirs = custom.SamplerCustomAdvanced.execute(noise, guider, chosen, sigmas, latent)[0]["samples"]
    assert rel(theirs, ours["samples"]) < 1e-4


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm", "res_multistep"])
def test_cores_samplers_run_on_our_model(sa3, load, comfy, name):
    one = load("small")
    positive, negative = sa3.prompt(one.clip, "rain"), sa3.prompt(one.clip, "hum")
    latent = {"samples": torch.zeros(2, one.model.model.sa3_config.same.latent_dim, 12)}
    with torch.inference_mode():
        out = comfy.nodes.KSampler().sample(one.model, 3, 3, 4.0, name, "simple", positive, negative, latent)[0]["samples"]
    assert out.shape == latent["samples"].shape and bool(torch.isfinite(out).all()) and float(out.std()) > 0


def test_core_euler_is_our_euler_on_the_same_sigmas(sa3, load, comfy):
    one = load("small-base")
    positive = sa3.prompt(one.clip, "rain")
    latent = {"samples": torch.zeros(1, one.model.model.sa3_config.same.latent_dim, 12)}
    sigmas = sa3.run("SA3_Schedule", model=one.model, latent=latent, steps=6)[0]
    ours, _ = sa3.sample(one.model, positive, latent, seed=5, cfg=1.0, sampler="euler", sigmas=sigmas)
    custom = comfy.custom
    with torch.inference_mode():
        euler = custom.KSamplerSelect.execute("euler")[0]
        theirs = custom.SamplerCustom.execute(one.model, True, 5, 1.0, positive, positive, euler, sigmas, latent)[0]["samples"]
    assert rel(theirs, ours["samples"]) < 1e-4


def test_schedule_node_gives_the_models_own_levels_and_the_sampler_takes_edited_ones(sa3, load):
    one, latent = load("medium-base"), sa3.empty(2.0)
    own = sa3.run("SA3_Schedule", model=one.model, latent=latent)[0]
    assert own.shape == (51,) and own[0] == 1 and own[-1] == 0
    positive = sa3.prompt(one.clip, "x")
    by_default, _ = sa3.sample(one.model, positive, latent, seed=1, steps=4)
    given = sa3.run("SA3_Schedule", model=one.model, latent=latent, steps=4)[0]
    by_hand, info = sa3.sample(one.model, positive, latent, seed=1, sigmas=given)
    assert torch.equal(by_default["samples"], by_hand["samples"]) and info["steps"] == 4
    edited, info = sa3.sample(one.model, positive, latent, seed=1, sigmas=given[[0, 2, 4]])
    assert info["steps"] == 2 and not torch.equal(edited["samples"], by_hand["samples"])


def test_schedules_of_mixed_lengths_differ_per_item(sa3, load):
    one = load("small")
    latent = sa3.empty(4.0, seconds_per_item="30, 45")
    sigmas = sa3.run("SA3_Schedule", model=one.model, latent=latent, kind="full", steps=4)[0]
    assert sigmas.shape == (2, 5) and not torch.equal(sigmas[0], sigmas[1])
    alone = sa3.run("SA3_Schedule", model=one.model, latent=sa3.empty(45.0), kind="full", steps=4)[0]
    assert torch.equal(alone, sigmas[1])


@pytest.mark.parametrize(
    ("sigmas", "word"),
    [(torch.tensor([0.5]), "two points"), (torch.tensor([14.6, 1.0, 0.0]), "14.6"), (torch.tensor([1.0, 0.0, 0.0]), "do not fall"),
     (torch.tensor([[1.0, 0.0]] * 3), "(3, 2)"), (torch.tensor([1.0, float("nan"), 0.0]), "nan")],
)  # fmt: skip
def test_foreign_sigmas_are_refused(sa3, load, at_rest, sigmas, word):
    one = load("small")
    conditioning = [[torch.zeros(1, 2, one.model.model.sa3_config.conditioning.cond_dim), {}]]
    with sa3.refused(word):
        sa3.sample(one.model, conditioning, sa3.empty(1.0), sigmas=sigmas)


def test_guidance_node_is_the_pipelines_guidance(sa3, load, pipeline):
    one = load("small-base")
    positive, negative = sa3.prompt(one.clip, "deep house"), sa3.prompt(one.clip, "poor quality")
    settings = dict(apg=0.7, cfg_start=0.2, cfg_end=0.95, rescale=0.3, norm_threshold=2.0)
    guidance = sa3.run("SA3_Guidance", **settings)[0]
    out, info = sa3.sample(one.model, positive, sa3.empty(1.2), negative=negative, guidance=guidance, cfg=5.0, steps=4, seed=2)
    wanted = pipeline("small-base").generate(
        "deep house", 1.2, negative_prompt="poor quality", cfg=5.0, apg=0.7, cfg_interval=(0.2, 0.95), rescale=0.3, norm_threshold=2.0,
        steps=4, seed=2, return_latents=True,
    )  # fmt: skip
    assert rel(out["samples"], wanted.latents) < 1e-4
    assert info["guidance"]["apg"] == 0.7 and info["guidance"]["cfg"] == 5.0


def test_zeroed_conditioning_is_no_negative_at_all(sa3, load, comfy):
    one = load("small-base")
    positive = sa3.prompt(one.clip, "deep house")
    zeroed = comfy.nodes.ConditioningZeroOut().zero_out(sa3.prompt(one.clip, "anything"))[0]
    latent = sa3.empty(1.0)
    without, _ = sa3.sample(one.model, positive, latent, steps=2, cfg=4.0)
    with_zeros, _ = sa3.sample(one.model, positive, latent, steps=2, cfg=4.0, negative=zeroed)
    empty, _ = sa3.sample(one.model, positive, latent, steps=2, cfg=4.0, negative=sa3.prompt(one.clip, ""))
    assert torch.equal(without["samples"], with_zeros["samples"])
    assert rel(empty["samples"], without["samples"]) > 1e-3, "an empty prompt is not the same as none"


def test_a_batch_that_does_not_fit_is_made_in_groups_with_the_same_draws(sa3, load, monkeypatch):
    one = load("medium")
    positive = sa3.prompt(one.clip, "one\ntwo\nthree\nfour\nfive", one_prompt_per_line=True)
    latent = sa3.empty(1.0, seconds_per_item="1, 1.5, 0.7, 2, 1.2")
    whole, _ = sa3.sample(one.model, positive, latent, steps=3, seed=9)
    monkeypatch.setattr(sa3.host.sampling, "_group_size", lambda model, plan: 2)
    parts, _ = sa3.sample(one.model, positive, latent, steps=3, seed=9)
    assert rel(parts["samples"], whole["samples"]) < 1e-4


def test_out_of_memory_halves_the_groups_and_ends_with_a_sentence(sa3, load, monkeypatch, comfy):
    one = load("small")
    positive, latent = sa3.prompt(one.clip, "x"), sa3.empty(1.0, batch_size=4)
    whole, _ = sa3.sample(one.model, positive, latent, steps=2, seed=9)
    group = sa3.host.sampling._sample_group
    sizes = []

    def short_of_memory(model, positive, negative, latents, plan, guidance, items, *reports):
        sizes.append(len(items))
        if len(items) > room:
            raise comfy.management.OOM_EXCEPTION("out of memory")
        return group(model, positive, negative, latents, plan, guidance, items, *reports)

    monkeypatch.setattr(sa3.host.sampling, "_sample_group", short_of_memory)
    room = 1
    parts, _ = sa3.sample(one.model, positive, latent, steps=2, seed=9)
    assert sizes == [4, 2, 1, 1, 1, 1] and rel(parts["samples"], whole["samples"]) < 1e-4
    room = 0
    with sa3.refused("memory", "even with 1 items"):
        sa3.sample(one.model, positive, latent, steps=2, seed=9)


@pytest.mark.parametrize(
    ("variant", "settings", "word"),
    [
        ("small-base", dict(sampler="pingpong", cfg=7.0, steps=50), "near silence"),
        ("small-base", dict(steps=5), "far from the 50"),
        ("small", dict(steps=64), "far from the 8"),
        ("small", dict(cfg=4.0), "made for cfg 1"),
    ],
)
def test_doubts_are_in_the_record_and_stop_nobody(sa3, load, variant, settings, word):
    one = load(variant)
    latent = {"samples": torch.zeros(1, one.model.model.sa3_config.same.latent_dim, 4)}
    _, info = sa3.sample(one.model, sa3.prompt(one.clip, "x"), latent, **settings)
    assert sum(word in warning for warning in info["warnings"]) == 1


def test_an_ordinary_run_raises_no_doubts(sa3, load):
    for variant in ("small", "medium-base"):
        one = load(variant)
        _, info = sa3.sample(one.model, sa3.prompt(one.clip, "x"), sa3.empty(1.0))
        assert info["warnings"] == []


@pytest.mark.parametrize("frames", [1, 14, 15, 23, 30, 46, 341])
def test_a_latent_without_a_duration_has_all_its_samples(sa3, load, frames):
    """frames * 4096 / 44100 seconds are one sample short in floating point for one length in twelve."""
    config = load("small").model.model.sa3_config
    lengths = sa3.host.model.unpadded_lengths(config, torch.zeros(1, config.same.latent_dim, frames))
    assert lengths.samples == (frames * config.same.samples_per_frame,) and lengths.valid == (frames,)


def test_a_noise_level_below_1_without_a_sound_is_noticed(sa3, load):
    one = load("small")
    _, info = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), sa3.empty(0.5), noise_level=0.5, steps=8)
    assert any("LATENT is empty" in warning and "0.5" in warning for warning in info["warnings"])
    _, info = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), sa3.empty(0.5), steps=8)
    assert not any("LATENT is empty" in warning for warning in info["warnings"])
