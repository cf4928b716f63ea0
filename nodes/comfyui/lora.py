"""LoRA stacks on a MODEL: weight patches for what is constant, the forward pass for what comes and goes."""

from pathlib import Path

import comfy.weight_adapter
import folder_paths
import torch
from torch import Tensor

from ...sa3_core.errors import SA3Error
from ...sa3_core.lora.algebra import Adapter, apply_stack
from ...sa3_core.lora.formats import BASES, PEFT_CONFIG
from ...sa3_core.lora.stack import Stack, checkpoint_bases, make_row, open_lora, weight_name
from . import folders
from . import model as host_model

KEY = "loras"  # ComfyUI's folder
KEPT_FILES = 4  # per model: an -xs file takes minutes to complete


class StackAdapter(comfy.weight_adapter.WeightAdapterBase):
    """The whole stack of one layer. ComfyUI rebuilds it from `weights` when it moves them, so all its state lies there."""

    name = "sa3"

    def __init__(self, loaded_keys: set, weights: tuple):
        self.loaded_keys, self.weights = loaded_keys, weights

    @classmethod
    def of(cls, entries: list[tuple[Adapter, float, str]]) -> "StackAdapter":
        return cls(set(), tuple((a.up, a.down, a.scale, a.rows, a.cols, strength, mode) for a, strength, mode in entries))

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32, original_weight=None
    ) -> Tensor:  # fmt: skip
        out = apply_stack(weight, [(Adapter(*fields), amount, mode) for *fields, amount, mode in self.weights])
        return out if strength == 1 else torch.lerp(weight.to(out), out, strength)


def stack_of(model) -> Stack:
    return host_model.option(model, host_model.STACK, Stack())


def with_stack(model, stack: Stack):
    """A clone of a MODEL with a stack in place of the one it had. Other patches stay."""
    clone = model.clone()
    for key, patches in list(clone.patches.items()):
        clone.patches[key] = [patch for patch in patches if not isinstance(patch[1], StackAdapter)]
        if not clone.patches[key]:
            del clone.patches[key]
    clone.add_patches({f"diffusion_model.{weight_name(layer)}": StackAdapter.of(entries) for layer, entries in stack.patches().items()})
    options = clone.model_options
    clone.model_options = {
        **options,
        host_model.LORAS: stack.record(),
        "transformer_options": {**options.get("transformer_options", {}), host_model.STACK: stack},
    }
    return clone


def add_lora(model, name: str, **settings):
    """A clone of the MODEL with one more LoRA of ComfyUI's folder, and its stack."""
    inner, path = host_model.require(model), find_lora(name)
    cache, key = inner.sa3_adapters, state_of(name)
    if key not in cache:
        cache[key] = open_lora(path, inner.diffusion_model, inner.sa3_name, inner.sa3_path, base_on_disk)
        while len(cache) > KEPT_FILES:
            del cache[next(iter(cache))]
    row = make_row(cache[key], inner.diffusion_model, inner.sa3_name, **settings)
    stack = stack_of(model).with_row(row)
    return with_stack(model, stack), stack


def lora_names() -> list[str]:
    return folder_paths.get_filename_list(KEY)


def find_lora(name: str) -> Path:
    path = folder_paths.get_full_path(KEY, name)
    if path is None:
        raise SA3Error(f"The LoRA '{name}' is not in ComfyUI's folder {folder_paths.get_folder_paths(KEY)[0]}.")
    return Path(path)


def state_of(name: str) -> str:
    """Changes whenever the file is replaced, or what belongs to it."""
    path = find_lora(name)
    return folders.state_of(path, path.parent / PEFT_CONFIG, path.parent / BASES)


def base_on_disk(name: str | None) -> Path | None:
    """The checkpoint that a LoRA was trained on, where ComfyUI's folders have it."""
    variant = folders.variant_of(name or "")
    return next((path for found, path in sorted(folders.releases().items()) if variant and folders.variant_of(found) == variant), None)


def weight_bases(model):
    """SVD bases out of a MODEL's checkpoint, for converting -xs files."""
    return checkpoint_bases(host_model.require(model).sa3_path)
