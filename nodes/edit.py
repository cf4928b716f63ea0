"""Nodes that edit a recording: inpaint regions, continue it, loop it, and splice the result into the original."""

import json

import torch

from ..sa3_core.audio.waveform import repeated
from ..sa3_core.errors import SA3Error
from ..sa3_core.timeline.durations import longer, seconds_of
from ..sa3_core.timeline.regions import parse_regions
from ..sa3_core.timeline.splicing import splice, wrap_jump
from .comfyui import model as host_model
from .comfyui import vae as host_vae
from .comfyui.audio import read_audio, read_clip
from .comfyui.extend import ExtendJob
from .comfyui.latent import encode_clip, mask_regions, read_latent
from .comfyui.live_preview import live_preview
from .comfyui.preview import editor_audio
from .comfyui.progress import show_status, warn
from .comfyui.sampling import check_inputs
from .comfyui.schema import io, schema
from .inputs import chunk_inputs, copies_input, count, guidance_input, negative_input, number, padding_input, preview_input, sampling_inputs

ROLL = "sa3_roll"  # key of an AUDIO: samples by which SA3_Loop rotated it; SA3_Splice rotates the result back
SHOWN = [io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id]  # read by `editor_audio`
SLACK = 0.1  # seconds by which a region may end after the clip


class InpaintMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        regions = "Regions to regenerate: start-end in seconds, separated by commas, for example: 1.5-3, 10-12.25. Also 1:05-1:10."
        return schema(
            "SA3_InpaintMask",
            display_name="SA3 Inpaint Mask",
            description="Marks the regions to regenerate; the sampler uses the rest as context. Chain several nodes to add regions.",
            inputs=[
                io.Latent.Input("latent", tooltip="The recording's latents, from SA3 SAME Encode."),
                io.Audio.Input("audio", optional=True, tooltip="The recording, for the waveform in the editor."),
                io.String.Input("regions", default="", multiline=True, tooltip=regions),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("REGIONS")],
            hidden=SHOWN,
            has_intermediate_output=True,  # a cached node sends again what its editor shows
        )

    @classmethod
    def execute(cls, latent, regions, audio=None) -> io.NodeOutput:
        return io.NodeOutput(*mask_regions(latent, parse_regions(regions), SLACK), ui=editor_audio(audio, cls.hidden))


class Continue(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        side = "after: continue past the end. before: add a lead-in before the start."
        return schema(
            "SA3_Continue",
            display_name="SA3 Continue",
            advanced="padding chunk_size overlap",
            description="Adds time before or after a recording and marks it for sampling. Splice the decoded result with ORIGINAL.",
            inputs=[
                io.Audio.Input("audio", tooltip="The recording to continue."),
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader."),
                number("seconds", 10.0, 0.1, 380.0, 0.1, "Seconds to add."),
                io.Combo.Input("side", options=["after", "before"], default="after", tooltip=side),
                padding_input(),
                *chunk_inputs(),
                copies_input(),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("REGIONS"), io.Audio.Output("ORIGINAL")],
            hidden=SHOWN,
            has_intermediate_output=True,  # a cached node sends again what its editor shows
        )

    @classmethod
    def execute(cls, audio, vae, seconds, side, padding, chunk_size, overlap, batch_size=1) -> io.NodeOutput:
        vae = host_vae.require(vae)
        config = vae.sa3_config
        waveform, rate = read_audio("The AUDIO", audio)
        added = round(seconds * rate)
        extended = torch.nn.functional.pad(waveform, (added, 0) if side == "before" else (0, added))
        given, total = waveform.shape[-1] / rate, extended.shape[-1] / rate
        if config.sample_size is not None and total > config.max_seconds:
            raise SA3Error(
                f"{given:.1f} s of recording and {seconds:g} s more are {total:.1f} s; this model makes at most {config.max_seconds:.1f} s "
                f"in one run. {longer(total, config)}"
            )
        original = {"waveform": extended, "sample_rate": rate}
        latent = encode_whole(vae, original, padding, chunk_size, overlap, batch_size)
        region = (given, total) if side == "after" else (0.0, added / rate)
        return io.NodeOutput(*mask_regions(latent, [region]), original, ui=editor_audio(audio, cls.hidden))


def encode_whole(vae, audio: dict, padding: float, chunk_size: int, overlap: int, copies: int) -> dict:
    clip = read_clip(audio, vae.sa3_config)
    seconds = seconds_of(clip.shape[-1], vae.sa3_config.sample_rate)
    return encode_clip(vae, clip, seconds, padding, chunk_size, overlap, copies=copies)


class Loop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Loop",
            display_name="SA3 Loop",
            advanced="padding chunk_size overlap",
            description="Cuts a clip to whole bars and marks the seam between its end and its start. Sample, decode, and splice with "
            "ORIGINAL: the result loops without a break.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader."),
                io.Audio.Input("audio", optional=True, tooltip="The clip to loop; at least as long as the loop."),
                io.Latent.Input("latent", optional=True, tooltip="Latents to loop, instead of a clip."),
                number("bpm", 120.0, 20.0, 400.0, 0.01, "Tempo in beats per minute."),
                count("bars", 4, 1, 256, "Length of the loop in bars."),
                count("beats_per_bar", 4, 1, 16, "4 for 4/4, 3 for 3/4."),
                number("seam", 1.0, 0.1, 20.0, 0.1, "Seconds to regenerate around the seam, half on each side."),
                padding_input(),
                *chunk_inputs(),
                copies_input(),
            ],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("REGIONS"), io.Audio.Output("ORIGINAL")],
        )

    @classmethod
    def execute(
        cls, vae, bpm, bars, beats_per_bar, seam, padding, chunk_size, overlap, audio=None, latent=None, batch_size=1
    ) -> io.NodeOutput:  # fmt: skip
        vae = host_vae.require(vae)
        if (audio is None) == (latent is None):
            found = "neither" if audio is None else "both"
            raise SA3Error(f"SA3_Loop needs either an AUDIO or a LATENT; {found} is connected. Connect exactly one.")
        if audio is None:
            source = read_latent(latent, vae.sa3_config)
            if source.samples is None:
                raise SA3Error("The LATENT is empty; connect it to SA3 Sampler first.")
            decoded = vae.decode_latents(source.samples, chunk_size, overlap)[..., : min(source.lengths.samples)]  # without the headroom
            audio = {"waveform": decoded, "sample_rate": vae.sa3_config.sample_rate}
        waveform, rate = read_audio("The AUDIO", audio)
        length = round(bars * beats_per_bar * 60 / bpm * rate)
        if waveform.shape[-1] < length:
            given = waveform.shape[-1] / rate
            raise SA3Error(
                f"{bars} bars at {bpm:g} BPM are {length / rate:.3f} s; the clip has {given:.3f} s. Use fewer bars or a longer clip."
            )
        if seam * rate >= length:
            raise SA3Error(f"The seam of {seam:g} s is as long as the loop, {length / rate:.3f} s; shorten seam.")
        middle = length // 2
        rotated = torch.roll(waveform[..., :length], middle, dims=-1)  # the end meets the start at sample `middle`
        original = {"waveform": rotated, "sample_rate": rate, ROLL: middle}
        marked, regions = mask_regions(
            encode_whole(vae, original, padding, chunk_size, overlap, batch_size), [(middle / rate - seam / 2, middle / rate + seam / 2)]
        )
        show_status(f"{bars} bars at {bpm:g} BPM: a loop of {length / rate:.3f} s ({length} samples), to regenerate: {regions} s")
        return io.NodeOutput(marked, regions, original)


class Splice(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        level = "Match the level of the generated audio to the original's around the region."
        return schema(
            "SA3_Splice",
            display_name="SA3 Splice",
            description="Replaces regions of the original by the generated audio. All other samples stay bit-identical, at the original's "
            "sample rate and channel count.",
            inputs=[
                io.Audio.Input("original", tooltip="The unchanged recording, or ORIGINAL of SA3 Continue or SA3 Loop."),
                io.Audio.Input(
                    "generated", tooltip="The decoded result of the sampler, on the same timeline. Variations share one original."
                ),
                io.String.Input("regions", default="", tooltip="Regions to take from the generated audio; connect REGIONS."),
                number("crossfade", 0.02, 0.0, 5.0, 0.005, "Equal-power crossfade in seconds, inside the region. 0 = none."),
                io.Boolean.Input("match_level", default=False, tooltip=level),
            ],
            outputs=[io.Audio.Output("AUDIO"), io.Audio.Output("DIFFERENCE"), io.String.Output("REPORT")],
        )

    @classmethod
    def execute(cls, original, generated, regions, crossfade, match_level) -> io.NodeOutput:
        before, rate = read_audio("The original", original)
        waveform, generated_rate = read_audio("The generated AUDIO", generated)
        after, seams = splice(before, waveform, parse_regions(regions), rate, generated_rate, crossfade, match_level)
        difference, report, line = after - repeated(before, len(after)), str(seams), seams.summary()
        if isinstance(rotation := original.get(ROLL) if isinstance(original, dict) else None, int):
            after, difference = (torch.roll(clip, -rotation, dims=-1) for clip in (after, difference))
            step, usual = wrap_jump(after)
            wrap = f"sample step {step:.4f} (largest inside {usual:.4f})"
            report, line = f"{report}\nwrap: {wrap}", f"{line}; at the loop point {wrap}"
        show_status(line)
        warn(*seams.notes)
        return io.NodeOutput(
            {"waveform": after, "sample_rate": rate},
            {"waveform": difference, "sample_rate": rate},
            report,
        )


class Extend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        window = "Longest window in seconds, context included. 0 = the model's maximum."
        return schema(
            "SA3_Extend",
            display_name="SA3 Extend",
            advanced="window crossfade preview",
            description="Continues a recording past the model's maximum duration in windows; each window sees the end of the audio so far. "
            "An interrupted run keeps its finished windows, and the next run of the same graph resumes after them.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader."),
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader."),
                io.Conditioning.Input("positive", tooltip="The prompt of the continuation."),
                io.Audio.Input("audio", tooltip="The recording to continue; it stays bit-identical."),
                negative_input(),
                guidance_input(),
                number("seconds", 120.0, 0.1, 36000.0, 0.1, "Seconds to add."),
                number("context", 20.0, 0.1, 190.0, 0.1, "Seconds of existing audio that each window sees. More is steadier."),
                number("window", 0.0, 0.0, 380.0, 0.1, window),
                *sampling_inputs("Each window draws its noise from this seed and the window's number."),
                number("crossfade", 0.02, 0.0, 5.0, 0.005, "Crossfade at each join, in seconds."),
                preview_input(),
            ],
            outputs=[io.Audio.Output("AUDIO"), io.String.Output("REPORT"), io.String.Output("run_info")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, vae, positive, audio, seconds, context, window, seed, steps, sampler, cfg, crossfade, negative=None, guidance=None,
        preview="auto",
    ) -> io.NodeOutput:  # fmt: skip
        inner, vae = host_model.sa3_model(model), host_vae.require(vae)
        settings = check_inputs(inner.sa3_config, 1, positive, negative, guidance, cfg)
        waveform, rate = read_audio("The AUDIO", audio)
        if waveform.shape[0] != 1:
            raise SA3Error(f"SA3_Extend takes one recording; the AUDIO has {waveform.shape[0]} items. Connect a single item.")
        job = ExtendJob(model, vae, positive, negative, settings, seed, steps or None, sampler, crossfade, live_preview(preview, vae))
        out, report, record = job.run(waveform, rate, round(seconds * rate), context, window)
        return io.NodeOutput({"waveform": out, "sample_rate": rate}, report, json.dumps(record))


NODES = [InpaintMask, Continue, Loop, Splice, Extend]
