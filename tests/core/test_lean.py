"""What a GPU computes in another way than a CPU, tried on a CPU: lean norms and rotations, windowed kernels, chunks as a batch."""

import itertools
import math

import pytest
import torch
from core_support import FAMILIES, randn, rel_error

import sa3_core
from sa3_core.backends import cuda, device
from sa3_core.backends.base import SCORES_LIMIT, Backend
from sa3_core.backends.cpu import CPU
from sa3_core.backends.cuda import CUDA
from sa3_core.models import attention, layers, operations, same

HALF = (torch.float16, torch.bfloat16)


class HalfNorms(CPU):
    keeps_half = CUDA.keeps_half


@pytest.fixture
def on_gpu(monkeypatch):
    """Norms and rotations as on a GPU."""
    monkeypatch.setitem(device.BACKENDS, "cpu", HalfNorms())


def velocity(model, dtype) -> torch.Tensor:
    config = model.config
    context = randn(2, config.conditioning.max_tokens + 1, config.conditioning.cond_dim, seed=1)
    x, seconds = randn(2, config.same.latent_dim, 24, seed=2), randn(2, config.conditioning.cond_dim, seed=3)
    parts = [part.to(dtype) for part in (x, context, seconds)]
    return model.velocity(parts[0], torch.tensor([0.8, 0.3]), *parts[1:]).float()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("variant", FAMILIES)
def test_lean_norms_and_rotations_err_hardly_more(request, load_model, release, variant, dtype):
    exact, model = velocity(load_model(variant), torch.float32), sa3_core.load(release(variant), dtype=dtype)
    before = rel_error(velocity(model, dtype), exact)
    request.getfixturevalue("on_gpu")
    assert rel_error(velocity(model, dtype), exact) < 1.25 * before


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_lean_autoencoder_keeps_55_db(load_model, release, variant, on_gpu):
    exact, model = load_model(variant), sa3_core.load(release(variant), dtype=torch.float16)
    z = randn(1, exact.config.same.latent_dim, 24)
    wanted = exact.decode(z)
    assert -20 * math.log10(rel_error(model.decode(z).float(), wanted)) > 55
    clip = 0.3 * randn(1, 2, 20 * exact.config.same.samples_per_frame, seed=4)
    assert rel_error(model.encode(clip).float(), exact.encode(clip)) < 2e-3


@pytest.mark.parametrize("name", ["demo", "demo-medium"])
def test_the_lean_autoencoder_keeps_55_db_on_trained_weights(name, on_gpu):
    exact, model = sa3_core.load(name), sa3_core.load(name, dtype=torch.float16)
    z = exact.generate("a low tone", 0.5, seed=1, return_latents=True).latents[..., :6]
    assert -20 * math.log10(rel_error(model.decode(z).float(), exact.decode(z))) > 55


def test_dynamic_tanh_is_the_same_function(on_gpu):
    norm = layers.DyT(32)
    norm.load_state_dict({"alpha": torch.tensor([0.6]), "gamma": randn(32, seed=1), "beta": randn(32, seed=2)})
    x = 3 * randn(7, 32, seed=3)
    with torch.no_grad():
        wanted = norm.gamma * torch.tanh(norm.alpha * x) + norm.beta
        found = norm(x, torch.float16)
    assert found.dtype == torch.float16 and rel_error(found, wanted) < 1e-3


def packed(q, k, v, ends, ends_k, longest, longest_k, *, window_size):
    """What a kernel for packed sequences computes, (tokens, H, D) each, by the definition."""
    assert torch.equal(ends, ends_k) and ends.dtype == torch.int32 and longest == longest_k == int(ends.diff().max())
    out = torch.empty_like(q)
    for start, stop in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        at = torch.arange(stop - start)
        far = (at[:, None] - at[None]).abs() > max(window_size)
        scores = torch.einsum("nhd,mhd->hnm", q[start:stop], k[start:stop]) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(far, -math.inf).softmax(-1)
        out[start:stop] = torch.einsum("hnm,mhd->nhd", weights, v[start:stop])
    return out


@pytest.mark.parametrize("batch", [1, 3])
def test_a_kernel_for_packed_sequences_is_called_as_it_wants(batch, monkeypatch):
    q, k, v = (randn(batch, 100, 4, 16, seed=seed).transpose(1, 2) for seed in range(3))
    wanted = attention.attend(q, k, v, window=9)
    monkeypatch.setattr(CPU, "window_kernel", lambda self, device, dtype: cuda.windowed(packed))
    with torch.no_grad():
        found = attention.attend(q, k, v, window=9)
    assert found.shape == wanted.shape and rel_error(found, wanted) < 1e-6


def test_torchs_own_kernel_comes_before_the_package_and_neither_is_needed(monkeypatch):
    gpu, kernel = torch.device("cuda"), cuda.window_kernel.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "windowed", lambda kernel: kernel)
    monkeypatch.setattr(cuda, "_torch_varlen", lambda: "torch")
    monkeypatch.setattr(cuda, "_flash_attn_varlen", lambda: "package")
    assert kernel(gpu, torch.float16) == "torch"
    monkeypatch.setattr(cuda, "_torch_varlen", lambda: None)
    assert kernel(gpu, torch.bfloat16) == "package"
    monkeypatch.setattr(cuda, "_flash_attn_varlen", lambda: None)
    assert kernel(gpu, torch.float16) is None
    assert kernel(gpu, torch.float32) is None and Backend().window_kernel(gpu, torch.float16) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(cuda, "_torch_varlen", lambda: "torch")
    assert kernel(gpu, torch.float16) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("batch", [1, 3])
def test_on_a_gpu_the_windowed_kernel_is_the_definition(dtype, batch):
    q, k, v = (randn(batch, 300, 4, 64, seed=seed).transpose(1, 2) for seed in range(3))
    wanted = attention.attend(q, k, v, window=17)
    with torch.no_grad():
        found = attention.attend(*(part.cuda().to(dtype) for part in (q, k, v)), window=17)
    assert rel_error(found.float().cpu(), wanted) < (2e-3 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_queries_in_parts_are_all_queries(monkeypatch, at_once, masked):
    q, k, v = randn(2, 3, 40, 16, seed=1), randn(2, 3, 50, 16, seed=2), randn(2, 3, 50, 16, seed=3)
    mask = torch.arange(50) < torch.tensor([[50], [31]]) if masked else None
    wanted = attention.attend(q, k, v, key_mask=mask)
    monkeypatch.setitem(device.BACKENDS, "cpu", Backend())
    monkeypatch.setattr(Backend, "queries_at_once", lambda *rest: at_once)
    assert torch.allclose(attention.attend(q, k, v, key_mask=mask), wanted, atol=1e-6)


def test_scores_stay_within_their_bound_where_there_is_no_fused_kernel():
    q = torch.empty(1, 24, 4156, 64, device="meta")
    rows = Backend().queries_at_once(q, q)
    assert 0 < rows < 4156 and rows * 24 * 4156 * 4 <= SCORES_LIMIT
    assert Backend().queries_at_once(q[:, :, :100], q[:, :, :100]) >= 100


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("at_once", [2, 3, 8])
@pytest.mark.parametrize("variant", FAMILIES)
def test_chunks_of_a_clip_as_one_batch_are_the_chunks(load_model, variant, at_once, batch):
    autoencoder, told = load_model(variant).autoencoder, []
    z = randn(batch, load_model(variant).config.same.latent_dim, 45)
    with torch.no_grad():
        for chunk, overlap in ((12, 8), (12, 4)):
            wanted = autoencoder.decode(z, chunk, overlap)
            found = autoencoder.decode(z, chunk, overlap, None, lambda done, total: told.append((done, total)), at_once)
            assert rel_error(found, wanted) < 1e-6
    assert told[-1][0] == told[-1][1] and all(a[0] < b[0] or b[0] <= at_once for a, b in itertools.pairwise(told))


def test_how_many_chunks_follow_from_free_memory(load_model):
    autoencoder = load_model("medium").autoencoder
    each = autoencoder.activations(16, torch.float16)
    assert autoencoder.chunks_at_once(16, 1, torch.float16, None) == 1  # a CPU
    assert autoencoder.chunks_at_once(None, 1, torch.float16, 10**12) == 1  # a single pass
    assert autoencoder.chunks_at_once(16, 1, torch.float16, 0) == 1
    assert autoencoder.chunks_at_once(16, 1, torch.float16, 4 * 3 * each) == 3
    assert autoencoder.chunks_at_once(16, 2, torch.float16, 4 * 6 * each) == 3
    assert autoencoder.chunks_at_once(16, 1, torch.float16, 10**15) == same.MOST_CHUNKS


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_as_a_product_is_the_convolution(kernel):
    x, weight, bias = randn(2, 8, 20), randn(5, 8, kernel, seed=1), randn(5, seed=2)
    assert rel_error(CUDA().conv1d(x, weight, bias), Backend().conv1d(x, weight, bias)) < 1e-6
    layer = operations.Conv1d(8, 5, kernel, padding=kernel // 2)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.nn.functional.conv1d(x, layer.weight, layer.bias, padding=kernel // 2))
