"""Trainable adapters of all eight types: float32 parameters on a frozen network, with the algebra of `sa3_core.lora`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import SA3Error
from ..lora.algebra import EPS, TYPES, AdaptedWeight, Adapter, adapter_of, map_tensors
from ..lora.convert import native_tensors
from ..lora.formats import Bases, LoRA, selected
from ..lora.stack import AdaptedLinear, targets


class Product(torch.autograd.Function):
    """W x in float32 for a frozen weight W (out, in); saves only the weight in its own dtype for the backward pass.

    transposed: W^T x. squared: W with squared entries.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, transposed: bool, squared: bool) -> Tensor:
        ctx.weight, ctx.transposed, ctx.squared = weight, transposed, squared
        return Product._matrix(weight, transposed, squared) @ x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return Product._matrix(ctx.weight, not ctx.transposed, ctx.squared) @ gradient, None, None, None

    @staticmethod
    def _matrix(weight: Tensor, transposed: bool, squared: bool) -> Tensor:
        w = weight.float().square() if squared else weight.float()
        return w.T if transposed else w


def norms(weight: Tensor, up: Tensor, down: Tensor, squares: Tensor, transposed: bool = False, scale: Tensor | None = None) -> Tensor:
    """Norms of the rows (transposed: columns) of V = W + up down, computed without V. scale: factor of V's rows.

    |V_i|^2 = |W_i|^2 + 2 up_i . (W down^T)_i + up_i (down down^T) up_i^T. squares: |W_i|^2 of the scaled W.
    """
    left, right = (down.T, up) if transposed else (up, down.T)
    right = right if scale is None else scale[:, None] * right
    inner = right.T @ right
    crossed = Product.apply(right if scale is None else scale[:, None] * right, weight, transposed, False)
    return (squares + 2 * (left * crossed).sum(1) + ((left @ inner) * left).sum(1)).clamp_min(1e-24).sqrt()


class TrainedLayer(nn.Module):
    """The adapter of one layer; its parameters have the native format's names. Initialised to the identity.

    A is Kaiming-uniform with a = sqrt(5), B and the core M of an -xs adapter are zero, magnitudes are the norms of the weight.
    """

    def __init__(self, layer: nn.Module, kind: str, rank: int, alpha: float, bases: tuple[Tensor, Tensor] | None, generator):
        super().__init__()
        self.kind, self.rank, self.alpha, self.target = kind, rank, alpha, [layer]  # a list, so that the layer is not a submodule
        weight = layer.weight.detach().flatten(1).float()
        out, inner = weight.shape
        if bases is None:
            bound = inner**-0.5
            parameters = {"lora_A": torch.empty(rank, inner).uniform_(-bound, bound, generator=generator), "lora_B": torch.zeros(out, rank)}
        else:
            parameters = {"M_xs": torch.zeros(rank, rank)}
            for name, basis in zip("UV", bases, strict=True):
                self.register_buffer(name, basis[:, :rank].float().to(weight.device), persistent=False)
        axes, squares = TYPES[kind], {"r": weight.square().sum(1), "c": weight.square().sum(0)}
        if axes == "rc":  # the columns act on the row-normalised weight, which initially is the weight
            squares["c"] = Product.apply(torch.ones_like(weight[:, 0]), layer.weight.detach().flatten(1), True, True)
        for axis in axes:
            parameters[f"magnitude_{axis}" if len(axes) == 2 else "magnitude"] = squares[axis].clamp_min(1e-24).sqrt()
            self.register_buffer(f"squares_{axis}", squares[axis], persistent=False)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value.to(weight.device)))

    def bases(self) -> dict[str, Tensor]:
        """U and V of an -xs adapter."""
        return {name: basis for name, basis in self.named_buffers() if name in ("U", "V")}

    def adapter(self, complete: bool = True) -> Adapter:
        """The adapter as inference uses it. complete: include the bases of an -xs type."""
        return adapter_of(self.kind, dict(self.named_parameters()) | (self.bases() if complete else {}), self.alpha, self.rank)

    def adapted_weight(self) -> AdaptedWeight:
        """The adapted weight in factored form, differentiable: `AdaptedWeight.with_adapter` with the norms in closed form."""
        weight, adapter, rows = self.target[0].weight.detach().flatten(1), self.adapter(), None
        up, down = adapter.update.up * adapter.scale, adapter.update.down
        adapted = AdaptedWeight().plus(up, down)
        if adapter.rows is not None:
            rows = adapter.rows / (norms(weight, up, down, self.squares_r) + EPS)
            adapted = adapted.scaled(rows=rows)
        if adapter.cols is not None:
            squares = self.squares_c if rows is None else Product.apply(rows.square(), weight, True, True)
            adapted = adapted.scaled(cols=adapter.cols / (norms(weight, up, down, squares, True, rows) + EPS))
        return adapted


class Adapters(nn.Module):
    """Adapters on the selected Linear and Conv1d layers of a ConditionedDiT, its seconds embedder included.

    include, exclude: parts of layer names, [a-b] for numbers; include empty = all. bases: U and V of a layer, for -xs types.
    progress(done, total): after each layer of an -xs type.
    """

    def __init__(
        self, net: nn.Module, kind: str = "dora-rows", rank: int = 16, alpha: float | None = None, include: Sequence[str] = (),
        exclude: Sequence[str] = (), seed: int = 0, bases: Bases | None = None, progress: Callable[[int, int], None] | None = None,
    ):  # fmt: skip
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise SA3Error(f"The rank is {rank}; expected a whole number of at least 1.")
        alpha = float(rank if alpha is None else alpha)
        if not 0 < alpha < 1e6:
            raise SA3Error(f"alpha is {alpha:g}; expected more than 0.")
        lists = {"include": list(include) or None, "exclude": list(exclude) or None}
        self.config = {"rank": rank, "alpha": alpha, "adapter_type": kind, "dropout": 0.0, **lists}
        layers = {name: layer for name, layer in targets(net).items() if selected(name, self.config)}
        if not layers:
            raise SA3Error(
                f"include '{', '.join(include)}' and exclude '{', '.join(exclude)}' leave no layer; expected parts of names such as "
                f"'{next(iter(targets(net)))}'."
            )
        generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, TrainedLayer] = {}
        for done, (name, layer) in enumerate(layers.items(), 1):
            smaller = min(layer.weight.shape[0], layer.weight.flatten(1).shape[1])
            if kind.endswith("-xs") and rank > smaller:
                raise SA3Error(f"The rank is {rank}, but the layer '{name}' has only {smaller} singular vectors; lower it or use exclude.")
            pair = bases(name, rank) if kind.endswith("-xs") else None
            self.layers[name] = TrainedLayer(layer, kind, rank, alpha, pair, generator)
            if pair is not None and progress is not None:
                progress(done, len(layers))

    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter by layer and native name."""
        return {f"{name}.{key}": p for name, layer in self.layers.items() for key, p in layer.named_parameters()}

    def svd_bases(self) -> dict[str, Tensor]:
        """U and V of -xs adapters, in the form of `lora.formats.read_bases`."""
        return {f"{name}.weight.{key}": basis for name, layer in self.layers.items() for key, basis in layer.bases().items()}

    def now(self) -> dict[nn.Module, AdaptedLinear]:
        """The current adapters by layer, differentiable, for the network's forward pass."""
        pairs = [(layer.target[0], layer.adapted_weight()) for layer in self.layers.values()]
        return {target: AdaptedLinear(weight.to(target.weight.dtype), target.bias) for target, weight in pairs}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a LoRA file in the native format."""
        layers = {name: map_tensors(layer.adapter(complete=False), lambda t: t.detach().cpu()) for name, layer in self.layers.items()}
        return native_tensors(LoRA(Path("trained.safetensors"), "native", self.config["adapter_type"], layers, "", self.config))
