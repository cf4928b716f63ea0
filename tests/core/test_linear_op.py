"""The operator of compiled graphs: the products of F.linear, or those that a run gives in its place."""

import pytest
import torch
import torch.nn.functional as F
from core_support import needs_bfloat16, needs_mkl, rel_error

from sa3_core import linear_op

X = torch.linspace(-1, 1, 40).sin().reshape(2, 5, 4)
WEIGHT, OTHER = torch.linspace(-2, 2, 12).cos().reshape(3, 4), torch.linspace(0, 1, 12).reshape(3, 4)
BIAS = torch.tensor([0.5, -1.0, 2.0])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def compiled(function, backend="eager"):
    torch._dynamo.reset()
    return torch.compile(function, backend=linear_op.with_operator(backend))


def targets(function, *args) -> list:
    """What a graph consists of."""
    seen = []

    def backend(module, inputs):
        seen.extend(node.target for node in module.graph.nodes if node.op == "call_function")
        return module

    compiled(function, backend)(*args)
    return seen


@needs_mkl
@pytest.mark.parametrize("bias", [None, BIAS])
def test_a_product_is_given_for_the_time_of_a_run_and_for_its_weight_alone(bias):
    def function(x, weight):
        return F.linear(x, weight, bias).relu()

    fast = compiled(function)
    assert rel_error(fast(X, WEIGHT), function(X, WEIGHT)) < 1e-6
    with linear_op.products({WEIGHT.data_ptr(): lambda x, bias: F.linear(x, 2 * WEIGHT, bias)}):
        assert rel_error(fast(X, WEIGHT), function(X, 2 * WEIGHT)) < 1e-6
        assert rel_error(fast(X, OTHER), function(X, OTHER)) < 1e-6
    assert rel_error(fast(X, WEIGHT), function(X, WEIGHT)) < 1e-6


@needs_bfloat16
def test_in_bfloat16_a_bias_is_part_of_the_product_and_rounded_once():
    x, weight, bias = X.bfloat16(), WEIGHT.bfloat16(), 100 * BIAS.bfloat16()
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert torch.equal(compiled(F.linear)(x, weight, bias), exact.bfloat16())
    assert F.linear not in targets(lambda x, weight: F.linear(x, weight), x, weight)  # it may be packed


@needs_bfloat16
def test_a_given_product_in_bfloat16_has_its_bias_inside():
    x, weight, bias = X.bfloat16(), WEIGHT.bfloat16(), BIAS.bfloat16()
    given = {weight.data_ptr(): lambda x, bias: F.linear(x, 2 * weight, bias)}
    with linear_op.products(given):
        assert torch.equal(compiled(F.linear)(x, weight, bias), F.linear(x, 2 * weight, bias))


def test_other_formats_stay_the_compilers():
    x, weight = X.half(), WEIGHT.half()
    assert F.linear in targets(lambda x, weight: F.linear(x, weight), x, weight)


@needs_mkl
def test_float32_asks_but_for_gradients():
    assert F.linear not in targets(lambda x, weight: F.linear(x, weight, BIAS), X, WEIGHT)
    with torch.enable_grad():
        assert F.linear in targets(lambda x, weight: F.linear(x, weight, BIAS), X, WEIGHT)
