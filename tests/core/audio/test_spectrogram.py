"""Images of waveforms and spectrograms: positions and brightness."""

import math

import pytest
import torch

from sa3_core import SA3Error
from sa3_core.audio import spectrogram

RATE = 44100


def tone(frequency: float, seconds: float = 1.0, level: float = 0.5) -> torch.Tensor:
    return (level * torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * RATE)) / RATE))[None]


@pytest.mark.parametrize("scale", spectrogram.SCALES)
@pytest.mark.parametrize("hertz", [200, 1000, 8000])
def test_a_tone_is_bright_in_its_row(scale, hertz):
    light = spectrogram.spectrogram(tone(hertz, level=0.1), RATE, 120, 200, scale).sum(-1)[:, 10:-10].mean(1)  # (200,), ends left out
    grid = spectrogram.frequencies(RATE, 200, scale)
    row = int((grid - hertz).abs().argmin())
    assert abs(int(light.argmax()) - row) <= 1 or abs(float(grid[light.argmax()]) - hertz) < RATE / 2048 / 2  # a row, or half a bin
    far = (torch.arange(200) - row).abs() > 60
    assert float(light[far].max()) < 0.3 * float(light.max())


def test_a_full_scale_tone_has_0_db():
    power = spectrogram.column_power(tone(50 * RATE / 2048, level=1.0), RATE, 20)
    assert float(power[50, 5:-5].mean()) == pytest.approx(1.0, abs=0.01)


def test_time_runs_from_left_to_right():
    clip = torch.cat((torch.zeros(1, RATE), tone(1000), torch.zeros(1, 2 * RATE)), dim=1)
    light = spectrogram.spectrogram(clip, RATE, 400, 100).sum((0, 2))
    assert float(light[110:190].min()) > 2 * max(float(light[:90].max()), float(light[210:].max()))
    wave = (spectrogram.waveform(clip, 400, 100) - torch.tensor(spectrogram.BACKGROUND)).abs().sum((0, 2))
    assert float(wave[110:190].min()) > 10 * float(wave[210:].max())


def test_silence_is_dark():
    dark = spectrogram.draw(torch.zeros(2, RATE), RATE, 256, 128, "spectrogram", axes=False)
    assert float(dark.max()) < 0.06
    line = spectrogram.draw(torch.zeros(2, RATE), RATE, 256, 128, "waveform", axes=False)
    assert float((line.sum(-1) > 0.4).float().mean()) < 0.05  # a thin line per channel


def test_a_channel_has_its_lane_and_clipping_is_red():
    clip = torch.cat((tone(100, level=0.9), tone(100, level=0.0), tone(100, level=1.5)))
    wave = spectrogram.waveform(clip, 300, 90)
    first, second, third = ((lane.sum(-1) > 0.6).float().mean() for lane in wave.split(30))
    assert first > 0.5 and second < 0.1 and third > 0.9
    red = (wave[..., 0] > wave[..., 2] + 0.3).float()
    assert red[:60].sum() == 0 and red[60:].sum() > 300


@pytest.mark.parametrize("kind", spectrogram.KINDS)
@pytest.mark.parametrize(("width", "height"), [(16, 16), (333, 97), (1024, 512)])
@pytest.mark.parametrize("samples", [256, 5000, 200_000])
def test_sizes_and_range(kind, width, height, samples):
    clip = torch.rand(2, samples, generator=torch.Generator().manual_seed(0)) - 0.5
    made = spectrogram.draw(clip, 22050, width, height, kind)
    assert made.shape == (height, width, 3) and bool(((made >= 0) & (made <= 1)).all())
    assert torch.equal(made, spectrogram.draw(clip, 22050, width, height, kind))


def test_axes_are_written_on_request():
    plain, labelled = (spectrogram.draw(tone(1000, 3), RATE, 400, 200, axes=axes) for axes in (False, True))
    changed = (plain != labelled).any(-1)
    assert changed[:, :30].any() and changed[-16:].any() and not changed[:60].any()


def test_quiet_and_loud_ends():
    clip = tone(1000, level=10 ** (-60 / 20))
    bright = spectrogram.spectrogram(clip, RATE, 50, 50, quiet=-80, loud=-60)
    dark = spectrogram.spectrogram(clip, RATE, 50, 50, quiet=-40, loud=0)
    assert float(bright.max()) > 0.9 and float(dark.max()) < 0.06


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "both", "scale": "bark"}, "mel, log, linear"), ({"kind": "cepstrum"}, "both, waveform, spectrogram"),
        ({"width": 8}, "16 x 16"), ({"quiet": 0.0, "loud": -10.0}, "must be higher"),
    ],
)  # fmt: skip
def test_invalid_options_are_refused(options, words):
    with pytest.raises(SA3Error, match=words):
        spectrogram.draw(tone(1000), RATE, **options)
