"""Lengths, regions and masks against the formulas of the public code."""

import itertools
import random

import pytest
import torch
from core_support import config_dict, refused, release_dict

from sa3_core import config, timeline

SPF, RATE = 4096, 44100
GENERATIVE = ["small-music", "medium", "small-sfx-base", "medium-base"]


@pytest.fixture
def release_config(name):
    return config.parse(release_dict(name))


@pytest.fixture
def tiny():
    return config.parse(config_dict("small"))


def public_frames(seconds, padding, sample_size):
    """T of a batch: samples rounded up to whole frames, then to 8192, at most the model's size."""
    n = int((max(seconds) + padding) * RATE)
    n += -n % SPF
    n += -n % (2 * SPF)
    return min(n, sample_size) // SPF


def batches(limit, count=300):
    rng = random.Random(4)
    for _ in range(count):
        yield (
            [rng.choice([rng.uniform(0.01, limit), round(rng.uniform(1, limit)), limit]) for _ in range(rng.randint(1, 4))],
            rng.choice([0.0, 0.1, 1.0, 6.0, rng.uniform(0, 10)]),
        )


@pytest.mark.parametrize("name", GENERATIVE)
def test_lengths_follow_the_public_formulas(release_config, name):
    for seconds, padding in batches(release_config.max_seconds):
        lengths = timeline.lengths(release_config, seconds, padding)
        frames = public_frames(seconds, padding, release_config.sample_size)
        samples = [int(value * RATE) for value in seconds]
        assert lengths.frames == frames
        assert lengths.samples == tuple(samples)
        assert lengths.effective == tuple(-(-n // SPF) for n in samples)
        assert lengths.valid == tuple(min(frames, -(-n // SPF) + int(padding * RATE / SPF)) for n in samples)
        assert lengths.own == tuple(public_frames([value], padding, release_config.sample_size) for value in seconds)


@pytest.mark.parametrize("name", GENERATIVE)
def test_an_item_of_a_batch_has_the_lengths_it_has_alone(release_config, name):
    for seconds, padding in batches(release_config.max_seconds, 100):
        together = timeline.lengths(release_config, seconds, padding)
        for i, value in enumerate(seconds):
            alone, picked = timeline.lengths(release_config, [value], padding), together.pick([i])
            for row in ("seconds", "samples", "own", "valid", "effective"):
                assert getattr(alone, row) == getattr(picked, row)
            assert picked.frames == together.frames >= alone.frames == alone.own[0]


@pytest.mark.parametrize("name", GENERATIVE)
def test_lengths_nest(release_config, name):
    for seconds, padding in batches(release_config.max_seconds, 100):
        lengths = timeline.lengths(release_config, seconds, padding)
        for samples, effective, valid, own in zip(lengths.samples, lengths.effective, lengths.valid, lengths.own, strict=True):
            assert (effective - 1) * SPF < samples <= effective * SPF
            assert effective <= valid <= own <= lengths.frames


@pytest.mark.parametrize(
    ("name", "seconds"), [("small-music", 120.0), ("small-music-base", 120.7), ("medium", 380.4), ("medium-base", 380.4)]
)
def test_the_longest_clip_of_a_release(name, seconds):
    parsed = config.parse(release_dict(name))
    assert parsed.max_seconds == pytest.approx(seconds, abs=0.05)
    assert timeline.lengths(parsed, [parsed.max_seconds]).frames == parsed.sample_size // SPF
    too_long = parsed.max_seconds + 0.1
    with refused("duration", f"{too_long:.2f}", f"{parsed.max_seconds:.1f}"):
        timeline.lengths(parsed, [1.0, too_long])


def test_the_seconds_embedder_limits_too():
    edited = release_dict("medium")
    edited["model"]["conditioning"]["configs"][1]["config"]["max_val"] = 100
    assert config.parse(edited).max_seconds == 100


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), 1e-6, True, "3"])
def test_impossible_durations_are_refused(tiny, seconds):
    with refused("duration", seconds):
        timeline.lengths(tiny, [seconds])


@pytest.mark.parametrize("padding", [-0.1, float("nan"), float("inf")])
def test_impossible_padding_is_refused(tiny, padding):
    with refused("padding", padding):
        timeline.lengths(tiny, [1.0], padding)


def test_a_given_number_of_frames(tiny):
    lengths = timeline.lengths(tiny, [1.0, 2.0], 6.0, frames=40)
    assert lengths.frames == 40 and lengths.own == (40, 40) and lengths.valid == (40, 40)
    with refused("21 frames", 2.0):
        timeline.lengths(tiny, [1.0, 2.0], frames=21)


def test_regions_are_sorted_and_merged():
    assert timeline.merge_regions([(5, 6), (1, 2), (1.5, 3), (3, 4)]) == [(1, 4), (5, 6)]
    assert timeline.merge_regions([(1, 9), (2, 3)]) == [(1, 9)]
    assert timeline.merge_regions([], 5) == []
    assert timeline.merge_regions([(0, 5)], 5) == [(0, 5)]


def test_merging_covers_the_same_time_without_overlap():
    rng = random.Random(5)
    for _ in range(200):
        regions = [(start, start + rng.randint(1, 9)) for start in (rng.randint(0, 40) for _ in range(rng.randint(1, 8)))]
        merged = timeline.merge_regions(regions)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(merged))
        covered = {tick for start, end in regions for tick in range(start, end)}
        assert {tick for start, end in merged for tick in range(start, end)} == covered


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ((2, 1), ["2-1", "before"]),
        ((2, 2), ["2-2", "before"]),
        ((-0.5, 1), ["-0.5", "outside"]),
        ((4, 6), ["4-6", "outside", 5]),
        ((float("nan"), 1), ["nan", "finite"]),
        ((0, float("inf")), ["inf", "finite"]),
    ],
)
def test_impossible_regions_are_refused(region, words):
    with refused("region", *words):
        timeline.merge_regions([(0, 1), region], 5)


def test_the_mask_is_the_nearest_neighbour_of_one_at_sample_resolution(tiny):
    rng = random.Random(6)
    for _ in range(60):
        seconds = [rng.uniform(0.5, 8) for _ in range(rng.randint(1, 3))]
        lengths = timeline.lengths(tiny, seconds, rng.choice([0.0, 1.0, 6.0]))
        points = sorted(rng.uniform(0, max(seconds)) for _ in range(2 * rng.randint(1, 3)))
        regions = [(a, max(b, a + SPF / RATE)) for a, b in zip(points[::2], points[1::2], strict=True)]  # at least a frame long
        full = torch.ones(len(seconds), 1, lengths.frames * SPF)
        for start, end in regions:
            full[..., int(start * RATE) : int(end * RATE)] = 0
        for i, value in enumerate(seconds):
            full[i, :, int(value * RATE) :] = 0
        wanted = torch.nn.functional.interpolate(full, size=lengths.frames, mode="nearest")
        assert torch.equal(timeline.keep_mask(tiny, regions, lengths), wanted)


def test_a_region_shorter_than_a_frame_marks_the_frame_that_it_lies_in(tiny):
    lengths = timeline.lengths(tiny, [4.0])
    for start in (0.0, 0.5, 1.0, 3.0):
        for length in (1 / RATE, 0.2 * SPF / RATE):
            mask = timeline.keep_mask(tiny, [(start, start + length)], lengths)[0, 0, : lengths.effective[0]]
            assert int(start * RATE) // SPF in (mask == 0).nonzero().flatten().tolist()


def test_the_mask_at_frame_edges(tiny):
    """A region that starts at a frame's first sample includes the frame; one that starts a sample later does not."""
    lengths, frame = timeline.lengths(tiny, [3.0], 0.0), SPF / RATE
    exact = timeline.keep_mask(tiny, [(4 * frame + 1e-7, 6 * frame + 1e-7)], lengths)[0, 0]
    later = timeline.keep_mask(tiny, [(4 * frame + 2 / RATE, 6 * frame + 2 / RATE)], lengths)[0, 0]
    assert (exact == 0).nonzero().flatten().tolist()[:2] == [4, 5] and exact[6] == 1
    assert later[4] == 1 and (later[5:7] == 0).all() and later[7] == 1
