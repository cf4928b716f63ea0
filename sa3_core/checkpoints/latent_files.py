"""Latents on disk: safetensors files that ComfyUI's own LoadLatent reads too, and the public tools' pairs of .npy and .json.

A pair holds one item: an array (C, T), and as JSON what the public code's training reads, `padding_mask` (T numbers, 1 = sound) and
`seconds_total` (whole seconds) among it.
"""

import io
import itertools
import json
import math
import operator
import os
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..config import FRAME, RATE
from ..errors import SA3Error
from ..files import create, parse_json, read_json
from .tensors import MAX_HEADER, TensorFile, is_finite

SUFFIXES = (".latent", ".safetensors", ".npy")
SAMPLES, VERSION, MASK = "latent_tensor", "latent_format_version_0", "noise_mask"  # tensors; the first two are ComfyUI's
VALUES, RUN = "sa3_latent", "sa3"  # keys of the header: the values of a LATENT as JSON, the run record
MAX_VALUES = 2**30  # numbers in a tensor
MAX_JSON = 2**24  # bytes
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class LatentFile:
    """The content of a file. samples (B, C, T), float32. mask: ComfyUI's noise mask. values: other values of a LATENT, unchecked; None
    where the file is not of this pack. seconds: duration of each item in a pair. texts: run record and graph."""

    samples: Tensor
    mask: Tensor | None = None
    values: dict | None = None
    seconds: list[float] | None = None
    texts: dict[str, str] = field(default_factory=dict)


def write(folder: Path, name: str, counter: int, content: LatentFile) -> tuple[Path, list[str]]:
    """Atomic write of a safetensors file under the first free name from `counter` on; returns path and warnings."""
    tensors, warnings = {SAMPLES: content.samples.contiguous(), VERSION: torch.tensor([])}, []
    if content.mask is not None:
        tensors[MASK] = content.mask.contiguous()
    texts = {key: text.encode("utf-8", "replace").decode() for key, text in content.texts.items()}  # replaces lone surrogates
    if (size := len(json.dumps(texts))) > MAX_HEADER // 2:
        texts = {}
        warnings.append(f"The graph and the run record have {size / 1e6:.1f} MB, too much for the file's header, and are not in the file.")
    data = safetensors.torch.save(tensors, {**texts, VALUES: json.dumps(content.values)})
    return _write_next(folder, name, counter, {".latent": data})[0], warnings


def write_pair(folder: Path, name: str, counter: int, samples: Tensor, frames: int, seconds: float, frame: int = FRAME) -> list[Path]:
    """Atomic writes of an item (C, T) as .json and .npy; returns their paths. frames: of its duration, `seconds`; frame: samples in one."""
    array, record = io.BytesIO(), {"prompt": "", "path": f"{name}.npy", "relpath": f"{name}.npy", "timestamps": [0.0, 1.0]}
    np.save(array, samples.contiguous().numpy(), allow_pickle=False)
    record |= {"seconds_start": 0, "seconds_total": math.ceil(seconds), "sample_rate": RATE, "load_time": 0.0}
    record["samples_per_frame"] = frame  # not of the public tools, whose models all have FRAME
    record["padding_mask"] = [int(i < frames) for i in range(samples.shape[-1])]
    return _write_next(folder, name, counter, {".json": json.dumps(record).encode(), ".npy": array.getvalue()})


def pair_seconds(frames: int, seconds_total: float | None = None, frame: int = FRAME) -> float:
    """The duration that a pair holds: of its frames of sound, or whole seconds that end within the last of them."""
    longest, shortest = frames * frame / RATE, (frames - 1) * frame / RATE
    return float(seconds_total) if seconds_total is not None and shortest < seconds_total < longest else longest


def _write_next(folder: Path, name: str, counter: int, contents: dict[str, bytes]) -> list[Path]:
    """Atomic writes of new files that share the first free name from `counter` on: name_00001_.json, name_00001_.npy."""
    for number in itertools.count(counter):
        paths, written = [folder / f"{name}_{number:05}_{suffix}" for suffix in contents], []
        if any(os.path.lexists(path) for path in paths):
            continue
        try:
            for path, data in zip(paths, contents.values(), strict=True):
                create(path, operator.methodcaller("write", data))
                written.append(path)
            return paths
        except FileExistsError:
            continue
        finally:
            if len(written) < len(paths):
                for path in written:
                    path.unlink(missing_ok=True)


def read(path: Path) -> LatentFile:
    """The content of a file with one of SUFFIXES. Raises SA3Error for one that holds no latents."""
    return _read_pair(path) if path.suffix.lower() == ".npy" else _read_safetensors(path)


def _read_safetensors(path: Path) -> LatentFile:
    file = TensorFile(path)
    if not {SAMPLES, VERSION} <= file.names:
        found = ", ".join(sorted(file.names)[:6]) or "no tensors"
        raise SA3Error(f"{path} holds {found[:200]}; expected {SAMPLES} and {VERSION}, as SA3_SaveLatent and SaveLatent write them.")
    for name in file.names & {SAMPLES, MASK}:
        if math.prod(file.shape(name)) > MAX_VALUES:
            raise SA3Error(f"{path}: tensor '{name}' has shape {list(file.shape(name))}; expected at most {MAX_VALUES} numbers.")
    header, mask = file.metadata(), file.read(MASK, torch.float32) if MASK in file.names else None
    values = None
    if VALUES in header:
        values = parse_json(header[VALUES], f"{path}: {VALUES}", "an object")
        if not isinstance(values, dict):
            raise SA3Error(f"{path}: {VALUES} in the header is {type(values).__name__}; expected an object. Save the latents again.")
    return LatentFile(file.read(SAMPLES, torch.float32), mask, values, texts=header)


def _read_pair(path: Path) -> LatentFile:
    samples = torch.from_numpy(_read_npy(path))[None]
    notes = path.with_suffix(".json")
    if not notes.is_file():
        return LatentFile(samples)
    if notes.stat().st_size > MAX_JSON:
        raise SA3Error(f"{notes} has {notes.stat().st_size} bytes; expected at most {MAX_JSON}. Use the file written with {path.name}.")
    record, frames = read_json(notes, "an object with padding_mask and seconds_total"), samples.shape[-1]
    if not isinstance(record, dict):
        raise SA3Error(f"{notes} holds {type(record).__name__}; expected an object with padding_mask and seconds_total.")
    mask, total = record.get("padding_mask", [1] * frames), record.get("seconds_total")
    if not isinstance(mask, list) or len(mask) != frames or not all(value in (0, 1) for value in mask) or 1 not in mask:
        raise SA3Error(
            f"{notes}: padding_mask is {str(mask)[:40]}; expected {frames} numbers 0 or 1, not all 0, one per frame of {path.name}."
        )
    if total is not None and (isinstance(total, bool) or not isinstance(total, (int, float)) or not 0 < total < 1e9):
        raise SA3Error(f"{notes}: seconds_total is {str(total)[:40]}; expected a positive number of seconds.")
    frame = record.get("samples_per_frame", FRAME)
    if isinstance(frame, bool) or not isinstance(frame, int) or not 0 < frame <= 2**20:
        raise SA3Error(f"{notes}: samples_per_frame is {str(frame)[:40]}; expected a positive whole number.")
    return LatentFile(samples, seconds=[pair_seconds(frames - mask[::-1].index(1), total, frame)])


def _read_npy(path: Path) -> np.ndarray:
    """The array (C, T) of a .npy file, float32. Its header is checked against the size of the file; nothing is unpickled."""
    expected = "a .npy file of floating-point latents (channels, frames), as the public tools write"
    try:
        with open(path, "rb") as file:
            shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
            plain = dtype.kind == "f" and dtype.itemsize in (2, 4, 8) and (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1))
            if not plain or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
                raise SA3Error(f"{path} holds {dtype} of shape {str(list(shape))[:80]}; expected {expected}.")
            size, found = file.tell() + math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size
            if size != found:
                raise SA3Error(f"{path} has {found} bytes; expected {size} by its header. Copy it again, it may be truncated.")
            file.seek(0)
            array = np.load(file, allow_pickle=False).reshape(shape[-2:])
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise SA3Error(f"{path} cannot be read ({str(error)[:120] or type(error).__name__}); expected {expected}.") from error
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not is_finite(torch.from_numpy(array)):
        raise SA3Error(f"{path} contains NaN, infinite or too large values; expected finite latents. Encode the audio again.")
    return array
