"""Latents on disk, without ComfyUI: the public tools' pairs, and files that are damaged or hostile."""

import io
import json
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from core_support import randn
from safetensors.torch import save_file

from sa3_core.checkpoints import latent_files
from sa3_core.checkpoints.latent_files import LatentFile
from sa3_core.errors import SA3Error

FRAMES = 40


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_header(text: str, version=(1, 0)) -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text.encode()


def public_record(samples: int, frames: int, pad: bool) -> dict:
    """The JSON of the public tools' script for a recording of `samples` samples, encoded to `frames` frames."""
    valid = -(-samples // 4096)
    return {
        "path": "/data/rain.wav",
        "relpath": "rain.wav",
        "timestamps": [0.0, 1.0],
        "seconds_start": 0,
        "seconds_total": math.ceil(samples / 44100),
        "padding_mask": [1] * valid + [0] * ((frames - valid) if pad else 0),
        "sample_rate": 44100,
        "load_time": 0.01,
        "prompt": "rain",
    }


def public_pair(folder, samples: int, *, pad: bool, half: bool = False):
    latents, record = randn(8, FRAMES).numpy(), public_record(samples, FRAMES, pad)
    latents = latents[:, : len(record["padding_mask"])].astype(np.float16 if half else np.float32)
    (folder / "0000000000.npy").write_bytes(npy(latents))
    (folder / "0000000000.json").write_text(json.dumps(record))
    return folder / "0000000000.npy", latents


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(("samples", "seconds"), [(132_300, 3.0), (66_150, 17 * 4096 / 44100), (1, 4096 / 44100), (4096, 4096 / 44100)])
def test_pairs_of_the_public_tools(tmp_path, samples, seconds, pad, half):
    path, latents = public_pair(tmp_path, samples, pad=pad, half=half)
    found = latent_files.read(path)
    assert torch.equal(found.samples, torch.from_numpy(latents.astype(np.float32))[None]) and found.samples.dtype == torch.float32
    assert found.seconds == [seconds] and found.values is None and found.mask is None and found.texts == {}


def test_a_crop_of_a_long_recording_has_the_duration_of_its_mask(tmp_path):
    path, _ = public_pair(tmp_path, 132_300, pad=True)
    record = json.loads(path.with_suffix(".json").read_text())
    for total in (500, 1):  # seconds_total is of the whole file
        path.with_suffix(".json").write_text(json.dumps({**record, "seconds_total": total}))
        assert latent_files.read(path).seconds == [33 * 4096 / 44100]


def test_the_public_tools_read_our_pairs(tmp_path):
    """What the public training does with a pair: load, crop to the last 1 of padding_mask, read seconds_total."""
    samples = randn(8, FRAMES)
    paths = latent_files.write_pair(tmp_path, "sa3", 1, samples, 17, 1.5)
    assert [path.name for path in paths] == ["sa3_00001_.json", "sa3_00001_.npy"]
    latents = torch.from_numpy(np.load(paths[1]))
    record = json.loads(Path(str(paths[1]).replace(".npy", ".json")).read_text())
    assert torch.equal(latents, samples) and latents.dtype == torch.float32
    assert record["padding_mask"] == [1] * 17 + [0] * (FRAMES - 17) and record["seconds_total"] == 2
    assert torch.tensor(record["padding_mask"]).shape == (FRAMES,)
    assert record.keys() == public_record(1, FRAMES, True).keys() | {"samples_per_frame"}
    back = latent_files.read(paths[1])
    assert torch.equal(back.samples[0], samples) and back.seconds == [17 * 4096 / 44100]


def test_a_name_that_one_file_of_a_pair_has_is_not_used(tmp_path):
    for name in ("sa3_00001_.npy", "sa3_00002_.json"):
        (tmp_path / name).write_text("of someone else")
    paths = latent_files.write_pair(tmp_path, "sa3", 1, randn(8, 4), 4, 0.1)
    assert [path.name for path in paths] == ["sa3_00003_.json", "sa3_00003_.npy"]
    assert (tmp_path / "sa3_00001_.npy").read_text() == "of someone else" and len(list(tmp_path.iterdir())) == 4


def test_a_pair_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    create = latent_files.create

    def full(path, write):
        if path.suffix == ".npy":
            raise SA3Error("the disk is full")
        create(path, write)

    monkeypatch.setattr(latent_files, "create", full)
    with pytest.raises(SA3Error, match="full"):
        latent_files.write_pair(tmp_path, "sa3", 1, randn(8, 4), 4, 0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_too_large_for_the_header_is_left_out(tmp_path):
    content = LatentFile(randn(1, 8, 4), None, {"sa3_seconds": [0.3]}, texts={"workflow": json.dumps("x" * 6_000_000), "sa3": "{}"})
    path, (warning,) = latent_files.write(tmp_path, "sa3", 1, content)
    found = latent_files.read(path)
    assert "6.0 MB" in warning and "workflow" not in found.texts and found.values == content.values


def save(tensors: dict, header: dict | None = None):
    return lambda path: save_file(tensors, path, header)


LATENT = {"latent_tensor": randn(1, 8, 4), "latent_format_version_0": torch.tensor([])}
BAD_SAFETENSORS = {
    "cut": (lambda path: (save_file(LATENT, path), path.write_bytes(path.read_bytes()[:-7])), ["complete", "truncated"]),
    "a huge header": (lambda path: path.write_bytes(struct.pack("<Q", 2**40) + b"{}"), ["header", str(2**40)]),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(LATENT["latent_tensor"].tolist())), ["pickled"]),
    "empty": (lambda path: path.write_bytes(b""), ["empty"]),
    "other tensors": (save({"weight": torch.ones(2)}), ["weight", "latent_tensor", "SA3_SaveLatent"]),
    "an image of 2022": (save({"latent_tensor": torch.ones(1, 4, 8, 8)}), ["latent_format_version_0"]),
    "NaN": (save({**LATENT, "latent_tensor": torch.full((1, 8, 4), math.nan)}), ["NaN"]),
    "a mask of infinity": (save({**LATENT, "noise_mask": torch.full((1, 1, 4), math.inf)}), ["noise_mask", "infinite"]),
    "values that are no JSON": (save(LATENT, {"sa3_latent": "{"}), ["sa3_latent", "JSON"]),
    "values that are a list": (save(LATENT, {"sa3_latent": "[]"}), ["sa3_latent", "list", "object"]),
    "values of NaN": (save(LATENT, {"sa3_latent": '{"sa3_seconds": [NaN]}'}), ["sa3_latent", "NaN"]),
    "nested values": (save(LATENT, {"sa3_latent": "[" * 100_000}), ["sa3_latent", "JSON"]),
}


@pytest.mark.parametrize("suffix", [".latent", ".safetensors"])
@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_damaged_and_hostile_safetensors(tmp_path, case, suffix):
    damage, words = BAD_SAFETENSORS[case]
    damage(tmp_path / f"x{suffix}")
    with pytest.raises(SA3Error) as caught:
        latent_files.read(tmp_path / f"x{suffix}")
    assert all(word in str(caught.value) for word in ["x" + suffix, *words]), caught.value


GOOD = npy(np.ones((8, FRAMES), np.float32))
HEADER = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"
BAD_NPY = {
    "cut": (GOOD[:-7], ["bytes", "truncated"]),
    "too long": (GOOD + b"\0", ["bytes", "expected"]),
    "empty": (b"", ["cannot be read"]),
    "a pickle": (pickle.dumps([1.0] * 400), ["cannot be read"]),
    "a pickled object": (npy(np.array([{}], object), allow_pickle=True), ["object", "floating-point"]),
    "a zip of arrays": (b"PK\x03\x04" + bytes(400), ["cannot be read"]),
    "another version": (b"\x93NUMPY\x03\x00" + GOOD[8:], ["cannot be read"]),
    "integers": (npy(np.ones((8, FRAMES), np.int64)), ["int64", "floating-point"]),
    "complex numbers": (npy(np.ones((8, FRAMES), np.complex64)), ["complex64"]),
    "a batch": (npy(np.ones((2, 8, FRAMES), np.float32)), ["[2, 8, 40]", "(channels, frames)"]),
    "one axis": (npy(np.ones(FRAMES, np.float32)), ["[40]"]),
    "no frames": (npy(np.ones((8, 0), np.float32)), ["[8, 0]"]),
    "NaN": (npy(np.full((8, FRAMES), np.nan, np.float32)), ["NaN"]),
    "beyond float32": (npy(np.full((8, FRAMES), 1e300)), ["too large"]),
    "a shape beyond memory": (npy_header(HEADER.format("'<f4'", (2**40, 2**20))), [str(2**40)]),
    "a negative shape": (npy_header(HEADER.format("'<f4'", (-8, -40))) + bytes(1280), ["[-8, -40]"]),
    "a header of code": (npy_header("__import__('os').system('touch escaped')\n"), ["cannot be read"]),
    "a header that is cut": (b"\x93NUMPY\x01\x00\xff\xff{'descr'", ["cannot be read"]),
    "a header of 4 GB": (npy_header("{}", (2, 0))[:8] + struct.pack("<I", 2**32 - 1) + b"{}", ["cannot be read"]),
    "an open bracket": (npy_header("{'descr': (((" + " " * 20), ["cannot be read"]),
    "deep brackets": (npy_header("(" * 9000), ["cannot be read"]),
    "fields": (npy(np.ones(4, [("a", "<f4")])), ["shape [4]"]),
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_damaged_and_hostile_arrays(tmp_path, case):
    content, words = BAD_NPY[case]
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(SA3Error) as caught:
        latent_files.read(tmp_path / "x.npy")
    assert all(word in str(caught.value) for word in ["x.npy", *words]), caught.value
    assert len(str(caught.value)) < 500 and not (tmp_path / "escaped").exists()


def test_arrays_in_other_layouts(tmp_path):
    expected = randn(8, FRAMES).numpy()
    batch = expected[None]
    for array in (np.asfortranarray(expected), expected.astype(">f4"), expected.astype(np.float64), batch):
        (tmp_path / "x.npy").write_bytes(npy(array))
        found = latent_files.read(tmp_path / "x.npy")
        assert torch.equal(found.samples[0], torch.from_numpy(expected)) and found.seconds is None


BAD_JSON = {
    "no JSON": ("{", ["JSON"]),
    "a list": ("[1]", ["list", "object"]),
    "a mask of another length": (json.dumps({"padding_mask": [1] * 39}), ["padding_mask", "40"]),
    "a mask in words": (json.dumps({"padding_mask": "1" * 40}), ["padding_mask", "40"]),
    "a mask of other numbers": (json.dumps({"padding_mask": [2] * 40}), ["padding_mask", "0 or 1"]),
    "a nested mask": (json.dumps({"padding_mask": [[1]] * 40}), ["padding_mask"]),
    "a mask without sound": (json.dumps({"padding_mask": [0] * 40}), ["padding_mask", "not all 0"]),
    "seconds in words": (json.dumps({"seconds_total": "3"}), ["seconds_total", "3"]),
    "seconds of true": (json.dumps({"seconds_total": True}), ["seconds_total", "True"]),
    "negative seconds": (json.dumps({"seconds_total": -1}), ["seconds_total", "-1"]),
    "endless seconds": (json.dumps({"seconds_total": 10**400}), ["seconds_total", "1000"]),
    "NaN": ('{"seconds_total": NaN}', ["JSON", "NaN"]),
    "nested": ("[" * 100_000, ["JSON"]),
    "too large": (" " * (2**24 + 1), ["bytes", "at most"]),
    "bytes": (b"\xff\xfe\x00", ["JSON"]),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_damaged_and_hostile_records(tmp_path, case):
    content, words = BAD_JSON[case]
    (tmp_path / "x.npy").write_bytes(GOOD)
    (tmp_path / "x.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SA3Error) as caught:
        latent_files.read(tmp_path / "x.npy")
    assert all(word in str(caught.value) for word in ["x.json", *words]), caught.value
