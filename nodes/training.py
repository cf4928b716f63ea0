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


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def number(name, default, low, high, step, tooltip):
            return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)

        def count(name, default, low, high, tooltip):
            return io.Int.Input(name, default=default, min=low, max=high, tooltip=tooltip)

        return schema(
            "SA3_TrainLoRA",
            display_name="SA3 Train LoRA",
            description="Trains a LoRA on a folder of audio with captions. Stopped, it saves; queued again with the same settings, it goes "
            "on where it was. The result works on the -base model and on the post-trained one of its size.",
            inputs=[
                io.Model.Input("model", tooltip="A -base model of SA3 Model Loader. Only its file is read; the MODEL stays untouched."),
                io.Clip.Input("clip", tooltip="The CLIP of the same loader; it reads the captions."),
                io.Vae.Input("vae", tooltip="The VAE of the same loader; it encodes the audio, once."),
                io.String.Input(
                    "folder",
                    default="training",
                    tooltip="A folder below ComfyUI's input folder: audio files, each with its caption in a .txt file of the same name, or "
                    "a table captions.csv with the columns file and caption.",
                ),
                io.String.Input(
                    "name",
                    default="my_lora",
                    tooltip="Name of the new file in ComfyUI's loras folder. A file of another run is never overwritten.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(TYPES),
                    default="dora-rows",
                    tooltip="Type of the adapter. dora-rows is the official default; lora is the plainest; the -xs types make tiny files "
                    "and need the base's singular vectors, which takes minutes once.",
                ),
                count("rank", 16, 1, 1024, "Size of the adapter; file and memory grow with it. 16 is the official value."),
                number("alpha", 0.0, 0.0, 10000.0, 0.5, "Its effect is scaled by alpha / rank. 0 = the rank, which is no scaling."),
                count("steps", 1000, 1, 1_000_000, "Steps in all; the official guide suggests 1000. To go on with a finished run, set "
                      "more."),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-7,
                    max=0.1,
                    step=1e-6,
                    round=False,
                    tooltip="Constant over the run. 0.0001 is the official value.",
                ),
                count("batch_size", 1, 1, 64, "Clips a step. More is steadier and takes as much more time and memory."),
                number("seconds", 30.0, 0.5, 380.0, 0.5, "Longest stretch of a clip seen at once; longer clips are cropped at random. "
                       "Decides memory and time."),
                count("training_seed", 42, 0, 2**31 - 1, "Same seed, data and settings: the same LoRA."),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "fp32", "bf16", "fp16"],
                    default="auto",
                    tooltip="Number format of the frozen base. auto: bf16 on a GPU that has it, else fp32. The adapter is always fp32.",
                ),
                number("validation", 0.1, 0.0, 0.5, 0.01, "Share of the clips held out, to see whether it learns more than these very "
                       "clips. Chosen by name, always the same. 0 = none."),
                io.String.Input(
                    "include",
                    default="",
                    tooltip="Only these layers: parts of their names, separated by commas; [a-b] stands for numbers. Empty = all.",
                ),
                io.String.Input(
                    "exclude",
                    default="",
                    tooltip="Not these layers. seconds_total leaves out the duration's embedder: wise for small sets, and for LoRAs to be "
                    "stacked.",
                ),
                count("save_every", 250, 0, 1_000_000, "Steps from one LoRA on the way to the next, name_step000250 and so on. 0 = the "
                      "last alone."),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="What the samples are made of. Empty = the first caption of the folder."
                ),
                count("preview_every", 250, 0, 1_000_000, "Steps from one sample to the next; each is a whole run of the model. 0 = only "
                      "at the end."),
                number("preview_seconds", 10.0, 0.5, 380.0, 0.5, "Length of a sample."),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    optional=True,
                    default=False,
                    tooltip="Compute the transformer's layers again in the backward pass instead of keeping what they made: some 40 % more "
                    "time, much less memory. The result is the same.",
                ),
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
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder, name, **settings):
        return host.state_of(folder, name)

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
        curves = draw_history(done.history)[None].float() / 255
        return io.NodeOutput(trained, done.path.name, audio, curves, done.report, ui={"audio": [preview.audio_file(done.sample, rate)]})


def parts(text: str) -> tuple[str, ...]:
    """Parts of layer names out of a list with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


NODES = [TrainLoRA]
