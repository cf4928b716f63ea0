"""Nodes for prompts."""

from ..sa3_core.sampling import prompting
from .comfyui.clip import encode_prompts, prompt_warnings, with_prompts
from .comfyui.progress import warn
from .comfyui.schema import io, schema
from .inputs import number


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        text = (
            'What to hear. Music: genre, instruments, mood and tempo ("lo-fi hip hop, warm Rhodes, 85 BPM"). Effects: the event and its '
            'place ("heavy rain on a tin roof"). Up to 256 tokens; may be empty.'
        )
        lines = "Each line becomes one item of the batch; set the latent's batch_size to the number of lines."
        return schema(
            "SA3_TextEncode",
            display_name="SA3 Text Encode",
            description="Encodes a prompt for Stable Audio 3. The text is used verbatim, without weighting syntax.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of SA3 Model Loader."),
                io.String.Input("text", multiline=True, default="", tooltip=text),
                io.Boolean.Input("one_prompt_per_line", default=False, tooltip=lines),
            ],
            outputs=[io.Conditioning.Output("CONDITIONING")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text, one_prompt_per_line=False) -> io.NodeOutput:
        prompts = [line.strip() for line in text.splitlines() if line.strip()] if one_prompt_per_line else [text]
        conditioning = with_prompts(encode_prompts(clip, prompts or [""]), prompts or [""])
        warn(*prompt_warnings(clip, prompts))
        return io.NodeOutput(conditioning)


class PromptHelper(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def line(name, tooltip):
            return io.String.Input(name, default="", tooltip=tooltip)

        extra = "Other sounds, in plain words. For effects: the object, its action, the room, the microphone."
        rewritten = (
            "A language model's answer to the llm_instruction of another SA3 Prompt Helper. If not empty, it becomes the prompt, without "
            "quotation marks, Markdown and reasoning."
        )
        track_type = "What to generate. Sets the labels at the start of the prompt, and the instruction."
        seconds = "Duration. 0 = the default of the type: 60 s, effects 5 s, loops 8 s. Loops with a tempo get whole bars of 4/4."
        return schema(
            "SA3_PromptHelper",
            display_name="SA3 Prompt Helper",
            description="Writes a prompt in the format of the training data, a suitable duration, and an instruction for any language "
            "model node to rewrite it. Works offline.",
            inputs=[
                io.Combo.Input("track_type", options=list(prompting.TRACK_TYPES), default="music", tooltip=track_type),
                line("genre", "One or several styles, separated by commas: Funk, Jazz. Each becomes a label."),
                line("instruments", "Separated by commas: Guitar, Saxophone, Bass."),
                line("mood", "Mood and energy: nostalgic, warm."),
                number("bpm", 0.0, 0.0, 400.0, 0.5, "Tempo in beats per minute. 0 = left out."),
                line("key", "Musical key: A minor. Empty = left out."),
                number("seconds", 0.0, 0.0, 384.0, 0.1, seconds),
                io.String.Input("extra", default="", multiline=True, tooltip=extra),
                io.String.Input("rewritten", optional=True, force_input=True, tooltip=rewritten),
            ],
            outputs=[io.String.Output("prompt"), io.Float.Output("duration", display_name="seconds"), io.String.Output("llm_instruction")],
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
