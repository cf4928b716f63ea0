"""Nodes that work on a recording: regions, continuation, loops, and putting the result back without touching the rest."""

import dataclasses

import torch

from ..sa3_core.errors import SA3Error
from ..sa3_core.sampling.samplers import SAMPLERS
from ..sa3_core.timeline.durations import PADDING_SECONDS, seconds_of
from ..sa3_core.timeline.regions import parse_regions
from ..sa3_core.timeline.splicing import splice, wrap_jump
from .comfyui import model as host_model
from .comfyui import vae as host_vae
from .comfyui.extend import ExtendJob
from .comfyui.latent import encode_line, mark, read_audio, read_clip
from .comfyui.live_preview import live_preview
from .comfyui.preview import editor_audio
from .comfyui.sampling import check_conditioning, check_guidance
from .comfyui.schema import SEED, io, schema
from .latents import CHUNK_INPUT, OVERLAP_INPUT
from .sampling import GUIDANCE, PREVIEW

ROLL = "sa3_roll"  # key of an AUDIO: samples by which a loop was turned, to be turned back after splicing
SHOWN = [io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id]  # read by `editor_audio`
SLACK = 0.1  # seconds by which a region may end behind the clip
PADDING_INPUT = {"default": PADDING_SECONDS, "min": 0.0, "max": 30.0, "step": 0.5, "tooltip": "Headroom behind the clip, in seconds."}


class InpaintMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_InpaintMask",
            display_name="SA3 Inpaint Mask",
            description="Marks the regions to make anew; the sampler sees the rest as given. Chain several to collect regions.",
            inputs=[
                io.Latent.Input("latent", tooltip="The recording's latents, from SA3 SAME Encode."),
                io.Audio.Input("audio", optional=True, tooltip="The recording, for the picture in the editor."),
                io.String.Input(
                    "regions",
                    default="",
                    multiline=True,
                    tooltip="What to make anew: start-end in seconds, separated by commas, for example: 1.5-3, 10-12.25. Also 1:05-1:10.",
                ),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("REGIONS")],
            hidden=SHOWN,
        )

    @classmethod
    def execute(cls, latent, regions, audio=None) -> io.NodeOutput:
        return io.NodeOutput(*mark(latent, parse_regions(regions), SLACK), ui=editor_audio(audio, cls.hidden))


class Continue(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Continue",
            display_name="SA3 Continue",
            description="Lays a recording on a longer time line and marks the new part. Splice the result with the AUDIO given here.",
            inputs=[
                io.Audio.Input("audio", tooltip="The recording to continue."),
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader."),
                io.Float.Input("seconds", default=10.0, min=0.1, max=380.0, step=0.1, tooltip="How many seconds to add."),
                io.Combo.Input(
                    "side", options=["after", "before"], default="after", tooltip="Continue behind the end, or lead in before the start."
                ),
                io.Float.Input("padding", **PADDING_INPUT),
                io.Int.Input("chunk_size", **CHUNK_INPUT),
                io.Int.Input("overlap", **OVERLAP_INPUT),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("REGIONS"), io.Audio.Output("ORIGINAL")],
            hidden=SHOWN,
        )

    @classmethod
    def execute(cls, audio, vae, seconds, side, padding, chunk_size, overlap) -> io.NodeOutput:
        vae = host_vae.require(vae)
        waveform, rate = read_audio("The AUDIO", audio)
        read_clip(audio, vae.sa3_config)  # says what is wrong with it
        added = round(seconds * rate)
        laid = torch.nn.functional.pad(waveform, (added, 0) if side == "before" else (0, added))
        total, given = laid.shape[-1] / rate, waveform.shape[-1] / rate
        limit = vae.sa3_config.sample_size
        if limit is not None and total > vae.sa3_config.max_seconds:
            raise SA3Error(
                f"{given:.1f} s and {seconds:g} s more are {total:.1f} s; this model makes at most {vae.sa3_config.max_seconds:.1f} s "
                "in one run. Use SA3 Extend, which works in windows."
            )
        clip = read_clip({"waveform": laid, "sample_rate": rate}, vae.sa3_config)
        latent = encode_line(vae, clip, seconds_of(clip.shape[-1], vae.sa3_config.sample_rate), padding, chunk_size, overlap)
        region = (given, total) if side == "after" else (0.0, added / rate)
        return io.NodeOutput(*mark(latent, [region]), {"waveform": laid, "sample_rate": rate}, ui=editor_audio(audio, cls.hidden))


class Loop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Loop",
            display_name="SA3 Loop",
            description="Cuts a clip to whole bars and marks the seam where its end meets its start. Sample, decode, and splice with the "
            "AUDIO given here: the result repeats without a break.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader."),
                io.Audio.Input("audio", optional=True, tooltip="The clip to loop; at least as long as the bars."),
                io.Latent.Input("latent", optional=True, tooltip="Latents to loop, in place of a clip."),
                io.Float.Input("bpm", default=120.0, min=20.0, max=400.0, step=0.01, tooltip="Tempo in beats per minute."),
                io.Int.Input("bars", default=4, min=1, max=256, tooltip="Length of the loop in bars."),
                io.Int.Input("beats_per_bar", default=4, min=1, max=16, tooltip="4 for 4/4, 3 for 3/4."),
                io.Float.Input(
                    "seam", default=1.0, min=0.1, max=20.0, step=0.1, tooltip="Seconds around the seam to make anew, half on either side."
                ),
                io.Float.Input("padding", **PADDING_INPUT),
                io.Int.Input("chunk_size", **CHUNK_INPUT),
                io.Int.Input("overlap", **OVERLAP_INPUT),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("REGIONS"), io.Audio.Output("ORIGINAL")],
        )

    @classmethod
    def execute(cls, vae, bpm, bars, beats_per_bar, seam, padding, chunk_size, overlap, audio=None, latent=None) -> io.NodeOutput:
        vae = host_vae.require(vae)
        if (audio is None) == (latent is None):
            raise SA3Error("SA3_Loop needs either an AUDIO or a LATENT, one of them.")
        if audio is None:
            decoded = vae.decode_latents(latent["samples"], chunk_size, overlap)
            audio = {"waveform": decoded, "sample_rate": vae.sa3_config.sample_rate}
        waveform, rate = read_audio("The AUDIO", audio)
        length = round(bars * beats_per_bar * 60 / bpm * rate)
        if waveform.shape[-1] < length:
            raise SA3Error(f"{bars} bars at {bpm:g} BPM are {length / rate:.3f} s; the clip has {waveform.shape[-1] / rate:.3f} s.")
        if seam * rate >= length:
            raise SA3Error(f"The seam of {seam:g} s is as long as the loop, {length / rate:.3f} s; make it shorter.")
        turn = length // 2
        turned = torch.roll(waveform[..., :length], turn, dims=-1)  # the end now meets the start at sample `turn`
        line = {"waveform": turned, "sample_rate": rate, ROLL: turn}
        clip = read_clip(line, vae.sa3_config)
        encoded = encode_line(vae, clip, seconds_of(clip.shape[-1], vae.sa3_config.sample_rate), padding, chunk_size, overlap)
        middle = turn / rate
        return io.NodeOutput(*mark(encoded, [(middle - seam / 2, middle + seam / 2)]), line)


class Splice(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Splice",
            display_name="SA3 Splice",
            description="Puts the generated regions into the original. Outside them every sample stays bit-identical, at the "
            "original's own rate and channels.",
            inputs=[
                io.Audio.Input("original", tooltip="The untouched recording, or the AUDIO of SA3 Continue or SA3 Loop."),
                io.Audio.Input("generated", tooltip="The decoded result of the sampler, over the same time line."),
                io.String.Input("regions", default="", tooltip="The regions to take from the generated audio; connect REGIONS."),
                io.Float.Input(
                    "crossfade",
                    default=0.02,
                    min=0.0,
                    max=5.0,
                    step=0.005,
                    tooltip="Equal-power cross-fade in seconds, inside the region. 0 = none.",
                ),
                io.Boolean.Input(
                    "match_level", default=False, tooltip="Bring the generated audio to the level that the original has around the region."
                ),
            ],
            outputs=[io.Audio.Output("AUDIO"), io.Audio.Output("DIFFERENCE"), io.String.Output("REPORT")],
        )

    @classmethod
    def execute(cls, original, generated, regions, crossfade, match_level) -> io.NodeOutput:
        ours, rate = read_audio("The original", original)
        theirs, their_rate = read_audio("The generated AUDIO", generated)
        out, report = splice(ours, theirs, parse_regions(regions), rate, their_rate, crossfade, match_level)
        difference, words = out - ours, str(report)
        turn = original.get(ROLL, 0)
        if turn:
            out, difference = (torch.roll(clip, -turn, dims=-1) for clip in (out, difference))
            step, usual = wrap_jump(out)
            words += f"\nwrap: sample step {step:.4f} (largest inside {usual:.4f})"
        return io.NodeOutput(
            {"waveform": out, "sample_rate": rate},
            {"waveform": difference, "sample_rate": rate},
            words or "No region: nothing was changed.",
        )


class Extend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Extend",
            display_name="SA3 Extend",
            description="Continues a recording past the model's longest clip, window by window; each sees the tail of what there is. "
            "What an interrupted run has finished is kept, and the next run of the same graph goes on from there.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader."),
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader."),
                io.Conditioning.Input("positive", tooltip="The prompt of the continuation."),
                io.Audio.Input("audio", tooltip="The recording to continue; it stays bit-identical."),
                io.Conditioning.Input("negative", optional=True, tooltip="What to avoid; acts only with cfg other than 1."),
                GUIDANCE.Input("guidance", optional=True, tooltip="From SA3 Guidance."),
                io.Float.Input("seconds", default=120.0, min=0.1, max=36000.0, step=0.1, tooltip="How many seconds to add."),
                io.Float.Input(
                    "context",
                    default=20.0,
                    min=0.1,
                    max=190.0,
                    step=0.1,
                    tooltip="Seconds of the tail each window sees. More = steadier.",
                ),
                io.Float.Input(
                    "window",
                    default=0.0,
                    min=0.0,
                    max=380.0,
                    step=0.1,
                    tooltip="Longest pass in seconds with its context. 0 = the model's.",
                ),
                io.Int.Input("seed", default=0, **SEED, tooltip="Each window draws from this seed and its number."),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="Sampling steps per window. 0 = the checkpoint's own."),
                io.Combo.Input("sampler", options=["auto", *SAMPLERS], default="auto", tooltip="auto = the checkpoint's own."),
                io.Float.Input("cfg", default=0.0, min=0.0, max=30.0, step=0.1, tooltip="Guidance scale. 0 = the checkpoint's own."),
                io.Float.Input("crossfade", default=0.02, min=0.0, max=5.0, step=0.005, tooltip="Seconds over which a join settles."),
                io.Combo.Input("preview", **PREVIEW),
            ],
            outputs=[io.Audio.Output("AUDIO"), io.String.Output("REPORT")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, vae, positive, audio, seconds, context, window, seed, steps, sampler, cfg, crossfade, negative=None, guidance=None,
        preview="auto",
    ) -> io.NodeOutput:  # fmt: skip
        inner, vae = host_model.require(model), host_vae.require(vae)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            if conditioning is not None:
                check_conditioning(conditioning, inner.sa3_config, 1, name)
        waveform, rate = read_audio("The AUDIO", audio)
        if waveform.shape[0] != 1:
            raise SA3Error(f"SA3_Extend takes one recording, the AUDIO holds {waveform.shape[0]}.")
        settings = dataclasses.replace(check_guidance(guidance), cfg=cfg or inner.sa3_config.default_cfg)
        job = ExtendJob(model, vae, positive, negative, settings, seed, steps or None, sampler, crossfade, live_preview(preview, vae))
        out, report = job.run(waveform, rate, round(seconds * rate), context, window)
        return io.NodeOutput({"waveform": out, "sample_rate": rate}, report)


NODES = [InpaintMask, Continue, Loop, Splice, Extend]
