"""Nodes that save LATENT to files, and load it."""

from ..sa3_core.checkpoints import latent_files
from ..sa3_core.errors import SA3Error
from .comfyui import folders, input_files, output_files
from .comfyui.latent_values import from_file, pair_items, to_file
from .comfyui.progress import warn
from .comfyui.schema import io, schema


class SaveLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        prefix = (
            "Subfolder and start of the file name in ComfyUI's output folder; SA3 Load Latent lists what is in latents. Placeholders: "
            "%year%, %month%, %day%, %hour%, %minute%, %second%, %batch_num% (npy). Existing files are never overwritten."
        )
        kind = (
            "safetensors: one .latent file with everything; core's LoadLatent reads its samples. npy: a .npy and a .json file per item, as "
            "the official tools pre-encode training data."
        )
        return schema(
            "SA3_SaveLatent",
            display_name="SA3 Save Latent",
            description="Saves latents with durations, headroom, regions and mask, and stores the workflow and the run record in the file.",
            inputs=[
                io.Latent.Input("latent", tooltip="Latents of SA3 Sampler or SA3 SAME Encode."),
                io.String.Input("filename_prefix", default="latents/sa3", tooltip=prefix),
                io.Combo.Input("format", options=["safetensors", "npy"], default="safetensors", tooltip=kind),
                io.String.Input("run_info", optional=True, force_input=True, tooltip="The run_info of SA3 Sampler, stored as metadata."),
            ],
            outputs=[io.Latent.Output("LATENT")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, filename_prefix, format, run_info=None) -> io.NodeOutput:
        graph = (cls.hidden.prompt, cls.hidden.extra_pnginfo) if cls.hidden else (None, None)
        (metadata,) = output_files.metadata(*graph, [run_info])
        content, warnings = to_file(latent, metadata)
        files = []
        if format == "npy":
            items, lost = pair_items(content)
            warnings.append(lost)
            for i, item in enumerate(items):
                folder, name, counter, subfolder = output_files.next_output(filename_prefix, i)
                files += [(path, subfolder) for path in latent_files.write_pair(folder, name, counter, *item)]
        else:
            folder, name, counter, subfolder = output_files.next_output(filename_prefix, 0)
            path, more = latent_files.write(folder, name, counter, content)
            files, warnings = [(path, subfolder)], warnings + more
        warn(*warnings)
        return io.NodeOutput(latent, ui={"latents": [{"filename": path.name, "subfolder": sub, "type": "output"} for path, sub in files]})


class LoadLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        file = (
            "A .latent, .safetensors or .npy file in ComfyUI's input folder or its subfolder latents, or in latents of the output folder. "
            "A .npy file is read with the .json file next to it."
        )
        return schema(
            "SA3_LoadLatent",
            display_name="SA3 Load Latent",
            description="Loads latents saved by SA3 Save Latent, by core's SaveLatent or by the official tools.",
            inputs=[io.Combo.Input("file", options=input_files.latents(latent_files.SUFFIXES), tooltip=file)],
            outputs=[io.Latent.Output("LATENT"), io.String.Output("run_info")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file=None):
        try:
            return file is None or bool(input_files.find(file, latent_files.SUFFIXES))  # None: a link
        except SA3Error as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file):
        path = input_files.find(file, latent_files.SUFFIXES)
        return folders.fingerprint(path, path.with_suffix(".json"))

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        path = input_files.find(file, latent_files.SUFFIXES)
        content = latent_files.read(path)
        latent, warnings = from_file(content, path.name)
        warn(*warnings)
        return io.NodeOutput(latent, content.texts.get(latent_files.RUN, ""))


NODES = [SaveLatent, LoadLatent]
