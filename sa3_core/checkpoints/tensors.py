"""The safetensors layer: files are checked before they are opened and read tensor by tensor; nothing is unpickled."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SA3Error
from ..files import publish

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # what weights can be loaded as, by the user's name
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}  # what weights can be stored as
STORED_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")  # also readable: the bytes of a tokenizer, an alpha
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
SUFFIXES = (".safetensors", ".latent")  # .latent: of ComfyUI's SaveLatent
ENGINES = {".onnx": "ONNX", ".engine": "TensorRT", ".plan": "TensorRT", ".trt": "TensorRT", ".tflite": "TFLite"}
ENGINES |= {".npz": "MLX", ".gguf": "GGUF"}
MAX_HEADER = 10_000_000  # bytes; the header of a release has 0.2 MB, and parsing takes ten times the header's size in memory
MAX_NAME = 512  # characters of a tensor's name


class TensorFile:
    """A safetensors file read tensor by tensor. Each tensor is copied, so the file may be replaced afterwards."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_file(self.path)
        try:
            with open(self.path, "rb") as file:
                header_length(file)  # refuses a huge header, which safetensors would parse
            self.file = safe_open(self.path, framework="pt")
            self.names = frozenset(self.file.keys())
            longest = max(self.names, key=len, default="")
            if len(longest) > MAX_NAME:
                raise ValueError(f"the name of a tensor has {len(longest)} characters")
        except (SafetensorError, OSError, ValueError) as error:
            raise SA3Error(
                f"{self.path} is not a complete safetensors file ({error}). It may be truncated or still being written; "
                "copy or download it again."
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The stored type by its safetensors name: F32, BF16, ..."""
        return self.file.get_slice(name).get_dtype()

    def metadata(self) -> dict[str, str]:
        return self.file.metadata() or {}

    def expect(self, name: str, shape: Sequence[int]) -> None:
        """Raise SA3Error unless a tensor has this shape and a type of `STORED`."""
        if self.shape(name) != tuple(shape):
            raise SA3Error(
                f"{self.path}: tensor '{name}' has shape {list(self.shape(name))}, expected {list(shape)} by its config; "
                "download both again."
            )
        if self.dtype(name) not in STORED:
            raise SA3Error(
                f"{self.path}: tensor '{name}' is stored as {self.dtype(name)}, a quantised copy; expected {', '.join(STORED)}. "
                "Use the model's own release."
            )

    def read(self, name: str, dtype: torch.dtype | None = None, device=None) -> Tensor:
        """One tensor. Floating-point tensors are converted to `dtype` and checked to be finite; integer tensors stay as stored."""
        if self.dtype(name) not in (*STORED, *STORED_INTEGERS):
            raise SA3Error(f"{self.path}: tensor '{name}' is stored as {self.dtype(name)}; expected one of {', '.join(STORED)}.")
        tensor = self.file.get_tensor(name)
        if not tensor.is_floating_point():
            return tensor.clone()
        ready = converted(tensor, dtype, name, self.path)
        return ready.to(device=device, copy=ready is tensor)

    def fingerprint(self) -> str:
        """Size and hash of the header: tells releases and layouts apart without reading gigabytes. `sha256` covers every byte."""
        return f"{self.path.stat().st_size}-{hashlib.sha256(header_bytes(self.path)).hexdigest()[:16]}"


def converted(tensor: Tensor, dtype: torch.dtype | None, name: str, path: Path) -> Tensor:
    """A floating-point tensor of a file as `dtype`; None = its own. Raises SA3Error for values that are not finite in it."""
    ready = tensor.to(dtype or tensor.dtype)
    if not is_finite(ready):
        if is_finite(tensor):
            raise SA3Error(
                f"{path}: tensor '{name}' has values up to {float(tensor.abs().max()):.3g}, too large for {dtype}; load it in fp32."
            )
        raise SA3Error(f"{path}: tensor '{name}' contains NaN or infinite values; the file is damaged, copy or download it again.")
    return ready


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a floating-point tensor are finite. A finite sum proves it in one cheap pass."""
    return math.isfinite(float(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def header_length(file: BinaryIO) -> int:
    """The length of the header of a safetensors file, read at its beginning. Raises ValueError for more than MAX_HEADER."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header would have {length} bytes")
    return length


def header_bytes(path: Path) -> bytes:
    """The JSON header of a safetensors file, unchecked. Raises ValueError for one larger than MAX_HEADER."""
    with open(path, "rb") as file:
        return file.read(header_length(file))


def save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Atomic write of a safetensors file. Raises SA3Error for values that are not finite, and where the system cannot write."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise SA3Error(f"The tensor '{name}' exceeds the range of {tensor.dtype}; nothing was written.")

    def write(part: Path) -> None:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
        except SafetensorError as error:  # its form of the system's errors
            raise OSError(str(error)) from error

    publish(path, write)


def sha256(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Hash of a whole file, read in blocks. progress(bytes done, bytes in total)."""
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, size)
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Raise SA3Error for a path that cannot be a safetensors file, by its name and first 8 bytes."""
    if not os.path.exists(path):  # unlike Path.exists, never raises for an invalid name
        raise SA3Error(f"{path} does not exist; expected a .safetensors file.")
    refuse_optimized(path)
    if path.is_dir():
        raise SA3Error(f"{path} is a folder; expected a .safetensors file.")
    with open(path, "rb") as file:
        head = file.read(8)
    # The first 8 bytes of a safetensors file are the length of its header. They may equal a magic number, but no header has 16 MB.
    pickled = head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK") and any(head[3:])
    if path.suffix.lower() in PICKLES or pickled:
        raise SA3Error(f"{path} is a pickled or zip file, which can run code when read; expected a file such as model.safetensors.")
    if not head:
        raise SA3Error(f"{path} is empty, as after an unfinished download; download it again.")
    if path.suffix.lower() not in SUFFIXES:
        raise SA3Error(f"{path} is not a .safetensors file; expected one such as model.safetensors.")


def refuse_optimized(path: Path) -> None:
    """Raise SA3Error for a file made for another inference engine."""
    if engine := ENGINES.get(path.suffix.lower()):
        raise SA3Error(f"{path} is an optimized file for {engine} without PyTorch weights; use the release's own model.safetensors.")
