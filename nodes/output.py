"""Nodes that write files."""

from ..sa3_core.audio import files as audio_files
from .comfyui import output_files
from .comfyui.audio import as_audio, open_audio
from .comfyui.progress import warn
from .comfyui.schema import io, schema


class SaveAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        prefix = (
            "Subfolder and start of the file name in ComfyUI's output folder. Placeholders: %year%, %month%, %day%, %hour%, %minute%, "
            "%second%, %batch_num%. Existing files are never overwritten."
        )
        kind = (
            "flac: 24 bits, lossless, small. wav32f: keeps levels above full scale. 16 and 24 bits are dithered where the audio is finer. "
            "Drop a file of any format on the canvas to restore its workflow."
        )
        record = "The run_info of SA3 Sampler or SA3 Extend, stored as metadata."
        return schema(
            "SA3_SaveAudio",
            display_name="SA3 Save Audio",
            description="Saves audio with any number of channels, and stores the workflow and the run record in the file.",
            inputs=[
                io.Audio.Input("audio", tooltip="Audio to save; each item of a batch becomes a file."),
                io.String.Input("run_info", optional=True, force_input=True, tooltip=record),
                io.String.Input("filename_prefix", default="audio/sa3", tooltip=prefix),
                io.Combo.Input("format", options=list(audio_files.FORMATS), default="flac", tooltip=kind),
                io.Custom("AUDIO_UI").Input("audioUI", optional=True),
            ],
            outputs=[io.Audio.Output("AUDIO")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio, filename_prefix, format, run_info=None, audioUI=None) -> io.NodeOutput:
        waveforms, rate = open_audio("The AUDIO", audio)
        hidden = cls.hidden
        metadata = output_files.metadata(hidden.prompt, hidden.extra_pnginfo, run_info) if hidden else {}
        files, warnings = [], []
        for i, waveform in enumerate(waveforms):
            folder, name, counter, subfolder = output_files.next_output(filename_prefix, i)
            path, messages = audio_files.write_next(folder, name, counter, waveform, rate, format, metadata)
            files.append({"filename": path.name, "subfolder": subfolder, "type": "output"})
            warnings += [f"{path.name}: {message}" for message in messages]
        warn(*warnings)
        return io.NodeOutput(as_audio(audio, waveforms, rate), ui={"audio": files})


NODES = [SaveAudio]
