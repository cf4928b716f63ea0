"""The layers' products on a CPU with weights that were put once into the order in which the processor reads them.

MKL orders a weight anew for every product. With the 452 tokens of 30 s that is a tenth of a step in float32; kept, it costs the layers'
weights a second time. Packed weights fit one number of rows, so batches go item by item.
"""

import functools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .accelerator import Accelerator
from .dit import DiT, DiTInputs
from .layers import forwards

BEFORE = ("to_kv", "to_local_embed")  # not part of a step
SAMPLES = 256  # values of a weight by which a change in place is noticed


class _Weight:
    """A Linear's weight, packed for products with `rows` rows."""

    def __init__(self, weight: Tensor, rows: int):
        self.rows, self._source, self._values = rows, weakref.ref(weight), self._some(weight)
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows)

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
        products, obstacle = self.once(dit, lambda: self._prepare(dit))
        if obstacle:
            self.skip(obstacle)
            return dit(x, t, inputs)
        self._outcomes[self.done] = None
        with forwards(products):
            return dit(x, t, inputs, at_once=1)

    def _prepare(self, dit: DiT) -> tuple[list[tuple[nn.Linear, Callable]], str]:
        """The layers of a step with their other forward functions, and what is in the way of those."""
        layers = self._layers(dit)
        return [(layer, functools.partial(self._product, layer)) for layer in layers], self._obstacle(layers)

    def _layers(self, dit: DiT) -> list[nn.Linear]:
        """Those of a step, and no more of what was changed in place since the last run."""
        named = dit.transformer.layers.named_modules()
        layers = [module for name, module in named if isinstance(module, nn.Linear) and not any(part in name for part in BEFORE)]
        for layer in layers:
            if layer in self._weights and not self._weights[layer].holds(layer.weight):
                del self._weights[layer]
        return layers

    def _obstacle(self, layers: list[nn.Linear]) -> str:
        weight = layers[0].weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"they are for float32 on a CPU, and this model computes in {dtype} on {weight.device}"
        if not hasattr(torch.ops.mkl, "_mkl_linear"):
            return "this build of torch has no MKL"
        if not self._weights and self._free is not None:
            needed, free = sum(layer.weight.nbytes for layer in layers), self._free()
            if needed > free:
                return f"they need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        return ""

    def _product(self, layer: nn.Linear, x: Tensor) -> Tensor:
        rows, kept = x.shape[:-1].numel(), self._weights.get(layer)
        if kept is None or not kept.is_of(layer.weight, rows):
            kept = self._weights[layer] = _Weight(layer.weight, rows)
        return torch.ops.mkl._mkl_linear(x, kept.packed, layer.weight, layer.bias, rows)
