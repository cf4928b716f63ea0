"""LoHa and LoKr layers of ComfyUI and LyCORIS files: the update is a product of two small matrices, elementwise or Kronecker."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import SA3Error
from .algebra import Adapter, magnitude_axis, scale_of

TUCKER = ("hada_t1", "hada_t2", "lokr_t2")
NAMES = r"hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|" + "|".join(TUCKER)


def is_product(group: Mapping[str, Tensor]) -> bool:
    """Whether a layer's tensors are those of LoHa or LoKr."""
    return any(name.startswith(("hada_", "lokr_")) for name in group)


def product_adapter(group: Mapping[str, Tensor], alpha: float | None, where: str) -> Adapter:
    """The adapter made of one layer's tensors, checked. Nothing larger than the file is allocated."""
    if tucker := next((name for name in TUCKER if name in group), None):
        raise SA3Error(
            f"{where}: the tensor '{tucker}' is a Tucker decomposition, which is for wide convolutions and is not supported; "
            "train the LoRA without it."
        )
    kind = "loha" if any(name.startswith("hada_") for name in group) else "lokr"
    stems = ("hada_w1", "hada_w2") if kind == "loha" else ("lokr_w1", "lokr_w2")
    used = {"alpha", "magnitude"}

    def pair(stem: str) -> tuple[Tensor, Tensor, int]:
        """Up, down and the rank in the file; 0 for a whole matrix, one of whose factors is then an identity."""
        names = (stem,) if stem in group else (f"{stem}_a", f"{stem}_b")
        matrices = []
        for name in names:
            if name not in group:
                raise SA3Error(f"{where}: the tensor '{name}' is missing; adapter type '{kind}' needs it.")
            if group[name].dim() < 2 or 0 in group[name].shape:
                raise SA3Error(f"{where}: the tensor '{name}' has shape {list(group[name].shape)}; expected a matrix.")
            matrices.append(group[name].flatten(1))  # of a convolution
        used.update(names)
        if len(matrices) == 1:
            (whole,) = matrices
            one = torch.eye(min(whole.shape), dtype=whole.dtype)
            return (one, whole, 0) if whole.shape[0] <= whole.shape[1] else (whole, one, 0)
        up, down = matrices
        if up.shape[1] != down.shape[0]:
            raise SA3Error(f"{where}: {stem}_a {list(up.shape)} and {stem}_b {list(down.shape)} are not of one rank.")
        return up, down, up.shape[1]

    (up, down, rank), (up2, down2, rank2) = map(pair, stems)
    if left := sorted(set(group) - used):
        raise SA3Error(f"{where}: the tensor '{left[0]}' is not part of its adapter type '{kind}'; expected one adapter per layer.")
    first, second = (up.shape[0], down.shape[1]), (up2.shape[0], down2.shape[1])
    if kind == "loha" and first != second:
        raise SA3Error(f"{where}: its two updates are {first[0]} x {first[1]} and {second[0]} x {second[1]}; expected one shape.")
    rank = rank if kind == "loha" else rank2 or rank
    scale = scale_of(alpha if rank else None, rank, where)
    adapter = Adapter(up, down, scale, product=kind, up2=up2, down2=down2, dim=rank or up.shape[1] * up2.shape[1])
    if "magnitude" not in group:
        return adapter
    axis = magnitude_axis(group["magnitude"], *adapter.shape, where)
    return replace(adapter, **{"rows" if axis == "r" else "cols": group["magnitude"].flatten()})
