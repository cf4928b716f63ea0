"""The backend of a device, and copies to a device."""

import torch
from torch import Tensor

from .base import Backend
from .cpu import CPU
from .cuda import CUDA
from .mps import MPS

DEFAULT = Backend()
BACKENDS: dict[str, Backend] = {"cpu": CPU(), "cuda": CUDA(), "mps": MPS()}  # by device type


def backend_of(device: torch.device) -> Backend:
    return BACKENDS.get(device.type, DEFAULT)


def to_device(x: Tensor, device, dtype: torch.dtype | None = None) -> Tensor:
    """x on the device, in `dtype` (None = x's).

    The copy is non-blocking where the device supports it: a blocking one waits for all queued kernels and then leaves the device idle.
    """
    device = torch.device(device)
    if x.device.type == "cpu" and backend_of(device).pins:
        dense = x.to(dtype=dtype or x.dtype).contiguous()  # pin_memory keeps strides, and only dense copies are non-blocking
        return dense.pin_memory().to(device, non_blocking=True)
    return x.to(device=device, dtype=dtype)
