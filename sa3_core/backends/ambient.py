"""Protection from torch's ambient state: autocast, the default device, the default dtype."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
CPU = torch.device("cpu")
_default_dtype = threading.Lock()
Function = TypeVar("Function", bound=Callable)


def independent(function: Function) -> Function:
    """Decorator: run without autocast and with the CPU as default device, both for this thread only.

    The default dtype is global to the process, so decorated code passes a dtype to every function that creates a floating point tensor.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        casting = [kind for kind in AUTOCAST if _autocasts(kind)]
        other_device = torch.get_default_device() != CPU
        if not casting and not other_device:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for kind in casting:
                stack.enter_context(torch.autocast(kind, enabled=False))
            if other_device:
                stack.enter_context(CPU)
            return function(*args, **kwargs)

    return run


@contextmanager
def float32_default() -> Iterator[None]:
    """Set the default dtype to float32 for another library's code. Does nothing if it is float32 already."""
    if torch.get_default_dtype() == torch.float32:
        yield
        return
    with _default_dtype:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _autocasts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except RuntimeError:  # a device type that this build of torch does not know
        return False
