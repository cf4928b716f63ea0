"""Sampling with `sa3_core.sampling.runs` through ComfyUI's guider, which loads models, applies hooks and cleans up."""

import dataclasses
from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...sa3_core.audio.waveform import repeated
from ...sa3_core.backends.device import to_device
from ...sa3_core.config import ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.sampling import hints, runs, samplers
from ...sa3_core.sampling.draws import Draws
from ...sa3_core.sampling.float32_retry import with_float32_retry
from ...sa3_core.sampling.guidance import Guidance
from ...sa3_core.sampling.runs import Plan
from . import model as host_model
from . import run_options
from .latent import Latents
from .live_preview import LivePreview
from .out_of_memory import halvings, retry_smaller
from .patchers import REMARKS
from .progress import Progress, check_interrupt, show_loading, warn

IMAGE_CONDITIONS = ("area", "mask", "control")  # keys of a CONDITIONING entry that core applies to images
OTHER_GUIDANCE = "sampler_cfg_function"  # key of model_options: another node's guidance, which replaces this pack's


class Guider(comfy.samplers.CFGGuider):
    """Core's guider with Stable Audio 3's guidance in place of standard guidance. valid: valid frames per item."""

    def __init__(self, patcher, guidance: Guidance, valid: tuple[int, ...]):
        super().__init__(patcher)
        self.guidance, self.valid = guidance, valid
        self.set_cfg(guidance.cfg)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed=None) -> Tensor:
        """Denoised data (B, C, T) at x (B, C, T), timestep (B,)."""
        options = model_options or {}
        check_interrupt()
        if OTHER_GUIDANCE in options:
            return super().predict_noise(x, timestep, options, seed)
        t = run_options.read(options).times_of(timestep)
        t = timestep.float().cpu() if t is None else t
        scale = self.guidance.cfg if bool(self.guidance.active(t).any()) else 1.0
        if scale != 1:
            options = {**options, OTHER_GUIDANCE: partial(self._guide, t)}
        # core's function, so that the hooks of other packs before and after guidance run
        positive, negative = self.conds["positive"], self.conds.get("negative")
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, negative, positive, scale, options, seed)

    def _guide(self, t: Tensor, args: dict) -> Tensor:
        """The guided x - D (B, C, T), as core expects it. t (B,): the times on the CPU. args: core's x, timestep and denoised data."""
        x, time = args["input"], args["timestep"]
        v_cond, v_uncond = (velocity_of(x, args[name], time) for name in ("cond_denoised", "uncond_denoised"))
        return time[:, None, None] * self.guidance.apply(x, t, v_cond, v_uncond, self.valid)


def velocity_of(x: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """Velocity (B, C, T), sa3_core's unit, from core's denoised data (B, C, T) at x, t (B,)."""
    return (x - denoised) / t[:, None, None]


class RunSampler(comfy.samplers.Sampler):
    """`sa3_core.sampling.runs.run` as one of ComfyUI's samplers."""

    def __init__(self, plan: Plan, channels: int, init: Tensor | None, callback):
        self.plan, self.channels, self.init, self.callback = plan, channels, init, callback

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            time = to_device(t, x.device, torch.float32)
            options = run_options.updated(extra_args.get("model_options", {}), times=(time, t.float()))
            return velocity_of(x, model_wrap(x, time, **{**extra_args, "model_options": options}), time)

        return runs.run(velocity, self.plan, channels=self.channels, device=noise.device, init=self.init, callback=self.callback)


def sample(
    model, positive, latents: Latents, plan: Plan, guidance: Guidance, negative=None, progress=None, live: LivePreview | None = None,
    warn=warn,
) -> Tensor:  # fmt: skip
    """Sampled latents (B, D, T), float32, on ComfyUI's intermediate device.

    progress(done, total, text, image): replaces the node's progress bar. live: draws the images. warn(sentence): called for a retry in
    float32. A batch that exceeds memory is sampled in groups of items, with the same draws as in one batch.
    """
    inner = host_model.sa3_model(model)
    if guidance.cfg == 1 and not model.model_options.get("disable_cfg1_optimization"):  # set by other packs' hooks
        negative = []
    elif negative is None:
        negative = [[torch.zeros(1, 1, inner.sa3_config.conditioning.cond_dim), {}]]
    batch, finished = len(plan.lengths), []  # finished groups are kept when the others are retried in smaller ones
    bar = progress or Progress(plan.steps * batch)
    show_loading(model, "the model")

    def sample_items(items: range) -> Tensor:
        def report(step: int, total: int, denoised: Tensor) -> None:
            text = f"step {step + 1} of {total}" + ("" if len(items) == batch else f", items {items.start + 1} to {items.stop}")
            image = None if live is None else live(denoised, plan.lengths.pick(items))
            bar(items.start * total + (step + 1) * len(items), batch * total, text, image)

        def compute(dtype: torch.dtype) -> Tensor:
            with inner.computing_in(dtype):
                return _sample_group(model, positive, negative, latents, plan, guidance, items, report)

        return with_float32_retry("The latents", inner.compute_dtype, compute, warn)

    def sample_remaining(group_size: int) -> None:
        while (first := sum(map(len, finished))) < batch:
            finished.append(sample_items(range(first, min(first + group_size, batch))))

    sizes = halvings(_group_size(model, plan))
    with run_options.read(model.model_options).run():
        retry_smaller("sampling", "items", "Shorten the clip, or use a 16-bit dtype.", sizes, sample_remaining)
    if progress is None:
        bar.finish()
    return torch.cat(finished).to(comfy.model_management.intermediate_device())


def _group_size(model, plan: Plan) -> int:
    """Number of items that fit into memory together with the loaded weights."""
    inner = model.model
    free = comfy.model_management.get_free_memory(model.load_device)
    if not comfy.model_management.is_device_cpu(model.load_device):
        free = max(free, comfy.model_management.get_total_memory(model.load_device) - model.model_size())
    per_item = inner.memory_required([1, inner.sa3_config.same.latent_dim, plan.lengths.frames])
    return max(1, min(len(plan.lengths), int(0.8 * free / per_item)))


def _sample_group(model, positive, negative, latents: Latents, plan: Plan, guidance: Guidance, items: range, report) -> Tensor:
    """Sampled latents of some items of the batch, through core's guider."""
    rows, batch = list(items), len(plan.lengths)
    part = plan.pick(rows)
    channels = model.model.sa3_config.same.latent_dim
    samples = None if latents.samples is None else latents.samples[rows].float()
    local = None
    if latents.keep is not None:
        keep = latents.keep[rows]
        source = torch.zeros(len(rows), channels, part.lengths.frames) if samples is None else samples
        local = torch.cat((keep, keep * source.to(keep.device)), dim=1)
    run = host_model.RunInputs(part.lengths, local)
    guider = Guider(model, guidance, part.lengths.valid)
    guider.set_conds(_for_run(positive, run, rows, batch), _for_run(negative, run, rows, batch))
    guider.model_options = run_options.updated(guider.model_options, sigmas=part.sigmas)
    sampler = RunSampler(part, channels, samples if part.noise_level < 1 else None, report)
    blank = torch.zeros(len(rows), channels, part.lengths.frames)  # core needs only the shape: the run draws its own noise
    return guider.sample(blank, blank, sampler, part.sigmas[0], disable_pbar=True, seed=part.seed)


def _for_run(conditioning, run: host_model.RunInputs, rows: list[int], batch: int) -> list:
    """A CONDITIONING of some items of the batch, with the inputs of their run in each entry."""

    def pick(x):
        return repeated(x, batch)[rows] if isinstance(x, Tensor) and x.shape[0] > 1 else x

    return [
        [pick(embeddings), {**values, "attention_mask": pick(values.get("attention_mask")), host_model.RUN_INPUTS: run}]
        for embeddings, values in conditioning
    ]


def check_inputs(config: ModelConfig, batch: int, positive, negative, guidance, cfg: float) -> Guidance:
    """The Guidance of a run with these sockets; cfg 0: the model's. Raises SA3Error unless they fit the model and the batch."""
    _check_conditioning("positive", positive, config, batch)
    if negative is not None:
        _check_conditioning("negative", negative, config, batch)
    if not isinstance(guidance, (Guidance, type(None))):
        raise SA3Error(f"The guidance is {type(guidance).__name__}; connect SA3_Guidance.")
    return dataclasses.replace(guidance or Guidance(), cfg=cfg or config.default_cfg)


def _check_conditioning(name: str, conditioning, config: ModelConfig, batch: int) -> None:
    if not isinstance(conditioning, list) or not conditioning:
        raise SA3Error(f"The {name} CONDITIONING is empty; connect SA3_TextEncode.")
    for entry in conditioning:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[1], dict):
            raise SA3Error(f"The {name} CONDITIONING has an entry without embeddings and settings; connect SA3_TextEncode.")
        embeddings, values = entry
        if key := next((key for key in IMAGE_CONDITIONS if values.get(key) is not None), None):
            raise SA3Error(f"The {name} CONDITIONING has the setting '{key}', which is for images; remove the node that sets it.")
        rows, _ = host_model.prompt_rows(embeddings, values.get("attention_mask"), batch)
        if rows.shape[-1] != config.conditioning.cond_dim:
            raise SA3Error(
                f"The {name} CONDITIONING is {rows.shape[-1]} wide, this model expects {config.conditioning.cond_dim}; "
                "encode the prompt with the CLIP of the same SA3_ModelLoader."
            )


def run_warnings(model, positive, plan: Plan, guidance: Guidance, negative=None, sigmas=None) -> list[str]:
    """Sentences about the prompt, the settings and the MODEL of a run, before it. sigmas: the SIGMAS socket, None without."""
    batch = len(plan.lengths)
    masks = [host_model.prompt_rows(embeddings, values.get("attention_mask"), batch)[1].cpu() for embeddings, values in positive]
    return [
        *hints.prompt_warnings(torch.cat(masks, dim=1)),  # the entries are mixed
        *hints.setting_warnings(model.model.sa3_config, plan, guidance),
        *input_warnings(model, (positive, negative), plan.lengths.seconds, sigmas),
    ]


def input_warnings(model, conditionings=(), seconds: tuple[float, ...] = (), sigmas=None) -> list[str]:
    """Sentences about what other nodes have set on a MODEL and on CONDITIONINGs, where it does not do what they mean.

    seconds: durations of the LATENT. sigmas: the SIGMAS socket, None without.
    """
    options = model.model_options
    totals = [values.get("seconds_total") for entries in conditionings for _, values in entries or ()]
    other = [total for total in totals if isinstance(total, (int, float)) and any(abs(total - value) > 0.1 for value in seconds)]
    sentences = {
        "Another node on this MODEL sets its own guidance, which replaces SA3 Guidance; the settings of SA3 Guidance have no effect.":
            OTHER_GUIDANCE in options,
        host_model.NO_PATCHES: host_model.has_patches(options.get("transformer_options", {})),
        "A node on this MODEL shifts the noise levels of core's schedulers. This node uses the checkpoint's; connect BasicScheduler to the "
        "sigmas of SA3 Sampler for others.":
            sigmas is None and "model_sampling" in model.object_patches,
        "Differential Diffusion has no effect here: each frame of a mask is kept or regenerated.":
            "denoise_mask_function" in options,
        f"The CONDITIONING sets a duration of {max(other, default=0):g} s; this node uses the LATENT's ({max(seconds, default=0):g} s).":
            other,
    }  # fmt: skip
    if misfits := misfitting_loras(model):
        sentences[f"A LoRA of another loader has {misfits} layers of other sizes, which have no effect: it is for another model."] = True
    return [*(sentence for sentence, holds in sentences.items() if holds), *options.get(REMARKS, ())]


def misfitting_loras(model) -> int:
    """The number of LoRA patches of other loaders whose update has not as many values as the weight; core only logs them."""
    state = model.model.state_dict() if model.patches else {}
    pairs = [
        (state[key], patch[1].weights)
        for key, patches in model.patches.items() if key in state
        for patch in patches if getattr(patch[1], "name", "") == "lora"
    ]  # fmt: skip
    return sum(weight.numel() != up.shape[0] * down.flatten(1).shape[1] for weight, (up, down, *_) in pairs)


def core_sampler(name: str, eta: float) -> comfy.samplers.KSAMPLER:
    """One of this pack's samplers as core's SAMPLER. Its draws continue the seed's stream after the initial noise, as in `runs.run`."""

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        extra_args = extra_args or {}
        config = getattr(model.inner_model.inner_model, "sa3_config", None)
        if config is None:
            raise SA3Error("SA3_SamplerSelect supports only Stable Audio 3; connect the MODEL of SA3_ModelLoader.")
        draws = Draws(int(extra_args.get("seed") or 0), x.shape[1], host_model.unpadded_lengths(config, x))
        draws()  # the initial noise, which core has drawn

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            time = to_device(t, x.device, x.dtype)
            return velocity_of(x, model(x, time, **extra_args), time)

        def report(step: int, total: int, denoised: Tensor) -> None:
            if callback is not None:
                callback({"i": step, "x": denoised, "denoised": denoised, "sigma": sigmas[step], "sigma_hat": sigmas[step]})

        levels = runs.check_sigmas(sigmas, len(x))
        return samplers.sample(name, velocity, x, levels, lambda t, t_next: to_device(draws(), x.device, x.dtype), eta, report)

    return comfy.samplers.KSAMPLER(function)
