"""Audio and images that nodes show in the browser: files in ComfyUI's temporary folder, named by a hash of their content."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ...sa3_core.audio import files as audio_files
from ...sa3_core.audio import spectrogram
from ...sa3_core.audio.waveform import resample
from ...sa3_core.errors import SA3Error
from ...sa3_core.files import publish
from .audio import read_audio
from .progress import logger

SIZE = (640, 160)  # pixels of an item's image
BLOCKER = ExecutionBlocker(None)  # as an output: the nodes that depend on it do not run, without an error
EDITOR_KEY = "sa3_waveform"  # of a node's ui result, read by web/waveform/source.js
EDITOR_SECONDS = 1200.0  # longest clip for the editor: a browser decodes it into memory as a whole
COARSE_SECONDS, COARSE_RATE = 7200.0, 8000  # the longest clip that the editor shows at this lower rate, in Hz
BROWSER_FORMATS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def audio_file(clip: Tensor, rate: int) -> dict[str, str]:
    """Write a clip (C, N) as a 16-bit WAV, in which every browser can seek; its name for ComfyUI's /view."""

    def write(clip: Tensor, path: Path) -> None:
        rounded = clip.mul(32768).round_().clamp_(-32768, 32767).div_(32768)  # leaves nothing to dither
        audio_files.write(path, rounded, rate, "wav16")

    return _write_once(clip, f"{rate}", "wav", write)


def image_file(clip: Tensor, rate: int) -> dict[str, str]:
    """Write waveform and spectrogram of a clip (C, N) as a PNG; its name for ComfyUI's /view."""

    def write(clip: Tensor, path: Path) -> None:
        image = to_pil(spectrogram.draw(clip, rate, *SIZE, axes=False))
        publish(path, lambda part: image.save(part, format="PNG", compress_level=4))

    return _write_once(clip, f"{rate} {SIZE}", "png", write)


def _write_once(clip: Tensor, kind: str, suffix: str, write: Callable[[Tensor, Path], None]) -> dict[str, str]:
    clip = clip.detach().cpu().float().nan_to_num(0, 0, 0)
    digest = hashlib.sha256(f"{kind} {tuple(clip.shape)}".encode())
    digest.update(clip.contiguous().numpy().data)
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sa3_{digest.hexdigest()[:24]}.{suffix}"
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            write(clip, path)
    return {"filename": path.name, "subfolder": "", "type": "temp"}


def to_pil(pixels: Tensor) -> Image.Image:
    """(H, W, 3) between 0 and 1 as an 8-bit image."""
    return Image.fromarray((pixels * 255).round().to("cpu", torch.uint8).numpy())


def editor_audio(audio, hidden) -> dict[str, list[dict[str, str]]] | None:
    """The ui result of a node with a waveform editor: a WAV of the first item's first two channels, of long clips in mono at COARSE_RATE.

    None without a browser, where the input `audio` is a file that the browser reads itself, and for clips longer than COARSE_SECONDS.
    Invalid audio gives None and a warning in the log.
    """
    if audio is None or hidden is None or "workflow" not in (hidden.extra_pnginfo or {}):
        return None
    try:
        waveform, rate = read_audio("The AUDIO", audio)
        clip, seconds = waveform[0, :2], waveform.shape[-1] / rate
        if seconds > COARSE_SECONDS or (seconds <= EDITOR_SECONDS and _is_loaded_file(hidden.prompt or {}, hidden.unique_id)):
            return None
        if seconds > EDITOR_SECONDS:
            clip, rate = resample(clip.mean(0, keepdim=True), rate, COARSE_RATE), COARSE_RATE
        return {EDITOR_KEY: [audio_file(clip, rate)]}
    except (SA3Error, OSError) as error:
        logger.warning("The waveform editor cannot show the audio: %s", error)
        return None


def _is_loaded_file(prompt: dict, node_id: str) -> bool:
    """Whether a node's audio comes straight from LoadAudio, in a format that every browser reads."""
    link = prompt.get(node_id, {}).get("inputs", {}).get("audio")
    source = prompt.get(link[0], {}) if isinstance(link, list) else {}
    file = source.get("inputs", {}).get("audio")
    return source.get("class_type") == "LoadAudio" and isinstance(file, str) and file.lower().endswith(BROWSER_FORMATS)
