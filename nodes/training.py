"""The node that trains a LoRA."""

from ..sa3_core.lora.algebra import TYPES
from ..sa3_core.training.curves import draw_history
from ..sa3_core.training.dataset import find_clips
from ..sa3_core.training.settings import LoRASettings
from .comfyui import preview
from .comfyui import training as host
from .comfyui.lora import add_lora
from .comfyui.progress import warn
from .comfyui.schema import io, schema
from .inputs import count, number


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        folder = (
            "A folder in ComfyUI's input folder: audio files, each with its caption in a .txt file of the same name, or in a table "
            "captions.csv with the columns file and caption."
        )
        name = "Name of the new file in ComfyUI's loras folder. Never overwrites others."
        steps = "Steps in total; the official guide suggests 1000. Raise it to continue a finished run."
        prompt = "Prompt of the previews. Empty = the folder's first caption."
        kind = (
            "Type of the adapter. dora-rows: the official default. lora: the simplest. -xs: tiny files; need the base model's singular "
            "vectors, which take minutes to compute once."
        )
        dtype = "Number format of the frozen base model. auto: bf16 on a GPU that supports it, else fp32. The adapter is always fp32."
        validation = "Share of the clips held out to detect overfitting, chosen by name and always the same. 0 = none."
        include = "Train only these layers: parts of their names, separated by commas; [a-b] is a range of numbers. Empty = all."
        exclude = "Do not train these layers. seconds_total is the duration embedder: exclude it for small datasets and LoRAs to stack."
        checkpointing = (
            "Recompute the activations of the layers in the backward pass instead of storing them: about 40 % more time, much less memory. "
            "The result is the same."
        )
        return schema(
            "SA3_TrainLoRA",
            display_name="SA3 Train LoRA",
            advanced="alpha training_seed dtype validation include exclude gradient_checkpointing",
            description="Trains a LoRA on a folder of audio with captions. An interrupted run is saved and resumes when it is queued again "
            "with the same settings. The LoRA works on the -base model and on the post-trained model of the same size.",
            inputs=[
                io.Model.Input("model", tooltip="A -base model of SA3 Model Loader. Only its file is read; the MODEL is not changed."),
                io.Clip.Input("clip", tooltip="The CLIP of the same loader; encodes the captions."),
                io.Vae.Input("vae", tooltip="The VAE of the same loader; encodes the audio once."),
                io.String.Input("folder", default="training", tooltip=folder),
                io.String.Input("name", default="my_lora", tooltip=name),
                io.Combo.Input("kind", options=list(TYPES), default="dora-rows", tooltip=kind),
                count("rank", 16, 1, 1024, "Size of the adapter; file size and memory grow with it. The official value is 16."),
                number("alpha", 0.0, 0.0, 10000.0, 0.5, "The adapter is scaled by alpha / rank. 0 = rank, that is no scaling."),
                count("steps", 1000, 1, 1_000_000, steps),
                number("learning_rate", 1e-4, 1e-7, 0.1, 1e-6, "Constant over the run. The official value is 0.0001.", round=False),
                count("batch_size", 1, 1, 64, "Clips per step. More is steadier, and takes proportionally more time and memory."),
                number("seconds", 30.0, 0.5, 380.0, 0.5, "Longest excerpt of a clip, cropped at random. Determines memory and time."),
                count("training_seed", 42, 0, 2**31 - 1, "The same seed, data and settings give the same LoRA."),
                io.Combo.Input("dtype", options=["auto", "fp32", "bf16", "fp16"], default="auto", tooltip=dtype),
                number("validation", 0.1, 0.0, 0.5, 0.01, validation),
                io.String.Input("include", default="", tooltip=include),
                io.String.Input("exclude", default="", tooltip=exclude),
                count("save_every", 250, 0, 1_000_000, "Steps between saved LoRAs, name_step000250 and so on. 0 = only the final one."),
                io.String.Input("prompt", default="", multiline=True, tooltip=prompt),
                count("preview_every", 250, 0, 1_000_000, "Steps between previews; each is a full run of the model. 0 = only at the end."),
                number("preview_seconds", 10.0, 0.5, 380.0, 0.5, "Duration of a preview in seconds."),
                io.Boolean.Input("gradient_checkpointing", optional=True, default=False, tooltip=checkpointing),
            ],
            outputs=[
                io.Model.Output("MODEL"),
                io.String.Output("lora"),
                io.Audio.Output("AUDIO"),
                io.Image.Output("CURVES"),
                io.String.Output("report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder, name, **settings):
        return host.data_fingerprint(folder, name)

    @classmethod
    def execute(
        cls, model, clip, vae, folder, name, kind, rank, alpha, steps, learning_rate, batch_size, seconds, training_seed, dtype, validation,
        include, exclude, save_every, prompt, preview_every, preview_seconds, gradient_checkpointing=False,
    ) -> io.NodeOutput:  # fmt: skip
        settings = LoRASettings(
            kind, rank, alpha or None, steps, learning_rate, batch_size, seconds, parts(include), parts(exclude), host.base_dtype(dtype),
            training_seed, validation, save_every, preview_every, prompt.strip() or find_clips(host.data_folder(folder))[0][0].caption,
            preview_seconds, checkpointing=gradient_checkpointing,
        )  # fmt: skip
        done, warnings = host.train_lora(model, clip, vae, folder, name, settings)
        warn(*warnings)
        trained, _ = add_lora(model, done.path.name)
        rate = vae.sa3_config.sample_rate
        audio = {"waveform": done.sample[None], "sample_rate": rate}
        curves = draw_history(done.history)[None]
        return io.NodeOutput(trained, done.path.name, audio, curves, done.report, ui={"audio": [preview.audio_file(done.sample, rate)]})


def parts(text: str) -> tuple[str, ...]:
    """Parts of layer names, separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


NODES = [TrainLoRA]
