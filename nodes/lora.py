"""Nodes for LoRA files: stack them on a MODEL, describe, convert and merge them."""

from ..sa3_core.errors import SA3Error
from ..sa3_core.lora import convert as lora_convert
from ..sa3_core.lora.algebra import MODES
from ..sa3_core.lora.fit import checkpoint_bases
from ..sa3_core.lora.formats import read_lora
from ..sa3_core.lora.merge import merge
from .comfyui import model as host_model
from .comfyui.lora import add_lora, find_lora, fingerprint, lora_names, stack_of
from .comfyui.output_files import new_model_file
from .comfyui.patchers import foreign_patches
from .comfyui.progress import Progress, show_status, warn
from .comfyui.schema import io, schema
from .inputs import noise_level_input, number

SAME_AS_STRENGTH = -1.0


def lora_input(tooltip: str):
    return io.Combo.Input("lora", options=lora_names(), tooltip=tooltip)


class LoRAStack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        layers = (
            "Layers to leave unchanged: parts of their names, separated by commas; [a-b] is a range of numbers. "
            "Example: layers.[0-3]., to_local_embed, seconds_total"
        )
        strength = "Strength of the LoRA. 0 = off, the weights stay bit-identical. DoRA types do not fade evenly."
        seconds = (
            "Strength for the duration embedder, which runs once before the steps: start, end and curve do not apply. "
            "Below 0 = the same as strength. 0 = off, recommended for all but one LoRA of a stack."
        )
        mode = (
            "chain: applied to the result of the LoRAs before it, as the official loader does. sum: its change of the base weights is "
            "added, as the official merge tool does. Both are equal for LoRA types and differ for DoRA types."
        )
        curve = "Multipliers of strength over the steps, as SIGMAS: one per step or one per noise level. Other lengths are interpolated."
        return schema(
            "SA3_LoRAStack",
            display_name="SA3 LoRA Stack",
            advanced="skip_layers seconds_strength mode",
            description="Adds a LoRA to a Stable Audio 3 MODEL. Chain several nodes to stack LoRAs. Reads files of the official trainer "
            "(all eight types), PEFT folders and ComfyUI's format (also LoHa and LoKr).",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SA3 Model Loader, or of another SA3 LoRA Stack."),
                lora_input("A file in ComfyUI's loras folder. For a PEFT folder: its adapter_model.safetensors."),
                number("strength", 1.0, -10.0, 10.0, 0.05, strength),
                noise_level_input("start", 0.0, "Lowest noise level with the LoRA. 0 = until the end of the run."),
                noise_level_input("end", 1.0, "Highest noise level with the LoRA. 1 = from the start of the run."),
                io.String.Input("skip_layers", default="", tooltip=layers),
                number("seconds_strength", SAME_AS_STRENGTH, SAME_AS_STRENGTH, 10.0, 0.05, seconds),
                io.Combo.Input("mode", options=list(MODES), default="chain", tooltip=mode),
                io.Sigmas.Input("curve", optional=True, tooltip=curve),
            ],
            outputs=[io.Model.Output("MODEL"), io.String.Output("report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora, **settings):
        return fingerprint(lora)

    @classmethod
    def execute(cls, model, lora, strength, start, end, skip_layers, seconds_strength, mode, curve=None) -> io.NodeOutput:
        seconds = None if seconds_strength < 0 else seconds_strength
        out, stack = add_lora(
            model, lora, strength=strength, interval=(start, end), skip_layers=skip_layers, seconds_strength=seconds, mode=mode, curve=curve
        )
        show_status(stack.loras[-1].describe())
        warn(*stack.loras[-1].warnings)
        return io.NodeOutput(out, stack.describe())


class LoRAInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_LoRAInfo",
            display_name="SA3 LoRA Info",
            description="Describes a LoRA file: format, type, rank, base model and the layers it changes.",
            inputs=[lora_input("A file in ComfyUI's loras folder.")],
            outputs=[io.String.Output("info")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora):
        return fingerprint(lora)

    @classmethod
    def execute(cls, lora) -> io.NodeOutput:
        return io.NodeOutput(read_lora(find_lora(lora)).details())


class LoRAConvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        layout = (
            "native: as the official trainer writes. peft: a folder with adapter_model.safetensors. comfyui: for ComfyUI's LoRA loader. "
            "peft and comfyui do not support every type. LoHa and LoKr files are not converted."
        )
        name = "Name of the new file or folder, without extension. Existing files are never overwritten."
        base = "For -xs files to peft or comfyui: the base model that the LoRA was trained on; its weights complete the LoRA."
        return schema(
            "SA3_LoRAConvert",
            display_name="SA3 LoRA Convert",
            description="Writes a LoRA in another format, as a new file in ComfyUI's loras folder. Also converts an old pickled .ckpt to "
            ".safetensors: reads only tensors and simple values, and never executes code.",
            inputs=[
                lora_input("The file to convert. Only this node reads pickled files, without executing code."),
                io.Combo.Input("format", options=list(lora_convert.LAYOUTS), default="native", tooltip=layout),
                io.String.Input("name", default="converted", tooltip=name),
                io.Model.Input("model", optional=True, tooltip=base),
            ],
            outputs=[io.String.Output("file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora, format, name, model=None) -> io.NodeOutput:
        target = new_model_file("loras", name if format == "peft" else f"{name}.safetensors")
        bases = None if model is None else checkpoint_bases(host_model.sa3_model(model).sa3_path)
        return io.NodeOutput(str(lora_convert.convert(find_lora(lora), target, format, bases)))


class LoRAMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_LoRAMerge",
            display_name="SA3 LoRA Merge",
            description="Merges a MODEL's LoRA stack into its checkpoint and writes a new release folder in ComfyUI's checkpoints folder.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL with LoRAs of SA3 LoRA Stack. Scheduled LoRAs cannot be merged."),
                io.String.Input("name", default="merged", tooltip="Name of the new folder. Existing folders are never overwritten."),
            ],
            outputs=[io.String.Output("file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, name) -> io.NodeOutput:
        inner = host_model.sa3_model(model)
        if foreign := foreign_patches(model):
            raise SA3Error(
                f"The MODEL has {len(foreign)} weights that another node has patched, and only the LoRAs of SA3_LoRAStack are merged. "
                "Load that node's LoRA with SA3_LoRAStack."
            )
        return io.NodeOutput(str(merge(inner.sa3_path, stack_of(model), new_model_file("checkpoints", name), Progress(1))))


NODES = [LoRAStack, LoRAInfo, LoRAConvert, LoRAMerge]
