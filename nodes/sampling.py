"""Nodes that sample, and what shapes a run: schedule, guidance, samplers for core's nodes."""

import dataclasses
import json

from ..sa3_core import run_record
from ..sa3_core.errors import SA3Error
from ..sa3_core.sampling import hints, runs, schedule
from ..sa3_core.sampling.guidance import Guidance as GuidanceSettings
from ..sa3_core.sampling.samplers import SAMPLERS
from .comfyui import model as host_model
from .comfyui import sampling as host
from .comfyui.latent import read_latent, schedule_lengths
from .comfyui.live_preview import MODES, attached_autoencoder, live_preview
from .comfyui.progress import warn
from .comfyui.schema import SEED, io, schema

GUIDANCE = io.Custom("SA3_GUIDANCE")
MODELS_OWN = "the model's"
PREVIEW = {
    "options": list(MODES),
    "default": MODES[0],
    "optional": True,
    "tooltip": "Show a rough spectrogram of what is coming while it is sampled, for at most 4 % more time. auto: when ComfyUI's own live "
    "previews are on. The result is the same.",
}


class Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def number(name, default, low, high, step, tooltip):
            return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)

        return schema(
            "SA3_Schedule",
            display_name="SA3 Schedule",
            description="Noise levels of a run as SIGMAS, by any of the four families of the official tools.",
            inputs=[
                io.Model.Input("model", optional=True, tooltip="Gives the model's own schedule and step count."),
                io.Latent.Input("latent", optional=True, tooltip="Gives the length, on which some schedules depend."),
                io.Combo.Input(
                    "kind",
                    options=[MODELS_OWN, *schedule.SHIFTS],
                    default=MODELS_OWN,
                    tooltip="logsnr is what the released models use; flux and full shift by length; identity is a straight line.",
                ),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0 = the checkpoint's own: 8, or 50 for -base."),
                number("noise_level", 1.0, 0.01, 1.0, 0.01, "First noise level. Below 1 for audio to audio: 0.9 loose, 0.1 close."),
                io.Combo.Input(
                    "mode",
                    options=["scaled", "reference"],
                    default="scaled",
                    tooltip="How a noise level below 1 is met. scaled never exceeds it; reference repeats the public code, which can.",
                ),
                number("anchor_length", 2000.0, 1.0, 1e6, 1.0, "logsnr: length in latent frames at which the anchor holds."),
                number("anchor_logsnr", -6.2, -20.0, 20.0, 0.1, "logsnr: log-SNR at the noisy end. Lower spends more steps in the noise."),
                number("rate", 0.0, -10.0, 10.0, 0.05, "logsnr: how much the start falls each time the length doubles."),
                number("logsnr_end", 2.0, -20.0, 20.0, 0.1, "logsnr: log-SNR at the clean end."),
                number("min_length", 256.0, 1.0, 1e6, 1.0, "flux, full: length in latent frames where the lower shift holds."),
                number("max_length", 4096.0, 1.0, 1e6, 1.0, "flux, full: length in latent frames where the upper shift holds."),
                number("alpha_min", 6.93, 0.01, 1000.0, 0.01, "flux: shift factor at min_length. 1 = none."),
                number("alpha_max", 6.93, 0.01, 1000.0, 0.01, "flux: shift factor at max_length."),
                number("base_shift", 0.5, -10.0, 10.0, 0.01, "full: shift at min_length, in logits."),
                number("max_shift", 1.15, -10.0, 10.0, 0.01, "full: shift at max_length, in logits."),
                io.Boolean.Input("use_sine", default=False, tooltip="full: bend the result by a quarter sine."),
            ],
            outputs=[io.Sigmas.Output("SIGMAS")],
        )

    @classmethod
    def execute(cls, kind, steps, noise_level, mode, model=None, latent=None, **parameters) -> io.NodeOutput:
        config = None if model is None else host_model.require(model).sa3_config
        if config is None and (kind == MODELS_OWN or not steps):
            raise SA3Error("SA3_Schedule needs a MODEL for its own schedule or step count; connect one, or choose a kind and steps.")
        options = {"kind": kind, **parameters} if kind != MODELS_OWN else dict(config.schedule)
        options = {key: value for key, value in options.items() if key == "kind" or key in schedule.parameters(options["kind"])}
        lengths = schedule_lengths(latent, config)
        sigmas = schedule.build(options.pop("kind"), steps or config.default_steps, noise_level, lengths, mode, **options)
        alike = sigmas.dim() == 2 and bool((sigmas == sigmas[:1]).all())
        return io.NodeOutput(sigmas[0] if alike else sigmas)


class Guidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Guidance",
            display_name="SA3 Guidance",
            description="How guidance acts beyond its scale; connect it to SA3 Sampler. Without it: APG 1 over the whole run.",
            inputs=[
                io.Float.Input(
                    "apg",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="1 = only the part of the guidance at right angles to the prediction, which avoids harsh, overdriven results; "
                    "0 = plain guidance.",
                ),
                io.Float.Input(
                    "cfg_start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Guidance acts from this noise level up. 0 = to the end."
                ),
                io.Float.Input(
                    "cfg_end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Guidance acts up to this noise level. 1 = from the start."
                ),
                io.Float.Input(
                    "rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Pull the spread back to the unguided one. 0 = off, try 0.4.",
                ),
                io.Float.Input(
                    "norm_threshold",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.5,
                    tooltip="Cap on the size of the guidance per item. 0 = off.",
                ),
            ],
            outputs=[GUIDANCE.Output("GUIDANCE")],
        )

    @classmethod
    def execute(cls, apg, cfg_start, cfg_end, rescale, norm_threshold) -> io.NodeOutput:
        return io.NodeOutput(GuidanceSettings(1.0, apg, rescale, norm_threshold, cfg_start, cfg_end))


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Sampler",
            display_name="SA3 Sampler",
            description="Samples Stable Audio 3 latents as the reference does: its schedule, its samplers, its guidance, exact padding.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader."),
                io.Conditioning.Input("positive", tooltip="The prompt, from SA3 Text Encode or CLIP Text Encode."),
                io.Latent.Input("latent", tooltip="What to fill: SA3 Empty Latent for text to audio. Its duration conditions the model."),
                io.Conditioning.Input("negative", optional=True, tooltip="What to avoid; acts only with cfg other than 1."),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="Noise levels from SA3 Schedule or anywhere else, in place of steps and noise_level."
                ),
                GUIDANCE.Input("guidance", optional=True, tooltip="From SA3 Guidance: APG, interval, rescale, threshold."),
                io.Int.Input("seed", default=0, **SEED, tooltip="Same seed and settings, same sound, on every device and in every batch."),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Sampling steps. 0 = the checkpoint's own: 8 for post-trained models, 50 for -base.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=["auto", *SAMPLERS],
                    default="auto",
                    tooltip="auto = the checkpoint's own: pingpong for post-trained models, euler for -base.",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance scale. 0 = the checkpoint's own: 1 (off) for post-trained models, 7 for -base.",
                ),
                io.Float.Input(
                    "noise_level",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 = make anew. Below 1 the LATENT's sound is kept in part: 0.9 loose, 0.1 a close variation.",
                ),
                io.Combo.Input("preview", **PREVIEW),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("run_info")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, positive, latent, seed, steps, sampler, cfg, noise_level, negative=None, sigmas=None, guidance=None,
        preview="auto",
    ) -> io.NodeOutput:  # fmt: skip
        watch = run_record.Stopwatch()
        inner = host_model.require(model)
        config = inner.sa3_config
        read = read_latent(latent, config)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            if conditioning is not None or name == "positive":
                host.check_conditioning(conditioning, config, len(read.lengths), name)
        plan = runs.plan(
            config,
            read.lengths,
            steps=steps or None,
            sampler=sampler,
            seed=seed,
            noise_level=noise_level,
            sigmas=sigmas,
            indices=read.indices,
        )
        settings = dataclasses.replace(host.check_guidance(guidance), cfg=cfg or config.default_cfg)
        warnings = hints.before(config, plan, settings)
        warnings += host.before(model)
        warn(*warnings)
        remarks: list[str] = []
        live = live_preview(preview, attached_autoencoder(model))
        samples = host.sample(model, positive, read, plan, settings, negative, live=live, remark=remarks.append)
        out = {**latent, "samples": samples, "type": "audio"}
        watch.lap("sample")
        remarks = list(dict.fromkeys([*remarks, *host_model.remarks(model)]))
        if remarks:
            warnings += remarks
            warn(*warnings)
        record = run_record.record(inner.sa3_name, plan, settings, warnings, stages=watch.stages, **host_model.run_facts(model))
        return io.NodeOutput(out, json.dumps(record))


class SamplerSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_SamplerSelect",
            display_name="SA3 Sampler Select",
            description="One of this pack's samplers for core's SamplerCustomAdvanced and everything else that takes a SAMPLER.",
            inputs=[
                io.Combo.Input(
                    "sampler", options=list(SAMPLERS), default="pingpong", tooltip="pingpong for post-trained models, euler for -base."
                ),
                io.Float.Input(
                    "eta", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="Strength of the re-noising of the -sde samplers. 0 = none."
                ),
            ],
            outputs=[io.Sampler.Output("SAMPLER")],
        )

    @classmethod
    def execute(cls, sampler, eta) -> io.NodeOutput:
        return io.NodeOutput(host.core_sampler(sampler, eta))


NODES = [Schedule, Guidance, Sampler, SamplerSelect]
