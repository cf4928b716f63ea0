"""The backend of a device, and copies to the device."""

import torch
from torch import Tensor

from .base import Backend
from .cpu import CPU
from .cuda import CUDA
from .mps import MPS

DEFAULT = Backend()
BACKENDS: dict[str, Backend] = {"cpu": CPU(), "cuda": CUDA(), "mps": MPS()}


def backend_of(device: torch.device) -> Backend:
    return BACKENDS.get(device.type, DEFAULT)


def to_device(x: Tensor, device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, in a type. The copy is non-blocking where the device allows it.

    A blocking copy would wait for everything that the device still computes, and leave it idle afterwards.
    """
    device = torch.device(device)
    if x.device.type == "cpu" and backend_of(device).pins:
        dense = x.to(dtype=dtype or x.dtype).contiguous()  # pinning keeps strides, and only dense copies are direct
        return dense.pin_memory().to(device, non_blocking=True)
    return x.to(device=device, dtype=dtype)
