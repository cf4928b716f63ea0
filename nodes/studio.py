"""Nodes for the studio: tempo, spotting lists, mixing on a time line."""

from dataclasses import replace

import torch

from ..sa3_core.audio.waveform import resample
from ..sa3_core.config import RATE
from ..sa3_core.errors import SA3Error
from ..sa3_core.timeline.cue_sheet import USAGE, read_cues
from ..sa3_core.timeline.durations import seconds_of
from ..sa3_core.timeline.mixing import end_of, length_of, mix, stem
from ..sa3_core.timeline.tempo import Tempo as TempoValue
from ..sa3_core.timeline.tempo import detect, tempo_in
from .comfyui.audio import read_audio
from .comfyui.progress import show_status, warn
from .comfyui.schema import io, schema
from .inputs import TEMPO, count, number
from .preview import split_items

CUES = io.Custom("SA3_CUES")
DEFAULT_FPS = 25.0


class Tempo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        bpm = "Beats per minute. 0 = from the recording if one is connected, else from the prompt."
        offset = "Seconds of the first downbeat. With a recording at bpm 0 it is detected."
        length = "A length in this tempo: 8 bars, 2 bars 3 beats, 6 beats. Its seconds are an output, for SA3 Empty Latent."
        key = "Musical key: A minor, F# major. Empty = from the recording or the prompt."
        return schema(
            "SA3_Tempo",
            display_name="SA3 Tempo",
            description="Tempo, meter and key, for durations in bars and beats and for the files that samplers and DAWs read. "
            "From numbers, from a recording, or from a prompt such as '122 BPM, A minor'.",
            inputs=[
                number("bpm", 120.0, 0.0, 1000.0, 0.01, bpm),
                count("beats_per_bar", 4, 1, 32, "4 for 4/4, 3 for 3/4."),
                io.String.Input("key", default="", tooltip=key),
                number("offset", 0.0, 0.0, 3600.0, 0.001, offset),
                io.String.Input("length", default="1 bar", tooltip=length),
                io.Audio.Input("audio", optional=True, tooltip="A recording whose tempo and key to detect; used with bpm 0."),
                io.String.Input("prompt", optional=True, force_input=True, tooltip="A prompt that names the tempo; used with bpm 0."),
            ],
            outputs=[
                TEMPO.Output("TEMPO"), io.Float.Output("bpm_found", display_name="bpm"), io.Float.Output("seconds"),
                io.String.Output("REPORT"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, bpm, beats_per_bar, key, offset, length, audio=None, prompt=None) -> io.NodeOutput:
        if bpm:
            tempo, source = TempoValue(bpm, beats_per_bar, key, offset), "as entered"
        elif audio is not None:
            tempo, source = detected(audio, beats_per_bar, key)
        else:
            tempo, source = named(prompt or "", beats_per_bar, key, offset), "as the prompt says"
        beats = tempo.beats(length)
        if not beats:
            raise SA3Error(f"length is '{length[:60]}'; expected bars or beats, for example: 8 bars, 2 bars 3 beats.")
        seconds = seconds_of(tempo.samples(beats, RATE), RATE)
        show_status(f"{tempo}, {source}; {length.strip()}: {seconds:.3f} s")
        return io.NodeOutput(tempo, tempo.bpm, seconds, f"{tempo}, {source}")


def detected(audio, beats_per_bar: int, key: str) -> tuple[TempoValue, str]:
    waveform, rate = read_audio("The AUDIO", audio)
    found = detect(waveform[0], rate, beats_per_bar)
    if found.tempo is None:
        guess = "it is silent or shorter than 3 s" if found.bpm is None else f"the best guess is {found.bpm:.1f} BPM"
        raise SA3Error(f"The recording shows no clear tempo ({guess}, confidence {found.confidence:.2f}); enter bpm.")
    tempo = replace(found.tempo, key=key or found.tempo.key)
    return tempo, f"detected with confidence {found.confidence:.2f} (key {found.key_confidence:.2f})"


def named(prompt: str, beats_per_bar: int, key: str, offset: float) -> TempoValue:
    tempo = tempo_in(prompt, beats_per_bar)
    if tempo is None:
        raise SA3Error(
            f"bpm is 0 and the prompt '{prompt[:60]}' names no tempo; enter bpm, or connect a recording or a prompt with '120 BPM'."
        )
    return replace(tempo, key=key or tempo.key, offset=offset)


class CueSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        rows = (
            f"One sound per line: {USAGE}. Times in seconds, mm:ss.mmm, frames (48f) or hh:mm:ss:ff. Gain in dB, pan from -1 (left) to "
            "1, fade in seconds (in/out: 0.1/0.5). Only time and prompt are needed."
        )
        return schema(
            "SA3_CueSheet",
            display_name="SA3 Cue Sheet",
            description="A spotting list for a film or a game: when to hear what. Its prompts and durations become one batch; SA3 Mix "
            "places the sounds on the time line.",
            inputs=[
                io.String.Input("rows", multiline=True, default="0:00; a low tone; 2\n0:02; a kick; 1; -3", tooltip=rows),
                number("seconds", 3.0, 0.1, 384.0, 0.1, "Duration of a sound whose row gives none."),
                number("fps", DEFAULT_FPS, 1.0, 240.0, 0.001, "Frames per second of the times in frames; a connected film's own wins."),
                io.Video.Input("film", optional=True, tooltip="The film, from Load Video: its frame rate and its length."),
            ],
            outputs=[
                io.String.Output("prompts"), io.String.Output("seconds_per_item"), CUES.Output("CUES"), io.Int.Output("items"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, rows, seconds, fps=DEFAULT_FPS, film=None) -> io.NodeOutput:
        cues = read_cues(rows, float(film.get_frame_rate()) if film is not None else fps, seconds)
        length = float(film.get_duration()) if film is not None else 0.0
        return io.NodeOutput(
            "\n".join(cue.prompt for cue in cues),
            ", ".join(f"{cue.seconds:.6g}" for cue in cues),
            {"cues": cues, "seconds": length},
            len(cues),
        )


class Mix(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        seconds = "Length of the mix. 0 = the film's, else until the last sound has ended."
        rate = "Sample rate of the mix. 48000 is usual for film."
        return schema(
            "SA3_Mix",
            display_name="SA3 Mix",
            description="Places sounds on a time line with gain, pan and fades. The stems sum to the mix; nothing is limited.",
            inputs=[
                io.Audio.Input("audio", tooltip="One sound per row of the cue sheet, from SA3 SAME Decode."),
                CUES.Input("cues", tooltip="CUES of SA3 Cue Sheet."),
                number("seconds", 0.0, 0.0, 86400.0, 0.1, seconds),
                io.Combo.Input("sample_rate", options=["as the sounds", "44100", "48000", "96000"], default="as the sounds", tooltip=rate),
            ],
            outputs=[io.Audio.Output("MIX"), io.Audio.Output("STEMS"), io.String.Output("REPORT")],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, audio, cues, seconds, sample_rate) -> io.NodeOutput:
        sounds, sheet = split_items("The AUDIO", audio), cues[0]
        rows = sheet["cues"]
        if len(sounds) != len(rows):
            raise SA3Error(
                f"The AUDIO has {len(sounds)} sounds and the cue sheet {len(rows)} rows; connect one sound per row, in their order."
            )
        rate = sounds[0][1] if sample_rate[0] == "as the sounds" else int(sample_rate[0])
        total = seconds[0] or sheet["seconds"]
        length = round(total * rate) if total else length_of(rows, rate)
        stems = [stem(resample(clip.float(), own, rate), cue, rate, length) for (clip, own, _), cue in zip(sounds, rows, strict=True)]
        mixed = mix(stems)
        late = [i for i, cue in enumerate(rows, 1) if end_of(cue, rate) > length]
        peak = float(mixed.abs().max())
        warn(
            *([f"Rows {', '.join(map(str, late))} end after the mix and were cut off; lengthen seconds."] if late else []),
            *([f"The peak of the mix is {peak:.2f} of full scale; lower the gains, or limit with SA3 Levels."] if peak > 1 else []),
        )
        lines = [f"{cue.start:.3f} s, {cue.seconds:.3f} s: {cue.prompt}, {cue.gain:+g} dB, pan {cue.pan:+g}" for cue in rows]
        audio = {"waveform": mixed[None], "sample_rate": rate}
        return io.NodeOutput(audio, {"waveform": torch.stack(stems), "sample_rate": rate}, "\n".join(lines))


NODES = [Tempo, CueSheet, Mix]
