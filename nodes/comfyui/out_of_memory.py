"""Recovery from out-of-memory errors: unload all models and retry with less at once."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.model_management

from ...sa3_core.errors import SA3Error
from .progress import warn

Result = TypeVar("Result")
MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")  # of torch's CPU allocator, a RuntimeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a failed allocation of torch or Python."""
    device_error = comfy.model_management.OOM_EXCEPTION  # Exception itself where torch has no class for it
    if device_error is not Exception and isinstance(error, device_error):
        return True
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in MESSAGES))


def halvings(size: int, least: int = 1, multiple: int = 1) -> list[int]:
    """size, its half, ... down to `least`, rounded up to multiples; [size, size] when it cannot be halved."""
    sizes = [size]
    while (half := -(-sizes[-1] // 2 // multiple) * multiple) >= least and half < sizes[-1]:
        sizes.append(half)
    return sizes if len(sizes) > 1 else [size, size]


def retry_smaller(stage: str, unit: str, advice: str, sizes: Sequence[int], work: Callable[[int], Result]) -> Result:
    """work(size) for the first of the decreasing sizes that fits into memory. Raises SA3Error when none does."""
    for size, smaller in zip(sizes, (*sizes[1:], None), strict=True):
        try:
            return work(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # outside the handler, whose traceback holds the tensors of the failed attempt
        if smaller is not None:
            warn(f"Out of memory while {stage}: all models were unloaded from the device; retrying with {smaller} {unit} at once.")
    raise SA3Error(f"Out of memory while {stage}, even with {sizes[-1]} {unit} at once. {advice}")


def free_memory() -> None:
    """Unload all models from the device and return cached memory to it."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()
