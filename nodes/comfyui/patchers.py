"""ComfyUI's model patchers, with dynamic VRAM where this version of ComfyUI has it."""

import functools
from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.weight_adapter
import torch

STACK_ADAPTER = "sa3"  # name of the weight patches of SA3_LoRAStack
REMARKS = "sa3_remarks"  # key of model_options: sentences about what has no effect on this MODEL, for the node that samples
UNMATCHED = "A LoRA loader before this node changed no layer: ComfyUI does not know the names in its file. Load it with SA3 LoRA Stack."


def add_remark(patcher, sentence: str) -> None:
    remarks = patcher.model_options.get(REMARKS, ())
    if sentence not in remarks:
        patcher.model_options = {**patcher.model_options, REMARKS: (*remarks, sentence)}


def foreign_patches(patcher) -> dict[str, list]:
    """The weight patches that other nodes have added, by the name of the weight."""
    others = {
        key: [patch for patch in patches if getattr(patch[1], "name", "") != STACK_ADAPTER] for key, patches in patcher.patches.items()
    }
    return {key: patches for key, patches in others.items() if patches}


class _Witness:
    """A ModelPatcher that notes when no patch fits, as of a LoRA whose layer names ComfyUI does not know: core only logs it."""

    def add_patches(self, patches, strength_patch=1.0, *args, **kwargs):
        found = super().add_patches(patches, strength_patch, *args, **kwargs)
        # a merge adds the other model's weights one by one, and a weight may be missing here
        of_lora = not patches or any(isinstance(patch, comfy.weight_adapter.WeightAdapterBase) for patch in patches.values())
        if not found and of_lora and strength_patch != 0:
            add_remark(self, UNMATCHED)
        return found


@functools.cache
def _with_witness(kind: type) -> type:
    return type(f"SA3{kind.__name__}", (_Witness, kind), {})


def patcher_over(module: torch.nn.Module, load_device, offload_device, reload: tuple[Callable, tuple], disable_dynamic: bool = False):
    """A ModelPatcher over a module, of ComfyUI's preferred class. disable_dynamic: the class whose weights stay on the device once loaded.

    reload: (function, arguments) that load the module again, for clones with their own weights: TorchCompileModel, hooks and multi-GPU.
    Under dynamic VRAM, core adds the argument disable_dynamic=True.
    """
    kind = comfy.model_patcher.ModelPatcher
    if not disable_dynamic and not comfy.model_management.is_device_cpu(load_device):
        kind = getattr(comfy.model_patcher, "CoreModelPatcher", kind)
    patcher = _with_witness(kind)(module, load_device=load_device, offload_device=offload_device)
    patcher.cached_patcher_init = reload
    return patcher


def is_dynamic(patcher) -> bool:
    """Whether ComfyUI copies the weights to the device in each step (dynamic VRAM). Older versions of ComfyUI never do."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def resident_clone(patcher):
    """A clone whose weights stay on the device once loaded. Under dynamic VRAM it has its own weights, which ComfyUI caches."""
    if not is_dynamic(patcher):
        return patcher.clone()
    clone = patcher.get_non_dynamic_delegate()
    clone.__class__ = _with_witness(comfy.model_patcher.ModelPatcher)  # core makes a plain one
    return clone
