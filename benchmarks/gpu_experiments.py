"""Part 7 of `gpu.py`: alternatives to what the networks compute with. Each row has a time and an error against float32."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_lab import Lab, Skipped, decode, patched, relative, short, snr, tf32
from benchmarks.gpu_parts import Item, Rows
from sa3_core import config, timeline
from sa3_core.backends import half
from sa3_core.checkpoints.tensors import DTYPES
from sa3_core.models import attention, same
from sa3_core.models.embeddings import rotary_table
from sa3_core.models.same import SAME
from sa3_core.pipeline import DEMOS, load

LENGTHS = (("small", 30), ("medium", 120), ("medium", 380))
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
LOGITS = 5.5  # of tanh(normal) queries and keys of 64 channels: their logits reach about +-50
CAPTURED = "Part 7a. A whole decode captured as a CUDA graph"
FUSED = "Part 7b. Norms, rotations and gates: kernel time by torch's operations and by Triton's kernels, fp16"
SDPA = "Part 7c. Attention of the transformer, fp16: milliseconds (error against float32), without launches"
WINDOW = "Part 7d. Windowed differential attention of SAME-L: kernel time, error against float32"
DECODE = "Part 7e. SAME decode: time, SNR against float32 (TF32 off)"
CHUNKS = "Part 7e. Chunks of a decode"
PRODUCTS = "Part 7f. Settings of matrix products"


def items() -> list[Item]:
    found = [
        Item(7, f"attention, {family} {seconds} s x {batch}", functools.partial(backends, family, seconds, batch))
        for family, seconds, batch in (("small", 30, 1), ("medium", 120, 1), ("medium", 380, 1), ("small", 30, 8))
    ]
    found += [
        Item(7, f"decode formats, {family} {seconds} s", functools.partial(decode_random, family, seconds))
        for family, seconds in (("small", 30), ("medium", 120), ("medium", 380))
    ]
    found += [Item(7, f"decode formats, {name}", functools.partial(decode_demo, name)) for name in DEMOS]
    found += [
        Item(7, f"chunks, {family} {seconds} s", functools.partial(chunks, family, seconds))
        for family, seconds in (("small", 30), ("medium", 120), ("medium", 380))
    ]
    found += [
        Item(7, "settings of products", products),
        *(Item(7, f"kernels, {family} {seconds} s", functools.partial(kernels, family, seconds)) for family, seconds in LENGTHS),
        Item(7, "window, our blocks", functools.partial(window, ("ours fp32", "ours fp16", "ours bf16"))),
        Item(7, "window, varlen", functools.partial(window, ("varlen fp16", "varlen bf16"))),
        Item(7, "window, flash without lengths", functools.partial(window, ("flash fp16", "flash bf16"))),
        # last: what torch refuses to capture may leave its allocator in disorder
        Item(7, "captured decode, small 30 s", functools.partial(captured_decode, "small", 30), "more", 2),
        Item(7, "captured decode, medium 120 s", functools.partial(captured_decode, "medium", 120), "more", 2),
    ]
    return found


# a. capture


def captured_decode(family: str, seconds: float, lab: Lab) -> Rows:
    """Replay against eager."""
    if not lab.cuda:
        raise Skipped(f"CUDA graphs need a CUDA device, and this is {lab.device}")
    case = lab.case(family, seconds)
    for dtype in ("fp32", "fp16"):
        job = functools.partial(decode, lab.same(family, dtype), lab.latents(case, dtype))
        eager = job().clone()
        row = {"clip": str(case), "SAME in": dtype, "eager ms": lab.ms(job)}
        graph, out = lab.capture(job)
        graph.replay()
        yield CAPTURED, {**row, "replay ms": lab.ms(graph.replay), "bytes equal": str(torch.equal(out, eager))}


# b. norms, rotations and gates


def kernels(family: str, seconds: float, lab: Lab) -> Rows:
    """The Triton kernels against torch's operations, at the shapes of the transformer and of a batch of SAME's chunks."""
    if not lab.cuda:
        raise Skipped(f"the Triton kernels need a CUDA device, and this is {lab.device}")
    from sa3_core.backends import fused

    case = lab.case(family, seconds)
    step, settings = lab.step(case, "fp16"), config.parse(lab.config(family))
    layer, n = step.dit.transformer.layers[0], step.inputs.rows
    block, side = lab.same(family, "fp16").decoder.layers[3].transformers[0], settings.same.decoder
    tokens = 128 * (side.stride + 1) if side.window else side.align * (side.stride + 1)
    items = (8 * 128 * (side.stride + 1)) // tokens
    tables = rotary_table(tokens, side.head_dim // 2, side.head_dim, lab.device)

    def half_randn(*shape: int) -> Tensor:
        return lab.randn(*shape, dtype=torch.float16)

    count = 5 if settings.dit.differential else 3
    jobs = {  # name: (function of a module of kernels, an input)
        "RMS norm, modulated": (lambda k, x: k.rms_norm(x, x[:, :1], x[:, 1:2], 1e-5), half_randn(1, n, settings.dit.width)),
        "queries and keys": (
            lambda k, x: k.queries_keys(x, step.inputs.rotary, (layer.self_attn.q_norm, layer.self_attn.k_norm), 1e-6)[0][0],
            half_randn(1, len(step.inputs.rotary[0]), count, settings.dit.heads, settings.dit.head_dim),
        ),
        "gate": (lambda k, x: k.gated(x, False), half_randn(1, n, 2 * int(settings.dit.width * settings.dit.ff_mult))),
        "SAME, dynamic tanh": (
            lambda k, x: k.dynamic_tanh(x, block.pre_norm.alpha, block.pre_norm.gamma, block.pre_norm.beta, torch.float16),
            lab.randn(items, tokens, side.width),
        ),
        "SAME, queries and keys": (
            lambda k, x: k.queries_keys(x, tables, (block.self_attn.q_norm, block.self_attn.k_norm), None)[0][0],
            half_randn(items, tokens, 5, side.width // side.head_dim, side.head_dim),
        ),
        "SAME, gate": (lambda k, x: k.gated(x, True), half_randn(items, tokens, 6 * side.width)),
    }
    for name, (job, x) in jobs.items():
        row = {"clip": str(case), "operation": name, "MB read": x.numel() * x.element_size() / 1e6}
        found = {}
        for words, module in (("torch", half), ("Triton", fused)):
            found[words] = job(module, x.clone())
            row[f"{words}, ms"] = lab.kernel_ms(functools.partial(job, module, x))
        yield FUSED, {**row, "difference": relative(found["Triton"], found["torch"])}


# c. attention of the transformer


def heads_of(lab: Lab, family: str, seconds: float, batch: int) -> Callable[[int], Tensor]:
    """make(seed): queries, keys or values (B, H, N, D) in fp16, laid out in memory as the transformer has them."""
    settings = config.parse(lab.config(family))
    rows = settings.dit.memory_tokens + max(timeline.lengths(settings, [lab.case(family, seconds).seconds]).valid)
    shape = batch, rows, settings.dit.heads, settings.dit.head_dim
    return lambda seed: lab.randn(*shape, seed=seed, dtype=torch.float16).transpose(1, 2)


def backends(family: str, seconds: float, batch: int, lab: Lab) -> Rows:
    """Each of torch's kernels, without a mask and with one that hides the last tenth of the keys of every second item."""
    q, k, v = map(heads_of(lab, family, seconds, batch), (1, 2, 3))
    n = q.shape[2]
    mask = torch.ones(batch, 1, 1, n, dtype=torch.bool, device=q.device)
    mask[::2, ..., n - max(1, n // 10) :] = False
    for words, hidden in (("none", None), ("boolean", mask)):
        row = {"shape": f"{tuple(q.shape)}, {lab.case(family, seconds)}", "mask": words}
        with tf32(False, False):
            exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=hidden)
        job = functools.partial(F.scaled_dot_product_attention, q, k, v, attn_mask=hidden)
        row["torch's choice"] = tried(lab, job, exact)
        for name in BACKENDS:
            with chosen(name):
                row[name.removesuffix("_ATTENTION").lower()] = tried(lab, job, exact)
        yield SDPA, row


@contextmanager
def chosen(name: str) -> Iterator[None]:
    with sdpa_kernel([getattr(SDPBackend, name)]):
        yield


def tried(lab: Lab, job: Callable[[], Tensor], exact: Tensor) -> str:
    """Time and error in a cell, or why there is none."""
    try:
        error = relative(job(), exact)
        return f"{lab.kernel_ms(job, 5):.4g} ({error:.1e})"
    except Exception as failure:  # a backend that does not take this
        return f"no: {short(failure)[:60]}"


# d. windowed attention of SAME-L


@functools.lru_cache(maxsize=4)
def _ends(n: int, device: torch.device) -> Tensor:
    return torch.tensor([0, n], dtype=torch.int32, device=device)


def varlen(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Windowed attention (1, H, N, D) by torch's variable-length kernel."""
    from torch.nn.attention.varlen import varlen_attn

    name = next((name for name in inspect.signature(varlen_attn).parameters if "window" in name), None)
    if name is None:
        raise RuntimeError(f"varlen_attn takes no window: {inspect.signature(varlen_attn)}")
    n = q.shape[2]
    ends = _ends(n, q.device)
    out = varlen_attn(*(x[0].transpose(0, 1) for x in (q, k, v)), ends, ends, n, n, **{name: (window, window)})
    return (out[0] if isinstance(out, tuple) else out).transpose(0, 1)[None]


def flash(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The same kernel on a batch (B, H, N, D), without lengths."""
    n = q.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, n, n, 0.0, False, return_debug_mask=False, window_size_left=window, window_size_right=window
    )
    return out[0].transpose(1, 2)


WINDOWED: dict[str, Callable[..., Tensor]] = {"ours": attention.attend, "varlen": varlen, "flash": flash}
KERNELS_OF_CUDA = ("varlen", "flash")


def window(ways: tuple[str, ...], lab: Lab) -> Rows:
    """Difference of two softmaxes with logits up to +-50, the second one independent or nearly equal."""
    if ways[0].split()[0] in KERNELS_OF_CUDA and not lab.cuda:
        raise Skipped(f"this kernel needs a CUDA device, and this is {lab.device}")
    side = config.parse(lab.config("medium")).same.decoder
    n, width = (64 if lab.tiny else 4096) * (side.stride + 1), side.window
    shape = 1, n, side.width // side.head_dim, side.head_dim

    def heads(seed: int) -> Tensor:
        return LOGITS * lab.randn(*shape, seed=seed).tanh()

    q, k, v, q2, k2 = (*(heads(seed) for seed in (1, 2)), lab.randn(*shape, seed=3), *(heads(seed) for seed in (4, 5)))
    near = [x + 0.05 * lab.randn(*shape, seed=seed) for x, seed in ((q, 6), (k, 7))]
    for words, second in (("independent", (q2, k2)), ("nearly equal", near)):
        given = [x.transpose(1, 2) for x in (q, k, *second, v)]
        with tf32(False, False):
            exact = attention.attend_difference(*given, window=width)
        for name in ways:
            kind, dtype = name.split()
            cast = [x.to(DTYPES[dtype]) for x in given]
            job = functools.partial(difference, functools.partial(WINDOWED[kind], window=width), *cast)
            row = {"tokens": n, "way": name, "second softmax": words}
            with tf32(False, False):
                out = job()
                ms = lab.kernel_ms(job, 2)
            yield WINDOW, {**row, "ms": ms, "error": relative(out, exact), "size of the result": float(exact.norm() / v.norm())}
    if any("varlen" in name for name in ways):
        from torch.nn.attention.varlen import varlen_attn

        lab.note(f"varlen_attn{inspect.signature(varlen_attn)}")


def difference(attend: Callable[..., Tensor], q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v) - attend(q2, k2, v)


# e. number formats of the decoder


def attention_in(dtype: str, by_varlen: bool = False) -> Callable[..., Tensor]:
    """A replacement of `same.attend_difference` that computes in another format."""

    def attend_difference(q, k, q2, k2, v, *, window: int | None = None) -> Tensor:
        q, k, q2, k2, v = (x.to(DTYPES[dtype]) for x in (q, k, q2, k2, v))
        if by_varlen and window is not None:
            return difference(functools.partial(varlen, window=window), q, k, q2, k2, v)
        return attention.attend_difference(q, k, q2, k2, v, window=window)

    return attend_difference


FORMATS = (  # products, attention, attention by varlen, TF32
    ("fp32", "fp32", False, False), ("fp32", "fp32", False, True), ("fp16", "fp32", False, False), ("fp16", "fp16", False, False),
    ("fp16", "fp16", True, False), ("bf16", "fp32", False, False), ("bf16", "fp16", False, False), ("bf16", "bf16", False, False),
    ("fp16", "bf16", False, False), ("fp32", "fp16", False, False),
)  # fmt: skip
FEW = 5  # of them for a long clip


def decode_formats(lab: Lab, subject: str, autoencoder: Callable[[str], SAME], z: Tensor, formats: tuple = FORMATS) -> Rows:
    """autoencoder(dtype): the same weights in that format. z in float32."""
    with tf32(False, False):
        exact = decode(autoencoder("fp32"), z)
    windowed = autoencoder("fp32").config.decoder.window is not None
    for products_in, attention_format, by_varlen, fast in formats:
        if by_varlen and not windowed:
            continue
        job = functools.partial(decode, autoencoder(products_in), z.to(DTYPES[products_in]))
        row = {"clip": subject, "products": "TF32" if fast else products_in, "attention": attention_format + " by varlen" * by_varlen}
        with ExitStack() as stack:
            stack.enter_context(tf32(fast, fast))
            if by_varlen and not lab.cuda:
                yield DECODE, {**row, "dB": "skipped: varlen needs a CUDA device"}
                continue
            if attention_format != "fp32":
                stack.enter_context(patched(same, "attend_difference", attention_in(attention_format, by_varlen)))
            try:
                row |= {"dB": snr(job(), exact), "ms": lab.ms(job, 3, 0)}
            except Exception as error:  # one format of many
                row["dB"] = short(error)
        yield DECODE, row


def decode_random(family: str, seconds: float, lab: Lab) -> Rows:
    case, formats = lab.case(family, seconds), FORMATS if seconds < 200 else FORMATS[:FEW]
    yield from decode_formats(lab, f"{case}, random", functools.partial(lab.same, family), lab.latents(case, "fp32"), formats)


def decode_demo(name: str, lab: Lab) -> Rows:
    """Trained weights: the latents of a run."""
    if not (DEMOS[name] / "model.safetensors").is_file():
        raise Skipped("the demo is not in assets/")
    models = {dtype: load(name, device=lab.device, dtype=DTYPES[dtype]) for dtype in DTYPES}
    model, seconds = models["fp32"], 0.5 if lab.tiny else 4.0
    steps = 2 if lab.tiny else None
    z = model.generate("a low tone, then a kick every half second", seconds, steps=steps, seed=7, return_latents=True).latents
    yield from decode_formats(lab, f"{name}, trained, {seconds:g} s", lambda dtype: models[dtype].autoencoder, z)


def chunks(family: str, seconds: float, lab: Lab) -> Rows:
    """A single pass, chunks of 128 frames, some of them as one batch; other sizes."""
    case = lab.case(family, seconds)
    for dtype in ("fp32", "fp16") if seconds < 200 else ("fp16",):
        autoencoder, z = lab.same(family, dtype), lab.latents(case, dtype)
        whole = decode(autoencoder, z, None)
        ways = {"single pass": functools.partial(decode, autoencoder, z, None)}
        ways |= {str(size): functools.partial(decode, autoencoder, z, size) for size in (256, 512)}
        ways |= {f"128, {n} at once": functools.partial(autoencoder.decode, z, 128, 32, at_once=n) for n in (1, 2, 4, 8, 16)}
        for name, way in ways.items():
            found = {"against a single pass, dB": snr(way(), whole), "ms": lab.ms(way, 3, 0)}
            yield CHUNKS, {"clip": str(case), "frames": z.shape[-1], "SAME in": dtype, "chunks": name, **found}


# f. products


def products(lab: Lab) -> Rows:
    """Settings that change how matrix products round: the time of a captured step, its error against float32."""
    case = lab.case("medium", 120)
    with tf32(False, False):
        wanted = lab.step(case, "fp32")()
    matmul = torch.backends.cuda.matmul
    settings = [("fp16", None, None), ("bf16", None, None), ("fp32", None, None), ("fp32", "allow_tf32", True)]
    settings += [("fp16", "allow_fp16_accumulation", True), ("fp16", "allow_fp16_reduced_precision_reduction", False)]
    for dtype, name, value in settings:
        row = {"step": f"{case}, {dtype}", "setting": "torch's defaults" if name is None else f"{name} = {value}"}
        try:
            with ExitStack() as stack:
                if name is not None:
                    stack.enter_context(patched(matmul, name, value))
                job = lab.step(case, dtype).evaluation()
                row |= {"ms": lab.kernel_ms(job, 1), "error": relative(job(), wanted)}
        except Exception as error:  # a setting that this torch does not know
            row["error"] = short(error)
        yield PRODUCTS, row
