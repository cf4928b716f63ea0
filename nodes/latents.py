"""Nodes that create LATENT, and decode it to AUDIO."""

import itertools
from collections.abc import Callable, Sequence

import torch

from ..sa3_core.config import FRAME, RATE
from ..sa3_core.errors import SA3Error
from ..sa3_core.models.same import Noise
from ..sa3_core.sampling import hints
from ..sa3_core.timeline.durations import check_padding, decode_frames, seconds_of
from .comfyui import vae as host_vae
from .comfyui.audio import ITEM, read_clip
from .comfyui.latent import PADDING, SAMPLES_PER_FRAME, duration_warnings, encode_clip, read_latent, with_items
from .comfyui.progress import Progress, warn
from .comfyui.schema import SEED, io, schema
from .inputs import chunk_inputs, copies_input, count, number, padding_input

CHANNELS, ALIGN = 256, 2  # of the released models; the Sampler fits an empty LATENT to its model
LONGEST = 384.0  # seconds, the range of the seconds embedder


class EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        seconds = "Duration of the result in seconds, exact to the sample. small models: up to 120, medium: up to 380."
        per_item = "Duration of each item of the batch, separated by commas, for example: 3, 4.5, 8. Empty: seconds for every item."
        return schema(
            "SA3_EmptyLatent",
            display_name="SA3 Empty Latent",
            advanced="padding",
            description="Creates an empty LATENT of a given duration, for text to audio.",
            inputs=[
                number("seconds", 30.0, 0.1, LONGEST, 0.1, seconds),
                count("batch_size", 1, 1, 64, "Number of variations to generate at once."),
                padding_input(),
                io.String.Input("seconds_per_item", default="", tooltip=per_item),
            ],
            outputs=[io.Latent.Output("LATENT")],
        )

    @classmethod
    def execute(cls, seconds, batch_size, padding, seconds_per_item="") -> io.NodeOutput:
        durations = parse_durations(seconds_per_item, seconds, batch_size)
        check_padding(padding)
        frames = -(-int((max(durations) + padding) * RATE) // FRAME)
        samples = torch.zeros(len(durations), CHANNELS, -(-frames // ALIGN) * ALIGN)
        return io.NodeOutput(with_items({"samples": samples, "type": "audio", PADDING: padding, SAMPLES_PER_FRAME: FRAME}, durations))


def parse_durations(text: str, seconds: float, batch: int) -> list[float]:
    """Numbers separated by commas, semicolons or white space. Without any: `seconds` for each of `batch` items."""
    words = text.replace(",", " ").replace(";", " ").split()
    name = "seconds_per_item" if words else "seconds"
    try:
        durations = [float(word) for word in words or [seconds] * batch]
    except ValueError as error:
        raise SA3Error(f"seconds_per_item is '{text}'; expected numbers separated by commas, for example: 3, 4.5, 8.") from error
    if batch not in (1, len(durations)):
        raise SA3Error(f"seconds_per_item has {len(durations)} numbers and batch_size is {batch}; make them equal.")
    for value in durations:
        if not 0 < value <= LONGEST:
            raise SA3Error(
                f"{name} has {value:g}; expected durations above 0 and up to {LONGEST:g} seconds. For longer audio use SA3_Extend."
            )
    return durations


class SAMEEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        seconds = "Duration of the result. 0 = the recording's. Longer: silence is appended. Shorter: the rest serves only as context."
        channels = "For audio with more than two channels: refuse it, use the first two, or mix all to mono."
        options = ["refuse", "first two", "mix to mono"]
        return schema(
            "SA3_SAMEEncode",
            display_name="SA3 SAME Encode",
            advanced="padding chunk_size overlap more_channels",
            description="Encodes a recording to latents, for audio to audio and inpainting. Mono becomes two equal channels.",
            inputs=[
                io.Audio.Input("audio", tooltip="The recording, at any sample rate."),
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader or SA3 Autoencoder Loader."),
                number("seconds", 0.0, 0.0, 86400.0, 0.1, seconds),
                padding_input(),
                *chunk_inputs(),
                io.Combo.Input("more_channels", options=options, default="refuse", tooltip=channels),
                copies_input(),
            ],
            outputs=[io.Latent.Output("LATENT")],
        )

    @classmethod
    def execute(cls, audio, vae, seconds, padding, chunk_size, overlap, more_channels="refuse", batch_size=1) -> io.NodeOutput:
        vae = host_vae.require(vae)
        clip = read_clip(audio, vae.sa3_config, more_channels)
        duration = seconds or seconds_of(clip.shape[-1], vae.sa3_config.sample_rate)
        return io.NodeOutput(encode_clip(vae, clip, duration, padding, chunk_size, overlap, copies=batch_size))


class SAMEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        noise = "The decoder's regularisation noise. seeded: add it as the official tools do, drawn from the seed below."
        return schema(
            "SA3_SAMEDecode",
            display_name="SA3 SAME Decode",
            advanced="chunk_size overlap noise seed",
            description="Decodes latents to stereo audio and cuts each item to its duration, exact to the sample. Keeps the level.",
            inputs=[
                io.Latent.Input("latent", tooltip="Latents of SA3 Sampler or SA3 SAME Encode."),
                io.Vae.Input("vae", tooltip="The VAE of SA3 Model Loader."),
                *chunk_inputs(),
                io.Combo.Input("noise", options=["off", "seeded"], default="off", tooltip=noise),
                io.Int.Input("seed", default=0, **SEED, tooltip="Seed of the decoder noise; ignored while noise is off."),
            ],
            outputs=[io.Audio.Output("AUDIO", is_output_list=True)],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latent, vae, chunk_size, overlap, noise="off", seed=0) -> io.NodeOutput:
        vae = host_vae.require(vae)
        source = read_latent(latent, vae.sa3_config)
        samples = latent["samples"] if source.samples is None else source.samples
        if samples.shape[1] != vae.latent_channels:
            raise SA3Error("The LATENT is empty; connect it to SA3 Sampler first.")
        frames = [decode_frames(vae.sa3_config, source.lengths, i) for i in range(len(source.indices))]
        groups = equal_runs(frames, lambda n: vae.items_at_once(n, chunk_size))
        clips, warnings, bar = [], [], Progress(1, "decoding chunk")
        for k, items in enumerate(groups):
            drawn = Noise(seed, [source.indices[i] for i in items]) if noise == "seeded" else None
            part = bar.part(k, len(groups), "item" if len(groups) == len(frames) else "group")
            latents = samples[items.start : items.stop, :, : frames[items.start]]
            audio = vae.decode_latents(latents, chunk_size, overlap, drawn, part, warnings.append)
            part(1, 1)  # a short clip is a single chunk, which reports nothing
            clips += [audio[j : j + 1, :, : source.lengths.samples[i]] for j, i in enumerate(items)]
        bar.finish()
        warnings += duration_warnings(latent, source)
        warn(*dict.fromkeys([*warnings, *(sentence for clip in clips for sentence in hints.audio_warnings(clip))]))
        rate = vae.sa3_config.sample_rate
        if len({clip.shape[-1] for clip in clips}) == 1:
            return io.NodeOutput([{"waveform": torch.cat(clips), "sample_rate": rate}])
        return io.NodeOutput([{"waveform": clip, "sample_rate": rate, ITEM: i} for clip, i in zip(clips, source.indices, strict=True)])


def equal_runs(frames: Sequence[int], at_once: Callable[[int], int]) -> list[range]:
    """Groups of consecutive items of equal length, at most at_once(length) items in each."""
    groups: list[range] = []
    for n, run in itertools.groupby(range(len(frames)), frames.__getitem__):
        items, size = list(run), at_once(n)
        groups += [range(start, min(start + size, items[-1] + 1)) for start in items[::size]]
    return groups


NODES = [EmptyLatent, SAMEEncode, SAMEDecode]
