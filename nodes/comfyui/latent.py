"""LATENT and AUDIO sockets: ComfyUI's dicts with this pack's keys, checked and read against a model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...sa3_core.audio.waveform import check_clip, check_tensor, to_model
from ...sa3_core.config import FRAME, RATE, ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.timeline.durations import PADDING_SECONDS, Lengths, batch_frames, check_padding, generate_mask, lengths, seconds_of
from ...sa3_core.timeline.regions import format_regions, merge_regions
from . import model as host_model

ANCHOR_LENGTH = 2000.0  # latent frames at which length-dependent schedules are not shifted
SECONDS, PADDING, REGIONS = "sa3_seconds", "sa3_padding", "sa3_regions"  # keys of a LATENT: duration per item, headroom, masked regions
SAMPLES_PER_FRAME = "downscale_ratio_temporal"  # ComfyUI's key


@dataclass(frozen=True)
class Latents:
    """A LATENT of B items: their lengths, and their indices in the batch that was sampled first, which select the noise."""

    lengths: Lengths
    indices: tuple[int, ...]
    samples: Tensor | None  # (B, D, T); None for an empty LATENT
    keep: Tensor | None  # (B, 1, T), 1 = keep the frame


def read_latent(latent, config: ModelConfig) -> Latents:
    """Check a LATENT against a model. An empty one gets the model's own number of frames, so that one graph fits every model."""
    samples, channels = _samples(latent), config.same.latent_dim
    batch = samples.shape[0]
    indices = _batch_index(latent) or tuple(range(batch))
    seconds, empty = latent.get(SECONDS), not bool(samples.any())
    if samples.shape[1] != channels and not (empty and seconds is not None):
        hint = "that is Stable Audio 1 or Open" if samples.shape[1] == 64 else "it belongs to another model"
        raise SA3Error(
            f"The LATENT has {samples.shape[1]} channels ({hint}); this model has {channels}. Use SA3_EmptyLatent or SA3_SAMEEncode."
        )
    if not bool(torch.isfinite(samples.float()).all()):
        raise SA3Error("The LATENT contains NaN or infinite values; check the node that it comes from.")
    if len(indices) != batch:
        raise SA3Error(f"The LATENT's batch_index has {len(indices)} entries for {batch} items; expected one per item.")
    if seconds is None:
        item_lengths = host_model.unpadded_lengths(config, samples)
    else:
        seconds, frames = _per_item(seconds, batch, _batch_index(latent)), None if empty else samples.shape[-1]
        item_lengths = lengths(config, seconds, latent.get(PADDING, PADDING_SECONDS), frames)
    mask = latent.get("noise_mask")
    keep = None if mask is None else 1 - _frame_mask(mask, batch, item_lengths.frames)
    return Latents(item_lengths, indices, None if empty else samples, keep)


def _samples(latent) -> Tensor:
    """The samples (B, D, T) of a LATENT, with at least one item. Raises SA3Error for anything else."""
    if not isinstance(latent, dict) or not isinstance(latent.get("samples"), Tensor):
        raise SA3Error("The LATENT holds no samples; connect SA3_EmptyLatent or SA3_SAMEEncode.")
    samples = latent["samples"]
    check_tensor("The LATENT", samples)
    if samples.dim() != 3:
        raise SA3Error(f"The LATENT has shape {tuple(samples.shape)}, an image or video; expected audio (batch, channels, frames).")
    if 0 in samples.shape:
        raise SA3Error(f"The LATENT has shape {tuple(samples.shape)}, which is empty; expected at least one item and one frame.")
    return samples


def _batch_index(latent: dict) -> tuple[int, ...]:
    """ComfyUI's indices of the items in a larger batch; empty without them."""
    indices = latent.get("batch_index")
    found = () if indices is None else indices.tolist() if isinstance(indices, Tensor) else indices
    if not isinstance(found, (list, tuple)) or not all(isinstance(i, int) and i >= 0 for i in found):
        raise SA3Error(f"The LATENT's batch_index is {indices}; expected a list of whole numbers from 0.")
    return tuple(found)


def _per_item(seconds, batch: int, indices: tuple[int, ...]) -> list[float]:
    """One duration per item: by the batch's indices where ComfyUI has picked items from a larger batch."""
    if not isinstance(seconds, (list, tuple)):
        raise SA3Error(f"The LATENT's {SECONDS} has no list for {batch} items; expected a list with one number per item.")
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) >= 1e9 for value in seconds):
        raise SA3Error(f"The LATENT's {SECONDS} is {str(list(seconds))[:80]}; expected a list of numbers of seconds.")
    if indices and max(indices) < len(seconds):
        return [float(seconds[i]) for i in indices]
    if len(seconds) != batch:
        raise SA3Error(f"The LATENT's {SECONDS} has {len(seconds)} numbers for {batch} items; expected a list with one number per item.")
    return [float(value) for value in seconds]


def _frame_mask(mask: Tensor, batch: int, frames: int) -> Tensor:
    """A noise mask in any of ComfyUI's shapes as (B, 1, T), 1 = regenerate, by nearest neighbour."""
    check_tensor("The noise mask", mask, integers=True)
    if mask.dim() == 0 or 0 in mask.shape or not bool(torch.isfinite(mask.float()).all()):
        raise SA3Error(f"The noise mask has shape {tuple(mask.shape)}; expected finite values (batch, 1, frames).")
    mask = mask.float().reshape(-1, 1, mask.shape[-1])
    if mask.shape[0] not in (1, batch):
        raise SA3Error(f"The noise mask has {mask.shape[0]} rows for {batch} items; expected one, or one per item.")
    return torch.nn.functional.interpolate(mask, size=frames, mode="nearest").round().clamp(0, 1).expand(batch, -1, -1)


def schedule_lengths(latent, config: ModelConfig | None) -> Tensor | float:
    """Latent frames of each item's duration (B,), on which schedules depend. ANCHOR_LENGTH without a LATENT."""
    if latent is None:
        return ANCHOR_LENGTH
    if config is not None:
        return torch.tensor(read_latent(latent, config).lengths.effective)
    samples, seconds = _samples(latent), latent.get(SECONDS)
    batch = samples.shape[0]
    seconds = None if seconds is None else _per_item(seconds, batch, _batch_index(latent))
    frames = [samples.shape[-1]] * batch if seconds is None else [-(-int(value * RATE) // FRAME) for value in seconds]
    return torch.tensor(frames)


def read_audio(name: str, audio) -> tuple[Tensor, int]:
    """Waveform (B, C, N) and sample rate of an AUDIO. Raises SA3Error with its name when it is not valid."""
    if not isinstance(audio, dict) or "waveform" not in audio or "sample_rate" not in audio:
        raise SA3Error(f"{name} is {type(audio).__name__}, not audio; connect Load Audio or another AUDIO output.")
    check_clip(name, audio["waveform"], audio["sample_rate"])
    if audio["waveform"].dim() != 3:
        raise SA3Error(f"{name} has shape {tuple(audio['waveform'].shape)}; expected (batch, channels, samples).")
    return audio["waveform"], audio["sample_rate"]


def read_clip(audio, config: ModelConfig, more_channels: str = "refuse") -> Tensor:
    """Waveform (B, C, N) of an AUDIO at the model's rate and channels. Raises SA3Error when it is invalid or silent.

    more_channels: what to do with more than two: refuse, first two, mix to mono.
    """
    waveform, rate = read_audio("The AUDIO", audio)
    if waveform.shape[1] > 2 and more_channels != "refuse":
        waveform = waveform[:, :2] if more_channels == "first two" else waveform.mean(1, keepdim=True)
    if not bool(waveform.any()):
        raise SA3Error("The AUDIO is silent: every sample is 0. Check the node that it comes from.")
    return to_model("The AUDIO", rate, waveform, config.sample_rate, config.same.audio_channels)


def encode_clip(vae, clip: Tensor, seconds: float, padding: float, chunk_size: int, overlap: int, progress=None) -> dict:
    """The LATENT of a clip (B, C, N), cut or padded with silence to `seconds` and `padding` seconds of headroom."""
    config = vae.sa3_config
    check_padding(padding)
    n = batch_frames(config, seconds, padding) * config.same.samples_per_frame
    clip = torch.nn.functional.pad(clip[..., :n], (0, max(0, n - clip.shape[-1])))
    samples = vae.encode_audio(clip, chunk_size, overlap, progress)
    keys = {SECONDS: [seconds] * len(clip), PADDING: padding, SAMPLES_PER_FRAME: config.same.samples_per_frame}
    return {"samples": samples, "type": "audio", **keys}


def mask_regions(latent: dict, regions: list[tuple[float, float]], tolerance: float = 0.0) -> tuple[dict, str]:
    """The LATENT with a noise mask (B, 1, T), 1 = regenerate, over these and its earlier regions; all regions as text.

    tolerance: seconds by which a region may exceed the clip, to be cut; browsers decode lossy files a little longer.
    """
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) or samples.dim() != 3 or not bool(samples.any()):
        raise SA3Error("The LATENT is empty; connect SA3 SAME Encode, which encodes the sound around the regions.")
    frame = latent.get(SAMPLES_PER_FRAME, FRAME)
    seconds = latent.get(SECONDS) or [seconds_of(samples.shape[-1] * frame, RATE)] * samples.shape[0]
    end_of_clip = max(seconds)
    regions = [(start, end_of_clip if end_of_clip < end <= end_of_clip + tolerance else end) for start, end in regions]
    merged = merge_regions([*latent.get(REGIONS, []), *regions], end_of_clip)
    if not merged:
        raise SA3Error("No region is given; write start-end in seconds, for example: 1.5-3.")
    mask = generate_mask(merged, [int(duration * RATE) for duration in seconds], samples.shape[-1], frame, RATE)
    return {**latent, "noise_mask": mask, REGIONS: merged}, format_regions(merged)
