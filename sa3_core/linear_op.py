"""F.linear as an operator of a compiled graph, whose products come from elsewhere for the time of a run.

A graph so holds no packed weights: one serves all layers, models and lengths, and those whose weights nobody packed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
_given: ContextVar[Mapping[int, Product]] = ContextVar("sa3_products", default=MappingProxyType({}))
_libraries: list[torch.library.Library] = []  # an operator is known for as long as its library


@contextmanager
def products(given: Mapping[int, Product]) -> Iterator[None]:
    """Products with the weights at these addresses (`data_ptr`), in this thread."""
    token = _given.set(given)
    try:
        yield
    finally:
        _given.reset(token)


@functools.cache
def _operator() -> Callable:
    """(x, weight) -> x weight^T. Made when it is used, under a free name: ComfyUI and the tests import this file as two."""
    name = "product"
    while hasattr(torch.ops.sa3, name):
        name += "_"
    library = torch.library.Library("sa3", "FRAGMENT")
    library.define(f"{name}(Tensor x, Tensor weight) -> Tensor")
    _libraries.append(library)

    def product(x, weight):
        return _given.get().get(weight.data_ptr(), functools.partial(F.linear, weight=weight))(x)

    library.impl(name, product, "CPU")
    torch.library.register_fake(f"sa3::{name}", lambda x, weight: x.new_empty(*x.shape[:-1], len(weight)), lib=library)
    return getattr(torch.ops.sa3, name).default


def with_operator(backend: str, wanted: Callable[[Tensor], bool]) -> Callable | str:
    """A backend of torch's compiler that takes F.linear for the operator where its weight is `wanted`, on a CPU.

    The bias becomes an addition of its own, which the compiler adds to the next pass; inside of a product it costs two.
    """
    if not hasattr(torch.library, "register_fake"):
        return backend  # before torch 2.4

    def compile_graph(module: torch.fx.GraphModule, inputs: list) -> Callable:
        graph = module.graph
        for node in list(graph.nodes):
            if node.target is F.linear and not node.kwargs and wanted(node.args[1].meta["example_value"]):
                x, weight, bias = (*node.args, None)[:3]
                with graph.inserting_before(node):
                    out = graph.call_function(_operator(), (x, weight))
                    if bias is not None:
                        out = graph.call_function(torch.add, (out, bias))
                node.replace_all_uses_with(out)
                graph.erase_node(node)
        module.recompile()
        return torch._dynamo.lookup_backend(backend)(module, inputs)

    return compile_graph
