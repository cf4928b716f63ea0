"""LoRA adapters of every type in one algebra.

Every type starts from a low-rank update, V = W + s B A, with s = alpha / rank * strength. DoRA then sets the norms of the rows or the
columns of V, BoRA both: multiplications by diagonal matrices. Any stack of adapters on a layer keeps its weight in the form

    W' = sum_k  R_k W C_k  +  P Q        R_k, C_k diagonal, P (out, r), Q (r, in)

* a low-rank update appends columns to P and rows to Q;
* new row norms multiply all R_k and P from the left, new column norms all C_k and Q from the right;
* a delta against the base, W' + (V - W), appends V's terms and the term -W. Terms with C = 1 add up to one term, and so do terms with
  R = 1, so only a sum over DoRA or BoRA needs more than one.

A stack can therefore be merged into the weight, or run in the forward pass next to an unchanged weight: scale, low rank, scale.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import SA3Error

EPS = 1e-12
MODES = ("chain", "sum")
# adapter_type -> its magnitudes: r = one per row (output), c = one per column (input)
TYPES = {"lora": "", "dora": "r", "dora-rows": "r", "dora-cols": "c", "bora": "rc"}
TYPES |= {f"{name}-xs": axes for name, axes in TYPES.items() if name != "dora"}
Factor = Tensor | float  # a diagonal matrix as its diagonal, or a multiple of the identity


class Update(Protocol):
    """What an adapter adds to its weight, without the scale: `LowRank`, or `Product` for LoHa and LoKr."""

    kind: str  # lora, loha or lokr
    rank: int
    shape: tuple[int, int] | None  # (out, in); None: an -xs adapter without its bases

    def factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """up (out, r) and down (r, in), of the type and on the device of `like`."""


@dataclass(frozen=True)
class LowRank:
    """The update B A."""

    up: Tensor  # B (out, r); the core M (r, r) of an -xs adapter without its bases
    down: Tensor | None  # A (r, in); None: an -xs adapter without its bases
    kind = "lora"

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int] | None:
        return None if self.down is None else (self.up.shape[0], self.down.shape[1])

    def factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.up.to(like), self.down.to(like)


@dataclass(frozen=True)
class Adapter:
    """One adapter of one layer. Matrices keep their stored type; the algebra computes in float32 or better."""

    update: Update
    scale: float  # alpha / rank
    rows: Tensor | None = None  # magnitudes (out,)
    cols: Tensor | None = None  # magnitudes (in,)
    norms: Literal["official", "comfyui"] = "official"  # whose rule sets the new norms

    @property
    def kind(self) -> str:
        axes = "r" * (self.rows is not None) + "c" * (self.cols is not None)
        kind = {"": "lora", "r": "dora-rows", "c": "dora-cols", "rc": "bora"}[axes]
        if self.update.kind == "lora":
            return kind
        return f"{self.update.kind} ({kind})" if axes else self.update.kind

    @property
    def needs_bases(self) -> bool:
        return self.update.shape is None

    def with_bases(self, u: Tensor, v: Tensor) -> "Adapter":
        """An -xs adapter with core M (r, r) as B = U M and A = V^T, for U (out, >= r) and V (in, >= r)."""
        r = self.update.rank
        if u.shape[-1] < r or v.shape[-1] < r:
            raise SA3Error(f"The SVD bases have {min(u.shape[-1], v.shape[-1])} columns; the adapter needs {r}.")
        return replace(self, update=LowRank(u[:, :r].float() @ self.update.up.float(), v[:, :r].float().T.contiguous()))

    def to(self, device, dtype: torch.dtype) -> "Adapter":
        return map_tensors(self, lambda tensor: tensor.to(device, dtype))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """What does not fit a weight of shape (out, in), or None."""
        if self.update.shape not in (None, shape):
            return f"an update of {self.update.shape[0]} x {self.update.shape[1]}"
        for name, values, length in zip(("row", "column"), (self.rows, self.cols), shape, strict=True):
            if values is not None and values.numel() != length:
                return f"{values.numel()} {name} magnitudes"
        return None


@dataclass(frozen=True)
class AdaptedWeight:
    """sum_k R_k W C_k + P Q as an expression in a base weight W (out, in). Without arguments: W itself."""

    terms: tuple[tuple[Factor, Factor], ...] = ((1.0, 1.0),)  # R_k (out,), C_k (in,)
    up: Tensor | None = None  # P (out, r)
    down: Tensor | None = None  # Q (r, in)

    def plus(self, up: Tensor, down: Tensor) -> "AdaptedWeight":
        """self + up down, for up (out, r) and down (r, in)."""
        if self.up is None:
            return replace(self, up=up, down=down)
        return replace(self, up=torch.cat((self.up, up), dim=1), down=torch.cat((self.down, down)))

    def scaled(self, rows: Factor = 1.0, cols: Factor = 1.0) -> "AdaptedWeight":
        """diag(rows) self diag(cols)."""
        up = self.up if self.up is None else _column(rows) * self.up
        down = self.down if self.down is None else self.down * cols
        return AdaptedWeight(tuple((rows * r, c * cols) for r, c in self.terms), up, down)

    def plus_delta(self, other: "AdaptedWeight") -> "AdaptedWeight":
        """self + (other - W)."""
        total = self if other.up is None else self.plus(other.up, other.down)
        return replace(total, terms=_collected((*self.terms, *other.terms, (-1.0, 1.0))))

    def with_adapter(self, adapter: Adapter, w: Tensor, strength: float) -> "AdaptedWeight":
        """The adapter applied to self. w (out, in): the base weight, read only for the norms of DoRA and BoRA."""
        up, down = adapter.update.factors(w)
        adapted = self.plus(up * (adapter.scale * strength), down)
        if adapter.rows is None and adapter.cols is None:
            return adapted
        if adapter.norms == "comfyui":
            return self._with_norms_of_comfyui(adapter, up * adapter.scale, down, w, strength)
        v = adapted.weight(w)
        if adapter.rows is not None:
            rows = adapter.rows.to(w) / (v.norm(dim=1) + EPS)
            adapted, v = adapted.scaled(rows=rows), rows[:, None] * v
        if adapter.cols is not None:
            adapted = adapted.scaled(cols=adapter.cols.to(w) / (v.norm(dim=0) + EPS))
        return adapted

    def _with_norms_of_comfyui(self, adapter: Adapter, up: Tensor, down: Tensor, w: Tensor, strength: float) -> "AdaptedWeight":
        """self + strength (V - self), V being self + up down with new norms. As ComfyUI computes LoHa and LoKr: new row norms are
        relative to the rows of self, new column norms to the columns of self + up down."""
        eps = torch.finfo(w.dtype).eps
        if adapter.rows is not None:
            rows = adapter.rows.to(w) / (self.weight(w).norm(dim=1) + eps)
            return self.scaled(rows=1 + strength * (rows - 1)).plus(_column(rows * strength) * up, down)
        cols = adapter.cols.to(w) / (self.plus(up, down).weight(w).norm(dim=0) + eps)
        return self.scaled(cols=1 + strength * (cols - 1)).plus(up * strength, down * cols)

    def weight(self, w: Tensor) -> Tensor:
        """The value (out, in) for a base weight w (out, in)."""
        parts = (w if _is_one(c) else w * c for _, c in self.terms)
        parts = [part if _is_one(r) else _column(r) * part for part, (r, _) in zip(parts, self.terms, strict=True)]
        out = parts[0] if len(parts) == 1 else sum(parts)
        return out if self.up is None else torch.addmm(out, self.up, self.down)

    def to(self, dtype: torch.dtype) -> "AdaptedWeight":
        return map_tensors(self, lambda tensor: tensor.to(dtype))

    def linear(self, x: Tensor, base, bias: Tensor | None) -> Tensor:
        """x (..., in) W'^T + bias -> (..., out), where base(x) computes x W^T + bias."""
        if len(self.terms) == 1:
            (r, c) = self.terms[0]
            out = base(x if _is_one(c) else x * c)
            if not _is_one(r):
                out = out * r if bias is None else torch.addcmul(bias * (1 - r), out, r if isinstance(r, Tensor) else out.new_tensor(r))
        else:
            parts = (r * (base(x * c) - (0 if bias is None else bias)) for r, c in self.terms)
            out = sum(parts) + (0 if bias is None else bias)
        if self.up is None:
            return out
        low = torch.nn.functional.linear(x, self.down)
        flat = out.flatten(0, -2)  # a new tensor, so adding in place is safe
        return flat.addmm_(low.flatten(0, -2), self.up.T).view(out.shape)


def map_tensors(value, change: Callable[[Tensor], Tensor]):
    """Adapters, adapted weights or a tuple of them with change(tensor) in place of every tensor, in a fixed order."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(item, change) for item in value)
    if is_dataclass(value):
        return replace(value, **{name: map_tensors(item, change) for name, item in vars(value).items()})
    return value


def _is_one(factor: Factor) -> bool:
    return isinstance(factor, float) and factor == 1.0


def _column(factor: Factor) -> Factor:
    return factor[:, None] if isinstance(factor, Tensor) else factor


def _collected(terms: Iterable[tuple[Factor, Factor]]) -> tuple[tuple[Factor, Factor], ...]:
    """The same sum with as few terms as possible."""
    rows: Factor = 0.0  # the sum of the terms with C = 1
    cols: Factor = 0.0  # the sum of the other terms with R = 1
    both = []
    for r, c in terms:
        if isinstance(c, float):
            rows = rows + r * c
        elif isinstance(r, float):
            cols = cols + r * c
        else:
            both.append((r, c))
    if isinstance(rows, float) and isinstance(cols, Tensor):
        rows, cols = 0.0, cols + rows
    if isinstance(rows, Tensor) or rows != 0 or (not both and isinstance(cols, float)):
        both.insert(0, (rows, 1.0))
    if isinstance(cols, Tensor):
        both.append((1.0, cols))
    return tuple(both)


def compose(weight: Tensor, stack: Iterable[tuple[Adapter, float, str]]) -> AdaptedWeight:
    """The adapted weight of a stack of (adapter, strength, mode), from bottom to top, on a weight (out, in). Strength 0 has no effect.

    chain: the adapter acts on the result so far, as in the public loader. sum: its delta against the base weight is added, as in the
    public merge tool.
    """
    adapted = AdaptedWeight()
    for adapter, strength, mode in stack:
        if strength == 0:
            continue
        if mode == "sum":
            adapted = adapted.plus_delta(AdaptedWeight().with_adapter(adapter, weight, strength))
        else:
            adapted = adapted.with_adapter(adapter, weight, strength)
    return adapted


def apply_stack(weight: Tensor, stack: Iterable[tuple[Adapter, float, str]]) -> Tensor:
    """A weight (out, ...) with a stack of (adapter, strength, mode) applied, in its own type; the weight itself if all strengths are 0."""
    stack = [entry for entry in stack if entry[1] != 0]
    if not stack:
        return weight
    flat = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    return compose(flat, stack).weight(flat).view(weight.shape).to(weight.dtype)


def apply(
    weight: Tensor, adapter_type: str, tensors: Mapping[str, Tensor], strength: float = 1.0,
    alpha: float | None = None, rank: int | None = None,
) -> Tensor:  # fmt: skip
    """A weight (out, in) or (out, in, kernel) with one official adapter applied.

    tensors: lora_A (rank, in) and lora_B (out, rank), or M_xs (rank, rank) with U (out, rank) and V (in, rank), which default to the
    weight's own SVD; magnitude, or magnitude_r and magnitude_c. alpha: None = rank. Strength 0 returns the weight itself.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() < 2:
        found = f"{tuple(weight.shape)}, {weight.dtype}" if isinstance(weight, Tensor) else type(weight).__name__
        raise SA3Error(f"The weight is {found}; expected a floating-point tensor (out, in).")
    for name, value in {"strength": strength, "alpha": alpha, "rank": rank}.items():
        wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9 or (name == "rank" and value <= 0)
        if wrong and (value is not None or name == "strength"):
            raise SA3Error(f"The adapter's {name} is {value!r}; expected a finite number{', above 0' if name == 'rank' else ''}.")
    if not isinstance(tensors, Mapping):
        raise SA3Error(f"The adapter's tensors are {type(tensors).__name__}; expected a dict by name.")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise SA3Error(f"The adapter's tensor '{name}' is not a floating-point tensor of finite values.")
    if strength == 0:
        return weight
    adapter = adapter_of(adapter_type, tensors, alpha, rank)
    flat = weight.flatten(1)
    if adapter.needs_bases:
        adapter = adapter.with_bases(*svd_bases(flat, adapter.update.rank))
    if misfit := adapter.misfit(tuple(flat.shape)):
        raise SA3Error(f"The adapter has {misfit}; the weight is {list(weight.shape)}.")
    return apply_stack(weight, [(adapter, strength, "chain")])


def adapter_of(
    adapter_type: str, tensors: Mapping[str, Tensor], alpha: float | None = None, rank: int | None = None, where: str = "the adapter"
) -> Adapter:  # fmt: skip
    """The adapter made of one layer's tensors under their native names, checked. rank: the divisor of alpha (None: the matrices' rank)."""
    if adapter_type not in TYPES:
        raise SA3Error(f"{where}: the adapter type '{adapter_type}' is unknown; expected one of {', '.join(TYPES)}.")

    def tensor_of(name: str, dims: int = 2) -> Tensor:
        if name not in tensors:
            raise SA3Error(f"{where}: the tensor '{name}' is missing; adapter type '{adapter_type}' needs it.")
        tensor = tensors[name]
        if dims == 2 and tensor.dim() > 2:
            tensor = tensor.flatten(1)  # of a convolution
        if tensor.dim() != dims and not (dims == 1 and tensor.dim() == 2 and 1 in tensor.shape):
            raise SA3Error(f"{where}: the tensor '{name}' has shape {list(tensor.shape)}, expected {dims} dimensions.")
        return tensor

    core = adapter_type.endswith("-xs")
    up, down = (tensor_of("M_xs"), None) if core else (tensor_of("lora_B"), tensor_of("lora_A"))
    if core and up.shape[0] != up.shape[1]:
        raise SA3Error(f"{where}: M_xs has shape {list(up.shape)}, expected a square.")
    if not core and up.shape[1] != down.shape[0]:
        raise SA3Error(f"{where}: lora_B {list(up.shape)} and lora_A {list(down.shape)} are not (out, rank) and (rank, in) of one rank.")
    axes = TYPES[adapter_type]
    if adapter_type == "dora" and "magnitude" in tensors and tensors["magnitude"].dim() == 2 and tensors["magnitude"].shape[0] == 1:
        axes = "c"  # the legacy shape (1, in)
    if 0 in up.shape or (down is not None and 0 in down.shape):
        raise SA3Error(f"{where}: its matrices are empty, {list(up.shape)}; expected at least rank 1.")
    magnitudes = {axis: tensor_of(f"magnitude_{axis}" if len(axes) == 2 else "magnitude", 1).flatten() for axis in axes}
    adapter = Adapter(LowRank(up, down), scale_of(alpha, rank or up.shape[1], where), magnitudes.get("r"), magnitudes.get("c"))
    if core and "U" in tensors and "V" in tensors:
        adapter = adapter.with_bases(tensor_of("U"), tensor_of("V"))
    return adapter


def magnitude_axis(magnitude: Tensor, rows: int, cols: int, where: str) -> str:
    """Whether magnitudes belong to rows ("r") or columns ("c"), from their number; in a square weight from their shape."""
    n = magnitude.numel()
    if n not in (rows, cols):
        raise SA3Error(f"{where}: the magnitude has {n} values; expected {rows} (rows) or {cols} (columns).")
    return "c" if n == cols and (n != rows or (magnitude.dim() >= 2 and magnitude.shape[0] == 1)) else "r"


def scale_of(alpha: float | None, rank: float, where: str) -> float:
    """alpha / rank, checked; 1 without an alpha."""
    scale = 1.0 if alpha is None else alpha / rank
    if not abs(scale) < 1e9:
        raise SA3Error(f"{where}: alpha {alpha} over rank {rank} is not a usable scale; expected less than 1e9.")
    return scale


def svd_bases(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (out, rank) and V (in, rank) of a weight (out, in): its leading singular vectors in float32.

    Signs as in the official trainer: the entry of largest magnitude in each column of U is positive.
    """
    u, _, vh = torch.linalg.svd(weight.detach().cpu().float(), full_matrices=False)
    signs = u[u.abs().argmax(dim=0), torch.arange(u.shape[1])].sign()
    signs[signs == 0] = 1
    return (u * signs)[:, :rank].contiguous(), (vh * signs[:, None])[:rank].T.contiguous()
