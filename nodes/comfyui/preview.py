"""What a node shows in the browser: sounds and pictures as files in ComfyUI's temporary folder, named by their content."""

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ...sa3_core.audio import files as audio_files
from ...sa3_core.audio import spectrogram

SIZE = (640, 160)  # pixels of an item's picture
NOTHING = ExecutionBlocker(None)  # as an output: what follows does not run, without an error


def sound(clip: Tensor, rate: int) -> dict[str, str]:
    """A clip (C, N) as a 16-bit WAV that every browser seeks in, as ComfyUI's /view wants it named."""
    clip = clip.detach().cpu().float().nan_to_num(0, 0, 0)
    path = _place(clip, f"{rate}", "wav")
    if not path.exists():
        whole = clip.mul(32768).round_().clamp_(-32768, 32767).div_(32768)  # rounded here, so nothing is left to dither
        with contextlib.suppress(FileExistsError):
            audio_files.write(path, whole, rate, "wav16")
    return _named(path)


def drawing(clip: Tensor, rate: int) -> dict[str, str]:
    """Waveform and spectrogram of a clip (C, N) as a small PNG."""
    clip = clip.detach().cpu().float().nan_to_num(0, 0, 0)
    path = _place(clip, f"{rate} {SIZE}", "png")
    if not path.exists():
        temporary = path.with_name(f".sa3-{uuid.uuid4().hex}.part")
        image(spectrogram.draw(clip, rate, *SIZE, axes=False)).save(temporary, format="PNG", compress_level=4)
        os.replace(temporary, path)
    return _named(path)


def image(pixels: Tensor) -> Image.Image:
    """(H, W, 3) between 0 and 1."""
    return Image.fromarray((pixels * 255).round().to("cpu", torch.uint8).numpy())


def _place(clip: Tensor, kind: str, suffix: str) -> Path:
    digest = hashlib.sha256(f"{kind} {tuple(clip.shape)}".encode())
    digest.update(clip.contiguous().numpy().data)
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"sa3_{digest.hexdigest()[:24]}.{suffix}"


def _named(path: Path) -> dict[str, str]:
    return {"filename": path.name, "subfolder": "", "type": "temp"}
