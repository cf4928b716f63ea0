"""Audio files, read back with Python's wave module, with PyAV and chunk by chunk."""

import errno
import io
import json
import os
import struct
import wave

import av
import numpy as np
import pytest
import torch
from core_support import randn, refused

from sa3_core.audio import files as audio_files

RATE = 44100


def noise(channels=2, count=5003, level=0.2):
    return (randn(channels, count) * level).clamp(-1, 1)


def whole(channels=2, count=5003, bits=16):
    """Samples that are whole numbers at a bit depth."""
    generator = torch.Generator().manual_seed(1)
    full = 2 ** (bits - 1)
    values = torch.randint(-full, full, (channels, count), generator=generator)
    return values, (values.double() / full).float() if bits <= 24 else values


def chunks(path) -> dict[bytes, bytes]:
    data, at, found = path.read_bytes(), 12, {}
    assert data[:4] == b"RIFF" and data[8:12] == b"WAVE" and struct.unpack("<I", data[4:8])[0] == len(data) - 8
    while at < len(data):
        name, size = struct.unpack("<4sI", data[at : at + 8])
        found[name] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return found


def decode(path) -> tuple[np.ndarray, av.container.InputContainer]:
    """Whole numbers (C, N), or floats, as PyAV reads them."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = []
        for frame in container.decode(stream):
            values = frame.to_ndarray()
            parts.append(values if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels).T)
        return np.concatenate(parts, axis=1), dict(container.metadata), stream.rate


@pytest.mark.parametrize("kind", ["wav16", "flac16"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_samples_of_16_bits_come_back_exactly(tmp_path, kind, channels):
    values, samples = whole(channels)
    path = tmp_path / f"a.{audio_files.FORMATS[kind].suffix}"
    assert audio_files.write(path, samples, 48000, kind) == []
    found, _, rate = decode(path)
    assert rate == 48000 and np.array_equal(found, values.numpy())


@pytest.mark.parametrize("kind", ["wav24", "flac24", "flac"])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_samples_of_24_bits_come_back_exactly(tmp_path, kind, channels):
    values, samples = whole(channels, bits=24)
    path = tmp_path / f"a.{audio_files.FORMATS[kind].suffix}"
    assert audio_files.write(path, samples, RATE, kind) == []
    assert np.array_equal(decode(path)[0] >> 8, values.numpy())


@pytest.mark.parametrize("channels", [1, 2, 3, 11])
def test_floats_come_back_exactly_even_beyond_full_scale(tmp_path, channels):
    samples = noise(channels) * 20
    assert audio_files.write(tmp_path / "a.wav", samples, RATE, "wav32f") == []
    assert np.array_equal(decode(tmp_path / "a.wav")[0], samples.numpy())


def test_the_wave_module_reads_pcm(tmp_path):
    for kind, width in (("wav16", 2), ("wav24", 3)):
        audio_files.write(tmp_path / f"{kind}.wav", noise(), RATE, kind, {"prompt": "{}"})
        with wave.open(str(tmp_path / f"{kind}.wav")) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (2, width, RATE, 5003)
            assert len(file.readframes(6000)) == 5003 * 2 * width


@pytest.mark.parametrize("channels", [3, 6, 8, 12])
def test_more_than_two_channels_have_an_extensible_header(tmp_path, channels):
    audio_files.write(tmp_path / "a.wav", noise(channels), RATE, "wav24")
    header = chunks(tmp_path / "a.wav")[b"fmt "]
    tag, count, rate, per_second, block, bits, extra, valid, mask, sub = struct.unpack("<HHIIHHHHIH", header[:26])
    assert (tag, count, rate, block, bits, extra, valid, sub) == (0xFFFE, channels, RATE, 3 * channels, 24, 22, 24, 1)
    assert bin(mask).count("1") == (channels if channels <= 8 else 0) and per_second == RATE * block and len(header) == 40


@pytest.mark.parametrize("bits", [16, 24])
def test_rounding_is_dithered_and_deterministic(bits):
    step = 2.0 ** -(bits - 1)
    quiet = torch.full((1, 200_000), 0.3 * step, dtype=torch.float64)
    found, _ = audio_files.quantize(quiet, bits)
    assert torch.equal(found, audio_files.quantize(quiet, bits)[0])
    assert abs(float(found.double().mean()) - 0.3) < 0.01  # rounding alone would lose it
    error = found.double() - quiet / step
    assert abs(float(error.var()) - 0.25) < 0.01  # of triangular dither with rounding: (2 + 1) / 12 of a step squared
    assert set(found.unique().tolist()) <= {-1, 0, 1, 2}


def test_no_dither_for_exact_samples():
    values, samples = whole(bits=16)
    assert torch.equal(audio_files.quantize(samples, 16)[0], values.int())
    assert not audio_files.quantize(torch.zeros(2, 500), 16)[0].any()


def test_clipping_gives_a_warning():
    samples = torch.tensor([[0.5, 1.0, -1.0, 1.5, -2.0]])
    found, (said,) = audio_files.quantize(samples, 16)
    assert found.tolist() == [[16384, 32767, -32768, 32767, -32768]] and "2 samples" in said and "2.000" in said and "wav32f" in said


METADATA = {"prompt": '{"1": {"class_type": "ü"}}', "workflow": '{"nodes": []}', "sa3": '{"seed": 7}'}


@pytest.mark.parametrize("kind", ["flac16", "flac24"])
def test_flac_comments_have_the_keys_of_core(tmp_path, kind):
    audio_files.write(tmp_path / "a.flac", noise(), RATE, kind, METADATA)
    found = decode(tmp_path / "a.flac")[1]
    assert {key: found[key] for key in METADATA} == METADATA


def test_wav_metadata(tmp_path):
    audio_files.write(tmp_path / "a.wav", noise(), RATE, "wav16", METADATA)
    assert json.loads(chunks(tmp_path / "a.wav")[b"sa3 "]) == {key: json.loads(text) for key, text in METADATA.items()}
    assert decode(tmp_path / "a.wav")[1]["comment"] == METADATA["sa3"]
    audio_files.write(tmp_path / "b.wav", noise(), RATE, "wav16")
    assert set(chunks(tmp_path / "b.wav")) == {b"fmt ", b"data"}


def test_odd_sizes_are_padded(tmp_path):
    audio_files.write(tmp_path / "a.wav", noise(1, 333), RATE, "wav24", {"sa3": "odd"})
    assert len(chunks(tmp_path / "a.wav")[b"data"]) == 999


def test_a_file_is_never_overwritten(tmp_path):
    (tmp_path / "a_00002_.wav").write_bytes(b"mine")
    names = [audio_files.write_next(tmp_path, "a", 1, noise(), RATE, "wav16")[0].name for _ in range(3)]
    assert names == ["a_00001_.wav", "a_00003_.wav", "a_00004_.wav"] and (tmp_path / "a_00002_.wav").read_bytes() == b"mine"
    with pytest.raises(FileExistsError):
        audio_files.write(tmp_path / "a_00002_.wav", noise(), RATE, "wav16")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("kind", ["wav16", "flac16"])
def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch, kind):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused("cannot be written", "No space"):
        audio_files.write(tmp_path / "a", noise(), RATE, kind)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_while_flac_is_encoded_is_not_the_encoders_fault(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda path, mode: Full(path, "wb+"))
    with refused("cannot be written", "No space"):
        audio_files.write(tmp_path / "a", noise(), RATE, "flac")


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def unsupported(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    path, _ = audio_files.write_next(tmp_path, "a", 1, noise(), RATE, "wav16")
    assert len(chunks(path)[b"data"]) == 5003 * 4 and [p.name for p in tmp_path.iterdir()] == ["a_00001_.wav"]
    with pytest.raises(FileExistsError):
        audio_files.write(path, noise(), RATE, "wav16")


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_a_file_has_the_default_permissions(tmp_path):
    audio_files.write(tmp_path / "a.wav", noise(), RATE, "wav16")
    (tmp_path / "other").touch()
    assert (tmp_path / "a.wav").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("samples", "rate", "kind", "words"),
    [
        (torch.zeros(2, 100, dtype=torch.int16), RATE, "wav16", ["int16", "floating"]),
        (torch.zeros(1, 2, 100), RATE, "wav16", ["(1, 2, 100)", "channels"]),
        (torch.zeros(2, 0), RATE, "wav16", ["(2, 0)"]),
        (torch.full((2, 300), torch.nan), RATE, "wav16", ["NaN"]),
        (torch.zeros(2, 100), 0, "wav16", ["rate of 0"]),
        (torch.zeros(2, 100), RATE, "mp3", ["'mp3'", "wav24"]),
        (torch.zeros(9, 100), RATE, "flac16", ["9 channels", "8", "WAV"]),
        (torch.zeros(2, 100), 2_000_000, "flac16", ["2000000", "WAV"]),
    ],
)
def test_unsupported_audio_is_refused(tmp_path, samples, rate, kind, words):
    with refused(*words):
        audio_files.write(tmp_path / "a", samples, rate, kind)
    assert list(tmp_path.iterdir()) == []
