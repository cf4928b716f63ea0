"""One run: what is drawn for whom, what a plan resolves, what generate() gives back."""

import hashlib
from dataclasses import replace

import pytest
import torch
from core_support import FAMILIES, VARIANTS, config_dict, randn, refused, rel_error

from sa3_core import config, timeline
from sa3_core.sampling import runs
from sa3_core.sampling.draws import Draws, seed_alone
from sa3_core.sampling.predictor import Predictor

CHANNELS = 32
STOCHASTIC = ["pingpong", "dpmpp-2m-sde", "dpmpp-3m-sde"]


@pytest.fixture
def tiny():
    return config.parse(config_dict("small"))


def toy(x, t):
    return torch.tanh(2 * x + t.to(x.dtype)[:, None, None])


# Draws


@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 - 1])
def test_item_0_draws_torchs_own_stream(tiny, seed):
    lengths = timeline.lengths(tiny, [1.5])
    draws = Draws(seed, CHANNELS, lengths)
    torch.manual_seed(seed)
    for _ in range(3):
        assert torch.equal(draws(), torch.randn(1, CHANNELS, lengths.frames))


@pytest.mark.parametrize("seconds", [[1.0, 5.0, 2.5], [5.0, 1.0, 1.0]])
def test_an_item_draws_the_same_in_any_batch(tiny, seconds):
    together, lengths = Draws(7, CHANNELS, timeline.lengths(tiny, seconds)), timeline.lengths(tiny, seconds)
    alone = [Draws(7, CHANNELS, timeline.lengths(tiny, [value]), indices=[i]) for i, value in enumerate(seconds)]
    for _ in range(3):
        drawn = together()
        for i, own in enumerate(lengths.own):
            assert torch.equal(drawn[i, :, :own], alone[i]()[0])
            assert not drawn[i, :, own:].any()


def test_items_steps_and_seeds_draw_independently(tiny):
    lengths = timeline.lengths(tiny, [2.0] * 3)
    draws, other = Draws(7, CHANNELS, lengths), Draws(8, CHANNELS, lengths)
    rows = [row for draw in (draws(), draws(), other()) for row in draw]
    for i, row in enumerate(rows):
        assert abs(float(row.mean())) < 0.1 and abs(float(row.std()) - 1) < 0.1
        assert all(abs(float((row * earlier).mean())) < 0.1 for earlier in rows[:i])


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**53 - 1, 2**53, 2**64 - 1])
@pytest.mark.parametrize("index", [0, 1, 63])
def test_the_seed_shown_for_an_item_has_its_draws(tiny, seed, index):
    """Shown seeds fit JavaScript's numbers. torch reads 32 bits of a seed, so items sound as they did with seeds of 64 bits."""
    shown, lengths = seed_alone(seed, index), timeline.lengths(tiny, [1.0])
    assert 0 <= shown < 2**53 and (shown == seed if index == 0 and seed < 2**53 else shown < 2**32)
    noise = Draws(seed, CHANNELS, lengths, indices=[index])()
    assert torch.equal(noise, Draws(shown, CHANNELS, lengths)())
    if index:
        long = int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
        assert torch.equal(noise, Draws(long, CHANNELS, lengths)())


def test_draws_leave_the_global_generator_alone(tiny):
    torch.manual_seed(3)
    wanted = torch.randn(4)
    torch.manual_seed(3)
    Draws(7, CHANNELS, timeline.lengths(tiny, [1.0, 2.0]))()
    assert torch.equal(torch.randn(4), wanted)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7", None])
def test_impossible_seeds_are_refused(tiny, seed):
    with refused("seed", seed):
        Draws(seed, CHANNELS, timeline.lengths(tiny, [1.0]))


# Plans


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_fills_in_the_checkpoints_choices(variant):
    parsed = config.parse(config_dict(variant))
    lengths = timeline.lengths(parsed, [1.0, 30.0])
    plan = runs.plan(parsed, lengths)
    assert (plan.sampler, plan.steps) == (("euler", 50) if parsed.is_base else ("pingpong", 8))
    assert plan.sigmas.shape == (2, plan.steps + 1) and plan.noise_level == 1
    assert plan == replace(runs.plan(parsed, lengths, steps=0, sampler="auto"), sigmas=plan.sigmas)
    # only medium-base names a schedule that depends on the length
    assert torch.equal(plan.sigmas[0], plan.sigmas[1]) is (variant != "medium-base")


def test_a_plan_uses_the_length_asked_for_and_not_the_padding(tiny):
    options = {"kind": "logsnr", "rate": 0.3}
    plans = [runs.plan(tiny, timeline.lengths(tiny, [3.0], padding), schedule_options=options) for padding in (0.0, 6.0)]
    assert torch.equal(plans[0].sigmas, plans[1].sigmas)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        (torch.tensor([1.0]), ["shape", "two points"]),
        (torch.ones(3, 5), ["shape", "(3, 5)"]),
        (torch.tensor([14.6, 3.0, 0.0]), ["14.6", "between 1 and 0"]),
        (torch.tensor([1.0, 0.5, -0.1]), ["-0.1"]),
        (torch.tensor([1.0, float("nan"), 0.0]), ["nan"]),
        (torch.tensor([1.0, 0.0, 0.0]), ["do not fall", "level 2"]),
        (torch.tensor([1.0, 0.5, 0.6, 0.0]), ["level 2 is 0.6, after 0.5"]),
        (torch.tensor([1.0, 1.0, 0.0]), ["level 1 is 1, after 1"]),
        (torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.1]]), ["end at 0 for some items only"]),
    ],
)
def test_levels_from_elsewhere_are_checked(tiny, sigmas, words):
    with refused("sigmas", *words):
        runs.plan(tiny, timeline.lengths(tiny, [1.0, 2.0]), sigmas=sigmas)


def test_unknown_samplers_and_schedules_are_refused(tiny):
    lengths = timeline.lengths(tiny, [1.0])
    with refused("ddim", "pingpong"):
        runs.plan(tiny, lengths, sampler="ddim")
    with refused("karras", "logsnr"):
        runs.plan(tiny, lengths, schedule_options={"kind": "karras"})
    with refused("steps", -3):
        runs.plan(tiny, lengths, steps=-3)


# Runs


@pytest.mark.parametrize("seconds", [[1.0, 5.0, 2.5], [5.0, 1.0, 1.0]])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp", *STOCHASTIC])
def test_an_item_of_a_run_equals_itself_alone(tiny, sampler, seconds):
    options = {"steps": 5, "sampler": sampler, "seed": 7, "schedule_options": {"kind": "logsnr", "rate": 0.2}}
    lengths = timeline.lengths(tiny, seconds)
    together = runs.run(toy, runs.plan(tiny, lengths, **options), channels=CHANNELS)
    for i, value in enumerate(seconds):
        plan = runs.plan(tiny, timeline.lengths(tiny, [value]), indices=[i], **options)
        alone = runs.run(toy, plan, channels=CHANNELS)
        assert rel_error(together[i, :, : lengths.own[i]], alone[0]) < 1e-5
        assert not together[i, :, lengths.valid[i] :].any()


@pytest.mark.parametrize("level", [0.05, 0.6, 1.0])
def test_a_run_starts_from_the_mix_at_its_first_level(tiny, level):
    lengths, seen = timeline.lengths(tiny, [1.0]), []
    init, noise = randn(1, CHANNELS, lengths.frames, seed=1), randn(1, CHANNELS, lengths.frames, seed=2)

    def velocity(x, t):
        seen.append((x, float(t[0])))
        return toy(x, t)

    plan = runs.plan(tiny, lengths, steps=3, sampler="euler", noise_level=level)
    runs.run(velocity, plan, channels=CHANNELS, init=init, initial_noise=noise)
    x, t = seen[0]
    assert t == pytest.approx(level, abs=1e-7)
    assert rel_error(x, (1 - level) * init + level * noise) < 1e-6


def test_given_draws_replace_the_seeds(tiny):
    lengths = timeline.lengths(tiny, [1.0])
    draws = Draws(7, CHANNELS, lengths)
    first, *rest = [draws() for _ in range(4)]
    plans = [runs.plan(tiny, lengths, steps=3, seed=seed) for seed in (7, 1)]
    seeded = runs.run(toy, plans[0], channels=CHANNELS)
    assert torch.equal(runs.run(toy, plans[1], channels=CHANNELS, initial_noise=first, step_noise=rest), seeded)
    assert not torch.equal(runs.run(toy, plans[1], channels=CHANNELS), seeded)


@pytest.mark.parametrize(("name", "words"), [("initial_noise", ["initial_noise"]), ("init", ["start from"])])
def test_latents_of_another_shape_or_not_finite_are_refused(tiny, name, words):
    lengths = timeline.lengths(tiny, [1.0])
    plan = runs.plan(tiny, lengths, steps=2)
    with refused(*words, (1, CHANNELS, 5), (1, CHANNELS, lengths.frames)):
        runs.run(toy, plan, channels=CHANNELS, **{name: torch.zeros(1, CHANNELS, 5)})
    with refused(*words, "nan"):
        runs.run(toy, plan, channels=CHANNELS, **{name: torch.full((1, CHANNELS, lengths.frames), torch.nan)})


# generate()


def latents(model, prompt, duration, **options):
    return model.generate(prompt, duration, return_latents=True, **{"steps": 3, "seed": 5, **options}).latents


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_seed_repeats_and_another_differs(model, variant):
    first, again, other = (model.generate("rain", 0.7, steps=2, seed=seed).audio[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert rel_error(other, first) > 1e-2


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("seconds", [[1.0, 2.5], [2.5, 1.0]])
@pytest.mark.parametrize("variant", FAMILIES)
def test_item_0_of_a_batch_equals_itself_alone(model, variant, seconds, cfg):
    together = latents(model, ["rain", "wind"], seconds, cfg=cfg)
    alone = latents(model, "rain", seconds[0], cfg=cfg)
    valid = timeline.lengths(model.config, seconds).valid[0]
    assert rel_error(together[0, :, :valid], alone[0, :, :valid]) < 1e-4


@pytest.mark.parametrize("seconds", [[1.0, 2.5], [2.5, 1.0]])
@pytest.mark.parametrize("variant", FAMILIES)
def test_another_item_of_a_batch_can_be_made_again_alone(model, variant, seconds):
    together = latents(model, ["rain", "wind"], seconds)
    lengths = timeline.lengths(model.config, seconds[1:])
    cond = model.condition(model.encode_text("wind"), seconds[1:])
    local = torch.zeros(1, CHANNELS + 1, lengths.frames)
    with torch.no_grad():
        inputs = model.dit.prepare(cond.cross_attn, cond.global_cond, local, lengths.frames, lengths.valid)
        plan = runs.plan(model.config, lengths, steps=3, seed=5, indices=[1])
        alone = runs.run(Predictor(model.dit, inputs, lengths=lengths.valid), plan, channels=CHANNELS)
    valid = lengths.valid[0]
    assert rel_error(together[1, :, :valid], alone[0, :, :valid]) < 1e-4


@pytest.mark.parametrize("variant", FAMILIES)
def test_audio_is_cut_to_each_duration_and_kept_within_one(model, variant):
    result = model.generate(["rain", "wind", ""], [0.5, 1.2345, 0.1], steps=2, padding=0.5)
    assert [clip.shape for clip in result.audio] == [(2, int(value * 44100)) for value in (0.5, 1.2345, 0.1)]
    assert all(bool(torch.isfinite(clip).all()) and float(clip.abs().max()) <= 1 for clip in result.audio)
    assert result.latents is None and result.sample_rate == 44100 and result.seconds == (0.5, 1.2345, 0.1)


def test_the_audio_is_the_decoded_latents(load_model):
    model, seconds = load_model("medium"), [0.6, 1.5]
    options = {"steps": 2, "seed": 5, "padding": 1.0}
    z, clips = model.generate("rain", seconds, return_latents=True, **options).latents, model.generate("rain", seconds, **options).audio
    for i, (clip, own) in enumerate(zip(clips, timeline.lengths(model.config, seconds, 1.0).own, strict=True)):
        wanted = model.decode(z[i : i + 1, :, :own])[0, :, : clip.shape[1]].clamp(-1, 1)
        assert rel_error(clip, wanted) < 1e-5


def test_one_value_serves_every_item(load_model):
    model = load_model("small")
    assert torch.equal(latents(model, "rain", [1.0, 1.0]), latents(model, ["rain", "rain"], 1.0))
    assert not torch.equal(*latents(model, "rain", [1.0, 1.0]))


@pytest.mark.parametrize("variant", FAMILIES)
def test_defaults_are_the_checkpoints(model, variant):
    heard = []
    result = model.generate("rain", 0.2, padding=0, callback=lambda step, total, denoised: heard.append((step, total)))
    assert (result.info["steps"], result.info["cfg"], result.info["sampler"]) == (8, 1.0, "pingpong")
    assert heard == [(i, 8) for i in range(8)]


def test_a_base_checkpoint_is_guided_over_50_steps_by_default(load_model):
    model, totals = load_model("medium-base"), []

    def stop(step, total, denoised):
        totals.append((total, denoised))
        raise KeyboardInterrupt

    for options in ({}, {"steps": 50, "cfg": 7.0, "sampler": "euler"}, {"cfg": 1.0}):
        with pytest.raises(KeyboardInterrupt):
            model.generate("rain", 0.2, padding=0, callback=stop, **options)
    assert [total for total, _ in totals] == [50, 50, 50]
    default, named, plain = (denoised for _, denoised in totals)
    assert torch.equal(default, named) and not torch.equal(default, plain)


def test_prompt_negative_seconds_and_source_act(load_model):
    model, clip = load_model("small"), (44100, randn(2, 40_000) * 0.1)
    plain = latents(model, "rain", 1.0)
    assert rel_error(latents(model, "wind", 1.0), plain) > 1e-4
    guided = latents(model, "rain", 1.0, cfg=4.0)
    assert rel_error(guided, plain) > 1e-3
    assert rel_error(latents(model, "rain", 1.0, cfg=4.0, negative_prompt="noise"), guided) > 1e-4
    assert torch.equal(latents(model, "rain", 1.0, negative_prompt="noise"), plain)  # without guidance there is nothing to avoid
    painted = latents(model, "rain", 1.0, source_audio=clip, regions=[(0.3, 0.6)])
    assert rel_error(painted, plain) > 1e-3
    assert rel_error(latents(model, "rain", 1.0, source_audio=clip, regions=[(0.3, 0.9)]), painted) > 1e-4
    assert rel_error(latents(model, "rain", 1.0, init_audio=clip, init_noise_level=0.5), plain) > 1e-3


def test_little_noise_stays_near_the_source(load_model):
    model, clip = load_model("small"), (44100, randn(2, 44100) * 0.1)
    lengths = timeline.lengths(model.config, [1.0])
    z = model.encode(torch.nn.functional.pad(clip[1][None], (0, lengths.frames * 4096 - 44100)))[..., : lengths.valid[0]]
    near, far = (latents(model, "rain", 1.0, init_audio=clip, init_noise_level=level)[..., : lengths.valid[0]] for level in (0.01, 0.9))
    assert rel_error(near, z) < 0.1 * rel_error(far, z)


def test_an_exception_in_the_callback_stops_and_the_next_run_is_clean(load_model):
    model, steps = load_model("small"), []
    clean = latents(model, "rain", 1.0)

    def stop(step, total, denoised):
        steps.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents(model, "rain", 1.0, callback=stop)
    assert steps == [0]
    assert torch.equal(latents(model, "rain", 1.0), clean)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"duration": 0}, ["duration", 0]),
        ({"duration": -2.0}, ["duration", -2.0]),
        ({"duration": 100.0}, ["duration", 100.0, 47.6]),
        ({"duration": []}, ["duration", "0 entries"]),
        ({"prompt": ["a", "b"], "duration": [1.0, 1.0, 1.0]}, ["prompt", 2, 3]),
        ({"negative_prompt": ["a", "b", "c"], "duration": [1.0, 1.0]}, ["duration", 2, 3]),
        ({"prompt": 5}, ["prompt", "int", "text"]),
        ({"steps": -1}, ["steps", -1]),
        ({"seed": -1}, ["seed", -1]),
        ({"cfg": float("nan")}, ["cfg", "nan"]),
        ({"sampler": "ddim"}, ["ddim", "pingpong"]),
        ({"padding": -1.0}, ["padding", -1.0]),
        ({"regions": [(0, 1)]}, ["regions", "source_audio"]),
        ({"source_audio": (44100, torch.zeros(2, 900))}, ["regions", "source_audio"]),
        ({"source_audio": (44100, torch.zeros(2, 900)), "regions": [(0.5, 7)]}, ["region", "0.5-7", "outside"]),
        ({"init_audio": (44100, torch.zeros(2, 900)), "init_noise_level": 0}, ["noise level", 0]),
        ({"init_audio": (44100, torch.zeros(3, 900))}, ["init_audio", "3 channels"]),
        ({"init_audio": (0, torch.zeros(2, 900))}, ["init_audio", "sample rate", 0]),
        ({"init_audio": (44100, torch.zeros(2, 0))}, ["init_audio", "sample", 0]),
        ({"init_audio": (44100, torch.full((2, 900), torch.nan))}, ["init_audio", "nan"]),
        ({"init_audio": (44100, torch.zeros(2, 900, dtype=torch.int16))}, ["init_audio", "int16"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_impossible_requests_are_refused(load_model, options, words):
    with refused(*words):
        load_model("small").generate(**{"prompt": "rain", "duration": 1.0, "steps": 1, **options})
