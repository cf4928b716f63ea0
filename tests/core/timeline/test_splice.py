"""Splicing: samples outside the regions stay bit-identical; seams are smooth and reported."""

import math
import random

import pytest
import torch

from sa3_core import SA3Error
from sa3_core.audio.waveform import resampled_length
from sa3_core.timeline.regions import format_regions, merge_regions, parse_regions, sample_span
from sa3_core.timeline.splicing import splice, wrap_jump


def sound(rate: int, seconds: float, channels: int = 2, seed: int = 0) -> torch.Tensor:
    """Tones with a little noise, (1, channels, N)."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(int(rate * seconds)) / rate
    tones = torch.stack([0.3 * torch.sin(2 * math.pi * (220 + 110 * c + 7 * seed) * t) for c in range(channels)])
    return (tones + 0.01 * torch.randn(tones.shape, generator=generator))[None]


def random_regions(rng: random.Random, duration: float) -> list[tuple[float, float]]:
    edges = sorted(rng.uniform(0, duration) for _ in range(2 * rng.randint(1, 4)))
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1e-3]


@pytest.mark.parametrize("case", range(24))
def test_outside_the_regions_every_bit_is_the_original(case):
    rng = random.Random(case)
    rate, channels = rng.choice([8000, 22050, 44100, 48000, 96000, 192000]), rng.choice([1, 2, 6])
    duration = rng.uniform(0.5, 2.0)
    original = sound(rate, duration, channels, case)
    regions = random_regions(rng, original.shape[-1] / rate) or [(0.1, 0.2)]
    generated = sound(44100, duration + 0.1, 2, case + 100)
    out, _ = splice(original, generated, regions, rate, 44100, rng.choice([0.0, 0.005, 0.02, 1.0]), match_level=bool(case % 2))
    inside = torch.zeros(original.shape[-1], dtype=torch.bool)
    for region in merge_regions(regions):
        inside[slice(*sample_span(region, rate))] = True
    assert out.shape == original.shape and out.dtype == original.dtype
    assert torch.equal(out[..., ~inside], original[..., ~inside])
    assert not torch.equal(out[..., inside], original[..., inside])


def test_a_region_touches_no_sample_outside_its_seconds():
    for rate in (8000, 44100, 48000, 192000):
        for start, end in [(0.1, 0.2), (1 / 3, 2 / 3), (0.10000001, 0.5), (1.1, 2.2)]:
            a, b = sample_span((start, end), rate)
            assert a / rate >= start - 1e-3 / rate and (b - 1) / rate < end
            assert a - start * rate < 1 and end * rate - b < 1


def test_without_a_fade_the_region_is_the_generated_audio():
    original, generated = sound(44100, 1.0), sound(44100, 1.0, seed=5)
    out, _ = splice(original, generated, [(0.25, 0.5)], 44100, crossfade=0.0)
    assert torch.equal(out[..., 11025:22050], generated[..., 11025:22050])


def test_the_fade_keeps_the_power_of_unrelated_sounds():
    generator = torch.Generator().manual_seed(1)
    original, generated = (0.1 * torch.randn(1, 1, 44100 * 4, generator=generator) for _ in range(2))
    out, _ = splice(original, generated, [(1.0, 3.0)], 44100, crossfade=0.5)
    fade = out[..., 44100 : 44100 + 22050].unflatten(-1, (10, -1)).square().mean(-1)
    assert torch.all((fade / 0.01 - 1).abs() < 0.1)


def test_both_seams_of_a_fade_are_no_larger_than_steps_nearby():
    original, generated = sound(44100, 2.0), sound(44100, 2.0, seed=9)
    _, report = splice(original, generated, [(0.5, 1.5)], 44100, crossfade=0.02)
    assert len(report.seams) == 2
    assert all(seam.jump <= 1.5 * seam.usual_jump for seam in report.seams)


def test_the_spectral_flux_tells_another_sound_from_the_same():
    tone, other = sound(44100, 2.0), sound(44100, 2.0, channels=2, seed=60)
    for generated, low, high in ((tone, 0.0, 0.2), (other, 0.6, 1.0)):
        _, report = splice(tone, generated, [(0.5, 1.5)], 44100, crossfade=0.0)
        assert all(low <= seam.flux <= high and seam.usual_flux < 0.2 for seam in report.seams)
    silence = torch.zeros(1, 2, 88200)
    assert splice(silence, tone, [(0.5, 2.0)], 44100, crossfade=0.0)[1].seams[0].flux == pytest.approx(1)
    assert splice(silence, silence, [(0.5, 1.0)], 44100)[1].seams[0].flux == 0
    edge = splice(tone, tone, [(0.001, 1.0)], 44100)[1].seams[0]
    assert edge.flux == 0  # no whole frame before it
    assert splice(tone[..., :100], tone, [(0.001, 0.002)], 44100)[1].seams[0].usual_flux == 0


def test_a_continuation_joins_the_last_sample():
    """After the end there is nothing to fade from: an offset joins the generated audio to the last sample."""
    given = sound(44100, 1.0)
    line = torch.nn.functional.pad(given, (0, 44100))
    generated = sound(44100, 2.0, seed=3) + 0.2
    out, report = splice(line, generated, [(1.0, 2.0)], 44100, crossfade=0.02)
    (seam,) = report.seams
    assert seam.jump <= 1.5 * seam.usual_jump
    first = out[..., 44100 : 44100 + 441].square().mean()
    assert first > 0.2 * generated[..., 44100 : 44100 + 441].square().mean()
    assert torch.equal(out[..., 44100 + 882 :], generated[..., 44100 + 882 :])


def test_level_match_brings_back_the_level_around_the_region():
    original = sound(44100, 3.0)
    out, report = splice(original, 0.25 * original, [(1.0, 2.0)], 44100, crossfade=0.0, match_level=True)
    assert report.gains == [[pytest.approx(4.0, rel=1e-3)]]
    assert torch.allclose(out, original, atol=1e-6)


def test_channels_are_fitted_and_reported():
    six, stereo = sound(48000, 1.0, 6), sound(44100, 1.0, 2, 4)
    out, report = splice(six, stereo, [(0.2, 0.4)], 48000)
    assert out.shape == six.shape and "6" in str(report)
    mono, report = splice(six[:, :1], stereo, [(0.2, 0.4)], 48000)
    assert mono.shape == six[:, :1].shape and "mono" in str(report)


@pytest.mark.parametrize(
    ("regions", "words"),
    [([(0.5, 0.2)], "ends before"), ([(-1, 0.5)], "outside"), ([(0.5, 9)], "outside"), ([(0.1, float("nan"))], "finite")],
)
def test_bad_regions_are_named(regions, words):
    with pytest.raises(SA3Error, match=words):
        splice(sound(44100, 1.0), sound(44100, 1.0), regions, 44100)


def test_bad_audio_is_named():
    good = sound(44100, 1.0)
    for pair in ((good, good * float("nan")), (good * float("nan"), good)):
        with pytest.raises(SA3Error, match="NaN"):
            splice(*pair, [(0.1, 0.2)], 44100)
    with pytest.raises(SA3Error, match="int16"):
        splice((good * 32767).short(), good, [(0.1, 0.2)], 44100)
    with pytest.raises(SA3Error, match="cross-fade"):
        splice(good, good, [(0.1, 0.2)], 44100, crossfade=-1)
    with pytest.raises(SA3Error, match="long"):
        splice(good, good[..., :4410], [(0.5, 0.9)], 44100)


@pytest.mark.parametrize("match_level", [False, True])
def test_an_item_of_a_batch_is_spliced_as_if_alone(match_level):
    original = torch.cat([sound(44100, 1.0), 0.1 * sound(44100, 1.0, seed=1), sound(44100, 1.0, seed=2)])
    original[2, :, 22050:] = 0  # a continuation, which is joined in another way
    generated = torch.cat([sound(44100, 1.0, seed=seed) for seed in (5, 6, 7)])
    given = [(0.2, 0.3), (0.5, 1.0)]
    out, report = splice(original, generated, given, 44100, match_level=match_level)
    for i in range(3):
        alone, own = splice(original[i : i + 1], generated[i : i + 1], given, 44100, match_level=match_level)
        assert torch.equal(out[i : i + 1], alone) and report.gains[i] == own.gains[0]
        for line in str(own).splitlines():
            assert f"item {i + 1}, {line}" in str(report)


def test_views_are_spliced_like_copies():
    original, generated = (sound(48000, 0.5, seed=seed).expand(2, -1, -1) for seed in (1, 2))
    views = [clip.transpose(1, 2).contiguous().transpose(1, 2) for clip in (original, generated)]
    wanted, _ = splice(original.clone(), generated.clone(), [(0.1, 0.2)], 48000)
    assert torch.equal(splice(*views, [(0.1, 0.2)], 48000)[0], wanted)
    assert torch.equal(splice(original, generated, [(0.1, 0.2)], 48000)[0], wanted)


@pytest.mark.parametrize("crossfade", [5.0, 1e308])
def test_a_crossfade_is_at_most_half_the_region(crossfade):
    original, generated = sound(44100, 1.0), sound(44100, 1.0, seed=1)
    wanted, _ = splice(original, generated, [(0.2, 0.4)], 44100, crossfade=0.1)
    assert torch.equal(splice(original, generated, [(0.2, 0.4)], 44100, crossfade=crossfade)[0], wanted)


def test_the_report_says_what_was_done_where_there_is_no_seam():
    original, generated = sound(44100, 1.0), sound(44100, 1.0, seed=1)
    out, report = splice(original, generated, [(0.0, 0.4), (0.4, 1.0)], 44100)
    assert torch.equal(out, generated) and "whole clip" in str(report)
    out, report = splice(original, generated, [(0.100001, 0.100009)], 44100)
    assert torch.equal(out, original) and "nothing was changed" in str(report)


def test_a_long_clip_at_a_high_rate_is_spliced_to_its_end():
    """torchaudio computes the length of the result in float32: one sample short of this continuation."""
    n, added, rate = 200 * 192000 + 2, 192000, 192000
    generated = torch.zeros(1, 1, resampled_length(n + added, rate, 44100))
    generated[..., -30000:] = 0.5
    out, _ = splice(torch.zeros(1, 1, n + added), generated, [(n / rate, (n + added) / rate)], rate)
    assert out.shape[-1] == n + added and float(out[..., -2000:].min()) > 0.3


def test_regions_read_write_and_merge():
    assert parse_regions("1.5-3, 10-12.25\n1:05-1:10.5;") == [(1.5, 3), (10, 12.25), (65, 70.5)]
    assert merge_regions([(5, 6), (1, 2), (1.5, 3), (3, 4)]) == [(1, 4), (5, 6)]
    rng = random.Random(0)
    for _ in range(50):
        regions = merge_regions(random_regions(rng, 300.0) or [(1, 2)])
        back = parse_regions(format_regions(regions))
        for rate in (44100, 192000):
            assert [sample_span(r, rate) for r in back] == [sample_span(r, rate) for r in regions]
    with pytest.raises(SA3Error, match=r"'1\.5'"):
        parse_regions("1.5")
    with pytest.raises(SA3Error, match="'a-b'"):
        parse_regions("a-b")


def test_wrap_jump_of_whole_periods():
    t = torch.arange(44100) / 44100
    step, usual = wrap_jump(torch.sin(2 * math.pi * 100 * t)[None, None])
    assert step <= usual * 1.001
