"""The audio that a node was given, for the picture in its editor: a file in ComfyUI's temporary folder."""

import contextlib
import hashlib
from pathlib import Path

import folder_paths
import torch

from ...sa3_core import audio_files
from ...sa3_core.errors import SA3Error
from .latent import read_audio
from .progress import logger

KEY = "sa3_waveform"  # of the node's ui result, which web/waveform/source.js reads
LONGEST = 1200.0  # seconds; a browser decodes the whole clip into memory
BROWSER_FORMATS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def picture(audio, hidden, name: str = "audio") -> dict[str, list[dict[str, str]]] | None:
    """What the node's `ui` holds: the file of the first item's first two channels, 16 bits.

    None without a browser that asks, and where the input comes straight from a file that the browser reads by itself. The file
    is named by its content, so unchanged audio is written once. Audio that cannot be shown never stops the run.
    """
    if audio is None or hidden is None or "workflow" not in (hidden.extra_pnginfo or {}):
        return None
    if _is_file((hidden.prompt or {}), hidden.unique_id, name):
        return None
    try:
        waveform, rate = read_audio("The AUDIO", audio)
        if waveform.shape[-1] > LONGEST * rate:
            return None
        file = _write(waveform[0, :2], rate)
    except (SA3Error, OSError) as error:
        logger.warning("The editor shows no picture: %s", error)
        return None
    return {KEY: [{"filename": file.name, "subfolder": "", "type": "temp"}]}


def _is_file(prompt: dict, node: str, name: str) -> bool:
    """Whether an input is a LoadAudio's output, of a file that every browser reads."""
    link = prompt.get(node, {}).get("inputs", {}).get(name)
    source = prompt.get(link[0], {}) if isinstance(link, list) else {}
    file = source.get("inputs", {}).get("audio")
    return source.get("class_type") == "LoadAudio" and isinstance(file, str) and file.lower().endswith(BROWSER_FORMATS)


def _write(waveform: torch.Tensor, rate: int) -> Path:
    samples = waveform.detach().to("cpu", torch.float32).contiguous()  # (C, N)
    digest = hashlib.sha256(f"{rate} {tuple(samples.shape)}".encode())
    digest.update(samples.numpy().data)
    file = Path(folder_paths.get_temp_directory()) / f"sa3_{digest.hexdigest()[:24]}.wav"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = samples.mul(32768).round_().clamp_(-32768, 32767).div_(32768)  # rounded here, so nothing is left to dither
        with contextlib.suppress(FileExistsError):
            audio_files.write(file, whole, rate, "wav16")
    return file
