"""LoRA stacks on a MODEL: constant LoRAs as weight patches, scheduled ones in the forward pass."""

from pathlib import Path

import comfy.weight_adapter
import folder_paths
import torch
from torch import Tensor

from ...sa3_core.errors import SA3Error
from ...sa3_core.lora.algebra import Adapter, apply_stack, map_tensors
from ...sa3_core.lora.fit import fit_lora, open_lora
from ...sa3_core.lora.formats import BASES, PEFT_CONFIG, SECONDS
from ...sa3_core.lora.stack import Stack
from . import folders, run_options
from . import model as host_model
from .patchers import STACK_ADAPTER, foreign_patches

KEY = "loras"  # ComfyUI's folder
KEPT_FILES = 4  # per model: completing an -xs file takes minutes


class StackAdapter(comfy.weight_adapter.WeightAdapterBase):
    """All constant LoRAs of one layer, as one weight patch.

    ComfyUI moves it by rebuilding it from `weights`, with copies of the tensors that it finds in tuples. It does not look into an
    adapter, so `weights` is (entries, their tensors).
    """

    name = STACK_ADAPTER

    def __init__(self, loaded_keys: set, weights: tuple):
        self.loaded_keys, self.weights = loaded_keys, weights

    @classmethod
    def of(cls, entries: list[tuple[Adapter, float, str]]) -> "StackAdapter":
        tensors: list[Tensor] = []
        map_tensors(tuple(entries), tensors.append)
        return cls(set(), (tuple(entries), tuple(tensors)))

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32, original_weight=None
    ) -> Tensor:  # fmt: skip
        entries, tensors = self.weights
        moved = iter(tensors)
        out = apply_stack(weight, map_tensors(entries, lambda _: next(moved)))
        return out if strength == 1 else torch.lerp(weight.to(out), out, strength)


def stack_of(model) -> Stack:
    return run_options.read(model.model_options).stack


def with_stack(model, stack: Stack):
    """A clone of a MODEL with this stack in place of its own. Other patches are kept."""
    clone = model.clone()
    clone.patches = foreign_patches(clone)
    if patches := {weight_key(layer): StackAdapter.of(entries) for layer, entries in stack.patches().items()}:
        clone.add_patches(patches)
    clone.model_options = run_options.updated(clone.model_options, stack=stack)
    return clone


def weight_key(layer: str) -> str:
    """The name of a layer's weight in a MODEL."""
    return f"conditioner.{layer}.weight" if layer == SECONDS else f"diffusion_model.{layer}.weight"


def add_lora(model, name: str, **settings):
    """A clone of a MODEL with one more LoRA of ComfyUI's folder, and its stack. settings: as of `fit_lora`."""
    inner, path = host_model.sa3_model(model), find_lora(name)
    cache, key = inner.sa3_adapters, fingerprint(name)
    if key not in cache:
        cache[key] = open_lora(path, inner, inner.sa3_name, inner.sa3_path, base_on_disk)
        while len(cache) > KEPT_FILES:
            del cache[next(iter(cache))]
    stack = stack_of(model).with_lora(fit_lora(cache[key], inner, inner.sa3_name, **settings))
    return with_stack(model, stack), stack


def lora_names() -> list[str]:
    """The user's LoRAs, then those of the pack's examples."""
    names = folder_paths.get_filename_list(KEY)
    return [*names, *(name for name in example_loras() if name not in names)]


def example_loras() -> dict[str, Path]:
    return {path.name: path for path in sorted(folders.EXAMPLES.glob("*.safetensors"))}


def find_lora(name: str) -> Path:
    """A file of ComfyUI's folder, else of the pack's examples. Raises SA3Error when it does not exist."""
    path = folder_paths.get_full_path(KEY, name) or example_loras().get(name)
    if path is None:
        raise SA3Error(
            f"The LoRA '{name}' is not in ComfyUI's folder {folder_paths.get_folder_paths(KEY)[0]}; put it there, or choose another."
        )
    return Path(path)


def fingerprint(name: str) -> str:
    """A text that changes when a LoRA or a file that belongs to it is replaced."""
    path = find_lora(name)
    return folders.fingerprint(path, path.parent / PEFT_CONFIG, path.parent / BASES)


def base_on_disk(name: str | None) -> Path | None:
    """The checkpoint of the same variant as a LoRA's base in ComfyUI's folders; None when there is none."""
    variant = folders.variant_of(name or "")
    return next((path for found, path in sorted(folders.releases().items()) if variant and folders.variant_of(found) == variant), None)
