"""LoHa and LoKr layers of ComfyUI and LyCORIS files.

The update is the elementwise (LoHa) or the Kronecker (LoKr) product of two low-rank matrices, so its rank is at most the product
of their ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SA3Error
from .algebra import Adapter, LowRank, magnitude_axis, scale_of

TUCKER = ("hada_t1", "hada_t2", "lokr_t2")
NAMES = r"hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|" + "|".join(TUCKER)


@dataclass(frozen=True)
class Product:
    """The update of LoHa, first * second, or of LoKr, kron(first, second)."""

    kind: str  # loha or lokr
    first: LowRank
    second: LowRank
    rank: int  # that the file states

    @property
    def shape(self) -> tuple[int, int]:
        (out, inner), (out2, inner2) = self.first.shape, self.second.shape
        return (out * out2, inner * inner2) if self.kind == "lokr" else (out, inner)

    def factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Update`, with r <= min(out, in). Only for an update that fits its weight: a LoKr file is far smaller than its update."""
        (up, down), (up2, down2) = self.first.factors(like), self.second.factors(like)
        product = torch.kron if self.kind == "lokr" else torch.mul
        if up.shape[1] * up2.shape[1] >= min(self.shape):  # the update itself is the smaller factor
            return _factored(product(up @ down, up2 @ down2))
        if self.kind == "lokr":
            return torch.kron(up, up2), torch.kron(down, down2)
        return (up[:, :, None] * up2[:, None]).flatten(1), (down[:, None] * down2).flatten(0, 1)


def _factored(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as up and down; the smaller one is an identity."""
    one = torch.eye(min(matrix.shape), dtype=matrix.dtype, device=matrix.device)
    return (one, matrix) if matrix.shape[0] <= matrix.shape[1] else (matrix, one)


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

    def low_rank(stem: str) -> tuple[LowRank, int]:
        """One of the two matrices, and its rank in the file: 0 for a whole matrix."""
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
            return LowRank(*_factored(matrices[0])), 0
        up, down = matrices
        if up.shape[1] != down.shape[0]:
            raise SA3Error(f"{where}: {stem}_a {list(up.shape)} and {stem}_b {list(down.shape)} are not of one rank.")
        return LowRank(up, down), up.shape[1]

    (first, rank), (second, rank2) = map(low_rank, stems)
    if left := sorted(set(group) - used):
        raise SA3Error(f"{where}: the tensor '{left[0]}' is not part of its adapter type '{kind}'; expected one adapter per layer.")
    if kind == "loha" and first.shape != second.shape:
        shapes = " and ".join(f"{out} x {inner}" for out, inner in (first.shape, second.shape))
        raise SA3Error(f"{where}: its two updates are {shapes}; expected one shape.")
    rank = rank if kind == "loha" else rank2 or rank
    scale = scale_of(alpha if rank else None, rank, where)
    update, magnitudes = Product(kind, first, second, rank or first.rank * second.rank), {}
    if "magnitude" in group:
        axis = magnitude_axis(group["magnitude"], *update.shape, where)
        magnitudes["rows" if axis == "r" else "cols"] = group["magnitude"].flatten()
    return Adapter(update, scale, norms="comfyui", **magnitudes)
