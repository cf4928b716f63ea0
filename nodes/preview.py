"""Nodes to look at sound with: a batch to choose from, pictures, levels."""

import torch

from ..sa3_core.audio import loudness, spectrogram
from ..sa3_core.audio.checks import item_seeds, parse_items, review
from ..sa3_core.errors import SA3Error
from .comfyui import preview
from .comfyui.latent import read_audio
from .comfyui.progress import warn
from .comfyui.schema import io, schema

ITEMS = "sa3_items"  # of the ui result, which web/preview_batch.js reads


class PreviewBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_PreviewBatch",
            display_name="SA3 Preview Batch",
            description="Every item of a batch with a player, a picture, its levels and its seed. Keep one or some and pass them on; "
            "another choice runs only what follows.",
            inputs=[
                io.Audio.Input("audio", tooltip="A batch, or a list of clips of different lengths, as SA3 SAME Decode gives it."),
                io.String.Input(
                    "run_info", optional=True, force_input=True, tooltip="The run_info of SA3 Sampler; tells each item's seed."
                ),
                io.Audio.Input(
                    "original",
                    optional=True,
                    tooltip="What the items were made from: each player gets a switch to it that keeps the position. One clip for all "
                    "items, or one for each.",
                ),
                io.String.Input(
                    "keep",
                    default="all",
                    tooltip="The items to pass on, counted from 1, for example: 1, 3-4. all = every item; none = only listen, nothing that "
                    "follows runs. The check boxes write here.",
                ),
            ],
            outputs=[io.Audio.Output("AUDIO", is_output_list=True), io.String.Output("REPORT"), io.Image.Output("PICTURES")],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio, keep, run_info=None, original=None) -> io.NodeOutput:
        clips = _items("The AUDIO", audio)
        kept = parse_items(keep[0], len(clips))
        seeds = item_seeds(run_info or [], len(clips))
        reviews = [review(clip, rate, seed) for (clip, rate, _), seed in zip(clips, seeds, strict=True)]
        originals = _for_each(_items("The original", original or []), len(clips))
        shown, report = [], []
        for i, (clip, rate, _) in enumerate(clips):
            entry = {"picture": preview.image_file(clip, rate), "audio": preview.audio_file(clip, rate), **reviews[i].record()}
            if originals:
                entry["original"] = preview.audio_file(*originals[i][:2])
            shown.append(entry)
            report.append(f"{i + 1}{' (kept)' if i in kept else ''}: {reviews[i]}")
        pictures = torch.stack([spectrogram.draw(clip.nan_to_num(0, 0, 0), rate).cpu() for clip, rate, _ in clips])
        return io.NodeOutput(
            _gathered([clips[i] for i in kept]) or [preview.BLOCKER],
            "\n".join(report),
            pictures,
            ui={ITEMS: shown, "audio": [entry["audio"] for entry in shown]},
        )


def _items(name: str, audios) -> list[tuple]:
    """(clip (C, N), rate, the AUDIO it is of) for each item of each AUDIO."""
    found = []
    for audio in audios:
        waveform = audio.get("waveform") if isinstance(audio, dict) else None
        if isinstance(waveform, torch.Tensor) and not bool(torch.isfinite(waveform).all()):  # a broken item is shown as such
            read_audio(name, {**audio, "waveform": waveform.nan_to_num(0, 0, 0)})
        else:
            read_audio(name, audio)
        found += [(clip, audio["sample_rate"], audio) for clip in audio["waveform"]]
    return found


def _for_each(originals: list, count: int) -> list:
    if len(originals) not in (0, 1, count):
        raise SA3Error(f"The original has {len(originals)} items for {count} of the AUDIO; connect one for all, or one for each.")
    return originals * count if len(originals) == 1 else originals


def _gathered(items: list[tuple]) -> list[dict]:
    """AUDIOs of the kept items: one batch when they are alike, else a list; an AUDIO that is kept whole stays the same object."""
    if len({(rate, clip.shape) for clip, rate, _ in items}) > 1:
        return [{**audio, "waveform": clip[None], "sample_rate": rate} for clip, rate, audio in items]
    if not items:
        return []
    first = items[0][2]
    if all(audio is first for *_, audio in items) and len(items) == first["waveform"].shape[0]:
        return [first]
    return [{**first, "waveform": torch.stack([clip for clip, *_ in items])}]


class AudioImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def decibels(name, default, tooltip):
            return io.Float.Input(name, default=default, min=-200.0, max=40.0, step=1.0, tooltip=tooltip)

        return schema(
            "SA3_AudioImage",
            display_name="SA3 Audio Image",
            description="The waveform and the spectrogram of a recording as IMAGE, one picture per item.",
            inputs=[
                io.Audio.Input("audio", tooltip="What to draw, at any rate and with any number of channels."),
                io.Combo.Input(
                    "kind",
                    options=list(spectrogram.KINDS),
                    default=spectrogram.KINDS[0],
                    tooltip="waveform: each channel's lowest and highest sample, RMS as a brighter core, red where full scale is exceeded. "
                    "spectrogram: power over time and frequency. both: the one above the other.",
                ),
                io.Int.Input("width", default=1024, min=16, max=8192, step=8, tooltip="Pixels across the whole clip."),
                io.Int.Input("height", default=512, min=16, max=8192, step=8, tooltip="Pixels from top to bottom."),
                io.Combo.Input(
                    "scale",
                    options=list(spectrogram.SCALES),
                    default=spectrogram.SCALES[0],
                    tooltip="Of frequency. mel: as pitch is heard; log: octaves alike, from 20 Hz; linear: Hz alike.",
                ),
                decibels("quiet", spectrogram.QUIET, "Level of the darkest colour, in dB below a full-scale sine."),
                decibels("loud", spectrogram.LOUD, "Level of the brightest colour, in dB below a full-scale sine."),
                io.Boolean.Input("axes", default=True, tooltip="Write seconds and Hz at the edges."),
            ],
            outputs=[io.Image.Output("IMAGE")],
        )

    @classmethod
    def execute(cls, audio, kind, width, height, scale, quiet, loud, axes) -> io.NodeOutput:
        waveform, rate = read_audio("The AUDIO", audio)
        drawn = [spectrogram.draw(clip, rate, width, height, kind, scale, quiet, loud, axes) for clip in waveform]
        return io.NodeOutput(torch.stack(drawn).cpu())


class Levels(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_Levels",
            display_name="SA3 Levels",
            description="Measures loudness (EBU R128), true peak, RMS and crest. Changes nothing unless asked to normalise or to limit.",
            inputs=[
                io.Audio.Input("audio", tooltip="What to measure; each item of a batch by itself."),
                io.Combo.Input(
                    "normalize",
                    options=list(loudness.NORMALIZE),
                    default="off",
                    tooltip="off: leave the level. peak: bring the true peak to the target. loudness: bring the integrated loudness to the "
                    "target. One gain per item.",
                ),
                io.Float.Input(
                    "target",
                    default=-14.0,
                    min=-70.0,
                    max=0.0,
                    step=0.1,
                    tooltip="For peak in dBTP (-1 is usual), for loudness in LUFS (-14 for streaming, -23 for EBU R128).",
                ),
                io.Combo.Input(
                    "limit",
                    options=["off", "true peak"],
                    default="off",
                    tooltip="true peak: turn down, smoothly and 5 ms ahead, what exceeds the ceiling; the rest stays bit-identical.",
                ),
                io.Float.Input(
                    "ceiling", default=-1.0, min=-40.0, max=0.0, step=0.1, tooltip="Highest true peak that the limiter lets pass, in dBTP."
                ),
            ],
            outputs=[io.Audio.Output("AUDIO"), io.String.Output("REPORT")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, audio, normalize, target, limit, ceiling) -> io.NodeOutput:
        waveform, rate = read_audio("The AUDIO", audio)
        if limit not in ("off", "true peak"):
            raise SA3Error(f"limit is '{limit}'; choose off or true peak.")
        clips, report, over, changed = [], [], [], False
        for i, clip in enumerate(waveform):
            name = f"{i + 1}: " if len(waveform) > 1 else ""
            report.append(f"{name}{loudness.measure(clip, rate)}")
            made, gain = loudness.normalized(clip, rate, normalize, target)
            made = made if limit == "off" else loudness.limit(made, rate, ceiling)
            clips.append(made)
            changed = changed or made is not clip
            if made is not clip:
                after = loudness.measure(made, rate)
                report.append(f"{name}after a gain of {gain:+.2f} dB{'' if limit == 'off' else ' and the limiter'}: {after}")
                if after.peak > 0:
                    over.append(f"{name}The peak is now {after.peak:.1f} dBFS; set limit to true peak, or a lower target.")
        warn(*over)
        return io.NodeOutput({**audio, "waveform": torch.stack(clips)} if changed else audio, "\n".join(report))


NODES = [PreviewBatch, AudioImage, Levels]
