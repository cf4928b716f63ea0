"""Nodes that show audio: choose from a batch, draw images, measure levels."""

import json

import torch

from ..sa3_core.audio import loudness, spectrogram
from ..sa3_core.audio.checks import parse_items, review
from ..sa3_core.errors import SA3Error
from ..sa3_core.run_record import item_records
from .comfyui import preview
from .comfyui.audio import as_audio, open_audio, read_audio
from .comfyui.progress import show_status, warn
from .comfyui.schema import io, schema
from .inputs import count, number

MISSED = 0.5  # LU by which a result may differ from the requested loudness
ITEMS = "sa3_items"  # key of the ui result that web/preview_batch.js reads


class PreviewBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        keep = (
            "Items to pass on, counted from 1, for example: 1, 3-4. all = every item. none = listen only, the nodes after this one do not "
            "run. The check boxes set this text."
        )
        original = "Source of the items: each player can switch to it at the same position. One clip for all items, or one per item."
        return schema(
            "SA3_PreviewBatch",
            display_name="SA3 Preview Batch",
            description="Shows player, waveform, spectrogram, levels and seed of each item of a batch, and passes on the items to keep. "
            "Another choice reruns only the nodes after this one.",
            inputs=[
                io.Audio.Input("audio", tooltip="A batch, or the list of clips of different lengths from SA3 SAME Decode."),
                io.String.Input("run_info", optional=True, force_input=True, tooltip="The run_info of SA3 Sampler; shows the seeds."),
                io.Audio.Input("original", optional=True, tooltip=original),
                io.String.Input("keep", default="all", tooltip=keep),
            ],
            outputs=[
                io.Audio.Output("AUDIO", is_output_list=True),
                io.String.Output("REPORT"),
                io.Image.Output("PICTURES"),
                io.String.Output("kept_info", display_name="run_info", is_output_list=True),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio, keep, run_info=None, original=None) -> io.NodeOutput:
        clips = split_items("The AUDIO", audio)
        kept = parse_items(keep[0], len(clips))
        records = item_records(run_info or [])
        records = records if len(records) == len(clips) else []
        originals = one_per_item(split_items("The original", original or []), len(clips))
        shown, report, images = [], [], []
        for i, (clip, rate, _) in enumerate(clips):
            item = review(clip, rate, records[i]["seed"] if records else None)
            entry = {"picture": preview.image_file(clip, rate), "audio": preview.audio_file(clip, rate), **item.record()}
            if originals:
                entry["original"] = preview.audio_file(*originals[i][:2])
            shown.append(entry)
            report.append(f"{i + 1}{' (kept)' if i in kept else ''}: {item}")
            images.append(spectrogram.draw(clip.nan_to_num(0, 0, 0), rate).cpu())
        audios = join_items([clips[i] for i in kept])
        infos = join_records([records[i] for i in kept], len(audios)) if records else ["\n".join(run_info or [])] * len(audios)
        return io.NodeOutput(
            audios or [preview.BLOCKER],
            "\n".join(report),
            torch.stack(images),
            infos or [preview.BLOCKER],
            ui={ITEMS: shown, "audio": [entry["audio"] for entry in shown]},
        )


def split_items(name: str, audios) -> list[tuple]:
    """(clip (C, N), rate, its AUDIO) for each item of each AUDIO. Clips may contain NaN: the node shows such items as broken."""
    items = []
    for audio in audios:
        waveform, rate = open_audio(name, audio)
        finite = waveform.nan_to_num(0, 0, 0) if waveform.itemsize > 1 else waveform  # torch has no NaN check for 8 bits
        read_audio(name, {"waveform": finite, "sample_rate": rate})
        audio = as_audio(audio, waveform, rate)
        items += [(clip, rate, audio) for clip in waveform]
    return items


def one_per_item(originals: list, total: int) -> list:
    """The originals, repeated in turn for `total` items."""
    if originals and total % len(originals):
        raise SA3Error(f"The original has {len(originals)} items for {total} of the AUDIO; connect one for all items, or one per item.")
    return originals * (total // len(originals)) if originals else []


def join_items(items: list[tuple]) -> list[dict]:
    """AUDIOs of the items: one batch if rates and shapes are equal, else one per item. An AUDIO kept whole is the same object."""
    if len({(rate, clip.shape) for clip, rate, _ in items}) > 1:
        return [{**audio, "waveform": clip[None], "sample_rate": rate} for clip, rate, audio in items]
    if not items:
        return []
    first = items[0][2]
    if all(audio is first for *_, audio in items) and len(items) == first["waveform"].shape[0]:
        return [first]
    return [{**first, "waveform": torch.stack([clip for clip, *_ in items])}]


def join_records(records: list[dict], audios: int) -> list[str]:
    """The run_info of each AUDIO of `join_items`: one record, or a list of them for a batch."""
    return [json.dumps(one) for one in (records if audios > 1 or len(records) == 1 else [records])][:audios]


class AudioImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        kind = (
            "waveform: minimum and maximum of each channel, RMS as a brighter core, red above full scale. spectrogram: power over time and "
            "frequency. both: waveform above spectrogram."
        )
        scale = "Frequency axis. mel: as pitch is heard. log: equal octaves, from 20 Hz. linear: equal steps in Hz."
        return schema(
            "SA3_AudioImage",
            display_name="SA3 Audio Image",
            advanced="quiet loud",
            description="Draws the waveform and the spectrogram of a recording as IMAGE, one per item.",
            inputs=[
                io.Audio.Input("audio", tooltip="Audio to draw, at any sample rate and with any number of channels."),
                io.Combo.Input("kind", options=list(spectrogram.KINDS), default=spectrogram.KINDS[0], tooltip=kind),
                count("width", 1024, 16, 8192, "Width of the image in pixels; shows the whole clip.", step=8),
                count("height", 512, 16, 8192, "Height of the image in pixels.", step=8),
                io.Combo.Input("scale", options=list(spectrogram.SCALES), default=spectrogram.SCALES[0], tooltip=scale),
                number("quiet", spectrogram.QUIET, -200.0, 40.0, 1.0, "Level of the darkest colour, in dB relative to a full-scale sine."),
                number("loud", spectrogram.LOUD, -200.0, 40.0, 1.0, "Level of the brightest colour, in dB relative to a full-scale sine."),
                io.Boolean.Input("axes", default=True, tooltip="Label the axes with seconds and Hz."),
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
        normalize = (
            "off: keep the level. peak: set the true peak to target. loudness: set the integrated loudness to target. One gain per item."
        )
        target = "In dBTP for peak (-1 is usual), in LUFS for loudness (-14 for streaming, -23 for EBU R128)."
        limit = "true peak: a limiter with 5 ms of look-ahead turns down peaks above ceiling; all other samples stay bit-identical."
        return schema(
            "SA3_Levels",
            display_name="SA3 Levels",
            description="Measures loudness (EBU R128), true peak, RMS and crest factor. Normalises and limits on request.",
            inputs=[
                io.Audio.Input("audio", tooltip="Audio to measure; each item of a batch separately."),
                io.Combo.Input("normalize", options=list(loudness.NORMALIZE), default="off", tooltip=normalize),
                number("target", -14.0, -70.0, 0.0, 0.1, target),
                io.Combo.Input("limit", options=["off", "true peak"], default="off", tooltip=limit),
                number("ceiling", -1.0, -40.0, 0.0, 0.1, "Highest true peak after the limiter, in dBTP."),
            ],
            outputs=[io.Audio.Output("AUDIO"), io.String.Output("REPORT")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, audio, normalize, target, limit, ceiling) -> io.NodeOutput:
        waveform, rate = read_audio("The AUDIO", audio)
        clips, report, warnings, levels, changed = [], [], [], [], False
        for i, clip in enumerate(waveform):
            name = f"{i + 1}: " if len(waveform) > 1 else ""
            levels.append(loudness.measure(clip, rate))
            report.append(f"{name}{levels[i]}")
            out, gain = loudness.normalized(clip, rate, normalize, target)
            out = out if limit == "off" else loudness.limit(out, rate, ceiling)
            clips.append(out)
            if out is not clip:
                changed = True
                after = levels[i] = loudness.measure(out, rate)
                report.append(f"{name}after a gain of {gain:+.2f} dB{'' if limit == 'off' else ' and the limiter'}: {after}")
                if normalize == "loudness" and limit != "off" and target - after.integrated > MISSED:
                    missed = f"{after.integrated:.1f} LUFS, not {target:g}"
                    warnings.append(f"{name}The loudness is {missed}: the limiter turned the peaks down. Lower target or raise ceiling.")
                if after.peak > 0:
                    warnings.append(f"{name}The peak is now {after.peak:.1f} dBFS; set limit to true peak, or lower target.")
        show_status(summary(levels) + (" after the changes" if changed else ""))
        warn(*warnings)
        return io.NodeOutput(as_audio(audio, torch.stack(clips) if changed else waveform, rate), "\n".join(report))


def summary(levels: list[loudness.Levels]) -> str:
    """Loudness and highest true peak of the items in one line."""
    quiet, loud = (f"{end(item.integrated for item in levels):.1f}" for end in (min, max))
    items = f"{len(levels)} items: " if len(levels) > 1 else ""
    return f"{items}{quiet if quiet == loud else f'{quiet} to {loud}'} LUFS, true peak {max(item.true_peak for item in levels):.1f} dBTP"


NODES = [PreviewBatch, AudioImage, Levels]
