"""Nodes for sampling: schedule, guidance, the sampler, and samplers for core's nodes."""

import json

from ..sa3_core import run_record
from ..sa3_core.errors import SA3Error
from ..sa3_core.sampling import hints, runs, schedule
from ..sa3_core.sampling.guidance import Guidance as GuidanceSettings
from ..sa3_core.sampling.samplers import SAMPLERS
from .comfyui import model as host_model
from .comfyui import sampling as host
from .comfyui.clip import prompts_of
from .comfyui.latent import SAMPLES_PER_FRAME, duration_warnings, read_latent, schedule_lengths, source_warnings, with_duration, with_items
from .comfyui.live_preview import attached_autoencoder, live_preview
from .comfyui.progress import warn
from .comfyui.schema import io, schema
from .inputs import GUIDANCE, count, guidance_input, negative_input, noise_level_input, number, preview_input, sampling_inputs

MODELS_OWN = "the model's"


class Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        mode = "For a noise level below 1. scaled: never exceeds it. reference: as the official code, which can exceed it."
        kind = "logsnr: used by the released models. flux and full: shifted by length. identity: linear."
        return schema(
            "SA3_Schedule",
            display_name="SA3 Schedule",
            advanced="mode",
            description="Builds the noise levels of a run as SIGMAS, with any of the four schedules of the official tools.",
            inputs=[
                io.Model.Input("model", optional=True, tooltip="Provides the model's own schedule and number of steps."),
                io.Latent.Input("latent", optional=True, tooltip="Provides the length, on which some schedules depend."),
                io.Combo.Input("kind", options=[MODELS_OWN, *schedule.SHIFTS], default=MODELS_OWN, tooltip=kind),
                count("steps", 0, 0, 1000, "Sampling steps. 0 = the checkpoint's default: 8, or 50 for -base."),
                number("noise_level", 1.0, 0.01, 1.0, 0.01, "First noise level. Below 1 for audio to audio: 0.9 loose, 0.1 close."),
                io.Combo.Input("mode", options=["scaled", "reference"], default="scaled", tooltip=mode),
                number("anchor_length", 2000.0, 1.0, 1e6, 1.0, "logsnr: length in latent frames to which anchor_logsnr applies."),
                number("anchor_logsnr", -6.2, -20.0, 20.0, 0.1, "logsnr: log-SNR at the noisy end. Lower: more steps at high noise."),
                number("rate", 0.0, -10.0, 10.0, 0.05, "logsnr: decrease of the log-SNR at the noisy end per doubling of the length."),
                number("logsnr_end", 2.0, -20.0, 20.0, 0.1, "logsnr: log-SNR at the clean end."),
                number("min_length", 256.0, 1.0, 1e6, 1.0, "flux, full: length in latent frames with the lower shift."),
                number("max_length", 4096.0, 1.0, 1e6, 1.0, "flux, full: length in latent frames with the upper shift."),
                number("alpha_min", 6.93, 0.01, 1000.0, 0.01, "flux: shift factor at min_length. 1 = none."),
                number("alpha_max", 6.93, 0.01, 1000.0, 0.01, "flux: shift factor at max_length. 1 = none."),
                number("base_shift", 0.5, -10.0, 10.0, 0.01, "full: shift at min_length, in logits."),
                number("max_shift", 1.15, -10.0, 10.0, 0.01, "full: shift at max_length, in logits."),
                io.Boolean.Input("use_sine", default=False, tooltip="full: warp the noise levels with a quarter sine."),
            ],
            outputs=[io.Sigmas.Output("SIGMAS")],
        )

    @classmethod
    def execute(cls, kind, steps, noise_level, mode, model=None, latent=None, **parameters) -> io.NodeOutput:
        config = None if model is None else host_model.sa3_model(model).sa3_config
        if config is None and (kind == MODELS_OWN or not steps):
            raise SA3Error("SA3_Schedule needs a MODEL for the model's schedule or steps; connect one, or set kind and steps.")
        options = {"kind": kind, **parameters} if kind != MODELS_OWN else dict(config.schedule)
        options = {key: value for key, value in options.items() if key == "kind" or key in schedule.parameters(options["kind"])}
        lengths = schedule_lengths(latent, config)
        sigmas = schedule.build(options.pop("kind"), steps or config.default_steps, noise_level, lengths, mode, **options)
        identical = sigmas.dim() == 2 and bool((sigmas == sigmas[:1]).all())
        return io.NodeOutput(sigmas[0] if identical else sigmas)


class Guidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        apg = (
            "Adaptive projected guidance. 1 = only the part of the guidance orthogonal to the prediction, which avoids harsh, overdriven "
            "results; 0 = standard guidance."
        )
        rescale = "Pull the standard deviation back to the unguided prediction's. 0 = off; try 0.4."
        return schema(
            "SA3_Guidance",
            display_name="SA3 Guidance",
            advanced="norm_threshold",
            description="Settings of guidance beyond its scale, for SA3 Sampler. Without this node: APG 1 at all noise levels.",
            inputs=[
                number("apg", 1.0, 0.0, 1.0, 0.05, apg),
                noise_level_input("cfg_start", 0.0, "Lowest noise level with guidance. 0 = until the end."),
                noise_level_input("cfg_end", 1.0, "Highest noise level with guidance. 1 = from the start."),
                number("rescale", 0.0, 0.0, 1.0, 0.05, rescale),
                number("norm_threshold", 0.0, 0.0, 10000.0, 0.5, "Upper limit of the norm of the guidance per item. 0 = off."),
            ],
            outputs=[GUIDANCE.Output("GUIDANCE")],
        )

    @classmethod
    def execute(cls, apg, cfg_start, cfg_end, rescale, norm_threshold) -> io.NodeOutput:
        return io.NodeOutput(GuidanceSettings(1.0, apg, rescale, norm_threshold, cfg_start, cfg_end))


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        level = "1 = generate from noise. Below 1 part of the LATENT's sound is kept: 0.9 loose, 0.1 a close variation."
        sigmas = "Noise levels from SA3 Schedule or another node; replaces steps and noise_level."
        return schema(
            "SA3_Sampler",
            display_name="SA3 Sampler",
            advanced="preview",
            description="Samples Stable Audio 3 latents as the official code does: the same schedules, samplers, guidance and padding.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader."),
                io.Conditioning.Input("positive", tooltip="The prompt, from SA3 Text Encode or CLIP Text Encode."),
                io.Latent.Input("latent", tooltip="Latents to fill: SA3 Empty Latent for text to audio. Sets the duration."),
                negative_input(),
                io.Sigmas.Input("sigmas", optional=True, tooltip=sigmas),
                guidance_input(),
                *sampling_inputs("The same seed and settings give the same sound on every device and in every batch."),
                number("noise_level", 1.0, 0.01, 1.0, 0.01, level),
                preview_input(),
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
        inner = host_model.sa3_model(model)
        config, latent = inner.sa3_config, with_duration(latent)
        source = read_latent(latent, config)
        settings = host.check_inputs(config, len(source.lengths), positive, negative, guidance, cfg)
        plan = runs.plan(
            config, source.lengths, steps=steps or None, sampler=sampler, seed=seed, noise_level=noise_level, sigmas=sigmas,
            indices=source.indices,
        )  # fmt: skip
        warnings = [
            *host.run_warnings(model, positive, plan, settings, negative, sigmas),
            *hints.length_warnings(config, plan),
            *duration_warnings(latent, source),
            *source_warnings(source, plan.noise_level),
        ]
        warn(*warnings)
        live = live_preview(preview, attached_autoencoder(model))
        later: list[str] = []
        samples = host.sample(model, positive, source, plan, settings, negative, live=live, warn=later.append)
        watch.lap("sample")
        later += host_model.result_warnings(model)
        if new := [sentence for sentence in dict.fromkeys(later) if sentence not in warnings]:
            warnings += new
            warn(*warnings)
        record = run_record.record(
            inner.sa3_name, plan, settings, warnings, prompts=prompts_of(positive), stages=watch.stages, **host_model.record_fields(model)
        )
        sampled = {**latent, "samples": samples, "type": "audio", SAMPLES_PER_FRAME: config.same.samples_per_frame}
        return io.NodeOutput(with_items(sampled, source.lengths.seconds, source.indices), json.dumps(record))


class SamplerSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        sampler = "pingpong for post-trained models, euler for -base."
        return schema(
            "SA3_SamplerSelect",
            display_name="SA3 Sampler Select",
            description="A sampler of this pack for core's SamplerCustomAdvanced and other nodes that take a SAMPLER.",
            inputs=[
                io.Combo.Input("sampler", options=list(SAMPLERS), default="pingpong", tooltip=sampler),
                number("eta", 1.0, 0.0, 2.0, 0.05, "Amount of re-noising in the -sde samplers. 0 = none."),
            ],
            outputs=[io.Sampler.Output("SAMPLER")],
        )

    @classmethod
    def execute(cls, sampler, eta) -> io.NodeOutput:
        return io.NodeOutput(host.core_sampler(sampler, eta))


NODES = [Schedule, Guidance, Sampler, SamplerSelect]
