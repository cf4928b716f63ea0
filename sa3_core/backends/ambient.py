"""Independence of what the caller has switched on in torch: autocast, another default device, another default type."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
CPU = torch.device("cpu")
_default_type = threading.Lock()
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


@contextmanager
def float32_default() -> Iterator[None]:
    """For another library's code that makes tensors of the default type. Does nothing where that is float32 already."""
    if torch.get_default_dtype() == torch.float32:
        yield
        return
    with _default_type:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _autocasts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except RuntimeError:  # a device that this build of torch does not know
        return False
