"""LoRA adapters of all eight official types as one algebra.

Every type starts from a low-rank update, V = W + s B A, with s = alpha / rank * strength. DoRA then gives the rows or the columns
of V new norms, BoRA both: multiplications by diagonal matrices. Whatever is stacked on a layer, its weight keeps the form

    W' = sum_k  R_k W C_k  +  P Q        R_k, C_k diagonal, P (out, r), Q (r, in)

* an update appends columns to P and rows to Q;
* new row norms multiply every R_k and P from the left, new column norms every C_k and Q from the right;
* a delta against the base, W' + (V - W), appends V's terms and the term -W. Terms with C = 1 add up to one, and so do terms with
  R = 1, so that only a sum over DoRA or BoRA needs more than a single term.

So an adapter stack can be made into a weight, or run beside an untouched weight as scale, low rank, scale.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SA3Error

EPS = 1e-12
MODES = ("chain", "sum")
# adapter_type -> its magnitudes: r = one per row (output), c = one per column (input)
TYPES = {"lora": "", "dora": "r", "dora-rows": "r", "dora-cols": "c", "bora": "rc"}
TYPES |= {f"{name}-xs": axes for name, axes in TYPES.items() if name != "dora"}
Factor = Tensor | float  # a diagonal matrix; a float is a multiple of the identity


@dataclass(frozen=True)
class Adapter:
    """One adapter of one layer. Matrices keep the type they were stored in; the algebra computes in float32 or better."""

    up: Tensor  # (out, r); before `with_bases` of an -xs adapter: its core (r, r)
    down: Tensor | None  # (r, in); None: an -xs adapter without its bases
    scale: float  # alpha / rank
    rows: Tensor | None = None  # (out,)
    cols: Tensor | None = None  # (in,)

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def kind(self) -> str:
        return {(False, False): "lora", (True, False): "dora-rows", (False, True): "dora-cols"}.get(
            (self.rows is not None, self.cols is not None), "bora"
        )

    def with_bases(self, u: Tensor, v: Tensor) -> "Adapter":
        """An -xs adapter, core M (r, r), as a plain one: its update is U M V^T with U (out, >= r), V (in, >= r)."""
        r = self.rank
        if u.shape[-1] < r or v.shape[-1] < r:
            raise SA3Error(f"The SVD bases have {min(u.shape[-1], v.shape[-1])} columns, the adapter needs {r}.")
        return replace(self, up=u[:, :r].float() @ self.up.float(), down=v[:, :r].float().T.contiguous())

    def to(self, device, dtype: torch.dtype) -> "Adapter":
        def moved(x):
            return None if x is None else x.to(device, dtype)

        return replace(self, up=moved(self.up), down=moved(self.down), rows=moved(self.rows), cols=moved(self.cols))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """What does not fit a weight of shape (out, in), or None."""
        out, inner = shape
        if self.down is not None and (self.up.shape[0], self.down.shape[1]) != shape:
            return f"an update of {self.up.shape[0]} x {self.down.shape[1]}"
        for name, values, length in (("row", self.rows, out), ("column", self.cols, inner)):
            if values is not None and values.numel() != length:
                return f"{values.numel()} {name} magnitudes"
        return None

    def on(self, form: "Form", weight: Tensor, strength: float) -> "Form":
        """This adapter on top of a form over the weight (out, in)."""
        form = form.plus(self.up.to(weight) * (self.scale * strength), self.down.to(weight))
        if self.rows is None and self.cols is None:
            return form
        v = form.weight(weight)
        if self.rows is not None:
            rows = self.rows.to(weight) / (v.norm(dim=1) + EPS)
            form, v = form.scaled(rows=rows), rows[:, None] * v
        if self.cols is not None:
            form = form.scaled(cols=self.cols.to(weight) / (v.norm(dim=0) + EPS))
        return form


@dataclass(frozen=True)
class Form:
    """sum_k R_k W C_k + P Q for some W (out, in). Without arguments: W itself."""

    terms: tuple[tuple[Factor, Factor], ...] = ((1.0, 1.0),)
    up: Tensor | None = None
    down: Tensor | None = None

    def plus(self, up: Tensor, down: Tensor) -> "Form":
        if self.up is None:
            return replace(self, up=up, down=down)
        return replace(self, up=torch.cat((self.up, up), dim=1), down=torch.cat((self.down, down)))

    def scaled(self, rows: Factor = 1.0, cols: Factor = 1.0) -> "Form":
        up = self.up if self.up is None else _column(rows) * self.up
        down = self.down if self.down is None else self.down * cols
        return Form(tuple((rows * r, c * cols) for r, c in self.terms), up, down)

    def with_delta(self, other: "Form") -> "Form":
        """self + (other - W)."""
        form = self if other.up is None else self.plus(other.up, other.down)
        return replace(form, terms=_collected((*self.terms, *other.terms, (-1.0, 1.0))))

    def weight(self, w: Tensor) -> Tensor:
        """The matrix that this form is over w."""
        parts = (w if _is_one(c) else w * c for _, c in self.terms)
        parts = [part if _is_one(r) else _column(r) * part for part, (r, _) in zip(parts, self.terms, strict=True)]
        out = parts[0] if len(parts) == 1 else sum(parts)
        return out if self.up is None else torch.addmm(out, self.up, self.down)

    def to(self, dtype: torch.dtype) -> "Form":
        def cast(x):
            return x.to(dtype) if isinstance(x, Tensor) else x

        return Form(tuple((cast(r), cast(c)) for r, c in self.terms), cast(self.up), cast(self.down))

    def linear(self, x: Tensor, base, bias: Tensor | None) -> Tensor:
        """x (..., in) through this form, where base(x) is x W^T + bias: (..., out)."""
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
        flat = out.flatten(0, -2)  # fresh, so it may be added to
        return flat.addmm_(low.flatten(0, -2), self.up.T).view(out.shape)


def _is_one(factor: Factor) -> bool:
    return isinstance(factor, float) and factor == 1.0


def _column(factor: Factor) -> Factor:
    return factor[:, None] if isinstance(factor, Tensor) else factor


def _collected(terms: Iterable[tuple[Factor, Factor]]) -> tuple[tuple[Factor, Factor], ...]:
    """As few terms as the same sum needs."""
    rows: Factor = 0.0  # with C = 1
    cols: Factor = 0.0  # with R = 1
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


def compose(weight: Tensor, entries: Iterable[tuple[Adapter, float, str]]) -> Form:
    """The form of a stack, (adapter, strength, mode) from bottom to top, over a weight (out, in). Strength 0 leaves an adapter out.

    chain: the adapter acts on the result so far, as the public loader does. sum: its delta against the weight is added, as the
    public merge tool does.
    """
    form = Form()
    for adapter, strength, mode in entries:
        if strength == 0:
            continue
        form = form.with_delta(adapter.on(Form(), weight, strength)) if mode == "sum" else adapter.on(form, weight, strength)
    return form


def apply_stack(weight: Tensor, entries: Iterable[tuple[Adapter, float, str]]) -> Tensor:
    """A weight of any shape (out, ...) with a stack applied, in its own type; the weight itself when nothing in it is active."""
    entries = [entry for entry in entries if entry[1] != 0]
    if not entries:
        return weight
    flat = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    return compose(flat, entries).weight(flat).view(weight.shape).to(weight.dtype)


def apply(
    weight: Tensor, adapter_type: str, tensors: Mapping[str, Tensor], strength: float = 1.0,
    alpha: float | None = None, rank: int | None = None,
) -> Tensor:  # fmt: skip
    """A weight (out, in) or (out, in, kernel) with one official adapter.

    tensors: lora_A (rank, in) and lora_B (out, rank), or M_xs (rank, rank) with U (out, rank), V (in, rank), without which they come
    from the weight's own SVD; magnitude, or magnitude_r and magnitude_c. alpha: None = rank. Strength 0 returns the weight itself.
    """
    if strength == 0:
        return weight
    adapter = adapter_of(adapter_type, tensors, alpha, rank)
    flat = weight.flatten(1)
    if adapter.down is None:
        adapter = adapter.with_bases(*svd_bases(flat, adapter.rank))
    if misfit := adapter.misfit(tuple(flat.shape)):
        raise SA3Error(f"The adapter has {misfit}; the weight is {list(weight.shape)}.")
    return apply_stack(weight, [(adapter, strength, "chain")])


def adapter_of(
    adapter_type: str, tensors: Mapping[str, Tensor], alpha: float | None = None, rank: int | None = None, where: str = "the adapter"
) -> Adapter:  # fmt: skip
    """An adapter from the tensors of one layer under their native names. rank, where given, is the divisor of alpha."""
    if adapter_type not in TYPES:
        raise SA3Error(f"{where}: the adapter type '{adapter_type}' is unknown; expected one of {', '.join(TYPES)}.")

    def need(name: str, dims: int = 2) -> Tensor:
        if name not in tensors:
            raise SA3Error(f"{where}: the tensor '{name}' is missing, which adapter type '{adapter_type}' needs.")
        tensor = tensors[name]
        if dims == 2 and tensor.dim() > 2:
            tensor = tensor.flatten(1)  # of a convolution
        if tensor.dim() != dims and not (dims == 1 and tensor.dim() == 2 and 1 in tensor.shape):
            raise SA3Error(f"{where}: the tensor '{name}' has shape {list(tensor.shape)}, expected {dims} dimensions.")
        return tensor

    core = adapter_type.endswith("-xs")
    up, down = (need("M_xs"), None) if core else (need("lora_B"), need("lora_A"))
    if core and up.shape[0] != up.shape[1]:
        raise SA3Error(f"{where}: M_xs has shape {list(up.shape)}, expected a square.")
    if not core and up.shape[1] != down.shape[0]:
        raise SA3Error(f"{where}: lora_B {list(up.shape)} and lora_A {list(down.shape)} are not (out, rank) and (rank, in) of one rank.")
    axes = TYPES[adapter_type]
    if adapter_type == "dora" and "magnitude" in tensors and tensors["magnitude"].dim() == 2 and tensors["magnitude"].shape[0] == 1:
        axes = "c"  # the legacy form (1, in)
    if 0 in up.shape or (down is not None and 0 in down.shape):
        raise SA3Error(f"{where}: its matrices are empty, {list(up.shape)}; expected at least rank 1.")
    found = {axis: need(f"magnitude_{axis}" if len(axes) == 2 else "magnitude", 1).flatten() for axis in axes}
    rank = rank or up.shape[1]
    scale = (rank if alpha is None else alpha) / rank
    if not abs(scale) < 1e9:
        raise SA3Error(f"{where}: alpha {alpha} over rank {rank} is no scale; expected a finite number.")
    adapter = Adapter(up, down, scale, found.get("r"), found.get("c"))
    if core and "U" in tensors and "V" in tensors:
        adapter = adapter.with_bases(need("U"), need("V"))
    return adapter


def svd_bases(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (out, rank) and V (in, rank) of a weight (out, in): its leading singular vectors in float32.

    Signs as the trainer fixes them: the entry of largest magnitude in each column of U is positive.
    """
    u, _, vh = torch.linalg.svd(weight.detach().cpu().float(), full_matrices=False)
    signs = u[u.abs().argmax(dim=0), torch.arange(u.shape[1])].sign()
    signs[signs == 0] = 1
    return (u * signs)[:, :rank].contiguous(), (vh * signs[:, None])[:rank].T.contiguous()
