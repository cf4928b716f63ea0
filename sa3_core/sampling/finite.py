"""A 16-bit stage that left its number format is computed once more in float32."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SA3Error

HALF = (torch.float16, torch.bfloat16)


def finite(stage: str, dtype: torch.dtype, compute: Callable[[torch.dtype], Tensor], remark: Callable[[str], None]) -> Tensor:
    """compute(dtype), or compute(torch.float32) where a 16-bit dtype gives NaN or infinity. remark(sentence): called for that.

    Raises SA3Error naming the stage, a noun in the plural, when float32 is not finite either.
    """
    out = compute(dtype)
    if dtype in HALF and not bool(torch.isfinite(out).all()):
        name = str(dtype).removeprefix("torch.")
        remark(f"{stage} left the range of {name} and were computed again in float32. Choose dtype fp32 to do so at once.")
        out = compute(torch.float32)
    if not bool(torch.isfinite(out).all()):
        raise SA3Error(
            f"{stage} contain NaN or infinite values, though computed in float32. Likely cause: a damaged or wrong model file, or LoRAs at "
            "high strength; take the LoRAs off, then verify the file."
        )
    return out
