"""The CLIP socket: T5Gemma behind ComfyUI's CLIP class."""

from pathlib import Path

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from comfy.cli_args import args
from torch import Tensor, nn

from ...sa3_core.checkpoints import checkpoint
from ...sa3_core.config import ConditioningConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.models.text_encoder import TextEncoder, Tokens
from .out_of_memory import halvings, retry_smaller
from .patchers import patcher_over
from .progress import Progress, show_loading

KEY = "t5gemma"


class PromptTokenizer:
    """Prompts as they are: Stable Audio 3 has no weighting syntax, so brackets and numbers reach the model as text."""

    def __init__(self, encoder: TextEncoder, max_tokens: int):
        self.encoder, self.max_tokens = encoder, max_tokens

    def tokenize_with_weights(self, text: str | list[str], return_word_ids: bool = False, **kwargs) -> dict:
        tokens = self.encoder.tokenize([text] if isinstance(text, str) else text, self.max_tokens)
        rows = [[(int(i), 1.0) for i in ids[mask]] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
        return {KEY: rows}

    def state_dict(self) -> dict:
        return {}


class PromptEncoder(nn.Module):
    """`TextEncoder` with the methods that comfy.sd.CLIP calls on its model."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.encoder = encoder
        self.unpatched = None  # the uuid of ComfyUI's patcher as long as it patches nothing
        self.current_weight_patches_uuid = None  # set by the patcher that has loaded it last

    @property
    def as_loaded(self) -> bool:
        """Whether the weights are those of the file: adapters and hooks may have changed them."""
        return self.current_weight_patches_uuid in (None, self.unpatched)

    def set_clip_options(self, options) -> None:
        pass

    def reset_clip_options(self) -> None:
        pass

    def encode_token_weights(self, tokens: dict) -> tuple[Tensor, None, dict]:
        """(B, n, dim) embeddings of the real tokens, right-padded to the longest prompt, and their mask."""
        parsed = self.parse(tokens)
        embeddings = self.encoder(parsed) if self.as_loaded else self.encoder.compute(parsed)
        output = comfy.model_management.intermediate_device()
        return embeddings.float().to(output), None, {"attention_mask": parsed.mask.to(output)}

    @staticmethod
    def parse(tokens: dict) -> Tokens:
        if KEY not in tokens:
            raise SA3Error(f"These tokens come from another CLIP ({', '.join(tokens)}); use the CLIP of SA3_ModelLoader for both steps.")
        rows = [[int(pair[0]) for pair in row] for row in tokens[KEY]]
        n = max(1, *map(len, rows))  # an empty prompt still has one row, masked out
        ids, mask = torch.zeros(len(rows), n, dtype=torch.long), torch.zeros(len(rows), n, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = True
        return Tokens(ids, mask)


class SA3CLIP(comfy.sd.CLIP):
    """A CLIP made of loaded parts instead of a state dict."""

    def __init__(self, encoder: TextEncoder, max_tokens: int, reload: tuple, disable_dynamic: bool = False):
        super().__init__(no_init=True)
        self.cond_stage_model = PromptEncoder(encoder)
        self.tokenizer = PromptTokenizer(encoder, max_tokens)
        device, offload = comfy.model_management.text_encoder_device(), comfy.model_management.text_encoder_offload_device()
        self.patcher = patcher_over(self.cond_stage_model, device, offload, reload, disable_dynamic)
        self.cond_stage_model.unpatched = self.patcher.patches_uuid
        encoder.home = self.patcher.load_device
        self.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        self.patcher.is_clip = True
        self.apply_hooks_to_conds = None
        self.layer_idx = None
        self.use_clip_schedule = False
        self.tokenizer_options = {}
        self._known = False

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in."""
        return self.cond_stage_model.encoder.model.dtype

    def encode_from_tokens(self, tokens, *args, **kwargs):
        model = self.cond_stage_model
        plain = model.as_loaded and self.patcher.patches_uuid == model.unpatched
        self._known = plain and model.encoder.knows(model.parse(tokens))
        return super().encode_from_tokens(tokens, *args, **kwargs)

    def load_model(self, *args, **kwargs):
        """Core calls it before it encodes; what is known needs no weights on the device."""
        known, self._known = self._known, False
        if known:
            return self.patcher
        show_loading(self.patcher, "the text encoder")
        return super().load_model(*args, **kwargs)


def encoder_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The type that the text encoder computes in; dtype None = auto.

    T5Gemma's activations leave float16's range, so that is never one: bfloat16 where the device computes in it, else float32.
    """
    device = comfy.model_management.text_encoder_device()
    safe = (torch.bfloat16, torch.float32, torch.float64)
    if dtype in safe:
        return dtype
    if dtype is None and (asked := _asked_of_comfyui()) in safe:
        return asked
    on_cpu = comfy.model_management.is_device_cpu(device)
    return torch.bfloat16 if not on_cpu and comfy.model_management.should_use_bf16(device) else torch.float32


def _asked_of_comfyui() -> torch.dtype | None:
    """What ComfyUI's command line says of text encoders."""
    return torch.bfloat16 if args.bf16_text_enc else torch.float32 if args.fp32_text_enc else None


def load_clip(path: Path, config: ConditioningConfig, dtype: torch.dtype | None, disable_dynamic: bool = False) -> SA3CLIP:
    """A text encoder's folder or file for a model of this config. dtype None = auto."""
    offload = comfy.model_management.text_encoder_offload_device()
    encoder = checkpoint.load_text_encoder(path, encoder_dtype(dtype), offload, config.cond_dim)
    return SA3CLIP(encoder, config.max_tokens, (reload_clip, (path, config, dtype)), disable_dynamic)


def reload_clip(path: Path, config: ConditioningConfig, dtype: torch.dtype | None, disable_dynamic: bool = False):
    """The patcher of the same text encoder from its files, for a clone with weights of its own."""
    return load_clip(path, config, dtype, disable_dynamic).patcher


def encode_prompts(clip, prompts: list[str]) -> list:
    """CONDITIONING with one row per prompt. A foreign CLIP is refused by name."""
    if not isinstance(getattr(clip, "tokenizer", None), PromptTokenizer):
        raise SA3Error(f"The CLIP is {_name(clip)}, not Stable Audio 3's text encoder; connect the CLIP of SA3_ModelLoader.")
    advice = "Close what else uses the device, or start ComfyUI with its text encoders on the CPU."

    def encode(size: int) -> list:
        groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        return joined([clip.encode_from_tokens_scheduled(clip.tokenize(group)) for group in groups])

    bar = Progress(1)
    conditioning = retry_smaller("encoding text", "prompts", advice, halvings(len(prompts)), encode)
    bar.finish()
    return conditioning


def unknown_words(clip, prompts: list[str]) -> list[str]:
    """A sentence about words that this text encoder has never seen, as the demo's small vocabulary has most."""
    words = clip.tokenizer.encoder.unknown_words(prompts)
    if not words:
        return []
    return [f"This model does not know: {', '.join(words)}. The demo has a small vocabulary, listed in assets/demo/README.md."]


def joined(parts: list[list]) -> list:
    """CONDITIONING of several groups of prompts as one, padded to the longest prompt."""
    if len(parts) == 1:
        return parts[0]
    rows = [(embeddings, values["attention_mask"]) for ((embeddings, values),) in parts]
    n = max(embeddings.shape[1] for embeddings, _ in rows)
    pad = torch.nn.functional.pad
    embeddings = torch.cat([pad(embeddings, (0, 0, 0, n - embeddings.shape[1])) for embeddings, _ in rows])
    mask = torch.cat([pad(mask, (0, n - mask.shape[1])) for _, mask in rows])
    return [[embeddings, {**parts[0][0][1], "attention_mask": mask}]]


def _name(clip) -> str:
    return type(getattr(clip, "cond_stage_model", clip)).__name__
