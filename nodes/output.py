"""Nodes that write files."""

import json

from ..sa3_core.audio import files as audio_files
from ..sa3_core.audio.encode import QUALITIES
from ..sa3_core.run_record import item_records
from ..sa3_core.timeline.tempo import studio_of
from .comfyui import output_files
from .comfyui.audio import INDICES, as_audio, open_audio
from .comfyui.progress import warn
from .comfyui.schema import io, schema
from .inputs import TEMPO, read_tempo


class SaveAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        prefix = (
            "Subfolder and start of the file name in ComfyUI's output folder. Placeholders: %prompt%, %seed%, %model%, %duration% of the "
            "item (from run_info), %date:yyyy-MM-dd%, %batch_num%, %Node.input%. Existing files are never overwritten."
        )
        kind = (
            "flac: 24 bits, lossless, small. wav32f: keeps levels above full scale. 16 and 24 bits are dithered where the audio is finer. "
            "mp3, opus, m4a: small, for sharing. Drop a file of any format on the canvas to restore its workflow."
        )
        quality = (
            "Of mp3, opus and m4a. mp3: V4, V2, V0, 320 kbit/s. opus: 64, 96, 128, 256 kbit/s. m4a (AAC): 96, 128, 192, 256 kbit/s. "
            "wav and flac ignore it."
        )
        tempo = (
            "The TEMPO of SA3 Tempo, for samplers and DAWs. WAV: loop points where the clip is a whole number of beats (smpl), tempo and "
            "key (acid). Other formats: BPM and key as tags."
        )
        record = "The run_info of SA3 Sampler, SA3 Extend or SA3 Preview Batch. Each file stores the record of its item."
        return schema(
            "SA3_SaveAudio",
            display_name="SA3 Save Audio",
            description="Saves audio with any number of channels, and stores the workflow and the run record in the file.",
            inputs=[
                io.Audio.Input("audio", tooltip="Audio to save; each item of a batch becomes a file."),
                io.String.Input("run_info", optional=True, force_input=True, tooltip=record),
                io.String.Input("filename_prefix", default="audio/sa3", tooltip=prefix),
                io.Combo.Input("format", options=list(audio_files.FORMATS), default="flac", tooltip=kind),
                io.Combo.Input("quality", options=list(QUALITIES), default="high", optional=True, tooltip=quality),
                io.Custom("AUDIO_UI").Input("audioUI", optional=True),  # the editor does not restore the widgets after it
                TEMPO.Input("tempo", optional=True, tooltip=tempo),
            ],
            outputs=[io.Audio.Output("AUDIO")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio, filename_prefix, format, run_info=None, audioUI=None, quality="high", tempo=None) -> io.NodeOutput:
        waveforms, rate = open_audio("The AUDIO", audio)
        audio_files.check_format(format, waveforms.shape[1], quality)
        hidden = cls.hidden
        graph, extra = (hidden.prompt, hidden.extra_pnginfo) if hidden else (None, None)
        tempo = None if tempo is None else read_tempo(tempo)
        records = records_of(audio, run_info, len(waveforms))
        infos = [json.dumps(record) if record else run_info for record in records]
        texts = output_files.metadata(graph, extra, infos) if hidden else [{}] * len(infos)
        files, warnings = [], []
        for i, (waveform, record, metadata) in enumerate(zip(waveforms, records, texts, strict=True)):
            prefix, unknown = output_files.expand(filename_prefix, record, graph)
            folder, name, counter, subfolder = output_files.next_output(prefix, i)
            studio = studio_of(tempo, waveform.shape[-1], rate, name) if tempo else None
            path, messages = audio_files.write_next(folder, name, counter, waveform, rate, format, metadata, quality, studio)
            files.append({"filename": path.name, "subfolder": subfolder, "type": "output"})
            if unknown:
                messages.append(
                    f"{', '.join(unknown)} of filename_prefix has no value here; connect the run_info of this audio's SA3 Sampler or SA3 "
                    "Preview Batch."
                )
            warnings += [f"{path.name}: {message}" for message in messages]
        warn(*warnings)
        return io.NodeOutput(as_audio(audio, waveforms, rate), ui={"audio": files})


def records_of(audio, run_info: str | None, count: int) -> list[dict | None]:
    """The record of each item of an AUDIO, None for each where run_info is of other items."""
    records = item_records([run_info]) if run_info else []
    indices = audio.get(INDICES) if isinstance(audio, dict) else None
    if len(records) != count and isinstance(indices, list) and len(indices) == count:  # some clips of the run's batch
        own = {one["batch"].get("index"): one for one in records}
        return [own.get(index) for index in indices]
    return records if len(records) == count else [None] * count


NODES = [SaveAudio]
