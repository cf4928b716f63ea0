"""Audio files, read back with Python's wave module, with PyAV and chunk by chunk."""

import errno
import io
import json
import os
import struct
import sys
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


LOSSY = ["mp3", "opus", "m4a"]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("quality", ["low", "medium", "high", "best"])
@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("count", [256, 1152, 70_001])
def test_lossy_formats_keep_length_and_position(tmp_path, kind, quality, count):
    """The decoded file starts with the first sample and has the length: to the sample in mp3 and opus, up to 1023 more in m4a, whose edit
    list states the length for players."""
    rate = 48000 if kind == "opus" else RATE
    time = torch.arange(count) / rate
    samples = torch.stack([0.4 * torch.sin(2 * torch.pi * hertz * time) for hertz in (300, 450)]) + noise(2, count, 0.02)
    path = tmp_path / f"a.{kind}"
    assert audio_files.write(path, samples, rate, kind, quality=quality) == []
    found, _, own = decode(path)
    assert own == rate and found.shape[0] == 2 and 0 <= found.shape[1] - count < (1024 if kind == "m4a" else 1)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        if kind == "m4a":
            assert stream.duration * stream.time_base * rate == count
    assert all(correlation(found[i, :count], samples[i].numpy()) > (0.97 if count > 1152 else 0.8) for i in range(2))
    assert correlation(found[0, :count], samples[1].numpy()) < 0.5  # the channels keep their order


@pytest.mark.parametrize("kind", LOSSY)
def test_quality_sets_the_size_and_bytes_are_deterministic(tmp_path, kind):
    samples, sizes = noise(2, 3 * RATE), []
    for quality in ("low", "medium", "high", "best"):
        for name in "ab":
            audio_files.write(tmp_path / f"{name}{quality}", samples, RATE, kind, METADATA, quality)
        first, second = ((tmp_path / f"{name}{quality}").read_bytes() for name in "ab")
        assert first == second
        sizes.append(len(first))
    assert sizes == sorted(sizes) and sizes[-1] > 1.5 * sizes[0]
    with refused("quality is 'V0'", "best"):
        audio_files.write(tmp_path / "c", samples, RATE, kind, None, "V0")


@pytest.mark.parametrize(("kind", "rate", "own"), [("opus", 44100, 48000), ("opus", 8000, 48000), ("mp3", 96000, 48000),
                                                   ("mp3", 23000, 24000), ("m4a", 192000, 96000), ("m4a", 96000, 96000)])  # fmt: skip
def test_a_rate_that_a_codec_lacks_is_resampled(tmp_path, kind, rate, own):
    count = rate // 2 + 7
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(count) / rate)[None]
    said = audio_files.write(tmp_path / "a", tone, rate, kind)
    assert [str(rate) in one and str(own) in one for one in said] == ([] if rate == own or kind == "opus" else [True])
    found, _, found_rate = decode(tmp_path / "a")
    length = -(-count * own // rate)
    assert found_rate == own and 0 <= found.shape[1] - length < (1024 if kind == "m4a" else 1)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(length) / own)
    assert correlation(found[0, :length], expected) > 0.99


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_clip_with_a_warning(tmp_path, kind):
    loud = 1.5 * torch.sin(torch.arange(RATE) / 30)[None]
    (said,) = audio_files.write(tmp_path / "a", loud, RATE, kind)
    assert "exceed full scale (peak 1.500)" in said and "wav32f" in said
    assert 0.9 < np.abs(decode(tmp_path / "a")[0]).max() < 1.3  # the codec's overshoot


@pytest.mark.parametrize("kind", LOSSY)
def test_metadata_of_lossy_formats(tmp_path, kind):
    large = {**METADATA, "workflow": json.dumps({"nodes": ["n" * 70_000]}), "ü": "ö\n", "": "no name", "lone": "\ud800"}
    audio_files.write(tmp_path / "a", noise(), RATE, kind, large)
    with av.open(str(tmp_path / "a")) as container:
        found = {**container.metadata, **container.streams.audio[0].metadata}
    assert {key: found[key] for key in METADATA} == {key: large[key] for key in METADATA} and found["ü"] == "ö\n"
    audio_files.write(tmp_path / "b", noise(), RATE, kind)
    assert b"prompt" not in (tmp_path / "b").read_bytes()


def test_without_pyav_one_sentence_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for kind in ("flac", *LOSSY):
        with refused(f"Writing {kind}", "'av'", "wav"):
            audio_files.write(tmp_path / "a", noise(), RATE, kind)
    assert list(tmp_path.iterdir()) == []


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
        (torch.zeros(2, 100), RATE, "mp4", ["'mp4'", "wav24", "opus"]),
        (torch.zeros(9, 100), RATE, "flac16", ["9 channels", "8", "as wav"]),
        (torch.zeros(3, 100), RATE, "mp3", ["3 channels", "mp3 holds at most 2", "flac"]),
        (torch.zeros(6, 100), RATE, "opus", ["6 channels", "opus holds at most 2"]),
        (torch.zeros(2, 100), 2_000_000, "flac16", ["2000000", "as wav"]),
    ],
)
def test_unsupported_audio_is_refused(tmp_path, samples, rate, kind, words):
    with refused(*words):
        audio_files.write(tmp_path / "a", samples, rate, kind)
    assert list(tmp_path.iterdir()) == []
