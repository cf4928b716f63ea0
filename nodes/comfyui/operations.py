"""ComfyUI's layers, computed by this pack's layers unless ComfyUI casts the weights at each use."""

import comfy.ops

from ...sa3_core.models import operations


class Operations(comfy.ops.disable_weight_init):
    class Linear(comfy.ops.disable_weight_init.Linear, operations.Linear):
        pass

    class Conv1d(comfy.ops.disable_weight_init.Conv1d, operations.Conv1d):
        pass
