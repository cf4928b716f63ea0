"""ComfyUI's patchers over our networks: with dynamic VRAM where this ComfyUI has it."""

from collections.abc import Callable

import comfy.model_patcher
import torch


def patcher_over(module: torch.nn.Module, load_device, offload_device, reload: tuple[Callable, tuple], disable_dynamic: bool = False):
    """A patcher of ComfyUI's own choice over a module; disable_dynamic: the one whose weights stay on the device once loaded.

    reload: (function, arguments) with which core loads the module once more, for a clone with weights of its own: its TorchCompileModel,
    hooks and clones for several GPUs. It is called with these arguments and, under dynamic VRAM, disable_dynamic=True.
    """
    kind = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        kind = getattr(comfy.model_patcher, "CoreModelPatcher", kind)
    patcher = kind(module, load_device=load_device, offload_device=offload_device)
    patcher.cached_patcher_init = reload
    return patcher


def is_dynamic(patcher) -> bool:
    """Whether ComfyUI stages the weights in each step, so that no layer holds one on the device for good."""
    asked = getattr(patcher, "is_dynamic", None)
    return asked is not None and asked()


def resident_clone(patcher):
    """A clone whose weights are loaded once and stay: under dynamic VRAM a copy of the model, which ComfyUI keeps for the next clone."""
    return patcher.get_non_dynamic_delegate() if is_dynamic(patcher) else patcher.clone()
