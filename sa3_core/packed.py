"""The layers' products on a CPU with weights that were put once into the order in which the processor reads them.

MKL and oneDNN order a weight anew for every product. With the 456 rows of 30 s that is up to a tenth of a step; kept, it costs the
layers' weights a second time. What MKL packs fits one number of rows (oneDNN's is the fastest for it), so batches go item by item.

Compiled layers take them too (`linear_op`).
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import linear_op, operations
from .accelerator import Accelerator, through
from .compiled import Compiled
from .dit import DiT, DiTInputs, Layer
from .layers import forwards

BEFORE = ("to_kv", "to_local_embed")  # not part of a step
SAMPLES = 256  # values of a weight by which a change in place is noticed
LACKING = {  # number format -> why nobody packs weights in it
    torch.float32: "this build of torch has no MKL",
    torch.bfloat16: "the oneDNN of this torch does not compute in bfloat16 on this processor",
}


class _Weight:
    """A Linear's weight, packed for products with `rows` rows."""

    def __init__(self, weight: Tensor, rows: int):
        self.rows, self._source, self._values = rows, weakref.ref(weight), self._some(weight)
        self.packed = operations.packed(weight, rows)

    @staticmethod
    def _some(weight: Tensor) -> Tensor:
        flat = weight.detach().flatten()
        return flat[:: max(1, len(flat) // SAMPLES)].clone()

    def is_of(self, weight: Tensor, rows: int) -> bool:
        return self._source() is weight and self.rows == rows

    def holds(self, weight: Tensor) -> bool:
        return self._source() is weight and torch.equal(self._values, self._some(weight))


class Packed(Accelerator):
    """Packed weights of a model, for as long as this object lives. free(): bytes of memory that there are for them, None = enough."""

    name, done = "packed weights", "packed"

    def __init__(self, free: Callable[[], int] | None = None):
        super().__init__()
        self._free = free
        self._weights: weakref.WeakKeyDictionary[nn.Module, _Weight] = weakref.WeakKeyDictionary()

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, inputs: DiTInputs) -> Tensor:
        with self.given(dit) as (forward, at_once):
            return through(forward, dit, x, t, inputs, at_once)

    @contextmanager
    def given(self, dit: DiT) -> Iterator[tuple[Callable[..., Tensor], int | None]]:
        """Products with packed weights for compiled layers. -> a forward function for the others, and the items that go at once."""
        layers, obstacle = self.once(dit, lambda: self._prepare(dit))
        if obstacle:
            self.skip(obstacle)
            yield Layer.forward, None
            return

        def forward(layer: Layer, *args) -> Tensor:
            with forwards([(linear, functools.partial(self._product, linear, bias=linear.bias)) for linear in layers[layer]]):
                return Layer.forward(layer, *args)

        linears = [linear for some in layers.values() for linear in some]
        with linear_op.products({linear.weight.data_ptr(): functools.partial(self._product, linear) for linear in linears}):
            yield forward, 1

    def _prepare(self, dit: DiT) -> tuple[dict[Layer, list[nn.Linear]], str]:
        """What has the weights of a step, layer by layer, and what is in the way of packing them."""
        found = {layer: self._linears(layer) for layer in dit.transformer.layers}
        return found, self._obstacle([linear for some in found.values() for linear in some])

    def _linears(self, layer: Layer) -> list[nn.Linear]:
        """Those of a step, and no more of what was changed in place since the last run."""
        named = layer.named_modules()
        linears = [module for name, module in named if isinstance(module, nn.Linear) and not any(part in name for part in BEFORE)]
        for linear in linears:
            if linear in self._weights and not self._weights[linear].holds(linear.weight):
                del self._weights[linear]
        return linears

    def _obstacle(self, linears: list[nn.Linear]) -> str:
        weight = linears[0].weight
        if weight.device.type != "cpu" or weight.dtype not in LACKING:
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"they are for float32 and bfloat16 on a CPU, and this model computes in {dtype} on {weight.device}"
        if not operations.maker(weight):
            return LACKING[weight.dtype]
        if not self._weights and self._free is not None:
            needed, free = sum(linear.weight.nbytes for linear in linears), self._free()
            if needed > free:
                return f"they need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        return ""

    def _product(self, linear: nn.Linear, x: Tensor, bias: Tensor | None) -> Tensor:
        self._outcomes[self.done] = None
        rows, kept = x.shape[:-1].numel(), self._weights.get(linear)
        if kept is None or not kept.is_of(linear.weight, rows):
            kept = self._weights[linear] = _Weight(linear.weight, rows)
        return operations.packed_linear(x, kept.packed, linear.weight, bias)


class PackedAndCompiled(Accelerator):
    """Compiled layers whose products take packed weights; what is not compiled yet takes them too."""

    def __init__(self, packed: Packed, compiled: Compiled):
        super().__init__()
        self._packed, self._compiled = packed, compiled
        self.name = f"{compiled.name} and {packed.name}"

    @contextmanager
    def run(self, wait: bool = False) -> Iterator[None]:
        with self._compiled.run(wait), self._packed.run(wait), super().run(wait):
            yield

    def join(self) -> None:
        self._compiled.join()

    def try_again(self) -> None:
        self._compiled.try_again()

    def skip(self, obstacle: str) -> None:
        self._compiled.skip(obstacle)
        self._packed.skip(obstacle)

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, inputs: DiTInputs) -> Tensor:
        with self._packed.given(dit) as (forward, at_once):
            return self._compiled.velocity(dit, x, t, inputs, forward, at_once)

    @property
    def state(self) -> str:
        return f"{self._compiled.state}; {self._packed.state}"

    @property
    def obstacle(self) -> str:
        return "; ".join(dict.fromkeys(filter(None, (self._compiled.obstacle, self._packed.obstacle))))

    @property
    def remarks(self) -> list[str]:
        if self._compiled.obstacle == self._packed.obstacle:
            return super().remarks
        return self._compiled.remarks + self._packed.remarks
