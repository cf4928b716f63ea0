"""Conversion of clips to the model's sample rate, channels and dtype."""

import math

import pytest
import torch
from core_support import randn, rel_error

from sa3_core.audio import waveform


def sine(rate, seconds=0.5, hertz=440.0):
    return torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds)) / rate)


def test_a_clip_at_the_models_rate_is_unchanged():
    clip = randn(2, 1000)
    assert torch.equal(waveform.to_model("clip", 44100, clip, 44100, 2), clip)


@pytest.mark.parametrize("shape", [(1000,), (1, 1000)])
def test_mono_is_copied_to_both_channels(shape):
    clip = randn(1000).reshape(shape)
    out = waveform.to_model("clip", 44100, clip, 44100, 2)
    assert out.shape == (2, 1000) and torch.equal(out[0], clip.flatten()) and torch.equal(out[1], clip.flatten())


@pytest.mark.parametrize("rate", [8000, 22050, 48000, 96000])
def test_resampling_keeps_a_tone(rate):
    out = waveform.to_model("clip", rate, sine(rate), 44100, 2)
    assert abs(out.shape[1] - 22050) <= 1
    middle = slice(2000, 20000)  # away from the ends, where the tone begins and stops
    assert rel_error(out[0, middle], sine(44100)[middle]) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_floating_types_become_float32(dtype):
    assert waveform.to_model("clip", 44100, torch.zeros(2, 500, dtype=dtype), 44100, 2).dtype == torch.float32


@pytest.mark.parametrize("rate", [192000, 48000])
@pytest.mark.parametrize("samples", [2**24 - 1, 2**24 + 1, 38_400_002])
def test_a_resampled_length_is_exact_beyond_what_float32_counts(monkeypatch, rate, samples):
    """torchaudio's function is replaced by one that computes its length, so that no long clip is computed."""
    import torchaudio

    def sinc(row, rate, target):
        common = math.gcd(rate, target)
        length = torch.ceil(torch.as_tensor(target // common * len(row) / (rate // common)))
        return torch.zeros(1).expand(int(length))

    monkeypatch.setattr(torchaudio.functional, "resample", sinc)
    out = waveform.resample(torch.zeros(1).expand(1, samples), rate, 44100)
    assert out.shape[-1] == -(-samples * 44100 // rate)
