"""Laws that hold for every size, length and seed, tried on random ones. SA3_LONG=1 tries twenty times as many."""

import math
import os
import random

import pytest
import torch
from core_support import FAMILIES, config_dict, randn, rel_error
from lora_support import KINDS, tensors_of

from sa3_core import SA3Error, config, timeline
from sa3_core.audio.waveform import resample
from sa3_core.lora.algebra import MODES, Adapter, adapter_of, apply_stack, compose
from sa3_core.models.attention import attend
from sa3_core.sampling import samplers, schedule
from sa3_core.timeline import regions
from sa3_core.timeline.splicing import splice

TIMES = 20 if os.environ.get("SA3_LONG") else 1


def cases(count: int) -> list[random.Random]:
    return [random.Random(seed) for seed in range(count * TIMES)]


def each(count: int):
    """A test once per random generator."""
    return pytest.mark.parametrize("rng", cases(count), ids=lambda rng: "")


# Attention


@each(12)
def test_windowed_attention_is_the_masked_dense_one(rng):
    n, window, batch = rng.randrange(1, 700), rng.choice([0, 1, 5, 17, 34, 128]), rng.choice([1, 2])
    q, k, v = (randn(batch, 2, n, 8, seed=rng.randrange(999)) for _ in range(3))
    at = torch.arange(n)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=(at[:, None] - at[None]).abs() <= window)
    assert rel_error(attend(q, k, v, window=window), wanted) < 1e-5


@each(8)
def test_windowed_attention_does_not_know_where_it_is(rng):
    n, window, shift = rng.randrange(50, 500), rng.choice([1, 5, 17]), rng.randrange(1, 300)
    q, k, v = (randn(1, 1, n + shift, 8, seed=rng.randrange(999)) for _ in range(3))
    whole = attend(q, k, v, window=window)[:, :, shift + window :]
    part = attend(q[:, :, shift:], k[:, :, shift:], v[:, :, shift:], window=window)[:, :, window:]
    assert rel_error(part, whole) < 1e-5


# The autoencoder


@pytest.mark.parametrize("variant", FAMILIES)
@each(3)
def test_any_chunks_decode_to_the_same(load_model, variant, rng):
    model = load_model(variant)
    side = model.config.same.decoder
    frames = rng.randrange(1, 160)
    overlap = 2 * -(-side.reach // side.align) * side.align + rng.randrange(4) * side.align
    chunk = overlap + rng.randrange(1, 12) * side.align
    z = randn(1, model.config.same.latent_dim, frames, seed=rng.randrange(999))
    assert rel_error(model.decode(z, chunk, overlap), model.decode(z)) < 1e-4


@pytest.mark.parametrize("variant", FAMILIES)
@each(3)
def test_a_sound_does_not_depend_on_where_it_lies(load_model, variant, rng):
    """Frames put in front move the sound and change nothing beyond the decoder's reach."""
    model = load_model(variant)
    side, spf = model.config.same.decoder, model.config.same.samples_per_frame
    shift = side.align * rng.randrange(1, 20)
    z = randn(1, model.config.same.latent_dim, side.align * rng.randrange(side.reach + 2, 3 * side.reach), seed=rng.randrange(999))
    longer = torch.cat((randn(1, z.shape[1], shift, seed=rng.randrange(999)), z), dim=-1)
    near = -(-side.reach // side.align) * side.align
    assert rel_error(model.decode(longer)[..., (shift + near) * spf :], model.decode(z)[..., near * spf :]) < 1e-4


# Runs


@pytest.mark.parametrize("variant", FAMILIES)
@each(3)
def test_an_item_of_a_batch_is_the_item_alone(load_model, variant, rng):
    model = load_model(variant)
    durations = [rng.choice([0.2, 0.5, 0.9, 1.4]) for _ in range(rng.choice([2, 3]))]
    prompts = [rng.choice(["", "rain", "a long train passes, 120 BPM"]) for _ in durations]
    options = {
        "steps": rng.choice([1, 3]),
        "sampler": rng.choice(list(samplers.SAMPLERS)),
        "cfg": rng.choice([1.0, 3.0]),
        "seed": rng.randrange(2**40),
    }
    options |= {"padding": rng.choice([0.0, 1.0])}
    whole = model.generate(prompts, durations, **options).audio
    alone = model.generate(prompts[0], durations[0], **options).audio  # item 0 draws the seed's own stream
    assert rel_error(whole[0], alone[0]) < 1e-4
    again = model.generate(prompts, durations, **options).audio
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


# Masks and lengths


def random_regions(rng, seconds: float) -> list[tuple[float, float]]:
    starts = [rng.random() * seconds * 0.9 for _ in range(rng.randrange(1, 5))]
    return [(start, min(seconds, start + 0.01 + rng.random() * seconds / 3)) for start in starts]


@each(10)
def test_masks(rng):
    tiny = config.parse(config_dict(rng.choice(["small", "medium"])))
    seconds = [0.5 + rng.random() * 5 for _ in range(rng.choice([1, 2, 3]))]
    line = timeline.lengths(tiny, seconds, rng.random() * 3)
    chosen = random_regions(rng, min(seconds))
    keep = timeline.keep_mask(tiny, regions.merge_regions(chosen), line)
    assert keep.shape == (len(seconds), 1, line.frames) and set(keep.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(keep, timeline.keep_mask(tiny, chosen, line))  # merging changes nothing
    each_alone = [timeline.keep_mask(tiny, [region], line) for region in chosen]
    assert torch.equal(keep, torch.stack(each_alone).amin(0))  # kept is what every region keeps
    for item, samples in enumerate(line.samples):
        beyond = torch.arange(line.frames) * tiny.same.samples_per_frame >= samples
        assert not keep[item, 0, beyond].any()
    assert regions.merge_regions(regions.merge_regions(chosen)) == regions.merge_regions(chosen)
    written = regions.parse_regions(regions.format_regions(regions.merge_regions(chosen)))
    assert all(
        abs(a - b) < 1e-8 for one, two in zip(written, regions.merge_regions(chosen), strict=True) for a, b in zip(one, two, strict=True)
    )


@each(10)
def test_lengths(rng):
    tiny = config.parse(config_dict(rng.choice(["small", "medium"])))
    padding = rng.random() * 6
    seconds = [0.01 + rng.random() * 10 for _ in range(4)]
    line = timeline.lengths(tiny, seconds, padding)
    for i, value in enumerate(seconds):
        alone = timeline.lengths(tiny, [value], padding)
        assert (line.own[i], line.samples[i], line.effective[i], line.valid[i]) == (
            alone.frames,
            alone.samples[0],
            alone.effective[0],
            alone.valid[0],
        )
    assert line.frames == max(line.own) and all(e <= v <= o for e, v, o in zip(line.effective, line.valid, line.own, strict=True))


# Schedules


@each(200)
def test_schedules_within_the_nodes_ranges_fall_or_are_refused(rng):
    """Whatever the sliders of SA3_Schedule are at."""
    ranges = {
        "logsnr": {"anchor_length": (1, 1e6), "anchor_logsnr": (-20, 20), "rate": (-10, 10), "logsnr_end": (-20, 20)},
        "flux": {"min_length": (1, 1e6), "max_length": (1, 1e6), "alpha_min": (0.01, 1000), "alpha_max": (0.01, 1000)},
        "full": {"base_shift": (-10, 10), "max_shift": (-10, 10), "min_length": (1, 1e6), "max_length": (1, 1e6)},
        "identity": {},
    }
    kind, mode = rng.choice(list(ranges)), rng.choice(["scaled", "reference"])
    options = {name: rng.uniform(*ends) for name, ends in ranges[kind].items()}
    try:
        sigmas = schedule.build(kind, rng.choice([1, 2, 8, 50, 1000]), rng.uniform(0.01, 1), rng.uniform(1, 9000), mode, **options)
    except SA3Error as error:
        assert "does not fall" in str(error) or "min_length" in str(error)
        return
    assert bool((sigmas[1:].diff() < 0).all()) and (mode == "reference" or float(sigmas[1]) < float(sigmas[0])) and float(sigmas[-1]) == 0


@each(20)
def test_schedules(rng):
    kind = rng.choice(list(schedule.SHIFTS))
    options = {"rate": rng.uniform(-2, 2), "logsnr_end": rng.uniform(0, 4)} if kind == "logsnr" else {}
    options |= {"alpha_min": rng.uniform(0.5, 20), "alpha_max": rng.uniform(0.5, 20)} if kind == "flux" else {}
    options |= {"use_sine": rng.random() < 0.5} if kind == "full" else {}
    steps, level, length = rng.randrange(1, 120), rng.uniform(0.01, 1), rng.uniform(1, 9000)
    try:
        sigmas = schedule.build(kind, steps, level, length, **options)
        rows = schedule.build(kind, steps, level, torch.tensor([length, 7.0, length]), **options)
    except SA3Error as error:
        assert "does not fall" in str(error)
        return
    assert sigmas.shape == (steps + 1,) and float(sigmas[0]) == pytest.approx(level) and float(sigmas[-1]) == 0
    assert bool((sigmas.diff() < 0).all())
    assert rel_error(sigmas, level * schedule.build(kind, steps, 1.0, length, **options)) < 1e-6
    assert torch.equal(rows[0], sigmas) and torch.equal(rows[2], sigmas)


# Splices


@each(10)
def test_splices(rng):
    rate, n = rng.choice([8000, 22050, 44100]), rng.randrange(4000, 9000)
    original, generated = (randn(rng.choice([1, 2]) if i else 2, 2, n, seed=rng.randrange(999)) for i in (0, 1))
    duration, fade = n / rate, rng.choice([0.0, 0.002, 0.02])
    a, b, c = sorted(rng.uniform(0.05, 0.95) * duration for _ in range(3))
    first, second = (a, (a + b) / 2), ((b + c) / 2 + 2 / rate, c + 3 / rate)
    both, _ = splice(original, generated, [first, second], rate, rate, fade)
    one, _ = splice(original, generated, [first], rate, rate, fade)
    other, _ = splice(one, generated, [second], rate, rate, fade)
    assert torch.equal(both, other)  # one after the other is both at once
    outside = torch.ones(n, dtype=torch.bool)
    for start, end in (first, second):
        outside[math.floor(start * rate) : math.ceil(end * rate)] = False
    assert torch.equal(both[..., outside], original[..., outside])
    shift = rng.randrange(1, 500)  # samples put in front of everything
    moved = [(start + shift / rate, end + shift / rate) for start, end in (first, second)]
    pad = torch.nn.functional.pad
    later, _ = splice(pad(original, (shift, 0), value=0.1), pad(generated, (shift, 0)), moved, rate, rate, fade)
    assert rel_error(later[..., shift:], both) < 1e-6
    assert torch.equal(splice(original, generated, [], rate, rate, fade)[0], original)


# Resampling


@each(8)
def test_resampling(rng):
    rate, target = rng.choice([8000, 22050, 32000, 44100, 44101, 48000, 96000]), rng.choice([44100, 48000])
    n = rng.randrange(3000, 6000)
    x, y = (randn(2, n, seed=rng.randrange(999)) for _ in range(2))
    out = resample(x, rate, target)
    assert out.shape[-1] == -(-n * target // rate)
    assert torch.equal(resample(x[1], rate, target), out[1])  # a row does not depend on the others
    assert torch.equal(resample(x.T.contiguous().T, rate, target), out)
    assert rel_error(resample(2 * x - y, rate, target), 2 * out - resample(y, rate, target)) < 1e-5  # linear
    common = math.gcd(rate, target)
    if rate // common < 1000:  # whole periods put in front move the result by whole samples
        later = resample(torch.nn.functional.pad(x, (3 * rate // common, 0)), rate, target)[..., 3 * target // common :]
        assert rel_error(later[..., : out.shape[-1]], out) < 1e-5


# Adapters


def adapter(rng, kind: str, weight: torch.Tensor, alpha: float = 3.0) -> Adapter:
    return adapter_of(kind, tensors_of(kind, weight, rng.choice([1, 2, 5]), rng.randrange(999)), alpha)


@pytest.mark.parametrize("kind", KINDS)
@each(2)
def test_adapters(kind, rng):
    weight = randn(rng.randrange(6, 30), rng.randrange(6, 30), seed=rng.randrange(999)).double()
    strength = rng.uniform(-1, 2)
    one, other = adapter(rng, kind, weight), adapter(rng, rng.choice(KINDS), weight)
    for entries in ([(one, strength, "chain")], [(one, strength, "chain"), (other, 0.7, rng.choice(MODES))]):
        adapted = compose(weight, entries)
        x = randn(3, 4, weight.shape[1], seed=rng.randrange(999)).double()
        made = apply_stack(weight, entries)
        assert rel_error(adapted.linear(x, lambda rows: rows @ weight.T, None), x @ made.T) < 1e-8  # in the forward pass or merged
    assert apply_stack(weight, [(one, 0.0, "chain")]) is weight
    summed = [(one, 0.5, "sum"), (other, 0.8, "sum")]
    assert rel_error(apply_stack(weight, summed), apply_stack(weight, summed[::-1])) < 1e-8  # sums have no order
    rows = apply_stack(weight, [(one, strength, "chain")])
    if one.rows is not None and one.cols is None:
        assert rel_error(rows.norm(dim=1), one.rows.abs().double()) < 1e-5
    if one.cols is not None:
        assert rel_error(rows.norm(dim=0), one.cols.abs().double()) < 1e-5
    if one.rows is None and one.cols is None:
        parts = apply_stack(weight, [(one, strength * 0.25, "chain"), (one, strength * 0.75, "chain")])
        assert rel_error(parts, rows) < 1e-8  # strengths add up
