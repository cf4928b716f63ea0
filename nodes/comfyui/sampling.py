"""Sampling through ComfyUI's guider: loading, hooks and clean-up stay core's, the run itself is sa3_core's."""

from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...sa3_core.backends.device import to_device
from ...sa3_core.config import ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.sampling import runs, samplers
from ...sa3_core.sampling.draws import Draws
from ...sa3_core.sampling.float32_retry import with_float32_retry
from ...sa3_core.sampling.guidance import Guidance
from ...sa3_core.sampling.runs import Plan
from . import model as host_model
from . import run_options
from .latent import Latents
from .live_preview import LivePreview
from .out_of_memory import halvings, retry_smaller
from .progress import Progress, check_interrupt, show_loading, warn

FOREIGN_GUIDANCE = "sampler_cfg_function"  # key of model_options: another pack's guidance, which replaces ours


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
        if FOREIGN_GUIDANCE in options:
            return super().predict_noise(x, timestep, options, seed)
        known = run_options.read(options).times_of(timestep)
        t = timestep.float().cpu() if known is None else known
        scale = self.guidance.cfg if bool(self.guidance.active(t).any()) else 1.0
        if scale != 1:
            options = {**options, FOREIGN_GUIDANCE: partial(self._guided, t)}
        # core's own function around ours, for the hooks that other packs put before and after guidance
        positive, negative = self.conds["positive"], self.conds.get("negative")
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, negative, positive, scale, options, seed)

    def _guided(self, t: Tensor, args: dict) -> Tensor:
        """The guided x - D (B, C, T) of core's two. args: x - D of the positive and of the negative. t (B,): their times, on the CPU."""
        time = args["timestep"]
        v_cond, v_uncond = (velocity_of(args[name], time) for name in ("cond", "uncond"))
        return time[:, None, None] * self.guidance.apply(args["input"], t, v_cond, v_uncond, self.valid)


def velocity_of(removed: Tensor, t: Tensor) -> Tensor:
    """Velocity (B, C, T) from x - D, core's unit, where D is the denoised data at times t (B,)."""
    return removed / t[:, None, None]


class RunSampler(comfy.samplers.Sampler):
    """`sa3_core.sampling.runs.run` as one of ComfyUI's samplers."""

    def __init__(self, plan: Plan, channels: int, init: Tensor | None, callback, begin):
        self.plan, self.channels, self.init, self.callback, self.begin = plan, channels, init, callback, begin

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            time = to_device(t, x.device, torch.float32)
            options = run_options.changed(extra_args.get("model_options", {}), times=(time, t.float()))
            return velocity_of(x - model_wrap(x, time, **{**extra_args, "model_options": options}), time)

        self.begin()  # the weights are where they belong
        return runs.run(velocity, self.plan, channels=self.channels, device=noise.device, init=self.init, callback=self.callback)


def sample(
    model, positive, latents: Latents, plan: Plan, guidance: Guidance, negative=None, progress=None, live: LivePreview | None = None,
    remark=warn,
) -> Tensor:  # fmt: skip
    """Run the plan on a MODEL: latents (B, D, T), float32, on ComfyUI's intermediate device.

    progress(done, total, words, picture): in place of the node's own bar. live: what draws the pictures. remark(sentence): called when
    a 16-bit run was not finite and was computed again in float32.

    A batch that does not fit into memory is made in groups, with the draws it would have as one.
    """
    inner = host_model.require(model)
    if negative is None and _needs_negative(model, guidance):
        negative = [[torch.zeros(1, 1, inner.sa3_config.conditioning.cond_dim), {}]]
    batch, parts = len(plan.lengths), []  # finished items stay when the rest goes on in smaller groups
    bar = progress or Progress(plan.steps * batch)
    show_loading(model, "the model")

    def rest(size: int) -> None:
        while (done := sum(map(len, parts))) < batch:
            items = range(done, min(done + size, batch))

            def begin(first=not parts) -> None:
                if first and progress is None:
                    bar.start()
                if live is not None:
                    live.begin()

            def report(step: int, total: int, denoised: Tensor, items=items) -> None:
                words = f"step {step + 1} of {total}" + ("" if len(items) == batch else f", items {items.start + 1} to {items.stop}")
                picture = None if live is None else live(denoised, plan.lengths.pick(items))
                bar(items.start * total + (step + 1) * len(items), batch * total, words, picture)

            def compute(dtype: torch.dtype, items=items, report=report, begin=begin) -> Tensor:
                with inner.computing_in(dtype):
                    return _sample_group(model, positive, negative, latents, plan, guidance, items, report, begin)

            parts.append(with_float32_retry("The latents", inner.compute_dtype, compute, remark))

    with run_options.read(model.model_options).run():
        retry_smaller("sampling", "items", "Shorten the clip, or use a 16-bit dtype.", halvings(_group_size(model, plan)), rest)
    if progress is None:
        bar.finish()
    return torch.cat(parts).to(comfy.model_management.intermediate_device())


def _needs_negative(model, guidance: Guidance) -> bool:
    """Whether core evaluates the negative: for guidance, or because another pack's hook asked for it at cfg 1 as well."""
    return guidance.cfg != 1 or bool(model.model_options.get("disable_cfg1_optimization"))


def _group_size(model, plan: Plan) -> int:
    """Items that fit into memory together with the loaded weights."""
    inner = model.model
    free = comfy.model_management.get_free_memory(model.load_device)
    if not comfy.model_management.is_device_cpu(model.load_device):
        free = max(free, comfy.model_management.get_total_memory(model.load_device) - model.model_size())
    each = inner.memory_required([1, inner.sa3_config.same.latent_dim, plan.lengths.frames])
    return max(1, min(len(plan.lengths), int(0.8 * free / each)))


def _sample_group(model, positive, negative, latents: Latents, plan: Plan, guidance: Guidance, items: range, report, begin) -> Tensor:
    rows, batch = list(items), len(plan.lengths)
    part = plan.pick(rows)
    channels = model.model.sa3_config.same.latent_dim
    samples = None if latents.samples is None else latents.samples[rows].float()
    local = None
    if latents.keep is not None:
        keep = latents.keep[rows]
        kept = torch.zeros(len(rows), channels, part.lengths.frames) if samples is None else samples
        local = torch.cat((keep, keep * kept.to(keep.device)), dim=1)
    run = host_model.Run(part.lengths, local)
    guider = Guider(model, guidance, part.lengths.valid)
    guider.set_conds(_for_run(positive, run, rows, batch), _for_run(negative, run, rows, batch) if _needs_negative(model, guidance) else [])
    guider.model_options = run_options.changed(guider.model_options, sigmas=part.sigmas)
    sampler = RunSampler(part, channels, samples if part.noise_level < 1 else None, report, begin)
    # The run draws its own noise, per item and on the CPU; core needs only the shape.
    blank = torch.zeros(len(rows), channels, part.lengths.frames)
    return guider.sample(blank, blank, sampler, part.sigmas[0], disable_pbar=True, seed=part.seed)


def _for_run(conditioning, run: host_model.Run, rows: list[int], batch: int) -> list:
    """Conditioning of some items, each entry carrying the run."""

    def pick(x):
        return x[rows] if isinstance(x, Tensor) and x.shape[0] == batch else x

    return [
        [pick(embeddings), {**values, "attention_mask": pick(values.get("attention_mask")), host_model.RUN: run}]
        for embeddings, values in conditioning
    ]


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


def before(model) -> list[str]:
    """What the user should know of a MODEL before a run."""
    if FOREIGN_GUIDANCE not in model.model_options:
        return []
    return ["Another node on this MODEL brings guidance of its own; it replaces SA3 Guidance, whose settings have no effect."]


def check_guidance(guidance) -> Guidance:
    """What the guidance socket carries; nothing connected = the defaults."""
    if guidance is None:
        return Guidance()
    if not isinstance(guidance, Guidance):
        raise SA3Error(f"The guidance is {type(guidance).__name__}; connect SA3_Guidance.")
    return guidance


def core_sampler(name: str, eta: float) -> comfy.samplers.KSAMPLER:
    """One of our samplers as core's SAMPLER. Its draws continue the seed's stream after the initial noise, as our own run's do."""

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        extra_args = extra_args or {}
        config = getattr(model.inner_model.inner_model, "sa3_config", None)
        if config is None:
            raise SA3Error("SA3_SamplerSelect drives Stable Audio 3 only; connect the MODEL of SA3_ModelLoader.")
        draws = Draws(int(extra_args.get("seed") or 0), x.shape[1], host_model.whole_latents(config, x))
        draws()  # the draw that the initial noise was

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            time = to_device(t, x.device, x.dtype)
            return velocity_of(x - model(x, time, **extra_args), time)

        def report(step: int, total: int, denoised: Tensor) -> None:
            if callback is not None:
                callback({"i": step, "x": denoised, "denoised": denoised, "sigma": sigmas[step], "sigma_hat": sigmas[step]})

        return samplers.sample(name, velocity, x, sigmas, lambda t, t_next: to_device(draws(), x.device, x.dtype), eta, report)

    return comfy.samplers.KSAMPLER(function)
