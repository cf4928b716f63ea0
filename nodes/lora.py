"""Nodes for LoRA files: stack them on a MODEL, look into them, convert them, merge them."""

from ..sa3_core.lora import convert as lora_convert
from ..sa3_core.lora.algebra import MODES
from ..sa3_core.lora.formats import read_lora
from ..sa3_core.lora.merge import merge
from .comfyui import model as host_model
from .comfyui.lora import add_lora, find_lora, lora_names, stack_of, state_of, weight_bases
from .comfyui.output_files import new_model_file
from .comfyui.progress import Progress, warn
from .comfyui.schema import io, schema

LIKE_STRENGTH = -1.0


def lora_input(tooltip: str):
    return io.Combo.Input("lora", options=lora_names(), tooltip=tooltip)


class LoRAStack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def level(name, default, tooltip):
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        return schema(
            "SA3_LoRAStack",
            display_name="SA3 LoRA Stack",
            description="Puts a LoRA on a Stable Audio 3 MODEL, on top of those already there. Chain as many as wanted. Takes the files "
            "of the official trainer (all eight types), PEFT folders and ComfyUI's format.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader, or of another SA3 LoRA Stack."),
                lora_input("A file in ComfyUI's loras folder. Of a PEFT folder, its adapter_model.safetensors."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly it acts. 0 = not at all: the weights stay bit for bit. DoRA types do not fade evenly.",
                ),
                level("start", 0.0, "It acts from this noise level up. 0 = to the end of the run."),
                level("end", 1.0, "It acts up to this noise level. 1 = from the start of the run."),
                io.String.Input(
                    "skip_layers",
                    default="",
                    tooltip="Layers to leave alone: parts of their names, separated by commas; [a-b] stands for numbers. "
                    "Example: layers.[0-3]., to_local_embed, seconds_total",
                ),
                io.Float.Input(
                    "seconds_strength",
                    default=LIKE_STRENGTH,
                    min=LIKE_STRENGTH,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength for the embedder of the duration, which runs before the steps, so that noise levels and curve do not "
                    "apply. Below 0 = the same as strength; 0 = leave it out, wise for all but one LoRA of a stack.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="chain",
                    tooltip="chain: acts on what the LoRAs before it made, as the official loader does. sum: its change against the base "
                    "is added, as the official merge tool does. The same for plain LoRA, not for DoRA.",
                ),
                io.Sigmas.Input(
                    "curve",
                    optional=True,
                    tooltip="Multipliers of the strength over the steps, any list of numbers in the form of SIGMAS: one per step, or "
                    "one per noise level. Other lengths are stretched.",
                ),
            ],
            outputs=[io.Model.Output("MODEL"), io.String.Output("report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora, **settings):
        return state_of(lora)

    @classmethod
    def execute(cls, model, lora, strength, start, end, skip_layers, seconds_strength, mode, curve=None) -> io.NodeOutput:
        out, stack = add_lora(
            model,
            lora,
            strength=strength,
            interval=(start, end),
            skip_layers=skip_layers,
            seconds_strength=None if seconds_strength < 0 else seconds_strength,
            mode=mode,
            curve=curve,
        )
        warn(*stack.rows[-1].warnings)
        return io.NodeOutput(out, stack.describe())


class LoRAInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_LoRAInfo",
            display_name="SA3 LoRA Info",
            description="What is in a LoRA file: its format, type, rank, the base it was trained on, the layers it changes.",
            inputs=[lora_input("A file in ComfyUI's loras folder.")],
            outputs=[io.String.Output("info")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora):
        return state_of(lora)

    @classmethod
    def execute(cls, lora) -> io.NodeOutput:
        return io.NodeOutput(read_lora(find_lora(lora)).details())


class LoRAConvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_LoRAConvert",
            display_name="SA3 LoRA Convert",
            description="Writes a LoRA in another format into ComfyUI's loras folder, as a new file. Also the way to make a .safetensors "
            "file of an old pickled .ckpt: only tensors and plain values are read from it, never code.",
            inputs=[
                lora_input("The file to convert. Pickled files are read safely here, and only here."),
                io.Combo.Input(
                    "format",
                    options=list(lora_convert.LAYOUTS),
                    default="native",
                    tooltip="native: as the official trainer writes. peft: a folder with adapter_model.safetensors. comfyui: keys of "
                    "ComfyUI's own LoRA loader. peft and comfyui do not know all types.",
                ),
                io.String.Input(
                    "name", default="converted", tooltip="Name of the new file or folder, without ending. Nothing is overwritten."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="For -xs files into peft or comfyui: the base that the LoRA was trained on, whose weights complete it.",
                ),
            ],
            outputs=[io.String.Output("file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora, format, name, model=None) -> io.NodeOutput:
        target = new_model_file("loras", name if format == "peft" else f"{name}.safetensors")
        bases = None if model is None else weight_bases(model)
        return io.NodeOutput(str(lora_convert.convert(find_lora(lora), target, format, bases)))


class LoRAMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_LoRAMerge",
            display_name="SA3 LoRA Merge",
            description="Writes the MODEL's checkpoint with its LoRA stack merged in as a new release folder below ComfyUI's checkpoints.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL with a stack of SA3 LoRA Stack. Scheduled LoRAs cannot be merged."),
                io.String.Input("name", default="merged", tooltip="Name of the new folder. Nothing is overwritten."),
            ],
            outputs=[io.String.Output("file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, name) -> io.NodeOutput:
        inner = host_model.require(model)
        return io.NodeOutput(str(merge(inner.sa3_path, stack_of(model), new_model_file("checkpoints", name), Progress(1))))


NODES = [LoRAStack, LoRAInfo, LoRAConvert, LoRAMerge]
