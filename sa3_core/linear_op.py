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

from . import operations

Product = Callable[[Tensor, Tensor | None], Tensor]  # of an input, with a bias
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
    """F.linear to the compiler. Made when it is used, under a free name: ComfyUI and the tests import this file as two."""
    name = "linear"
    while hasattr(torch.ops.sa3, name):
        name += "_"
    library = torch.library.Library("sa3", "FRAGMENT")
    library.define(f"{name}(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
    _libraries.append(library)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        product = _given.get().get(weight.data_ptr())
        if product is not None:
            return product(x, bias)
        return (operations.linear if operations.by_onednn(weight, bias) else F.linear)(x, weight, bias)

    library.impl(name, linear, "CPU")
    torch.library.register_fake(f"sa3::{name}", lambda x, weight, bias: x.new_empty(*x.shape[:-1], len(weight)), lib=library)
    return getattr(torch.ops.sa3, name).default


@functools.cache  # torch shares graphs between functions whose backends are equal
def with_operator(backend: str) -> Callable | str:
    """A backend of torch's compiler that takes F.linear for the operator where a CPU has something better for it, or for its packed weight.

    A bias costs torch's product two passes: its copy, and a product that adds to it. MKL's becomes an addition, which the compiler makes
    part of the next pass; oneDNN adds it inside.
    """
    if not hasattr(torch.library, "register_fake"):
        return backend  # before torch 2.4

    def compile_graph(module: torch.fx.GraphModule, inputs: list) -> Callable:
        graph = module.graph
        for node in list(graph.nodes):
            if node.target is not F.linear or node.kwargs or torch.is_grad_enabled():  # the operator knows no gradients
                continue
            x, weight, bias = (*node.args, None)[:3]
            example = weight.meta["example_value"]
            maker = operations.maker(example)
            if not maker:
                continue
            if bias is not None and maker == "MKL":
                with graph.inserting_after(node):
                    added = graph.call_function(torch.add)
                added.meta = dict(node.meta)  # torch's cache on disk asks what it is
                node.replace_all_uses_with(added)
                added.args, bias = (node, bias), None
            node.target, node.args = _operator(), (x, weight, bias)
        module.recompile()
        return torch._dynamo.lookup_backend(backend)(module, inputs)

    return compile_graph
