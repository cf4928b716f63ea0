"""LATENT sockets: ComfyUI's dicts with this pack's keys, checked and read against a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...sa3_core.audio.waveform import check_tensor
from ...sa3_core.config import FRAME, RATE, ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.timeline.durations import PADDING_SECONDS, Lengths, batch_frames, check_padding, generate_mask, lengths, seconds_of
from ...sa3_core.timeline.regions import check_pairs, format_regions, merge_regions
from . import model as host_model

ANCHOR_LENGTH = 2000.0  # latent frames at which length-dependent schedules are not shifted
SECONDS, PADDING, REGIONS = "sa3_seconds", "sa3_padding", "sa3_regions"  # keys of a LATENT: duration per item, headroom, masked regions
SAMPLES_PER_FRAME = "downscale_ratio_temporal"  # ComfyUI's key
CORE_CHANNELS, CORE_FRAME = 64, 2048  # of core's EmptyLatentAudio, which is made for Stable Audio 1


class Item(int):
    """An index in a LATENT's batch_index that carries the duration of its item: core's nodes pick, repeat and join these indices, and know
    no other list. RepeatLatentBatch adds an offset to the indices of the copies."""

    seconds: float

    def __new__(cls, index: int, seconds: float) -> "Item":
        item = super().__new__(cls, index)
        item.seconds = float(seconds)
        return item

    def __add__(self, offset: int) -> "Item":
        return Item(int(self) + offset, self.seconds)

    def __getnewargs__(self) -> tuple[int, float]:
        return int(self), self.seconds  # for copies


def with_items(latent, seconds: Sequence[float], indices: Sequence[int] | None = None) -> dict:
    """A LATENT with the duration of each item. indices: of the items in the batch that was sampled first, which select the noise."""
    items = [Item(i, value) for i, value in zip(range(len(seconds)) if indices is None else indices, seconds, strict=True)]
    return {SECONDS: list(seconds), **latent, "batch_index": items}


@dataclass(frozen=True)
class Latents:
    """A LATENT of B items: their lengths, and their indices in the batch that was sampled first, which select the noise."""

    lengths: Lengths
    indices: tuple[int, ...]
    samples: Tensor | None  # (B, D, T); None for an empty LATENT
    keep: Tensor | None  # (B, 1, T), 1 = keep the frame


def with_duration(latent):
    """A LATENT; core's EmptyLatentAudio, which has no duration of its own, with that of its frames."""
    samples = read_samples(latent)
    if SECONDS in latent or samples.shape[1] != CORE_CHANNELS or bool(samples.any()):
        return latent
    seconds = samples.shape[-1] * samples_per_frame(latent, CORE_FRAME) / RATE
    return {**latent, SECONDS: [seconds], SAMPLES_PER_FRAME: FRAME}  # one for all items


def duration_warnings(latent, source: Latents) -> list[str]:
    """A sentence where a LATENT has lost its duration, as in core's SaveLatent, or exceeds it, as in LatentConcat."""
    if seconds_per_item(latent, len(source.lengths)) is None:
        return [
            f"The LATENT carries no duration: all of its {source.lengths.seconds[0]:.2f} s count as sound, headroom included. SA3 Load "
            "Latent and SA3 SAME Encode keep it."
        ]
    own = max(source.lengths.own) + 8  # models and autoencoders round lengths up to different multiples
    if source.samples is None or not bool(source.samples[..., own:].any()):
        return []
    return [f"The LATENT has sound after its duration of {max(source.lengths.seconds):.2f} s, which is not used; join audio instead."]


def source_warnings(source: Latents, noise_level: float) -> list[str]:
    """A sentence where the sound of a LATENT, or the want of one, cannot do what the noise level or the mask asks of it."""
    if source.samples is None:
        return [
            f"The LATENT is empty and the noise level {noise_level:g}: there is no sound to start from, only weaker noise. "
            "Connect SA3 SAME Encode, or set the noise level to 1."
        ] * (noise_level < 1)
    if source.keep is None:
        return [
            "No region is marked and the noise level is 1: everything is regenerated, and nothing of the LATENT's sound is used. Connect "
            "SA3 Inpaint Mask, or lower the noise level."
        ] * (noise_level >= 1)
    kept = all(bool(keep[..., :n].all()) for keep, n in zip(source.keep, source.lengths.effective, strict=True))
    return ["No region is marked: the mask keeps the whole sound, which the result repeats. Mark what to regenerate."] * kept


def read_latent(latent, config: ModelConfig) -> Latents:
    """Check a LATENT against a model. An empty one gets the model's own number of frames, so that one graph fits every model."""
    latent = with_duration(latent)
    samples, channels = read_samples(latent), config.same.latent_dim
    batch = samples.shape[0]
    empty = not bool(samples.any())
    if samples.shape[1] != channels and not (empty and latent.get(SECONDS) is not None):
        hint = "that is Stable Audio 1 or Open" if samples.shape[1] == 64 else "it belongs to another model"
        raise SA3Error(
            f"The LATENT has {samples.shape[1]} channels ({hint}); this model has {channels}. Use SA3_EmptyLatent or SA3_SAMEEncode."
        )
    check_values(samples)
    indices, seconds = batch_indices(latent, batch), seconds_per_item(latent, batch)
    if seconds is None:
        item_lengths = host_model.unpadded_lengths(config, samples)
    else:
        item_lengths = lengths(config, seconds, latent.get(PADDING, PADDING_SECONDS), None if empty else samples.shape[-1])
    mask = latent.get("noise_mask")
    keep = None if mask is None else 1 - frame_mask(mask, batch, item_lengths.frames)
    return Latents(item_lengths, indices or tuple(range(batch)), None if empty else samples, keep)


def read_samples(latent) -> Tensor:
    """The samples (B, D, T) of a LATENT, with at least one item. Raises SA3Error for anything else."""
    if not isinstance(latent, Mapping) or not isinstance(latent.get("samples"), Tensor):
        raise SA3Error("The LATENT holds no samples; connect SA3_EmptyLatent or SA3_SAMEEncode.")
    samples = latent["samples"]
    check_tensor("The LATENT", samples)
    if samples.dim() != 3:
        raise SA3Error(
            f"The LATENT has shape {tuple(samples.shape)}, an image or video; expected audio. Connect SA3_EmptyLatent or SA3_SAMEEncode."
        )
    if 0 in samples.shape:
        raise SA3Error(f"The LATENT has shape {tuple(samples.shape)}, which is empty; connect SA3_EmptyLatent or SA3_SAMEEncode.")
    return samples


def samples_per_frame(latent, default: int) -> int:
    """The samples of audio per latent frame that a LATENT states."""
    frame = latent.get(SAMPLES_PER_FRAME)
    frame = default if frame is None else frame
    if isinstance(frame, bool) or not isinstance(frame, int) or not 0 < frame <= 2**20:
        raise SA3Error(f"The LATENT's {SAMPLES_PER_FRAME} is {str(frame)[:80]}; expected a positive whole number of samples.")
    return frame


def check_values(samples: Tensor) -> None:
    if not bool(torch.isfinite(samples.float()).all()):
        raise SA3Error("The LATENT contains NaN or infinite values; check the node that it comes from.")


def batch_indices(latent: dict, batch: int) -> tuple[int, ...]:
    """ComfyUI's indices of `batch` items in a larger batch; empty without them."""
    indices = latent.get("batch_index")
    found = () if indices is None else indices.tolist() if isinstance(indices, Tensor) else indices
    if not isinstance(found, (list, tuple)) or not all(isinstance(i, int) and 0 <= i < 2**63 for i in found):
        raise SA3Error(f"The LATENT's batch_index is {indices}; expected a list of whole numbers from 0.")
    if found and len(found) != batch:
        raise SA3Error(f"The LATENT's batch_index has {len(found)} entries for {batch} items; expected one per item.")
    return tuple(found)


def seconds_per_item(latent: dict, batch: int) -> list[float] | None:
    """The duration of each item; None for a LATENT without durations."""
    seconds, indices = latent.get(SECONDS), batch_indices(latent, batch)
    carried = [i.seconds for i in indices if isinstance(i, Item)]
    if seconds is None:
        return carried if indices and len(carried) == batch else None
    if not isinstance(seconds, (list, tuple)) or not seconds:
        raise SA3Error(f"The LATENT's {SECONDS} has no list for {batch} items; expected a list with one number per item.")
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9 for value in seconds):
        raise SA3Error(f"The LATENT's {SECONDS} is {str(list(seconds))[:80]}; expected a list of numbers of seconds.")
    if len(seconds) == batch and all(i is indices[0] for i in indices):  # none, or one for all: LatentBatchSeedBehavior
        return [float(value) for value in seconds]
    return carried if indices and len(carried) == batch else _per_item(seconds, batch, indices)


def _per_item(seconds: Sequence[float], batch: int, indices: tuple[int, ...]) -> list[float]:
    """One duration per item. A list repeats for a multiple of its items, as in RepeatLatentBatch. indices: of the items in a larger batch
    that ComfyUI has picked them from; empty without."""
    if indices and (max(indices) < len(seconds) or len(set(seconds)) == 1):
        return [float(seconds[i % len(seconds)]) for i in indices]
    if batch % len(seconds) or indices:
        hint = f" Its batch_index names item {max(indices)}: repeat and join batches before items are picked from them." if indices else ""
        raise SA3Error(f"The LATENT's {SECONDS} has {len(seconds)} numbers for {batch} items; expected one number per item.{hint}")
    return [float(value) for value in seconds] * (batch // len(seconds))


def frame_mask(mask: Tensor, batch: int, frames: int) -> Tensor:
    """A noise mask in any of ComfyUI's shapes, (T,) to (batch, 1, height, T), as (B, 1, T), 1 = regenerate, by nearest neighbour."""
    check_tensor("The noise mask", mask, integers=True)
    if mask.dim() == 0 or 0 in mask.shape or not bool(torch.isfinite(mask.float()).all()):
        raise SA3Error(f"The noise mask has shape {tuple(mask.shape)}; expected finite values (batch, 1, frames).")
    mask = mask.float().reshape(mask.shape[0] if mask.dim() > 1 else 1, -1, mask.shape[-1]).mean(1, keepdim=True)
    if mask.shape[0] not in (1, batch):
        raise SA3Error(f"The noise mask has {mask.shape[0]} rows for {batch} items; expected one, or one per item.")
    return torch.nn.functional.interpolate(mask, size=frames, mode="nearest").round().clamp(0, 1).expand(batch, -1, -1)


def schedule_lengths(latent, config: ModelConfig | None) -> Tensor | float:
    """Latent frames of each item's duration (B,), on which schedules depend. ANCHOR_LENGTH without a LATENT."""
    if latent is None:
        return ANCHOR_LENGTH
    if config is not None:
        return torch.tensor(read_latent(latent, config).lengths.effective)
    latent = with_duration(latent)
    samples = read_samples(latent)
    batch = samples.shape[0]
    seconds = seconds_per_item(latent, batch)
    frames = [samples.shape[-1]] * batch if seconds is None else [-(-int(value * RATE) // FRAME) for value in seconds]
    return torch.tensor(frames)


def encode_clip(
    vae, clip: Tensor, seconds: float, padding: float, chunk_size: int, overlap: int, progress=None, copies: int = 1
) -> dict:  # fmt: skip
    """The LATENT of a clip (B, C, N), cut or padded with silence to `seconds` and `padding` seconds of headroom. copies: of the batch."""
    config = vae.sa3_config
    check_padding(padding)
    n = batch_frames(config, seconds, padding) * config.same.samples_per_frame
    clip = torch.nn.functional.pad(clip[..., :n], (0, max(0, n - clip.shape[-1])))
    samples = vae.encode_audio(clip, chunk_size, overlap, progress).repeat(copies, 1, 1)
    keys = {PADDING: padding, SAMPLES_PER_FRAME: config.same.samples_per_frame}
    return with_items({"samples": samples, "type": "audio", **keys}, [seconds] * len(samples))


def mask_regions(latent: dict, regions: list[tuple[float, float]], tolerance: float = 0.0) -> tuple[dict, str]:
    """The LATENT with a noise mask (B, 1, T), 1 = regenerate, over these and its earlier regions; all regions as text.

    tolerance: seconds by which a region may exceed the clip, to be cut; browsers decode lossy files a little longer.
    """
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    if not isinstance(samples, Tensor) or samples.dim() != 3 or not bool(samples.any()):
        raise SA3Error("The LATENT is empty; connect SA3 SAME Encode, which encodes the sound around the regions.")
    frame = samples_per_frame(latent, FRAME)
    seconds = seconds_per_item(latent, len(samples)) or [seconds_of(samples.shape[-1] * frame, RATE)]
    end_of_clip = max(seconds)
    regions = [(start, end_of_clip if end_of_clip < end <= end_of_clip + tolerance else end) for start, end in regions]
    merged = merge_regions([*check_pairs(latent.get(REGIONS) or []), *regions], end_of_clip)
    if not merged:
        raise SA3Error("No region is given; write start-end in seconds, for example: 1.5-3.")
    mask = generate_mask(merged, [int(duration * RATE) for duration in seconds], samples.shape[-1], frame, RATE)
    return {**latent, "noise_mask": mask, REGIONS: merged}, format_regions(merged)
