"""Read and write audio files. WAV is written here, the other formats through PyAV, which also reads every format."""

import contextlib
import itertools
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SA3Error
from ..files import create
from .encode import CODECS, QUALITIES, Codec, check, encode
from .wav_chunks import SOFTWARE, Studio, chunk, studio_chunks, studio_tags
from .waveform import RATES, check_finite, resample


@dataclass(frozen=True)
class Format:
    suffix: str
    bits: int  # of a sample; 32 = floating point
    codec: Codec | None = None  # none for WAV


FORMATS = {
    "flac": Format("flac", 24, CODECS["flac24"]),
    "wav16": Format("wav", 16),
    "wav24": Format("wav", 24),
    "wav32f": Format("wav", 32),
    "flac16": Format("flac", 16, CODECS["flac16"]),
    "flac24": Format("flac", 24, CODECS["flac24"]),
    "mp3": Format("mp3", 32, CODECS["mp3"]),
    "opus": Format("opus", 32, CODECS["opus"]),
    "m4a": Format("m4a", 32, CODECS["m4a"]),
}
CHUNK = b"sa3 "  # id of a WAV chunk that holds a JSON object with prompt, workflow and run record
SPEAKERS = {1: 0x4, 2: 0x3, 3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}  # channels -> mask of WAVE_FORMAT_EXTENSIBLE
WAV_LIMIT = 2**32 - 2**20  # bytes of samples
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format tags
SUBFORMAT = bytes.fromhex("000000001000800000aa00389b71")  # GUID of an extensible header, after the format tag
READABLE = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma")
LONGEST = 4 * 3600  # seconds of the longest file that `read` accepts


def quantize(waveform: Tensor, bits: int) -> tuple[Tensor, list[str]]:
    """Samples (C, N) as int32 of `bits` bits (full scale 2^(bits - 1)), and a sentence if any were clipped.

    Samples that are whole numbers at this depth stay exact, such as a recording around a generated region. At the others, triangular
    dither, two steps peak to peak and the same in every call, turns the rounding error into noise instead of distortion.
    """
    full = 2 ** (bits - 1)
    scaled, warnings = waveform.double() * full, clipping(waveform, f"clipped at {bits} bits")
    finer = scaled != scaled.round()
    if bool(finer.any()):
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            noise = torch.rand(scaled.shape, generator=generator, dtype=torch.float32, device="cpu")
            scaled += torch.where(finer, noise.double() - 0.5, 0.0)
    return scaled.round().clamp(-full, full - 1).to(torch.int32), warnings


def clipping(waveform: Tensor, what: str) -> list[str]:
    """A sentence if samples exceed full scale."""
    peaks = waveform.abs()
    count = int((peaks > 1).sum())
    return [f"{count} samples exceed full scale (peak {float(peaks.max()):.3f}) and were {what}; wav32f keeps them."] if count else []


def check_format(kind: str, channels: int, quality: str = "high") -> None:
    """Raise SA3Error unless the format exists, can be written here and holds so many channels."""
    if kind not in FORMATS:
        raise SA3Error(f"The format is '{kind}'; expected one of {', '.join(FORMATS)}.")
    if quality not in QUALITIES:
        raise SA3Error(f"The quality is '{quality}'; expected one of {', '.join(QUALITIES)}.")
    if codec := FORMATS[kind].codec:
        check(codec, kind, channels)


def write(
    path: Path, waveform: Tensor, rate: int, kind: str, metadata: dict[str, str] | None = None, quality: str = "high",
    studio: Studio | None = None,
) -> list[str]:  # fmt: skip
    """Write samples (C, N) to a new file, atomically; returns warnings. kind: a key of FORMATS. metadata: name -> text.

    quality: of mp3, opus and m4a, one of QUALITIES. studio: what samplers and DAWs read, in samples of `rate`. Raises FileExistsError when
    the name is taken, SA3Error when the file cannot be written.
    """
    waveform = _checked(waveform, rate)
    check_format(kind, waveform.shape[0], quality)
    fmt, studio = FORMATS[kind], studio or Studio()
    texts = {key: text.encode("utf-8", "replace").decode() for key, text in (metadata or {}).items()}  # replaces lone surrogates
    if fmt.bits < 32:
        samples, warnings = quantize(waveform, fmt.bits)
    elif fmt.codec is None:
        samples, warnings = waveform.float(), []
    else:
        if rate < RATES[0]:  # thousands of samples for each
            raise SA3Error(f"The audio to save has a sample rate of {rate} Hz; {kind} takes at least {RATES[0]}. Save it as wav.")
        own, warnings = fmt.codec.rate_for(rate), clipping(waveform, "clipped")
        if own != rate and len(fmt.codec.rates) > 1:
            warnings.append(f"{kind} does not hold {rate} Hz; the audio was resampled to {own} Hz. flac and wav keep the rate.")
        samples, rate = resample(waveform.float(), rate, own).clamp(-1, 1), own
    if fmt.codec is None:
        chunks, unfit = studio_chunks(studio, rate, samples.shape[1])
        warnings += unfit
        create(path, lambda file: _write_wav(file, samples, rate, fmt, texts, chunks))
    else:
        texts |= studio_tags(studio, kind)
        create(path, lambda file: encode(file, samples, rate, fmt.codec, texts, quality))
    return warnings


def write_next(folder: Path, name: str, counter: int, waveform: Tensor, rate: int, kind: str, *more) -> tuple[Path, list[str]]:
    """`write` to the first free name from `counter` on: name_00001_.wav, name_00002_.wav, ... Returns path and warnings."""
    suffix = FORMATS[kind].suffix if kind in FORMATS else kind
    for number in itertools.count(counter):
        path = folder / f"{name}_{number:05}_.{suffix}"
        if path.exists():
            continue
        with contextlib.suppress(FileExistsError):
            return path, write(path, waveform, rate, kind, *more)


def _checked(waveform: Tensor, rate: int) -> Tensor:
    if not isinstance(waveform, Tensor) or waveform.dim() != 2 or 0 in waveform.shape or not waveform.is_floating_point():
        found = f"{tuple(waveform.shape)} {waveform.dtype}" if isinstance(waveform, Tensor) else type(waveform).__name__
        raise SA3Error(f"The audio to save is {found}; expected floating-point samples (channels, samples).")
    if isinstance(rate, bool) or not isinstance(rate, int) or not 1 <= rate < 2**31:
        raise SA3Error(f"The audio to save has a sample rate of {rate}; expected a positive whole number of Hz.")
    check_finite("The audio to save", waveform)
    return waveform.detach().cpu()


def _write_wav(file, samples: Tensor, rate: int, fmt: Format, metadata: dict[str, str], chunks: bytes) -> None:
    channels, count = samples.shape
    step = channels * fmt.bits // 8
    size = count * step
    if size > WAV_LIMIT:
        raise SA3Error(f"The audio needs {size / 2**30:.1f} GiB, more than a WAV file can hold (4 GiB); save it as flac.")
    tag, extensible = FLOAT if fmt.bits == 32 else PCM, channels > 2
    header = struct.pack("<HHIIHH", EXTENSIBLE if extensible else tag, channels, rate, rate * step, step, fmt.bits)
    if extensible:
        header += struct.pack("<HHIH", 22, fmt.bits, SPEAKERS.get(channels, 0), tag) + SUBFORMAT
    elif fmt.bits == 32:
        header += struct.pack("<H", 0)
    parts = [chunk(b"fmt ", header)]
    if fmt.bits == 32:
        parts.append(chunk(b"fact", struct.pack("<I", count)))
    if metadata:
        parts.append(chunk(CHUNK, json.dumps(_json_values(metadata)).encode()))
        texts = {b"ISFT": SOFTWARE, b"ICMT": metadata.get("sa3", "")}
        info = b"".join(chunk(key, text.encode() + b"\0") for key, text in texts.items() if text)
        parts.append(chunk(b"LIST", b"INFO" + info))
    head = b"".join(parts) + chunks
    file.write(b"RIFF" + struct.pack("<I", 4 + len(head) + 8 + size + size % 2) + b"WAVE" + head + b"data" + struct.pack("<I", size))
    for start in range(0, count, 1 << 18):
        file.write(_interleaved(samples[:, start : start + (1 << 18)], fmt))
    file.write(b"\0" * (size % 2))


def _interleaved(samples: Tensor, fmt: Format) -> bytes:
    values = samples.T.contiguous().numpy()
    if fmt.bits == 24:
        return values.astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()
    return values.astype("<f4" if fmt.bits == 32 else "<i2").tobytes()


def _json_values(metadata: dict[str, str]) -> dict:
    """The metadata with JSON texts parsed; other texts stay texts."""
    values = dict(metadata)
    for key, text in metadata.items():
        with contextlib.suppress(ValueError, RecursionError):
            values[key] = json.loads(text)
    return values


def read(path: str | Path) -> tuple[Tensor, int]:
    """Samples (C, N), float32 with full scale 1, and sample rate of an audio file's first audio track."""
    try:
        import av
    except ImportError as error:
        raise SA3Error("Reading audio files needs the package 'av', which ComfyUI ships with; install it.") from error
    try:
        lenient = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}  # the default since 19
        with av.open(str(path), **lenient) as container:
            if not container.streams.audio:
                raise SA3Error(f"{path} has no audio track; expected an audio file.")
            stream = container.streams.audio[0]
            rate, parts, samples = stream.rate, [], 0
            planar = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                parts += [torch.from_numpy(block.to_ndarray()) for block in planar.resample(frame)]  # (C, n)
                samples += frame.samples
                if samples > LONGEST * rate:
                    raise SA3Error(f"{path} is longer than {LONGEST // 3600} hours; cut it into clips.")
            parts += [torch.from_numpy(block.to_ndarray()) for block in planar.resample(None)]
    except (av.FFmpegError, ValueError, OSError) as error:
        raise SA3Error(f"{path} cannot be read as audio ({error}).") from error
    if not parts:
        raise SA3Error(f"{path} has no samples; expected a file with audio.")
    if len({len(part) for part in parts}) != 1:
        raise SA3Error(f"{path} changes its number of channels; expected one channel layout. Export it again.")
    return torch.cat(parts, dim=1), rate
