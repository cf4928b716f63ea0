"""The audio that a node was given, for the picture in its editor: a file in ComfyUI's temporary folder."""

from ...sa3_core.errors import SA3Error
from . import preview
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
        return {KEY: [preview.sound(waveform[0, :2], rate)]}
    except (SA3Error, OSError) as error:
        logger.warning("The editor shows no picture: %s", error)
        return None


def _is_file(prompt: dict, node: str, name: str) -> bool:
    """Whether an input is a LoadAudio's output, of a file that every browser reads."""
    link = prompt.get(node, {}).get("inputs", {}).get(name)
    source = prompt.get(link[0], {}) if isinstance(link, list) else {}
    file = source.get("inputs", {}).get("audio")
    return source.get("class_type") == "LoadAudio" and isinstance(file, str) and file.lower().endswith(BROWSER_FORMATS)
