"""Values on their way to the device that computes."""

import torch
from torch import Tensor

PINNED = frozenset({"cuda"})  # devices that fetch from memory of a fixed place by themselves (ROCm's are called so too)


def put(x: Tensor, device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, in a type, without waiting for what the device still has to compute.

    A plain copy from the host's memory ends only when all of that is done, and the device then idles until the host has more for it.
    """
    x, device = x.to(dtype=dtype or x.dtype), torch.device(device)
    if x.device.type == "cpu" and device.type in PINNED:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
