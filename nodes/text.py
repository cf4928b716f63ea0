"""Nodes that turn words into CONDITIONING."""

from .host.clip import encode_prompts
from .host.schema import io, schema


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SA3_TextEncode",
            display_name="SA3 Text Encode",
            description="Encodes a prompt for Stable Audio 3. The text is taken as it is: no weighting syntax.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of SA3 Model Loader."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip='What to hear. Genre, instruments, mood and tempo for music ("lo-fi hip hop, warm Rhodes, 85 BPM"), the event '
                    'and its place for effects ("heavy rain on a tin roof"). Up to 256 tokens; an empty prompt is allowed.',
                ),
                io.Boolean.Input(
                    "one_prompt_per_line",
                    default=False,
                    tooltip="Each line becomes an item of the batch of its own; set the latent's batch size to the number of lines.",
                ),
            ],
            outputs=[io.Conditioning.Output("CONDITIONING")],
        )

    @classmethod
    def execute(cls, clip, text, one_prompt_per_line=False) -> io.NodeOutput:
        prompts = [line.strip() for line in text.splitlines() if line.strip()] if one_prompt_per_line else [text]
        return io.NodeOutput(encode_prompts(clip, prompts or [""]))


NODES = [TextEncode]
