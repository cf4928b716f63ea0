"""Retry in float32 after an overflow in a 16-bit type."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SA3Error


def with_float32_retry(stage: str, dtype: torch.dtype, compute: Callable[[torch.dtype], Tensor], warn: Callable[[str], None]) -> Tensor:
    """compute(dtype), or compute(torch.float32) when the result in a 16-bit type contains NaN or infinity.

    stage: plural noun that names the result in messages. warn(sentence): called before a retry. Raises SA3Error when the result in
    float32 is not finite either.
    """
    out = compute(dtype)
    if dtype in (torch.float16, torch.bfloat16) and not bool(torch.isfinite(out).all()):
        name = str(dtype).removeprefix("torch.")
        warn(f"{stage} exceeded the range of {name} and were computed again in float32. Choose dtype fp32 to avoid the failed attempt.")
        out = compute(torch.float32)
    if not bool(torch.isfinite(out).all()):
        raise SA3Error(
            f"{stage} contain NaN or infinite values, also in float32. Likely cause: a damaged or wrong model file, or LoRAs at high "
            "strength; remove the LoRAs, then verify the file."
        )
    return out
