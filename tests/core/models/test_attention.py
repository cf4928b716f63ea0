"""Every path of attend() equals one definition, and none creates an N x N tensor for a long sequence."""

import pytest
import torch
from core_support import randn, rel_error
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sa3_core.backends import cpu, device, mps
from sa3_core.backends.cpu import CPU, SHORT
from sa3_core.backends.mps import MPS
from sa3_core.models import attention
from sa3_core.models.attention import WINDOW_BLOCK, WINDOW_BLOCKS_AT_ONCE, attend, attend_difference

GROUP = WINDOW_BLOCK * WINDOW_BLOCKS_AT_ONCE  # queries per call in the windowed path


def definition(q, k, v, *, window=None, lengths=None, rows=None):
    """Softmax over all keys, hidden ones at -inf, in float64. rows: of the queries to compute, None = all."""
    q, k, v = q.double(), k.double(), v.double()
    rows = torch.arange(q.shape[2]) if rows is None else rows
    logits = q[:, :, rows] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if window is not None:
        far = (rows[:, None] - torch.arange(k.shape[2])[None]).abs() > window
        logits = logits.masked_fill(far, -torch.inf)
    if lengths is not None:
        logits = logits.masked_fill(torch.arange(k.shape[2]) >= lengths[:, None, None, None], -torch.inf)
    return logits.softmax(-1) @ v


def heads(n, batch=2, dim=8, seed=0, dtype=torch.float32):
    return [randn(batch, 2, n, dim, seed=seed + i, dtype=dtype) * 2 for i in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 33), (50, 7), (300, 300)])
def test_dense(n, m, dtype):
    q, (_, k, v) = heads(n, dtype=dtype)[0], heads(m, seed=5, dtype=dtype)
    assert rel_error(attend(q, k, v), definition(q, k, v)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(34, 34), (20, SHORT), (SHORT, SHORT + 1), (SHORT + 1, 7)])
def test_difference(n, m, dtype):
    (q, _, _), (q2, _, _) = heads(n, dtype=dtype), heads(n, seed=3, dtype=dtype)
    (_, k, v), (_, k2, _) = heads(m, seed=5, dtype=dtype), heads(m, seed=9, dtype=dtype)
    wanted = definition(q, k, v) - definition(q2, k2, v)
    assert rel_error(attend_difference(q, k, q2, k2, v), wanted) < 1e-6


@pytest.mark.parametrize("n", [34, 300])
def test_difference_in_windows(n):
    q, k, v, q2, k2 = *heads(n), *heads(n, seed=5)[:2]
    wanted = definition(q, k, v, window=17) - definition(q2, k2, v, window=17)
    assert rel_error(attend_difference(q, k, q2, k2, v, window=17), wanted) < 1e-6


def test_a_short_difference_has_the_gradients_of_a_long_one(monkeypatch):
    def gradients():
        q, k, v, q2, k2 = inputs = [x.requires_grad_() for x in (*heads(34), *heads(34, seed=5)[:2])]
        return torch.autograd.grad(attend_difference(q, k, q2, k2, v).square().sum(), inputs)

    long, calls = attention.attend, []
    monkeypatch.setattr(attention, "attend", lambda *args, **options: calls.append(args) or long(*args, **options))
    short = gradients()
    assert not calls
    monkeypatch.setattr(cpu, "SHORT", 33)
    for found, wanted in zip(short, gradients(), strict=True):
        assert rel_error(found, wanted) < 1e-5
    assert len(calls) == 2


@pytest.mark.parametrize("hidden", [1, 10, 29])
def test_hidden_keys_are_excluded_from_the_softmax(hidden):
    q, k, v = heads(30)
    lengths = torch.tensor([30, 30 - hidden], dtype=torch.int32)
    out = attend(q, k, v, lengths=lengths)
    assert rel_error(out, definition(q, k, v, lengths=lengths)) < 1e-6
    assert rel_error(out[1:], attend(q[1:], k[1:, :, :-hidden], v[1:, :, :-hidden])) < 1e-6


def test_the_values_of_hidden_keys_have_no_effect():
    q, k, v = heads(30)
    lengths = torch.tensor([20, 20])
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, 20:], other_v[:, :, 20:] = 1e4, -1e4
    assert torch.equal(attend(q, other_k, other_v, lengths=lengths), attend(q, k, v, lengths=lengths))


EDGES = [WINDOW_BLOCK + d for d in (-1, 0, 1, 33, 34, 35)] + [2 * WINDOW_BLOCK + d for d in (-1, 0, 1, 17, 18)] + [5 * WINDOW_BLOCK + 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 16, 17, 18, 19, 34, 35, 36, *EDGES])
def test_window_of_17(n, dtype):
    q, k, v = heads(n, dtype=dtype)
    assert rel_error(attend(q, k, v, window=17), definition(q, k, v, window=17)) < 1e-6


@pytest.mark.parametrize("window", [0, 1, 5, 64, 127, 128, 129, 200])
@pytest.mark.parametrize("n", [1, 100, 400, 700])
def test_other_windows(window, n):
    q, k, v = heads(n)
    assert rel_error(attend(q, k, v, window=window), definition(q, k, v, window=window)) < 1e-6


@pytest.mark.parametrize("n", [GROUP - 1, GROUP, GROUP + 1, GROUP + 17, GROUP + WINDOW_BLOCK, 2 * GROUP + 200])
def test_window_over_several_groups_of_blocks(n):
    q, k, v = heads(n, dim=4)
    near_edges = torch.tensor([0, GROUP, 2 * GROUP, n])[:, None] + torch.arange(-40, 40)
    rows = near_edges.flatten().unique()
    rows = rows[(rows >= 0) & (rows < n)]
    assert rel_error(attend(q, k, v, window=17)[:, :, rows], definition(q, k, v, window=17, rows=rows)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "options"), [(30, {}), (30, {"hidden": 9}), (100, {"window": 17}), (150, {"window": 60}), (300, {"window": 17})]
)
def test_on_mps_torch_receives_contiguous_float32_in_parts(monkeypatch, n, options, dtype):
    monkeypatch.setitem(device.BACKENDS, "cpu", MPS())
    monkeypatch.setattr(mps, "QUERIES", 64)
    original, seen = torch.nn.functional.scaled_dot_product_attention, []

    def checked(q, k, v, attn_mask=None):
        assert all(x.is_contiguous() and x.dtype == torch.float32 for x in (q, k, v)) and q.shape[2] <= 64
        seen.append(attn_mask)
        return original(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", checked)
    q, k, v = (x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in heads(n))  # views, as in the networks
    lengths = torch.tensor([n, n - options["hidden"]]) if "hidden" in options else None
    out = attend(q, k, v, window=options.get("window"), lengths=lengths)
    assert seen and out.dtype == dtype
    wanted = definition(q, k, v, window=options.get("window"), lengths=lengths)
    assert rel_error(out, wanted) < (1e-6 if dtype == torch.float32 else 4e-3)


def test_a_traced_mask_is_not_cached():
    class Net(torch.nn.Module):
        def forward(self, q, k, v):
            return attend(q, k, v, window=17)

    q, k, v = heads(157)
    exported = torch.export.export(Net(), (q, k, v)).module()
    wanted = definition(q, k, v, window=17)
    assert rel_error(attend(q, k, v, window=17), wanted) < 1e-6 and rel_error(exported(q, k, v), wanted) < 1e-6


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("n", [20_000, 69_632])
def test_memory_of_a_window_is_proportional_to_the_length(n):
    q, k, v = (randn(1, 1, n, 4, seed=i) for i in range(3))
    with LargestTensor() as largest:
        out = attend(q, k, v, window=17)
    assert out.shape == q.shape
    assert 0 < largest.numel <= n * (WINDOW_BLOCK + 2 * 17)


def test_the_memory_measurement_detects_a_full_mask():
    q, k, v = (randn(1, 1, 500, 4, seed=i) for i in range(3))
    with LargestTensor() as largest:
        definition(q, k, v, window=17)
    assert largest.numel >= 500 * 500


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_context_rows_are_merged_with_the_log_of_their_number(dtype):
    context = randn(2, 60, 8, seed=9, dtype=torch.float32).to(dtype)
    context[0, 5:59] = context[0, 5]  # a short prompt, its padding, the seconds row
    context[1] = 0  # an unconditional context
    few, bias = CPU().distinct_rows(context)
    assert few.shape == (2, 8, 8) and bias.shape == (2, 8)
    assert bias.exp().sum(1).tolist() == pytest.approx([60, 60], rel=1e-6)
    q = randn(2, 1, 33, 8, seed=3, dtype=torch.float32).to(dtype)
    whole, short = attend(q, context[:, None], context[:, None]), attend(q, few[:, None], few[:, None], bias=bias)
    assert rel_error(short, whole) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_a_context_without_equal_rows_is_unchanged():
    context = randn(1, 20, 8, seed=9, dtype=torch.float32)
    few, bias = CPU().distinct_rows(context)
    assert few is context and bias is None
