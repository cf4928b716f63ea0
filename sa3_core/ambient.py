"""Independence of what the caller has switched on in torch: autocast, another default device, another default type."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import torch

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
CPU = torch.device("cpu")
Function = TypeVar("Function", bound=Callable)


def independent(function: Function) -> Function:
    """`function` without a surrounding autocast and with the CPU as default device, both for this thread only.

    A default type belongs to the whole process, so code below names the type of every new floating point tensor instead.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        casting = [kind for kind in AUTOCAST if _autocasts(kind)]
        elsewhere = torch.get_default_device() != CPU
        if not casting and not elsewhere:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for kind in casting:
                stack.enter_context(torch.autocast(kind, enabled=False))
            if elsewhere:
                stack.enter_context(CPU)
            return function(*args, **kwargs)

    return run


def _autocasts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except RuntimeError:  # a device that this build of torch does not know
        return False
