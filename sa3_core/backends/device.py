"""Values on their way to the device that computes."""

import torch
from torch import Tensor

PINNED = frozenset({"cuda"})  # devices that fetch from memory of a fixed place by themselves (ROCm's are called so too)


def put(x: Tensor, device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, in a type; a device of `PINNED` is not waited for.

    A plain copy to it ends only when all that it still has to compute is done, and it then idles until the host has more for it.
    """
    device = torch.device(device)
    if x.device.type == "cpu" and device.type in PINNED:
        dense = x.to(dtype=dtype or x.dtype).contiguous()  # pinning keeps strides, and other copies than of dense memory are not direct
        return dense.pin_memory().to(device, non_blocking=True)
    return x.to(device=device, dtype=dtype)
