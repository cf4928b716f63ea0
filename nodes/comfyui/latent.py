"""LATENT and AUDIO as ComfyUI passes them, read and written with this pack's keys."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...sa3_core.audio.waveform import check_clip, to_model
from ...sa3_core.config import FRAME, RATE, ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.timeline.durations import PADDING_SECONDS, Lengths, batch_frames, check_padding, generate_mask, lengths
from ...sa3_core.timeline.regions import format_regions, merge_regions
from . import model as host_model

ANCHOR_LENGTH = 2000.0  # latent frames, where length-dependent schedules are neutral
# Keys of a LATENT: durations per item, headroom, regions of the noise mask; and core's key for samples per frame.
SECONDS, PADDING, REGIONS, FRAMES = "sa3_seconds", "sa3_padding", "sa3_regions", "downscale_ratio_temporal"


@dataclass(frozen=True)
class Latents:
    """A LATENT read against a model: its time line, draws' indices, and what it gives the run to start from or to keep."""

    lengths: Lengths
    indices: tuple[int, ...]
    samples: Tensor | None  # (B, D, T), None when empty
    keep: Tensor | None  # (B, 1, T), 1 = given


def read_latent(latent, config: ModelConfig) -> Latents:
    """Check a LATENT against the model. An empty one takes the model's own frame count, so one graph fits every model."""
    if not isinstance(latent, dict) or not isinstance(latent.get("samples"), Tensor):
        raise SA3Error("The LATENT holds no samples; connect SA3_EmptyLatent or SA3_SAMEEncode.")
    samples, channels = latent["samples"], config.same.latent_dim
    batch = samples.shape[0]
    if samples.dim() != 3:
        raise SA3Error(f"The LATENT has shape {tuple(samples.shape)}, an image or video; expected audio (batch, {channels}, frames).")
    indices = tuple(int(i) for i in latent.get("batch_index") or range(batch))
    seconds = latent.get(SECONDS)
    empty = not bool(samples.any())
    if samples.shape[1] != channels and not (empty and seconds is not None):
        hint = "that is Stable Audio 1 or Open" if samples.shape[1] == 64 else "it was made for another model"
        raise SA3Error(
            f"The LATENT has {samples.shape[1]} channels ({hint}); this model has {channels}. Use SA3_EmptyLatent or SA3_SAMEEncode."
        )
    if len(indices) != batch:
        raise SA3Error(f"The LATENT's batch_index has {len(indices)} entries for {batch} items.")
    if seconds is None:
        line = host_model.whole_latents(config, samples)
    else:
        line = lengths(
            config,
            _per_item(seconds, batch, latent.get("batch_index")),
            float(latent.get(PADDING, PADDING_SECONDS)),
            None if empty else samples.shape[-1],
        )
    mask = latent.get("noise_mask")
    keep = None if mask is None else 1 - _mask_frames(mask, batch, line.frames)
    return Latents(line, indices, None if empty else samples, keep)


def _per_item(seconds, batch: int, picked: list[int] | None) -> list[float]:
    """One number per item; a list longer than the batch belongs to the batch that core has picked items from."""
    if isinstance(seconds, (list, tuple)) and not all(isinstance(value, (int, float)) for value in seconds):
        raise SA3Error(f"The LATENT's {SECONDS} is {list(seconds)}; expected a list of numbers.")
    seconds = [float(value) for value in seconds] if isinstance(seconds, (list, tuple)) else None
    if seconds is not None and picked and max(picked) < len(seconds):
        return [seconds[i] for i in picked]
    if seconds is None or len(seconds) != batch:
        found = "no list" if seconds is None else f"{len(seconds)} numbers"
        raise SA3Error(f"The LATENT's {SECONDS} has {found} for {batch} items; expected a list with one number per item.")
    return seconds


def _mask_frames(mask: Tensor, batch: int, frames: int) -> Tensor:
    """A noise mask of any of core's shapes as (B, 1, T), 1 = regenerate, by nearest neighbour."""
    mask = mask.float().reshape(-1, 1, mask.shape[-1])
    if mask.shape[0] not in (1, batch):
        raise SA3Error(f"The noise mask has {mask.shape[0]} rows for {batch} items.")
    return torch.nn.functional.interpolate(mask, size=frames, mode="nearest").round().clamp(0, 1).expand(batch, -1, -1)


def schedule_lengths(latent, config: ModelConfig | None) -> Tensor | float:
    """Frames of the asked durations, per item, for SA3_Schedule. Without a LATENT: the anchor length, where shifts are neutral."""
    if latent is None:
        return ANCHOR_LENGTH
    seconds, samples = latent.get(SECONDS), latent["samples"]
    if config is not None:
        return torch.tensor(read_latent(latent, config).lengths.effective)
    frames = [samples.shape[-1]] * samples.shape[0] if seconds is None else [-(-int(value * RATE) // FRAME) for value in seconds]
    return torch.tensor(frames)


def read_audio(name: str, audio) -> tuple[torch.Tensor, int]:
    """Waveform (B, C, N) and rate of an AUDIO."""
    if not isinstance(audio, dict) or "waveform" not in audio or "sample_rate" not in audio:
        raise SA3Error(f"{name} is {type(audio).__name__}, not audio; connect Load Audio or another AUDIO output.")
    check_clip(name, audio["waveform"], audio["sample_rate"])
    if audio["waveform"].dim() != 3:
        raise SA3Error(f"{name} has shape {tuple(audio['waveform'].shape)}; expected (batch, channels, samples).")
    return audio["waveform"], audio["sample_rate"]


def read_clip(audio, config: ModelConfig, more_channels: str = "refuse") -> torch.Tensor:
    """An AUDIO as (B, channels, N) at the model's rate; silence and broken input are refused by name."""
    waveform, rate = read_audio("The AUDIO", audio)
    if waveform.shape[1] > 2 and more_channels != "refuse":
        waveform = waveform[:, :2] if more_channels == "first two" else waveform.mean(1, keepdim=True)
    if not bool(waveform.any()):
        raise SA3Error("The AUDIO is silent: every sample is 0. Check what feeds it.")
    return to_model("The AUDIO", rate, waveform, config.sample_rate, config.same.audio_channels)


def encode_line(vae, clip: Tensor, seconds: float, padding: float, chunk_size: int, overlap: int, progress=None) -> dict:
    """LATENT of a clip (B, C, N) on a line of `seconds` plus headroom, cut or filled with silence."""
    config = vae.sa3_config
    check_padding(padding)
    frames = batch_frames(config, seconds, padding)
    n = frames * config.same.samples_per_frame
    clip = torch.nn.functional.pad(clip[..., :n], (0, max(0, n - clip.shape[-1])))
    samples = vae.encode_audio(clip, chunk_size, overlap, progress)
    line = {SECONDS: [seconds] * len(clip), PADDING: padding, FRAMES: config.same.samples_per_frame}
    return {"samples": samples, "type": "audio", **line}


def mark(latent: dict, regions: list[tuple[float, float]], slack: float = 0.0) -> tuple[dict, str]:
    """The LATENT with a noise mask (B, 1, T), 1 = regenerate, over these regions and those it had; and all regions as text.

    slack: seconds by which a region may end behind the clip and then ends with it; browsers decode lossy files a little longer.
    """
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) or samples.dim() != 3 or not bool(samples.any()):
        raise SA3Error("The LATENT is empty; connect SA3 SAME Encode, which holds the sound around the regions.")
    frame = latent.get(FRAMES, FRAME)
    seconds = latent.get(SECONDS) or [samples.shape[-1] * frame / RATE] * samples.shape[0]
    last = max(seconds)
    regions = [(start, last if last < end <= last + slack else end) for start, end in regions]
    merged = merge_regions([*latent.get(REGIONS, []), *regions], last)
    if not merged:
        raise SA3Error("No region is given; write start-end in seconds, for example: 1.5-3.")
    mask = generate_mask(merged, [int(duration * RATE) for duration in seconds], samples.shape[-1], frame, RATE)
    return {**latent, "noise_mask": mask, REGIONS: merged}, format_regions(merged)
