"""Levels against ITU-R BS.1770-4 and the test signals of EBU Tech 3341 that consist of sines."""

import math

import pytest
import torch

from sa3_core import SA3Error
from sa3_core.audio.loudness import Levels, k_weighting, limit, measure, normalized, true_peaks, weighted

RATE = 48000


def sine(level: float, seconds: float, frequency: float = 1000.0, rate: int = RATE, phase: float = 0.0) -> torch.Tensor:
    """(N,) with a peak of `level` dBFS; phase in degrees."""
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return 10 ** (level / 20) * torch.sin(2 * torch.pi * frequency * time + math.radians(phase))


def integrated(clip: torch.Tensor, rate: int) -> float:
    return measure(clip, rate).integrated


def stereo(*parts: tuple[float, float], rate: int = RATE) -> torch.Tensor:
    """A 1 kHz tone in both channels through (level, seconds) pieces, in phase all along."""
    time = sum(seconds for _, seconds in parts)
    gains = torch.cat([torch.full((round(seconds * rate),), 10 ** (level / 20), dtype=torch.float64) for level, seconds in parts])
    return (sine(0, time, rate=rate)[: gains.numel()] * gains).expand(2, -1)


# -- the weighting ------------------------------------------------------------------------------------------------------


def test_k_weighting_equals_the_published_filters_at_48_khz():
    frequency = torch.linspace(1, 23999, 500, dtype=torch.float64)
    z = torch.exp(-2j * torch.pi * frequency / 48000)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (1 - 1.69065929318241 * z + 0.73248077421585 * z**2)
    high = (1 - 2 * z + z**2) / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    assert torch.allclose(k_weighting(frequency, 48000), shelf * high, rtol=1e-6, atol=1e-9)


def test_weighting_equals_the_recursive_filter():
    x = torch.randn(2, 700_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = weighted(x, RATE)[:, :2000]
    # the norm's difference equations, sample by sample
    a = [(1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -2.0, 1.0)]
    b = [(-1.69065929318241, 0.73248077421585), (-1.99004745483398, 0.99007225036621)]
    y = x[0, :2000].tolist()
    for (a0, a1, a2), (b1, b2) in zip(a, b, strict=True):
        out = []
        for n, value in enumerate(y):
            past = [y[n - k] if n >= k else 0.0 for k in (1, 2)] + [out[n - k] if n >= k else 0.0 for k in (1, 2)]
            out.append(a0 * value + a1 * past[0] + a2 * past[1] - b1 * past[2] - b2 * past[3])
        y = out
    assert torch.allclose(head[0], torch.tensor(y, dtype=torch.float64), atol=1e-6)
    # no seam where blocks meet: the second block alone, with the first as its past
    tail = weighted(x[:, 400_000:], RATE)[:, 100_000:]
    assert torch.allclose(weighted(x, RATE)[:, 500_000:], tail, atol=1e-10)


@pytest.mark.parametrize("rate", [16000, 32000, 44100, 48000, 88200, 96000, 192000])
def test_a_997_hz_sine_at_any_rate(rate):
    tone = sine(-23, 5, 997, rate)
    assert integrated(tone.expand(2, -1), rate) == pytest.approx(-23.0, abs=0.1)  # two channels: the level itself
    assert integrated(sine(0, 5, 997, rate)[None], rate) == pytest.approx(-3.01, abs=0.05)  # BS.1770: full scale in one channel


def test_surround_channels_weigh_more_and_the_lfe_nothing():
    tone, silence = sine(-20, 5), torch.zeros(5 * RATE, dtype=torch.float64)

    def at(channel):
        return integrated(torch.stack([tone if i == channel else silence for i in range(6)]), RATE)

    assert at(4) - at(0) == pytest.approx(1.5, abs=0.01) and at(3) == -math.inf


# -- EBU Tech 3341, minimum requirements --------------------------------------------------------------------------------

GATING = {
    "case 1": ([(-23, 20)], -23.0),
    "case 2": ([(-33, 20)], -33.0),
    "case 3": ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
    "case 4": ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
    "case 5": ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
}


@pytest.mark.parametrize("case", GATING)
def test_ebu_integrated(case):
    parts, expected = GATING[case]
    assert integrated(stereo(*parts), RATE) == pytest.approx(expected, abs=0.1)


def test_ebu_case_6_five_channels():
    levels = [-28, -28, -24, -30, -30]
    assert integrated(torch.stack([sine(level, 20) for level in levels]), RATE) == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize("lead", [0.0, 0.15, 1.35])
def test_ebu_cases_10_and_13_windows_that_begin_anywhere(lead):
    """A burst as long as the window is measured fully, whatever the silence before it."""
    burst = measure(stereo((-200, lead), (-23, 3), (-200, 1)), RATE)
    assert burst.short_term == pytest.approx(-23.0, abs=0.1)
    short = measure(stereo((-200, lead), (-23, 0.4), (-200, 1)), RATE)
    assert short.momentary == pytest.approx(-23.0, abs=0.6)


TRUE_PEAK = {  # frequency over rate, phase, amplitude, expected dBTP
    "case 15": (1 / 4, 0, 0.5, -6.0),
    "case 16": (1 / 4, 45, 0.5, -6.0),
    "case 17": (1 / 6, 60, 0.5, -6.0),
    "case 18": (1 / 8, 67.5, 0.5, -6.0),
    "case 19": (1 / 4, 45, 1.41, 3.0),
}


@pytest.mark.parametrize("case", TRUE_PEAK)
def test_ebu_true_peak(case):
    ratio, phase, amplitude, expected = TRUE_PEAK[case]
    ramp = (torch.arange(RATE) / 4800).clamp(max=1)  # a sudden start or end has peaks of its own
    tone = sine(20 * math.log10(amplitude), 1, RATE * ratio, phase=phase) * ramp * ramp.flip(0)
    found = measure(tone.expand(2, -1), RATE).true_peak
    assert expected - 0.4 <= found <= expected + 0.2


@pytest.mark.parametrize("offset", range(4))
def test_ebu_cases_20_to_23_a_peak_between_samples(offset):
    """A band-limited burst at four times the rate, decimated at each of four offsets, has a peak of 0 dBTP."""
    time = torch.arange(-2000, 2000, dtype=torch.float64)
    fine = torch.cos(2 * torch.pi * time / 16) * torch.exp(-((time / 200) ** 2))
    found = 20 * math.log10(float(true_peaks(fine[offset::4][None]).max()))
    assert -0.4 <= found <= 0.2


# -- the rest -----------------------------------------------------------------------------------------------------------


def test_peak_rms_and_crest_of_a_sine():
    levels = measure(sine(-6, 1).expand(2, -1).float(), RATE)
    assert levels.peak == pytest.approx(-6.0, abs=0.01) and levels.rms == pytest.approx(-9.01, abs=0.01)
    assert levels.crest == pytest.approx(3.01, abs=0.01) and levels.seconds == 1.0


def test_silence_and_the_shortest_clip():
    assert measure(torch.zeros(2, RATE), RATE) == Levels(*[-math.inf] * 6, seconds=1.0)
    assert "-inf LUFS" in str(measure(torch.zeros(2, RATE), RATE))
    assert measure(torch.full((1, 256), 0.5), RATE).seconds == pytest.approx(256 / RATE)
    with pytest.raises(SA3Error, match="NaN"):
        measure(torch.full((1, 500), torch.nan), RATE)


def noisy(seconds: float = 3.0, peak: float = 2.0) -> torch.Tensor:
    """Quiet stereo noise with two loud clicks at 1 s and 2 s."""
    x = 0.1 * torch.randn(2, round(seconds * RATE), generator=torch.Generator().manual_seed(1))
    x[0, RATE] = peak
    x[:, 2 * RATE : 2 * RATE + 20] = -peak
    return x


@pytest.mark.parametrize("ceiling", [-1.0, -12.0])
def test_the_limiter_holds_its_ceiling(ceiling):
    out = limit(noisy(), RATE, ceiling)
    assert measure(out, RATE).true_peak <= ceiling + 1e-6
    assert measure(out, RATE).true_peak > ceiling - 0.1  # and takes no more than it must


def test_the_limiter_keeps_samples_far_from_a_peak():
    x = noisy()
    out = limit(x, RATE, -1.0)
    assert torch.equal(out[:, : RATE - 2000], x[:, : RATE - 2000]) and torch.equal(out[:, -RATE // 2 :], x[:, -RATE // 2 :])
    quiet = 0.1 * x[:, :RATE]
    assert limit(quiet, RATE, -1.0) is quiet


def test_the_limiter_has_one_smooth_gain_for_all_channels():
    x = noisy()
    out = limit(x, RATE, -6.0)
    gain = out.double() / x.double()
    assert torch.allclose(gain[0], gain[1], atol=1e-4)
    assert float(gain[0].diff().abs().max()) < 0.03  # about 1 / reach
    tone = sine(6, 2, 50).expand(2, -1)  # a low tone beyond full scale, whose waves must not be bent one by one
    spectrum = torch.fft.rfft(limit(tone, RATE, -1.0)[0, RATE // 2 :][:RATE]).abs()
    assert float(spectrum[100:].max() / spectrum[50]) < 0.01  # harmonics below -40 dB


@pytest.mark.parametrize(("kind", "target"), [("peak", -3.0), ("loudness", -16.0)])
def test_normalize_meets_its_target_by_one_gain(kind, target):
    x = noisy(peak=0.5)
    out, gain = normalized(x, RATE, kind, target)
    levels = measure(out, RATE)
    assert (levels.true_peak if kind == "peak" else levels.integrated) == pytest.approx(target, abs=0.01)
    assert torch.allclose(out, x * 10 ** (gain / 20), atol=1e-6)


def test_normalize_off_silence_and_an_unknown_kind():
    x, silence = noisy(), torch.zeros(2, RATE)
    assert normalized(x, RATE, "off", -14.0) == (x, 0.0) and normalized(silence, RATE, "loudness", -14.0) == (silence, 0.0)
    with pytest.raises(SA3Error, match="choose one of off, peak, loudness"):
        normalized(x, RATE, "rms", -14.0)
