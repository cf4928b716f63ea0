"""What samplers and DAWs read from a WAV file: loop points, tempo, markers, origin. Chunks `smpl`, `acid`, `cue `, `LIST adtl`, `bext`.

Layouts: Microsoft/IBM "Multimedia Programming Interface" 1.0 and RIFF New Media updates (smpl, cue, adtl), EBU Tech 3285 (bext); acid as
read by Sony ACID and libsndfile.
"""

import struct
from dataclasses import dataclass, replace

MAX = 2**32 - 1
ONE_SHOT, ROOT_SET, STRETCH = 0x01, 0x02, 0x04  # flags of acid
TEXT = 255  # bytes of a label
SOFTWARE = "Stable Audio 3 for ComfyUI"


@dataclass(frozen=True)
class Marker:
    """A named position in samples, or with `end` a region up to that sample."""

    start: int
    name: str = ""
    end: int | None = None


@dataclass(frozen=True)
class Studio:
    """What a file tells samplers and DAWs; what is unknown is left out of it.

    bpm, beats, beats_per_bar: tempo, length in beats. key: "A minor". root: MIDI note. loop: first sample and the one after the last.
    one_shot: the file is not stretched to a tempo. time_reference: samples between midnight, or the start of the film, and the file.
    """

    title: str = ""
    bpm: float = 0.0
    beats: int = 0
    beats_per_bar: int = 4
    key: str = ""
    root: int | None = None
    loop: tuple[int, int] | None = None
    one_shot: bool = False
    markers: tuple[Marker, ...] = ()
    time_reference: int | None = None


def studio_chunks(studio: Studio, rate: int, samples: int) -> tuple[bytes, list[str]]:
    """The chunks of a file of `samples` samples per channel, and a sentence for each value that does not fit into them."""
    studio, warnings = fitted(studio, samples)
    parts = []
    if studio.time_reference is not None:
        parts.append(chunk(b"bext", _bext(studio)))
    if studio.loop or studio.root is not None:
        parts.append(chunk(b"smpl", _smpl(studio, rate)))
    if studio.bpm or studio.one_shot:
        parts.append(chunk(b"acid", _acid(studio)))
    if studio.markers:
        cues = [struct.pack("<II4sIII", i, mark.start, b"data", 0, 0, mark.start) for i, mark in enumerate(studio.markers, 1)]
        parts.append(chunk(b"cue ", struct.pack("<I", len(cues)) + b"".join(cues)))
        parts.append(chunk(b"LIST", b"adtl" + b"".join(_labels(i, mark) for i, mark in enumerate(studio.markers, 1))))
    return b"".join(parts), warnings


def studio_tags(studio: Studio, kind: str) -> dict[str, str]:
    """The same as tags of a compressed file: ID3 frames in mp3, where a tempo is a whole number, else the names that DJ programs read."""
    bpm, key = ("TBPM", "TKEY") if kind == "mp3" else ("BPM", "INITIALKEY")
    tempo = f"{studio.bpm:.0f}" if kind == "mp3" else f"{studio.bpm:.6g}"
    note, _, mode = studio.key.partition(" ")
    values = {"title": studio.title, bpm: tempo if studio.bpm else "", key: note + ("m" if mode == "minor" else "")}
    return {name: value for name, value in values.items() if value}


def chunk(name: bytes, content: bytes) -> bytes:
    """A RIFF chunk: id, length, content, and a zero byte after an odd length."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def fitted(studio: Studio, samples: int) -> tuple[Studio, list[str]]:
    """The values that a file of `samples` samples can hold, and a sentence for each one changed or left out."""
    warnings = []
    if studio.loop and not 0 <= studio.loop[0] < studio.loop[1] <= samples:
        warnings.append(f"The loop {studio.loop[0]}-{studio.loop[1]} does not lie within the {samples} samples and was left out.")
        studio = replace(studio, loop=None)
    inside = [mark for mark in studio.markers if 0 <= mark.start <= samples]
    if outside := len(studio.markers) - len(inside):
        warnings.append(f"{outside} markers lie outside the {samples} samples and were left out.")
    clipped = tuple(replace(mark, end=None if mark.end is None else min(mark.end, samples)) for mark in inside)
    if clipped != tuple(inside):
        warnings.append(f"Regions that end after the {samples} samples were shortened.")
    if studio.time_reference is not None and not 0 <= studio.time_reference < 2**63:
        warnings.append(f"The time reference is {studio.time_reference} samples and was set to 0; expected 0 or more.")
        studio = replace(studio, time_reference=0)
    if studio.root is not None and not 0 <= studio.root <= 127:
        warnings.append(f"The root note {studio.root} is not a MIDI note (0 to 127) and was left out.")
        studio = replace(studio, root=None)
    return replace(studio, markers=clipped), warnings


def _smpl(studio: Studio, rate: int) -> bytes:
    loops = [] if studio.loop is None else [struct.pack("<6I", 0, 0, studio.loop[0], studio.loop[1] - 1, 0, 0)]  # forward, for ever
    root = 60 if studio.root is None else studio.root
    return struct.pack("<9I", 0, 0, round(1e9 / rate), root, 0, 0, 0, len(loops), 0) + b"".join(loops)


def _acid(studio: Studio) -> bytes:
    flags = (ONE_SHOT if studio.one_shot else STRETCH) | (0 if studio.root is None else ROOT_SET)
    root = 60 if studio.root is None else studio.root
    return struct.pack("<IHHfIHHf", flags, root, 0x8000, 0.0, min(studio.beats, MAX), 4, studio.beats_per_bar, studio.bpm)


def _labels(index: int, mark: Marker) -> bytes:
    label = mark.name.encode("utf-8", "replace")[:TEXT].decode(errors="ignore").replace("\0", " ").encode() + b"\0"
    parts = chunk(b"labl", struct.pack("<I", index) + label)
    if mark.end is not None:
        parts += chunk(b"ltxt", struct.pack("<II4sHHHH", index, max(0, mark.end - mark.start), b"rgn ", 0, 0, 0, 0))
    return parts


def _bext(studio: Studio) -> bytes:
    """Version 1. Without date and time of day, so that the same sound gives the same bytes."""
    texts = struct.pack("<256s32s32s10s8s", _ascii(studio.title, 256), _ascii(SOFTWARE, 32), b"", b"", b"")
    return texts + struct.pack("<QH", studio.time_reference, 1) + bytes(64 + 190)


def _ascii(text: str, length: int) -> bytes:
    return text.encode("ascii", "replace")[:length]
