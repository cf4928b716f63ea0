"""The computations that only GPUs use, run on a CPU: norms and rotations in 16 bits, fused windowed attention, batches of chunks."""

import importlib
import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from core_support import FAMILIES, randn, rel_error
from torch.utils._python_dispatch import TorchDispatchMode

import sa3_core
from sa3_core.backends import cuda, device, half
from sa3_core.backends.base import SCORES_LIMIT, Backend
from sa3_core.backends.cpu import CPU
from sa3_core.backends.cuda import CUDA, HALF
from sa3_core.models import attention, conditions, embeddings, layers, operations, rotary, same


@pytest.fixture(params=["half", "fused"])
def kernels(request):
    """The norms and gates of a GPU: torch's operations, and the Triton kernels, interpreted where there is no GPU."""
    if request.param == "fused":
        pytest.importorskip("triton", reason="needs the package triton")
    return importlib.import_module(f"sa3_core.backends.{request.param}")


HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_as_a_gpu(monkeypatch, kernels) -> torch.device:
    """A device that uses these norms and gates in 16 bits: a GPU for the Triton kernels if there is one, else the CPU."""
    monkeypatch.setattr(CPU, "kernels", lambda self, device, dtype: kernels if dtype in HALF else None)
    return torch.device("cpu") if kernels is half else HERE


@pytest.fixture
def on_gpu(monkeypatch, kernels):
    return compute_as_a_gpu(monkeypatch, kernels)


def velocity(model, dtype) -> torch.Tensor:
    config = model.config
    context = randn(2, config.conditioning.max_tokens + 1, config.conditioning.cond_dim, seed=1)
    x, seconds = randn(2, config.same.latent_dim, 24, seed=2), randn(2, config.conditioning.cond_dim, seed=3)
    parts = [part.to(model.device, dtype) for part in (x, context, seconds)]
    return model.velocity(parts[0], torch.tensor([0.8, 0.3]), *parts[1:]).float().cpu()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("variant", FAMILIES)
def test_norms_and_rotations_in_16_bits_add_less_than_a_quarter_to_the_error(monkeypatch, kernels, load_model, release, variant, dtype):
    exact, folder = velocity(load_model(variant), torch.float32), release(variant)
    before = rel_error(velocity(sa3_core.load(folder, dtype=dtype), dtype), exact)
    where = compute_as_a_gpu(monkeypatch, kernels)
    model = sa3_core.load(folder, dtype=dtype, device=where)
    truncated = kernels is not half and dtype == torch.bfloat16 and where.type == "cpu"  # by Triton's interpreter; a GPU rounds
    assert rel_error(velocity(model, dtype), exact) < (1.5 if truncated else 1.25) * before


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_autoencoder_in_16_bits_keeps_55_db(load_model, release, variant, on_gpu):
    exact, model = load_model(variant), sa3_core.load(release(variant), dtype=torch.float16, device=on_gpu)
    z = randn(1, exact.config.same.latent_dim, 24)
    wanted = exact.decode(z)
    assert -20 * math.log10(rel_error(model.decode(z).float().cpu(), wanted)) > 55
    clip = 0.3 * randn(1, 2, 20 * exact.config.same.samples_per_frame, seed=4)
    assert rel_error(model.encode(clip).float().cpu(), exact.encode(clip)) < 2e-3


@pytest.mark.parametrize("name", ["demo", "demo-medium"])
def test_the_autoencoder_in_16_bits_keeps_55_db_on_trained_weights(name, on_gpu):
    exact, model = sa3_core.load(name), sa3_core.load(name, dtype=torch.float16, device=on_gpu)
    z = exact.generate("a low tone", 0.5, seed=1, return_latents=True).latents[..., :6]
    assert -20 * math.log10(rel_error(model.decode(z).float().cpu(), exact.decode(z))) > 55


ROUNDING = {torch.float16: 5e-4, torch.bfloat16: 4e-3}  # of a result; several in `half`


def near(found: torch.Tensor, wanted: torch.Tensor, kernels) -> bool:
    assert found.shape == wanted.shape
    return rel_error(found.float(), wanted.float()) < ROUNDING[found.dtype] * (5 if kernels is half else 1)


def random_norm(kind: type, width: int) -> torch.nn.Module:
    norm = kind(width)
    norm.load_state_dict({name: 1 + 0.5 * randn(*value.shape, seed=i) for i, (name, value) in enumerate(norm.state_dict().items())})
    return norm.double().to(HERE)


def exact(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    if isinstance(norm, layers.DyT):
        return norm.gamma * torch.tanh(norm.alpha * x) + norm.beta
    return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.gamma


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values, every second one in memory."""
    return x.repeat_interleave(2, -1)[..., ::2]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
@torch.no_grad()
def test_a_gpus_norms_are_the_definitions(kernels, dtype, eps):
    x = 0.1 * randn(2, 7, 48, seed=1).to(HERE, dtype)
    gain, shift = (randn(2, 1, 48, seed=seed).to(HERE, dtype) for seed in (2, 3))
    unit = x.double() * (x.double().square().mean(-1, keepdim=True) + eps).rsqrt()
    assert near(kernels.rms_norm(x, gain, shift, eps), unit * gain + shift, kernels)
    assert near(kernels.rms_norm(strided(x), strided(gain), strided(shift), eps), unit * gain + shift, kernels)
    assert near(kernels.rms_norm(x.transpose(0, 1), gain[0, 0], None, eps), (unit * gain[0, 0]).transpose(0, 1), kernels)
    assert kernels.rms_norm(x[:0], gain[:0], shift[:0], eps).shape == (0, 7, 48)
    wide, norm = 3 * randn(3, 5, 48, seed=4).to(HERE), random_norm(layers.DyT, 48).to(dtype)
    assert near(kernels.dynamic_tanh(wide, *norm.parameters(), dtype), exact(norm.double(), wide), kernels)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("sine", [False, True])
@torch.no_grad()
def test_a_gpus_gates_are_the_definitions(kernels, dtype, sine):
    x = randn(2, 5, 2 * 40, seed=1).to(HERE, dtype)
    for scale in (3, 10):
        x = (scale * x).to(dtype)
        value, g = x.double().chunk(2, dim=-1)
        wanted = value * (torch.sin(torch.pi * g) if sine else g * torch.sigmoid(g))
        for given in (x.clone(), strided(x)):
            assert rel_error(kernels.gated(given, sine).double(), wanted) < 5 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", [layers.RMSNorm, layers.DyT])
@pytest.mark.parametrize("parts, dim, rotated", [(3, 16, 8), (5, 16, 8), (5, 48, 32)])
@torch.no_grad()
def test_a_gpus_queries_and_keys_are_the_definitions(kernels, dtype, kind, parts, dim, rotated):
    norms, table = (random_norm(kind, dim), random_norm(kind, dim)), embeddings.rotary_table(9, rotated, dim, HERE)
    norms[1].gamma.data.neg_()
    eps = getattr(norms[0], "eps", None)
    x = randn(2, 11, parts * 3 * dim).to(HERE, dtype)[:, :9].unflatten(-1, (parts, 3, dim))  # the last rows are padding
    wanted = [exact(norm, x[:, :, i]) for norm, i in zip(norms * 2, (0, 1, 3, 4), strict=True) if i < parts]
    wanted = [rotary.rotate(part, tuple(one.double() for one in table)).transpose(1, 2) for part in wanted]
    for given in (x, strided(x), x.transpose(2, 3).contiguous().transpose(2, 3)):
        found = [part for pair in kernels.queries_keys(given, table, norms, eps) for part in pair]
        assert all(near(one, other, kernels) for one, other in zip(found, wanted, strict=True))


def test_gradients_and_the_compiler_get_kernels_of_torch(monkeypatch):
    gpu, kernels = torch.device("cuda", 0), object()
    monkeypatch.setattr(cuda, "fused_kernels", lambda *of: kernels)
    with torch.no_grad():
        assert CUDA().kernels(gpu, torch.float16) is kernels and CUDA().kernels(gpu, torch.float32) is None
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert CUDA().kernels(gpu, torch.float16) is half
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    with torch.enable_grad():
        assert CUDA().kernels(gpu, torch.bfloat16) is half


@pytest.fixture
def unchecked(monkeypatch):
    """`fused_kernels` without its cache."""
    monkeypatch.setattr(cuda, "fused_kernels", cuda.fused_kernels.__wrapped__)


@pytest.mark.parametrize("failure", [ImportError("No module named 'triton'"), RuntimeError("Failed to find C compiler."), KeyError()])
@torch.no_grad()
def test_where_triton_does_not_work_torchs_operations_are_used_and_the_log_says_why(monkeypatch, unchecked, caplog, failure):
    def check(device, dtype):
        raise failure

    monkeypatch.setitem(sys.modules, "sa3_core.backends.fused", SimpleNamespace(check=check))
    monkeypatch.setattr("sa3_core.backends.fused", SimpleNamespace(check=check), raising=False)
    with caplog.at_level("INFO", logger="sa3"):
        assert CUDA().kernels(torch.device("cuda", 0), torch.float16) is half
    assert "without Triton" in caplog.text and (str(failure) or "KeyError") in caplog.text


@torch.no_grad()
def test_lack_of_memory_is_not_taken_for_a_missing_triton(monkeypatch):
    def check(device, dtype):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sa3_core.backends.fused", SimpleNamespace(check=check), raising=False)
    cuda.fused_kernels.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        CUDA().kernels(torch.device("cuda", 0), torch.float16)
    assert cuda.fused_kernels.cache_info().currsize == 0


def test_the_check_runs_every_kernel():
    fused = pytest.importorskip("sa3_core.backends.fused", reason="needs the package triton")
    fused.check(HERE, torch.float16)


@pytest.mark.skipif(HERE.type != "cuda", reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_a_gpu_uses_the_triton_kernels(dtype):
    assert CUDA().kernels(HERE, dtype).__name__.endswith("fused")


class Operators(TorchDispatchMode):
    """Counts operators that compute something: on a GPU, one kernel each."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read back"
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def one_operator_each(parts, *rest) -> list[tuple[torch.Tensor, torch.Tensor]]:
    out = parts.new_zeros(parts.shape[0], parts.shape[1], parts.shape[2] - 1, *parts.shape[3:]).transpose(1, 3)
    return [(out[:, :, i], out[:, :, i + 1]) for i in range(0, out.shape[2], 2)]


class CountedGPU(CUDA):
    """A GPU whose kernels are one operator each."""

    pins = False

    def kernels(self, device, dtype):
        return SimpleNamespace(
            rms_norm=lambda x, *rest: torch.zeros_like(x), queries_keys=one_operator_each,
            gated=lambda x, sine: torch.zeros_like(x[..., : x.shape[-1] // 2]),
        )  # fmt: skip


@pytest.mark.parametrize("lengths", [None, [20, 13]])
@pytest.mark.parametrize("variant", FAMILIES)
@torch.no_grad()
def test_a_layer_launches_at_most_30_kernels_and_reads_nothing_back(monkeypatch, release, variant, lengths):
    model = sa3_core.load(release(variant), dtype=torch.float16)
    monkeypatch.setitem(device.BACKENDS, "cpu", CountedGPU())
    monkeypatch.setattr(cuda, "packed_kernel", lambda device, dtype: lambda q, *rest, **options: torch.zeros_like(q))
    config, dit = model.config, model.dit
    local = randn(2, config.dit.local_dim, 20).half()
    context, seconds = (randn(2, *shape).half() for shape in ((9, config.conditioning.cond_dim), (config.conditioning.cond_dim,)))
    c = dit.prepare(context, seconds, local, 20, lengths)
    modulation = conditions.Modulation(*(part[0] for part in dit.modulation(torch.tensor([0.5, 0.5]), c)))
    h = torch.zeros(2, len(c.rotary[0]), config.dit.width, dtype=torch.float16)
    with Operators() as operators:
        out = dit.transformer.layers[0](
            h, modulation, c.cross_kv[0], c.cross_bias, c.local.embeddings[0], c.rotary, c.lengths, config.dit.memory_tokens
        )
    assert out.shape == h.shape and 15 < len(operators.names) <= 30, operators.names


def packed(q, k, v, offsets, offsets_k, longest, longest_k, *, window_size):
    """Reference for a kernel over packed sequences; q, k, v (tokens, H, D)."""
    assert torch.equal(offsets, offsets_k) and offsets.dtype == torch.int32 and longest == longest_k >= int(offsets.diff().max())
    window = max(window_size) if max(window_size) >= 0 else longest
    out = torch.empty_like(q)
    for start, stop in itertools.pairwise(offsets.tolist()):
        at = torch.arange(stop - start)
        far = (at[:, None] - at[None]).abs() > window
        scores = torch.einsum("nhd,mhd->hnm", q[start:stop], k[start:stop]) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(far, -math.inf).softmax(-1)
        out[start:stop] = torch.einsum("hnm,mhd->nhd", weights, v[start:stop])
    return out


@pytest.mark.parametrize("batch", [1, 3])
def test_windowed_attention_through_a_kernel_for_packed_sequences(batch, monkeypatch):
    q, k, v = (randn(batch, 100, 4, 16, seed=seed).transpose(1, 2) for seed in range(3))
    wanted = attention.attend(q, k, v, window=9)
    monkeypatch.setattr(CPU, "window_kernel", CUDA.window_kernel)
    monkeypatch.setattr(cuda, "packed_kernel", lambda device, dtype: packed)
    with torch.no_grad():
        found = attention.attend(q, k, v, window=9)
    assert found.shape == wanted.shape and rel_error(found, wanted) < 1e-6


@pytest.mark.parametrize("lengths", [[50, 31, 1], [50, 50, 50]])
def test_items_of_different_lengths_through_a_kernel_for_packed_sequences(lengths, monkeypatch):
    q, k, v = (randn(3, 50, 4, 16, seed=seed).transpose(1, 2) for seed in range(3))
    lengths = torch.tensor(lengths, dtype=torch.int32)
    wanted = attention.attend(q, k, v, lengths=lengths)
    monkeypatch.setattr(cuda, "packed_kernel", lambda device, dtype: packed)
    with torch.no_grad():
        found = CUDA().attend_lengths(q, k, v, lengths)
    assert found.shape == wanted.shape and bool(torch.isfinite(found).all())
    for one, other, n in zip(found, wanted, lengths, strict=True):
        assert rel_error(one[:, :n], other[:, :n]) < 1e-6
    with torch.enable_grad():
        assert torch.equal(CUDA().attend_lengths(q, k, v, lengths), wanted)


def test_torchs_kernel_is_preferred_to_the_packages_and_neither_is_required(monkeypatch):
    def torchs(window_size):
        pass

    def packages():
        pass

    gpu, kernel = torch.device("cuda"), cuda.packed_kernel.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
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
def test_the_kernel_for_packed_sequences_on_a_gpu_equals_the_definition(dtype, batch):
    q, k, v = (randn(batch, 300, 4, 64, seed=seed).transpose(1, 2) for seed in range(3))
    wanted = attention.attend(q, k, v, window=17)
    lengths, bound = torch.tensor([300, 211, 1][:batch], dtype=torch.int32), 2e-3 if dtype == torch.float16 else 1e-2
    ragged = attention.attend(q, k, v, lengths=lengths)
    with torch.no_grad():
        found = attention.attend(*(part.cuda().to(dtype) for part in (q, k, v)), window=17)
        assert rel_error(found.float().cpu(), wanted) < bound
        found = attention.attend(*(part.cuda().to(dtype) for part in (q, k, v)), lengths=lengths.cuda()).float().cpu()
    assert all(rel_error(found[i, :, :n], ragged[i, :, :n]) < bound for i, n in enumerate(lengths.tolist()))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_attention_in_parts_equals_attention_at_once(monkeypatch, at_once, masked):
    q, k, v = randn(2, 3, 40, 16, seed=1), randn(2, 3, 50, 16, seed=2), randn(2, 3, 50, 16, seed=3)
    lengths = torch.tensor([50, 31]) if masked else None
    wanted = attention.attend(q, k, v, lengths=lengths)
    monkeypatch.setitem(device.BACKENDS, "cpu", Backend())
    monkeypatch.setattr(Backend, "queries_at_once", lambda *rest: at_once)
    assert torch.allclose(attention.attend(q, k, v, lengths=lengths), wanted, atol=1e-6)


def test_scores_stay_within_their_limit_without_a_fused_kernel():
    q = torch.empty(1, 24, 4156, 64, device="meta")
    rows = Backend().queries_at_once(q, q)
    assert 0 < rows < 4156 and rows * 24 * 4156 * 4 <= SCORES_LIMIT
    assert Backend().queries_at_once(q[:, :, :100], q[:, :, :100]) >= 100


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("at_once", [2, 4, 8])
@pytest.mark.parametrize("variant", FAMILIES)
def test_chunks_in_one_pass_equal_chunks_in_turn(load_model, variant, at_once, batch):
    autoencoder, reports = load_model(variant).autoencoder, []
    z = randn(batch, load_model(variant).config.same.latent_dim, 45)
    with torch.no_grad():
        for chunk, overlap, noise in ((12, 8, None), (12, 4, None), (12, 8, same.Noise(3))):
            wanted = autoencoder.decode(z, chunk, overlap, noise)
            found = autoencoder.decode(z, chunk, overlap, noise, lambda done, total: reports.append((done, total)), at_once)
            assert rel_error(found, wanted) < 1e-6
    assert reports[-1][0] == reports[-1][1]


def test_the_number_of_chunks_and_items_per_pass_follows_from_the_memory_of_the_device(load_model):
    autoencoder = load_model("medium").autoencoder
    each = autoencoder.activations(16, torch.float16)
    for chunk, batch, memory, wanted in (
        (16, 1, None, 1),  # a CPU
        (None, 1, 10**12, 1),  # a single pass
        (16, 1, 0, 1), (16, 1, 8 * 3 * each, 3), (16, 2, 8 * 8 * each, 4), (16, 1, 10**15, same.MAX_CHUNKS),
    ):  # fmt: skip
        assert autoencoder.chunks_at_once(chunk, batch, torch.float16, memory) == wanted
    for memory, wanted in ((None, 1), (0, 1), (8 * 3 * each, 3)):
        assert autoencoder.items_at_once(16, torch.float16, memory) == wanted


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_too_little_free_memory_for_several_chunks_means_one_at_a_time(monkeypatch, load_model, direction):
    model, passes = load_model("small"), []
    size = model.config.same.samples_per_frame
    given = randn(1, model.config.same.latent_dim, 45) if direction == "decode" else 0.1 * randn(1, 2, 45 * size)
    wanted, run = getattr(model, direction)(given, 12, 8), getattr(model.autoencoder, direction)

    def limited(*rest, at_once):
        passes.append(at_once)
        if at_once > 1 or fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(*rest, at_once=at_once)

    monkeypatch.setattr(model.autoencoder, direction, limited)
    monkeypatch.setattr(model.autoencoder, "chunks_at_once", lambda *of: 4)
    fails = False
    assert torch.equal(getattr(model, direction)(given, 12, 8), wanted) and passes == [4, 1]
    fails = True
    with pytest.raises(torch.OutOfMemoryError):
        getattr(model, direction)(given, 12, 8)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_as_a_matrix_product_equals_the_convolution(kernel):
    x, weight, bias = randn(2, 8, 20), randn(5, 8, kernel, seed=1), randn(5, seed=2)
    assert rel_error(CUDA().conv1d(x, weight, bias), Backend().conv1d(x, weight, bias)) < 1e-6
    layer = operations.Conv1d(8, 5, kernel, padding=kernel // 2)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.nn.functional.conv1d(x, layer.weight, layer.bias, padding=kernel // 2))
