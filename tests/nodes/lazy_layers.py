"""ComfyUI's layers as dynamic VRAM makes them: a Linear has no weight before its state dict is loaded.

A ComfyUI that has dynamic VRAM is told that it is on; an older one gets layers that keep the same contract. On a CPU that is the half of it
that can be tried: weights are not staged there.
"""

import torch
from safetensors.torch import load_file
from torch import nn


def make_lazy() -> str:
    """From now on layers are created lazily; returns how, for the report of the tests."""
    import comfy.model_patcher
    import comfy.ops
    import comfy.utils

    if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        import comfy.memory_management

        comfy.memory_management.aimdo_enabled = True
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.utils.load_safetensors = lambda path: (load_file(path), {})  # core's own needs a GPU
        return "ComfyUI's own"
    linear = comfy.ops.disable_weight_init.Linear
    linear.__init__ = _init
    linear._load_from_state_dict = _load
    return "stand-ins"


def _init(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None) -> None:
    nn.Module.__init__(self)
    self.in_features, self.out_features = in_features, out_features
    self.weight, self.bias = None, None
    self.wants_bias = bias


def _load(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
    assign = local_metadata.get("assign_to_params_buffers", False)
    names = ("weight", "bias") if self.wants_bias else ("weight",)
    for key in state_dict:
        name = key.removeprefix(prefix)
        if name in names:
            value = state_dict[key]
            setattr(self, name, nn.Parameter(value if assign else value.clone(), requires_grad=False))
        else:
            unexpected_keys.append(key)
    for name in names:
        if getattr(self, name) is None:
            missing_keys.append(prefix + name)
            setattr(self, name, nn.Parameter(torch.zeros(self.out_features, *([self.in_features] if name == "weight" else []))))
