"""Out of memory: what each stage does then. Less at once, with nothing else on the device, and said aloud; else a sentence."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.model_management
from comfy_execution.utils import get_executing_context

from ...sa3_core.errors import SA3Error
from .progress import say

Result = TypeVar("Result")
# torch says it with a class on a GPU, with words of the allocator on the CPU
WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    known = comfy.model_management.OOM_EXCEPTION  # mere Exception where torch has no such class
    if known is not Exception and isinstance(error, known):
        return True
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS))


def halvings(size: int, least: int = 1, multiple: int = 1) -> list[int]:
    """size, its half, ... down to `least`, in multiples; a size that cannot be halved is tried twice."""
    sizes = [size]
    while (half := -(-sizes[-1] // 2 // multiple) * multiple) >= least and half < sizes[-1]:
        sizes.append(half)
    return sizes if len(sizes) > 1 else [size, size]


def on_less(stage: str, unit: str, advice: str, sizes: Sequence[int], work: Callable[[int], Result]) -> Result:
    """work(size) with the first of the falling sizes that fits into memory. Raises SA3Error when none does."""
    for size, smaller in zip(sizes, (*sizes[1:], None), strict=True):
        try:
            return work(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Behind the handler: only now is the failed attempt's own memory free.
        release()
        if smaller is not None:
            tell(f"Out of memory while {stage}: everything else was taken off the device, and it goes on with {smaller} {unit} at once.")
    raise SA3Error(f"Out of memory while {stage}, even with {sizes[-1]} {unit} at once. {advice}")


def release() -> None:
    """Take all models off the device and give back what is free."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def tell(sentence: str) -> None:
    """On the node that is running, and in the log."""
    context = get_executing_context()
    say([sentence], None if context is None else context.node_id)
