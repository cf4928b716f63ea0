"""Linear and Conv1d of the networks: equal to torch's, through oneDNN where that is faster."""

import pytest
import torch
import torch.nn.functional as F
from core_support import needs_bfloat16, needs_onednn, randn, rel_error

from sa3_core.backends import cpu
from sa3_core.models import operations


@pytest.fixture
def products(monkeypatch) -> list:
    """The weights that oneDNN multiplied, on a processor where MKL is fast."""
    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: False)
    seen, original = [], cpu.onednn_linear

    def linear(x, weight, bias):
        seen.append(weight)
        return original(x, weight, bias)

    monkeypatch.setattr(cpu, "onednn_linear", linear)
    return seen


def layer(dtype: torch.dtype, bias: bool = True) -> operations.Linear:
    linear = operations.Linear(48, 64, bias=bias)
    with torch.no_grad():
        for i, parameter in enumerate(linear.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=i))
    return linear.to(dtype)


@needs_bfloat16
@pytest.mark.parametrize("shape", [(2, 5, 48), (7, 48), (1, 1, 48), (0, 48), (48,)])
def test_a_product_with_a_bias_is_rounded_once(products, shape):
    linear, x = layer(torch.bfloat16), randn(*shape, seed=3).bfloat16()
    with torch.no_grad():
        out = linear(x)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
    assert out.shape == exact.shape and out.dtype == torch.bfloat16 and len(products) == 1
    assert torch.allclose(out.double(), exact, rtol=1.01 * 2**-8, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 48), (7, 48), (1, 1, 48), (0, 48), (48,)])
def test_float32_uses_onednn_where_mkl_is_slow(products, monkeypatch, shape, bias):
    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: True)
    linear, x = layer(torch.float32, bias), randn(*shape, seed=3)
    with torch.no_grad():
        out = linear(x)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    assert out.shape == exact.shape and out.dtype == torch.float32 and len(products) == 1
    assert torch.allclose(out.double(), exact, rtol=1e-6, atol=1e-5)


AMD, INTEL = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD Ryzen 9 7950X", "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)"


@pytest.mark.parametrize(
    ("processor", "instructions", "slow"),
    [
        (AMD, "AVX512", True),
        (AMD, "AVX2", False),
        (INTEL, "AVX512", False),
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "AVX512", True),  # Windows's description
        ("", "DEFAULT", False),
    ],
)
def test_mkl_is_slow_on_processors_of_amd_with_avx512(monkeypatch, processor, instructions, slow):
    monkeypatch.setattr(cpu, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert cpu.mkl_is_slow.__wrapped__() is slow


def test_the_processor_is_read_from_the_system(monkeypatch):
    monkeypatch.setattr(cpu.Path, "read_text", lambda path: AMD)
    assert "AuthenticAMD" in cpu._processor()
    monkeypatch.setattr(cpu.Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError))
    monkeypatch.setattr(cpu.platform, "processor", lambda: "AuthenticAMD, from platform")
    assert "from platform" in cpu._processor()


@needs_bfloat16
def test_views_are_supported(products):
    linear, x = layer(torch.bfloat16), randn(5, 2, 48).bfloat16().transpose(0, 1)
    with torch.inference_mode():
        assert torch.equal(linear(x), linear(x.contiguous()))
    assert len(products) == 2


@pytest.mark.parametrize(("dtype", "bias"), [(torch.float32, True), (torch.float64, True), (torch.bfloat16, False)])
def test_other_dtypes_use_torch(products, dtype, bias):
    linear, x = layer(dtype, bias), randn(3, 48).to(dtype)
    with torch.no_grad():
        assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    assert products == []


def test_gradients_use_torch(products):
    linear, x = layer(torch.bfloat16), randn(3, 48).bfloat16().requires_grad_()
    linear(x).float().sum().backward()
    assert products == [] and rel_error(x.grad, linear.weight.detach().sum(0).expand(3, -1)) < 1e-2


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_layer_computes_in_the_type_of_its_input(products, stored):
    linear, x = layer(stored), randn(3, 48)
    conv = operations.Conv1d(48, 8, 1, dtype=stored)
    with torch.no_grad():
        assert torch.equal(linear(x), F.linear(x, linear.weight.float(), linear.bias.float()))
        assert torch.equal(conv(x.T[None]), F.conv1d(x.T[None], conv.weight.float(), conv.bias.float()))
    assert products == []
