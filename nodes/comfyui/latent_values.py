"""LATENT to the content of a file and back: the keys that files keep, checked without a model."""

import math
import operator
from contextlib import suppress

import torch
from torch import Tensor

from ...sa3_core.checkpoints.latent_files import LatentFile, pair_seconds
from ...sa3_core.config import FRAME, RATE
from ...sa3_core.errors import SA3Error
from ...sa3_core.timeline.durations import check_padding
from ...sa3_core.timeline.regions import check_pairs, merge_regions
from . import latent as sockets
from .latent import PADDING, REGIONS, SAMPLES_PER_FRAME, SECONDS, Item


def to_file(latent, texts: dict[str, str]) -> tuple[LatentFile, list[str]]:
    """The content of a file for a LATENT, and a sentence about keys that files do not keep. texts: run record and graph."""
    latent = sockets.with_duration(latent)
    kept = _kept(latent)
    others = ", ".join(sorted(str(key) for key in latent if key not in kept and latent[key] is not None))
    warnings = [f"The file does not keep the LATENT's {others}, which this pack does not know."] if others else []
    return LatentFile(kept.pop("samples"), kept.pop("noise_mask", None), kept, texts=texts), warnings


def from_file(content: LatentFile, name: str) -> tuple[dict, list[str]]:
    """The LATENT in a file called `name`, and a sentence where durations are inferred. Raises SA3Error for values that no node takes."""
    values, warnings = dict(content.values or {}), []
    indices, seconds = values.get("batch_index"), values.get(SECONDS)
    if isinstance(indices, list) and isinstance(seconds, list) and len(indices) == len(seconds):
        with suppress(TypeError, ValueError, OverflowError):  # `_kept` refuses what is no number
            values["batch_index"] = [Item(operator.index(i), value) for i, value in zip(indices, seconds, strict=True)]
    if content.seconds is not None:
        values = {SECONDS: content.seconds, PADDING: 0.0}
    elif content.values is None:
        warnings.append(f"{name} holds neither durations nor headroom: all of its frames count as sound. SA3 Save Latent keeps them.")
    try:
        return _kept({**values, "samples": content.samples, "noise_mask": content.mask}), warnings
    except SA3Error as error:
        raise SA3Error(f"{name}: {error}") from error


def _kept(latent) -> dict:
    """The part of a LATENT that files keep: tensors in float32 on the CPU, other values as JSON has them, checked without a model."""
    samples = sockets.read_samples(latent)
    sockets.check_values(samples)
    batch, mask = samples.shape[0], latent.get("noise_mask")
    kept = {"samples": samples.detach().to("cpu", torch.float32), "type": "audio"}
    if mask is not None:
        sockets.frame_mask(mask, batch, samples.shape[-1])
        kept["noise_mask"] = mask.detach().to("cpu", torch.float32)
    if (seconds := sockets.seconds_per_item(latent, batch)) is not None:
        if not min(seconds) > 0:
            raise SA3Error(f"The LATENT's {SECONDS} has {min(seconds)}; expected positive numbers of seconds.")
        kept[SECONDS] = seconds
    if PADDING in latent:
        check_padding(latent[PADDING])
        kept[PADDING] = latent[PADDING]
    if latent.get(REGIONS) is not None:
        kept[REGIONS] = merge_regions(check_pairs(latent[REGIONS]))
    if latent.get(SAMPLES_PER_FRAME) is not None:
        kept[SAMPLES_PER_FRAME] = sockets.samples_per_frame(latent, FRAME)
    if indices := sockets.batch_indices(latent, batch):
        kept["batch_index"] = list(indices)
    return kept


def pair_items(content: LatentFile) -> tuple[list[tuple[Tensor, int, float, int]], str]:
    """(samples (C, T), frames of sound, seconds, samples per frame) of each item for the public tools' pairs, and a warning about what
    those do not hold."""
    batch, _, frames = content.samples.shape
    frame = sockets.samples_per_frame(content.values, FRAME)
    seconds = sockets.seconds_per_item(content.values, batch) or [frames * frame / RATE] * batch
    sound = [max(1, min(frames, -(-int(value * RATE) // frame))) for value in seconds]
    read = [pair_seconds(n, math.ceil(value), frame) for n, value in zip(sound, seconds, strict=True)]
    rounded = ", ".join(f"{old:g} to {new:.3f} s" for old, new in zip(seconds[:8], read, strict=False) if old != new)
    return [(samples, n, value, frame) for samples, n, value in zip(content.samples, sound, seconds, strict=True)], (
        ".npy and .json files hold no headroom, mask, regions, batch_index, run record and workflow; the format safetensors keeps them. "
        "Their prompt is empty: write the caption there before training."
        + (f" Durations are rounded to latent frames: {rounded}." if rounded else "")
    )
