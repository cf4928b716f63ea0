"""The computations that only GPUs use, run on a CPU: norms and rotations in 16 bits, fused windowed attention, batches of chunks."""

import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from core_support import FAMILIES, randn, rel_error

import sa3_core
from sa3_core.backends import cuda, device
from sa3_core.backends.base import SCORES_LIMIT, Backend
from sa3_core.backends.cpu import CPU
from sa3_core.backends.cuda import CUDA, HALF
from sa3_core.models import attention, layers, operations, same


class HalfNorms(CPU):
    norms_in_half = CUDA.norms_in_half


@pytest.fixture
def on_gpu(monkeypatch):
    """The CPU computes norms and rotations as a GPU does."""
    monkeypatch.setitem(device.BACKENDS, "cpu", HalfNorms())


def velocity(model, dtype) -> torch.Tensor:
    config = model.config
    context = randn(2, config.conditioning.max_tokens + 1, config.conditioning.cond_dim, seed=1)
    x, seconds = randn(2, config.same.latent_dim, 24, seed=2), randn(2, config.conditioning.cond_dim, seed=3)
    parts = [part.to(dtype) for part in (x, context, seconds)]
    return model.velocity(parts[0], torch.tensor([0.8, 0.3]), *parts[1:]).float()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("variant", FAMILIES)
def test_norms_and_rotations_in_16_bits_add_less_than_a_quarter_to_the_error(request, load_model, release, variant, dtype):
    exact, model = velocity(load_model(variant), torch.float32), sa3_core.load(release(variant), dtype=dtype)
    before = rel_error(velocity(model, dtype), exact)
    request.getfixturevalue("on_gpu")
    assert rel_error(velocity(model, dtype), exact) < 1.25 * before


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_autoencoder_in_16_bits_keeps_55_db(load_model, release, variant, on_gpu):
    exact, model = load_model(variant), sa3_core.load(release(variant), dtype=torch.float16)
    z = randn(1, exact.config.same.latent_dim, 24)
    wanted = exact.decode(z)
    assert -20 * math.log10(rel_error(model.decode(z).float(), wanted)) > 55
    clip = 0.3 * randn(1, 2, 20 * exact.config.same.samples_per_frame, seed=4)
    assert rel_error(model.encode(clip).float(), exact.encode(clip)) < 2e-3


@pytest.mark.parametrize("name", ["demo", "demo-medium"])
def test_the_autoencoder_in_16_bits_keeps_55_db_on_trained_weights(name, on_gpu):
    exact, model = sa3_core.load(name), sa3_core.load(name, dtype=torch.float16)
    z = exact.generate("a low tone", 0.5, seed=1, return_latents=True).latents[..., :6]
    assert -20 * math.log10(rel_error(model.decode(z).float(), exact.decode(z))) > 55


def test_dynamic_tanh_in_float16_is_the_same_function(on_gpu):
    norm = layers.DyT(32)
    norm.load_state_dict({"alpha": torch.tensor([0.6]), "gamma": randn(32, seed=1), "beta": randn(32, seed=2)})
    x = 3 * randn(7, 32, seed=3)
    with torch.no_grad():
        wanted = norm.gamma * torch.tanh(norm.alpha * x) + norm.beta
        found = norm(x, torch.float16)
    assert found.dtype == torch.float16 and rel_error(found, wanted) < 1e-3


def packed(q, k, v, offsets, offsets_k, longest, longest_k, *, window_size):
    """Reference for a kernel over packed sequences; q, k, v (tokens, H, D)."""
    assert torch.equal(offsets, offsets_k) and offsets.dtype == torch.int32 and longest == longest_k == int(offsets.diff().max())
    out = torch.empty_like(q)
    for start, stop in itertools.pairwise(offsets.tolist()):
        at = torch.arange(stop - start)
        far = (at[:, None] - at[None]).abs() > max(window_size)
        scores = torch.einsum("nhd,mhd->hnm", q[start:stop], k[start:stop]) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(far, -math.inf).softmax(-1)
        out[start:stop] = torch.einsum("hnm,mhd->nhd", weights, v[start:stop])
    return out


@pytest.mark.parametrize("batch", [1, 3])
def test_windowed_attention_through_a_kernel_for_packed_sequences(batch, monkeypatch):
    q, k, v = (randn(batch, 100, 4, 16, seed=seed).transpose(1, 2) for seed in range(3))
    wanted = attention.attend(q, k, v, window=9)
    monkeypatch.setattr(CPU, "window_kernel", lambda self, device, dtype: cuda.windowed(packed))
    with torch.no_grad():
        found = attention.attend(q, k, v, window=9)
    assert found.shape == wanted.shape and rel_error(found, wanted) < 1e-6


def test_torchs_kernel_is_preferred_to_the_packages_and_neither_is_required(monkeypatch):
    def torchs(window_size):
        pass

    def packages():
        pass

    gpu, kernel = torch.device("cuda"), CUDA.window_kernel.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "windowed", lambda kernel: kernel)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=torchs))
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=packages))
    assert kernel(gpu, torch.float16) is torchs
    assert kernel(gpu, torch.float32) is None and Backend().window_kernel(gpu, torch.float16) is None
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=lambda: None))  # without window_size
    assert kernel(gpu, torch.bfloat16) is packages
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert kernel(gpu, torch.bfloat16) is packages
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert kernel(gpu, torch.float16) is None
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=torchs))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kernel(gpu, torch.float16) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_windowed_kernel_on_a_gpu_equals_the_definition(dtype, batch):
    q, k, v = (randn(batch, 300, 4, 64, seed=seed).transpose(1, 2) for seed in range(3))
    wanted = attention.attend(q, k, v, window=17)
    with torch.no_grad():
        found = attention.attend(*(part.cuda().to(dtype) for part in (q, k, v)), window=17)
    assert rel_error(found.float().cpu(), wanted) < (2e-3 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_attention_in_parts_equals_attention_at_once(monkeypatch, at_once, masked):
    q, k, v = randn(2, 3, 40, 16, seed=1), randn(2, 3, 50, 16, seed=2), randn(2, 3, 50, 16, seed=3)
    mask = torch.arange(50) < torch.tensor([[50], [31]]) if masked else None
    wanted = attention.attend(q, k, v, key_mask=mask)
    monkeypatch.setitem(device.BACKENDS, "cpu", Backend())
    monkeypatch.setattr(Backend, "queries_at_once", lambda *rest: at_once)
    assert torch.allclose(attention.attend(q, k, v, key_mask=mask), wanted, atol=1e-6)


def test_scores_stay_within_their_limit_without_a_fused_kernel():
    q = torch.empty(1, 24, 4156, 64, device="meta")
    rows = Backend().queries_at_once(q, q)
    assert 0 < rows < 4156 and rows * 24 * 4156 * 4 <= SCORES_LIMIT
    assert Backend().queries_at_once(q[:, :, :100], q[:, :, :100]) >= 100


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("at_once", [2, 3, 8])
@pytest.mark.parametrize("variant", FAMILIES)
def test_chunks_decoded_as_a_batch_equal_chunks_decoded_in_turn(load_model, variant, at_once, batch):
    autoencoder, reports = load_model(variant).autoencoder, []
    z = randn(batch, load_model(variant).config.same.latent_dim, 45)
    with torch.no_grad():
        for chunk, overlap in ((12, 8), (12, 4)):
            wanted = autoencoder.decode(z, chunk, overlap)
            found = autoencoder.decode(z, chunk, overlap, None, lambda done, total: reports.append((done, total)), at_once)
            assert rel_error(found, wanted) < 1e-6
    assert reports[-1][0] == reports[-1][1] and all(a[0] < b[0] or b[0] <= at_once for a, b in itertools.pairwise(reports))


def test_the_number_of_chunks_per_batch_follows_from_free_memory(load_model):
    autoencoder = load_model("medium").autoencoder
    each = autoencoder.activations(16, torch.float16)
    assert autoencoder.chunks_at_once(16, 1, torch.float16, None) == 1  # a CPU
    assert autoencoder.chunks_at_once(None, 1, torch.float16, 10**12) == 1  # a single pass
    assert autoencoder.chunks_at_once(16, 1, torch.float16, 0) == 1
    assert autoencoder.chunks_at_once(16, 1, torch.float16, 4 * 3 * each) == 3
    assert autoencoder.chunks_at_once(16, 2, torch.float16, 4 * 6 * each) == 3
    assert autoencoder.chunks_at_once(16, 1, torch.float16, 10**15) == same.MAX_CHUNKS


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_as_a_matrix_product_equals_the_convolution(kernel):
    x, weight, bias = randn(2, 8, 20), randn(5, 8, kernel, seed=1), randn(5, seed=2)
    assert rel_error(CUDA().conv1d(x, weight, bias), Backend().conv1d(x, weight, bias)) < 1e-6
    layer = operations.Conv1d(8, 5, kernel, padding=kernel // 2)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.nn.functional.conv1d(x, layer.weight, layer.bias, padding=kernel // 2))
