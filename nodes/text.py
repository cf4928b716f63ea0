"""Nodes that turn words into CONDITIONING."""

from ..sa3_core.sampling import prompting
from .comfyui.clip import encode_prompts, vocabulary_warnings
from .comfyui.progress import warn
from .comfyui.schema import io, schema


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
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text, one_prompt_per_line=False) -> io.NodeOutput:
        prompts = [line.strip() for line in text.splitlines() if line.strip()] if one_prompt_per_line else [text]
        conditioning = encode_prompts(clip, prompts or [""])
        warn(*vocabulary_warnings(clip, prompts))
        return io.NodeOutput(conditioning)


class PromptHelper(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def line(name, tooltip):
            return io.String.Input(name, default="", tooltip=tooltip)

        return schema(
            "SA3_PromptHelper",
            display_name="SA3 Prompt Helper",
            description="Writes a prompt in the form of the models' training data, the duration that belongs to it, and an instruction "
            "with which any language model node can rewrite it. Needs no network.",
            inputs=[
                io.Combo.Input(
                    "track_type",
                    options=list(prompting.TRACK_TYPES),
                    default="music",
                    tooltip="What it is to be. Chooses the labels at the start of the prompt and the instruction.",
                ),
                line("genre", "One style or several, separated by commas: Funk, Jazz. Each becomes a label."),
                line("instruments", "Separated by commas: Guitar, Saxophone, Bass."),
                line("mood", "Mood and energy: nostalgic, warm."),
                io.Float.Input("bpm", default=0.0, min=0.0, max=400.0, step=0.5, tooltip="Tempo in beats per minute. 0 = not said."),
                line("key", "Key: A minor. Empty = not said."),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=384.0,
                    step=0.1,
                    tooltip="Duration. 0 = usual for the type: 60 s, effects 5 s, loops 8 s. Loops with a tempo get whole bars of 4/4.",
                ),
                io.String.Input(
                    "extra",
                    default="",
                    multiline=True,
                    tooltip="What else is heard, in plain words. For effects: the object, what happens to it, the room, the microphone.",
                ),
                io.String.Input(
                    "rewritten",
                    optional=True,
                    force_input=True,
                    tooltip="The answer of a language model to the llm_instruction of another SA3 Prompt Helper. When it is not empty it "
                    "is the prompt, without quotation marks, markdown and thinking aloud.",
                ),
            ],
            outputs=[
                io.String.Output("prompt"),
                io.Float.Output("duration", display_name="seconds"),
                io.String.Output("llm_instruction"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, track_type, genre, instruments, mood, bpm, key, seconds, extra, rewritten=None) -> io.NodeOutput:
        written = prompting.write(track_type, genre, instruments, mood, bpm, key, seconds, extra)
        prompt = prompting.clean(rewritten or "") or written.prompt
        tokens = prompting.estimated_tokens(prompt)
        if tokens > prompting.MAX_TOKENS:
            warn(f"The prompt has about {tokens} tokens; the model reads the first {prompting.MAX_TOKENS}.")
        return io.NodeOutput(prompt, written.seconds, written.instruction)


NODES = [TextEncode, PromptHelper]
