"""Sampling through ComfyUI's guider: loading, hooks and clean-up stay core's, the run itself is sa3_core's."""

from dataclasses import dataclass

import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...sa3_core import sampling
from ...sa3_core.config import ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.guidance import Guidance
from ...sa3_core.sampling import Plan
from ...sa3_core.timeline import PADDING_SECONDS, Lengths, lengths
from . import model as host_model
from .progress import Progress, check_interrupt

SECONDS, PADDING = "sa3_seconds", "sa3_padding"  # keys of a LATENT


class Guider(comfy.samplers.CFGGuider):
    """Core's guider with Stable Audio 3's guidance in place of plain cfg."""

    def __init__(self, patcher, guidance: Guidance, valid: tuple[int, ...]):
        super().__init__(patcher)
        self.guidance, self.valid = guidance, valid
        self.set_cfg(guidance.cfg)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed=None) -> Tensor:
        """Data prediction (B, C, T) at x, timestep (B,)."""
        options = model_options or {}
        check_interrupt()
        if "sampler_cfg_function" in options:
            return super().predict_noise(x, timestep, options, seed)
        t = timestep.float().cpu()
        positive, negative = self.conds["positive"], self.conds.get("negative")
        if not self.guidance.active(t):
            return comfy.samplers.calc_cond_batch(self.inner_model, [positive], x, timestep, options)[0]
        cond, uncond = comfy.samplers.calc_cond_batch(self.inner_model, [positive, negative], x, timestep, options)
        time = timestep[:, None, None]
        v = self.guidance.combine(x, t, (x - cond) / time, (x - uncond) / time, self.valid)
        return x - time * v


class RunSampler(comfy.samplers.Sampler):
    """`sa3_core.sampling.run` as one of ComfyUI's samplers."""

    def __init__(self, plan: Plan, channels: int, init: Tensor | None, callback):
        self.plan, self.channels, self.init, self.callback = plan, channels, init, callback

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            time = t.to(x.device, torch.float32)
            return (x - model_wrap(x, time, **extra_args)) / time[:, None, None]

        return sampling.run(velocity, self.plan, channels=self.channels, device=noise.device, init=self.init, callback=self.callback)


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
            config, _per_item(seconds, batch, indices), float(latent.get(PADDING, PADDING_SECONDS)), None if empty else samples.shape[-1]
        )
    mask = latent.get("noise_mask")
    keep = None if mask is None else 1 - _mask_frames(mask, batch, line.frames)
    return Latents(line, indices, None if empty else samples, keep)


def _per_item(seconds, batch: int, indices: tuple[int, ...]) -> list[float]:
    """One number per item; a list longer than the batch belongs to the batch that core has picked items from."""
    seconds = [float(value) for value in seconds] if isinstance(seconds, (list, tuple)) else None
    if seconds is not None and indices != tuple(range(batch)) and max(indices) < len(seconds):
        return [seconds[i] for i in indices]
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


def sample(model, positive, latents: Latents, plan: Plan, guidance: Guidance, negative=None) -> Tensor:
    """Run the plan on a MODEL: latents (B, D, T), float32, on ComfyUI's intermediate device."""
    inner = host_model.require(model)
    config, channels = inner.sa3_config, inner.sa3_config.same.latent_dim
    shape = (len(plan.lengths), channels, plan.lengths.frames)
    local = None
    if latents.keep is not None:
        kept = torch.zeros(shape) if latents.samples is None else latents.samples.float().cpu()
        local = torch.cat((latents.keep, latents.keep * kept), dim=1)
    run = host_model.Run(plan.lengths, local)
    if guidance.cfg != 1 and negative is None:
        negative = [[torch.zeros(1, 1, config.conditioning.cond_dim), {}]]
    guider = Guider(model, guidance, plan.lengths.valid)
    guider.set_conds(_with_run(positive, run), _with_run(negative, run) if guidance.cfg != 1 else [])
    progress = Progress(plan.steps)
    init = latents.samples if plan.noise_level < 1 else None
    sampler = RunSampler(plan, channels, init, lambda step, total, denoised: progress(step + 1, total))
    # The run draws its own noise, per item and on the CPU; core needs only the shape.
    blank = torch.zeros(shape)
    return guider.sample(blank, blank, sampler, plan.sigmas[0], disable_pbar=True, seed=plan.seed).cpu()


def _with_run(conditioning, run: host_model.Run) -> list:
    return [[embeddings, {**values, host_model.RUN: run}] for embeddings, values in conditioning]


def check_conditioning(conditioning, config: ModelConfig, batch: int, name: str) -> None:
    """Say what is wrong with a CONDITIONING before weights are moved."""
    if not isinstance(conditioning, list) or not conditioning:
        raise SA3Error(f"The {name} CONDITIONING is empty; connect SA3_TextEncode.")
    for embeddings, values in conditioning:
        rows, _ = host_model.prompt_rows(embeddings, values.get("attention_mask"), batch)
        if rows.shape[-1] != config.conditioning.cond_dim:
            raise SA3Error(
                f"The {name} CONDITIONING is {rows.shape[-1]} wide, this model expects {config.conditioning.cond_dim}; "
                "encode the prompt with the CLIP of the same SA3_ModelLoader."
            )
