"""Loop points, tempo, markers and origin in a WAV file, read byte by byte and by libsndfile."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import pytest

from sa3_core.audio import wav_chunks
from sa3_core.audio.wav_chunks import Marker, Studio, chunk, studio_chunks

RATE, SAMPLES = 44100, 88200
FULL = Studio(
    title="kick loop", bpm=97.5, beats=8, beats_per_bar=3, key="A minor", root=69, loop=(100, 80000),
    markers=(Marker(0, "start"), Marker(44100, "seam", 55125)), time_reference=3600 * RATE,
)  # fmt: skip


def wav(path: Path, studio: Studio, samples: int = SAMPLES) -> Path:
    """A silent mono file with the chunks."""
    chunks, _ = studio_chunks(studio, RATE, samples)
    body = b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)) + chunks + chunk(b"data", bytes(2 * samples))
    path.write_bytes(chunk(b"RIFF", body))
    return path


def chunks_of(data: bytes) -> dict[bytes, bytes]:
    found, at = {}, 0
    while at < len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        found[data[at : at + 4]] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    assert at == len(data)
    return found


def test_every_field_lies_where_the_formats_say():
    found = chunks_of(studio_chunks(FULL, RATE, SAMPLES)[0])
    assert list(found) == [b"bext", b"smpl", b"acid", b"cue ", b"LIST"]
    assert struct.unpack("<9I6I", found[b"smpl"]) == (0, 0, 22676, 69, 0, 0, 0, 1, 0, 0, 0, 100, 79999, 0, 0)
    assert struct.unpack("<IHHfIHHf", found[b"acid"]) == (6, 69, 0x8000, 0.0, 8, 4, 3, 97.5)
    cues = struct.unpack("<I" + "II4sIII" * 2, found[b"cue "])
    assert cues == (2, 1, 0, b"data", 0, 0, 0, 2, 44100, b"data", 0, 0, 44100)
    listed = found[b"LIST"]
    assert listed[:4] == b"adtl"
    assert listed[4:].startswith(chunk(b"labl", struct.pack("<I", 1) + b"start\0") + chunk(b"labl", struct.pack("<I", 2) + b"seam\0"))
    assert listed.endswith(chunk(b"ltxt", struct.pack("<II4s", 2, 11025, b"rgn ") + bytes(8)))
    bext = found[b"bext"]
    assert len(bext) == 602 and bext.startswith(b"kick loop\0") and struct.unpack_from("<QH", bext, 338) == (3600 * RATE, 1)


def test_what_is_unknown_is_left_out():
    assert studio_chunks(Studio(title="x", key="A minor"), RATE, SAMPLES) == (b"", [])
    assert list(chunks_of(studio_chunks(Studio(root=60), RATE, SAMPLES)[0])) == [b"smpl"]
    one_shot = chunks_of(studio_chunks(Studio(one_shot=True), RATE, SAMPLES)[0])
    assert struct.unpack_from("<I", one_shot[b"acid"])[0] == wav_chunks.ONE_SHOT


@pytest.mark.parametrize(
    ("studio", "sentence"),
    [
        (Studio(loop=(0, SAMPLES + 1)), "The loop 0-88201 does not lie within the 88200 samples"),
        (Studio(loop=(5, 5)), "The loop 5-5"),
        (Studio(markers=(Marker(SAMPLES + 1), Marker(-1))), "2 markers lie outside"),
        (Studio(markers=(Marker(0, "a", SAMPLES + 9),)), "were shortened"),
        (Studio(root=128), "The root note 128"),
        (Studio(time_reference=-1), "The time reference is -1 samples"),
    ],
)
def test_values_outside_of_the_file_are_left_out_and_reported(studio: Studio, sentence: str):
    data, (warning,) = studio_chunks(studio, RATE, SAMPLES)
    assert sentence in warning
    chunks_of(data)


def test_names_of_any_kind_stay_within_their_chunk():
    names = ["ä" * 300, "a\0b", "\ud800", "", "日本"]
    data = chunks_of(studio_chunks(Studio(markers=tuple(Marker(i, name) for i, name in enumerate(names))), RATE, SAMPLES)[0])
    labels, at = [], 4
    while at < len(data[b"LIST"]):
        size = struct.unpack_from("<I", data[b"LIST"], at + 4)[0]
        labels.append(data[b"LIST"][at + 12 : at + 8 + size])
        at += 8 + size + size % 2
    assert [label.count(b"\0") for label in labels] == [1] * 5
    assert [label.rstrip(b"\0").decode() for label in labels] == ["ä" * 127, "a b", "?", "", "日本"]


class Loop(ctypes.Structure):
    _fields_ = [("mode", ctypes.c_int), ("start", ctypes.c_uint32), ("end", ctypes.c_uint32), ("count", ctypes.c_uint32)]


class Instrument(ctypes.Structure):
    _fields_ = [("gain", ctypes.c_int), ("notes", ctypes.c_char * 6), ("loop_count", ctypes.c_int), ("loops", Loop * 16)]


class LoopInfo(ctypes.Structure):
    _fields_ = [("numerator", ctypes.c_short), ("denominator", ctypes.c_short), ("mode", ctypes.c_int), ("beats", ctypes.c_int),
                ("bpm", ctypes.c_float), ("root", ctypes.c_int), ("future", ctypes.c_int * 6)]  # fmt: skip


class Cue(ctypes.Structure):
    _fields_ = [("index", ctypes.c_int32), ("position", ctypes.c_uint32), ("chunk", ctypes.c_int32), ("chunk_start", ctypes.c_int32),
                ("block_start", ctypes.c_int32), ("offset", ctypes.c_uint32), ("name", ctypes.c_char * 256)]  # fmt: skip


class Cues(ctypes.Structure):
    _fields_ = [("count", ctypes.c_uint32), ("points", Cue * 100)]


class FileInfo(ctypes.Structure):
    _fields_ = [("frames", ctypes.c_int64)] + [(name, ctypes.c_int) for name in ("rate", "channels", "format", "sections", "seekable")]


def test_libsndfile_reads_them(tmp_path: Path):
    soundfile = pytest.importorskip("soundfile", reason="no soundfile; it brings libsndfile")
    library = ctypes.CDLL(next((Path(soundfile.__file__).parent / "_soundfile_data").glob("libsndfile*"), None) or "libsndfile.so.1")
    library.sf_open.restype = ctypes.c_void_p
    info = FileInfo()
    handle = ctypes.c_void_p(library.sf_open(str(wav(tmp_path / "x.wav", FULL)).encode(), 0x10, ctypes.byref(info)))
    assert handle and info.frames == SAMPLES and info.rate == RATE

    def ask(command: int, answer):
        assert library.sf_command(handle, command, ctypes.byref(answer), ctypes.sizeof(answer))
        return answer

    instrument = ask(0x10D0, Instrument())
    assert instrument.notes[0:1] == bytes([69]) and instrument.loop_count == 1
    assert (instrument.loops[0].start, instrument.loops[0].end) == (100, 80000)
    loop = ask(0x10E0, LoopInfo())
    assert (loop.numerator, loop.denominator, loop.beats, loop.bpm, loop.root) == (3, 4, 8, 97.5, 69)
    cues = ask(0x10CE, Cues())
    assert [(cue.index, cue.offset, cue.name) for cue in cues.points[: cues.count]] == [(1, 0, b"start"), (2, 44100, b"seam")]
    broadcast = ask(0x10F0, (ctypes.c_char * 858)())
    assert broadcast.raw.startswith(b"kick loop\0")
    assert struct.unpack_from("<II", broadcast.raw, 340) == (3600 * RATE, 0)
    library.sf_close(handle)


def test_the_same_description_gives_the_same_bytes():
    assert studio_chunks(FULL, RATE, SAMPLES) == studio_chunks(FULL, RATE, SAMPLES)
