"""ComfyUI's layers, with our own product where its Linear would take torch's."""

import comfy.ops

from ...sa3_core.models import operations


class Operations(comfy.ops.disable_weight_init):
    class Linear(comfy.ops.disable_weight_init.Linear, operations.Linear):
        """Weights that are cast at each use take ComfyUI's way, which is torch's product."""

    class Conv1d(comfy.ops.disable_weight_init.Conv1d, operations.Conv1d):
        pass
