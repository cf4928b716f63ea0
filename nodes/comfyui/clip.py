"""The CLIP socket: T5Gemma as a ComfyUI CLIP."""

from pathlib import Path

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from comfy.cli_args import args
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...sa3_core.checkpoints import checkpoint
from ...sa3_core.checkpoints.detect import MAX_TOKENS
from ...sa3_core.config import ConditioningConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.models.text_encoder import TextEncoder, Tokens, cut_warnings
from .out_of_memory import halvings, retry_smaller
from .patchers import patcher_over
from .progress import Progress, show_loading, warn

CORE_CLIP = "SAT5GemmaModel"
KEY = "t5gemma"  # of the dict of tokens that ComfyUI passes from tokenize to encode
PROMPTS = "sa3_prompts"  # key of a CONDITIONING's settings: the text of each row, for the run record


class PromptTokenizer:
    """The tokenizer of comfy.sd.CLIP, without weighting syntax: brackets and numbers reach the model as text."""

    def __init__(self, encoder: TextEncoder, max_tokens: int):
        self.encoder, self.max_tokens = encoder, max_tokens

    def tokenize_with_weights(self, text: str | list[str], return_word_ids: bool = False, **kwargs) -> dict:
        tokens = self.encoder.tokenize([text] if isinstance(text, str) else text, self.max_tokens)
        return {KEY: [[(int(i), 1.0) for i in ids[mask]] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]}

    def state_dict(self) -> dict:
        return {}


class PromptEncoder(nn.Module):
    """The model of comfy.sd.CLIP: `TextEncoder` with the methods that ComfyUI calls."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.encoder = encoder

    def set_clip_options(self, options) -> None:
        if options.get("layer") is not None:
            warn("CLIP Set Last Layer has no effect: Stable Audio 3 reads the last layer of its text encoder.")

    def reset_clip_options(self) -> None:
        pass

    def generate(self, *args, **kwargs):
        raise SA3Error("The text encoder of Stable Audio 3 only reads text; connect the CLIP of a language model to write it.")

    def encode_token_weights(self, tokens: dict) -> tuple[Tensor, None, dict]:
        """Embeddings (B, n, dim) of the tokens, float32, right-padded to the longest prompt; no pooled output; the attention mask."""
        if KEY not in tokens:
            raise SA3Error(f"These tokens come from another CLIP ({', '.join(tokens)}); use the CLIP of SA3_ModelLoader for both steps.")
        n = max(1, *map(len, tokens[KEY]))  # an empty prompt has one masked token
        ids, mask = torch.zeros(len(tokens[KEY]), n, dtype=torch.long), torch.zeros(len(tokens[KEY]), n, dtype=torch.bool)
        for i, row in enumerate(tokens[KEY]):
            ids[i, : len(row)] = torch.tensor([int(pair[0]) for pair in row], dtype=torch.long)
            mask[i, : len(row)] = True
        output = comfy.model_management.intermediate_device()
        return self.encoder(Tokens(ids, mask)).float().to(output), None, {"attention_mask": mask.to(output)}


class SA3CLIP(comfy.sd.CLIP):
    """A CLIP over a loaded `TextEncoder`; ComfyUI's own constructor needs a state dict that it recognises."""

    def __init__(self, encoder: TextEncoder, max_tokens: int, reload: tuple, disable_dynamic: bool = False):
        super().__init__(no_init=True)
        self.cond_stage_model = PromptEncoder(encoder)
        self.tokenizer = PromptTokenizer(encoder, max_tokens)
        device, offload = comfy.model_management.text_encoder_device(), comfy.model_management.text_encoder_offload_device()
        self.patcher = patcher_over(self.cond_stage_model, device, offload, reload, disable_dynamic)
        self.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        self.patcher.is_clip = True
        self.apply_hooks_to_conds = self.layer_idx = None
        self.use_clip_schedule = False
        self.tokenizer_options = {}

    @property
    def dtype(self) -> torch.dtype:
        """The type that the encoder computes in."""
        return self.cond_stage_model.encoder.model.dtype

    def load_model(self, *args, **kwargs):
        show_loading(self.patcher, "the text encoder")
        return super().load_model(*args, **kwargs)


def encoder_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The type that the text encoder computes in; dtype None = auto.

    T5Gemma's activations exceed float16's range: that becomes bfloat16 where the device computes in it, else float32.
    """
    if dtype is None and (args.bf16_text_enc or args.fp32_text_enc):
        return torch.bfloat16 if args.bf16_text_enc else torch.float32
    if dtype not in (None, torch.float16):
        return dtype
    device = comfy.model_management.text_encoder_device()
    on_cpu = comfy.model_management.is_device_cpu(device)
    return torch.bfloat16 if not on_cpu and comfy.model_management.should_use_bf16(device) else torch.float32


def load_clip(path: Path, config: ConditioningConfig, dtype: torch.dtype | None, disable_dynamic: bool = False) -> SA3CLIP:
    """The CLIP of a text encoder's folder or file, for a model of this config. dtype None = auto."""
    offload = comfy.model_management.text_encoder_offload_device()
    encoder = checkpoint.load_text_encoder(path, encoder_dtype(dtype), offload, config.cond_dim)
    return SA3CLIP(encoder, config.max_tokens, (reload_clip, (path, config, dtype)), disable_dynamic)


def reload_clip(path: Path, config: ConditioningConfig, dtype: torch.dtype | None, disable_dynamic: bool = False):
    """A patcher over the same text encoder loaded once more, for a clone with weights of its own."""
    return load_clip(path, config, dtype, disable_dynamic).patcher


def is_core_clip(clip) -> bool:
    """Whether a CLIP is core's own T5Gemma, of its CLIPLoader."""
    return type(getattr(clip, "cond_stage_model", None)).__name__ == CORE_CLIP


def core_tokens(clip, prompt: str) -> list:
    """The (token, weight) pairs of a prompt by core's CLIP, without its weighting syntax."""
    return [pair for row in clip.tokenize(prompt, disable_weights=True)[KEY] for pair in row]


def encode_by_core(clip, prompts: list[str]) -> list:
    """CONDITIONING with one row per prompt, by core's CLIP."""
    parts = []
    for prompt in prompts:
        pairs = core_tokens(clip, prompt)[:MAX_TOKENS]
        embeddings, values = _only_entry(clip.encode_from_tokens_scheduled({KEY: [pairs]}))
        # an empty prompt: one token of padding, which core returns as zeros; those would be ConditioningZeroOut
        empty = all(isinstance(token, int) and token == 0 for token, *_ in pairs)
        embeddings = torch.ones_like(embeddings) if empty else embeddings
        mask = torch.full(embeddings.shape[:2], not empty)
        parts.append([[embeddings.float(), {**values, "attention_mask": mask}]])
    return _concatenate(parts)


def encode_prompts(clip, prompts: list[str]) -> list:
    """CONDITIONING with one row per prompt, in smaller groups when memory runs out. Raises SA3Error for another model's CLIP."""
    if is_core_clip(clip):
        return encode_by_core(clip, prompts)
    if clip is None:
        raise SA3Error(
            "The CLIP is empty: its file holds no text encoder. Connect SA3_ModelLoader, or CLIPLoader of the type stable_audio."
        )
    if not isinstance(getattr(clip, "tokenizer", None), PromptTokenizer):
        found = type(getattr(clip, "cond_stage_model", clip)).__name__
        raise SA3Error(f"The CLIP is {found}, not Stable Audio 3's text encoder; connect the CLIP of SA3_ModelLoader.")
    advice = "Close what else uses the device, or start ComfyUI with its text encoders on the CPU."

    def encode(size: int) -> list:
        groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        return _concatenate([clip.encode_from_tokens_scheduled(clip.tokenize(group)) for group in groups])

    bar = Progress(1)
    conditioning = retry_smaller("encoding text", "prompts", advice, halvings(len(prompts)), encode)
    bar.finish()
    return conditioning


def with_prompts(conditioning: list, prompts: list[str]) -> list:
    """A CONDITIONING that names the texts of its rows."""
    return [[embeddings, {**values, PROMPTS: prompts}] for embeddings, values in conditioning]


def prompts_of(conditioning: list) -> list[str]:
    """The texts of a CONDITIONING's rows, those of combined entries joined by |. Empty where one is unknown."""
    rows = [values.get(PROMPTS) for _, values in conditioning]
    known = all(isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in rows)
    return [" | ".join(texts[i % len(texts)] for texts in rows) for i in range(max(map(len, rows)))] if known and rows else []


def prompt_warnings(clip, prompts: list[str]) -> list[str]:
    """Sentences about prompts that are cut, and about words that are not in the vocabulary; only the demo's is that small."""
    if is_core_clip(clip):
        return cut_warnings([len(core_tokens(clip, prompt)) for prompt in prompts], MAX_TOKENS)
    encoder = clip.tokenizer.encoder
    warnings = cut_warnings(encoder.counts(prompts), clip.tokenizer.max_tokens)
    if words := encoder.unknown_words(prompts):
        warnings.append(f"This model does not know: {', '.join(words)}. The demo has a small vocabulary, listed in assets/demo/README.md.")
    return warnings


def _only_entry(conditioning: list) -> tuple[Tensor, dict]:
    """The embeddings and values of a CONDITIONING with one entry."""
    if len(conditioning) != 1:
        raise SA3Error("Scheduled hooks on the CLIP give several prompts here; use them with CLIPTextEncode, or turn schedule_clip off.")
    return conditioning[0]


def _concatenate(parts: list[list]) -> list:
    """One CONDITIONING of several with one entry each, padded to the longest prompt."""
    if len(parts) == 1:
        return parts[0]
    entries = [_only_entry(part) for part in parts]
    embeddings = pad_sequence([row for rows, _ in entries for row in rows], batch_first=True)
    mask = pad_sequence([row for _, values in entries for row in values["attention_mask"]], batch_first=True)
    return [[embeddings, {**entries[0][1], "attention_mask": mask}]]
