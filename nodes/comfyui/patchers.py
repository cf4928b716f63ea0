"""ComfyUI's model patchers, with dynamic VRAM where this version of ComfyUI has it."""

from collections.abc import Callable

import comfy.model_patcher
import torch


def patcher_over(module: torch.nn.Module, load_device, offload_device, reload: tuple[Callable, tuple], disable_dynamic: bool = False):
    """A ModelPatcher over a module, of ComfyUI's preferred class. disable_dynamic: the class whose weights stay on the device once loaded.

    reload: (function, arguments) that load the module again, for clones with their own weights: TorchCompileModel, hooks and multi-GPU.
    Under dynamic VRAM, core adds the argument disable_dynamic=True.
    """
    kind = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        kind = getattr(comfy.model_patcher, "CoreModelPatcher", kind)
    patcher = kind(module, load_device=load_device, offload_device=offload_device)
    patcher.cached_patcher_init = reload
    return patcher


def is_dynamic(patcher) -> bool:
    """Whether ComfyUI copies the weights to the device in each step (dynamic VRAM). Older versions of ComfyUI never do."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def resident_clone(patcher):
    """A clone whose weights stay on the device once loaded. Under dynamic VRAM it has its own weights, which ComfyUI caches."""
    return patcher.get_non_dynamic_delegate() if is_dynamic(patcher) else patcher.clone()
