"""The items of `gpu.py`: agreement, whole runs, kernels and floors, memory, LoRAs and training. An item yields rows: (table, columns)."""

from __future__ import annotations

import functools
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import lora as lora_benchmark
from benchmarks import precision
from benchmarks.engine import ONCE, ONE_ROW
from benchmarks.gpu_lab import (
    PROMPT_TOKENS,
    ROOT,
    Lab,
    RandomModel,
    Skipped,
    Step,
    decode,
    fill,
    patched,
    relative,
    run_latents,
    short,
    snr,
    step_of,
    tf32,
)  # fmt: skip
from benchmarks.gpu_summary import (
    BATCHES,
    DECODES,
    DIFFERENCES,
    DRAWS,
    FLOORS,
    KERNELS,
    LENGTHS,
    LORA,
    MEMORY,
    PRECISION,
    RECORDED,
    RESUME,
    RUNS,
    SHARP,
    SOFTMAXES,
    TOPS,
    TRAINING,
)
from benchmarks.make_release import text_encoder_shapes, tokenizer
from sa3_core import timeline
from sa3_core.backends.device import to_device
from sa3_core.checkpoints.tensors import DTYPES
from sa3_core.config import parse
from sa3_core.lora.stack import Stack
from sa3_core.models import same as same_module
from sa3_core.models.attention import attend, attend_difference
from sa3_core.models.t5gemma import config_from, empty_model
from sa3_core.models.text_encoder import TextEncoder
from sa3_core.pipeline import DEMOS, Model, load
from sa3_core.sampling.draws import Draws
from sa3_core.training import flow
from sa3_core.training.adapters import Adapters
from tools.demo.trainer import EMATrainer, Settings

sys.path.append(str(ROOT / "tests" / "core"))

from recorded_cases import DATA, GUIDANCE, SAME, golden_tensors, run_arguments

Rows = Iterator[tuple[str, dict]]
VARIANTS = ("small", "medium", "small-base", "medium-base")
HALVES = ("fp16", "bf16")
TOP = 15  # kernels listed by name


@dataclass(frozen=True)
class Item:
    """One measurement. group: the worker process that runs it. needs: seconds it took on an H100 with a slow host, rounded up."""

    part: int
    name: str
    job: Callable[[Lab], Rows]
    needs: float
    group: str = "main"


def items(reference: Path | None) -> list[Item]:
    """All items of parts 1 to 4 and 6, the most important first. Part 5 is a process of its own between "reference" and "rest"."""
    found: list[Item] = []

    def add(part: int, needs: float, name: str, job: Callable, *args, group: str = "rest") -> None:
        found.append(Item(part, name, functools.partial(job, *args), needs, group))

    for (family, seconds), eager, graphed in zip(LENGTHS, (6, 3, 3), (1, 2, 4), strict=True):
        add(2, eager, f"sampling, {family} {seconds} s, fp16, eager", sampling, family, seconds, "fp16", "eager", group="main")
        add(2, graphed, f"sampling, {family} {seconds} s, fp16, graphed", sampling, family, seconds, "fp16", "graphed", group="main")
        add(2, 2, f"decode, {family} {seconds} s, fp16", decoding, family, seconds, ("fp16",), group="main")
    for family, seconds in LENGTHS:
        add(3, 3, f"floor, {family} {seconds} s", floors, family, seconds, "fp16", group="main")
        add(3, 1, f"kernels of a step, {family} {seconds} s", step_kernels, family, seconds, "fp16", group="main")
    add(4, 6, "memory, medium 380 s, fp16", memory, "medium", 380, "fp16", group="main")
    group = "main" if reference is None else "reference"
    for (family, seconds), needs in zip(LENGTHS, (14, 13, 25), strict=True):
        needs *= reference is not None
        add(2, needs, f"reference, {family} {seconds} s", sampling_by_reference, reference, family, seconds, group=group)
    for variant, needs in zip(VARIANTS, (10, 9, 2, 2), strict=True):
        add(1, needs, f"recorded cases, {variant}", recorded, variant)
    add(6, 10, "LoRA, constant and scheduled", lora)
    add(6, 5, "batch of 8", batches)
    add(6, 13, "training step", training)
    add(6, 6, "resumed training", resumed)
    add(4, 2, "memory, small 30 s, fp16", memory, "small", 30, "fp16")
    add(1, 4, "precision, text encoder", precision_of_text)
    add(1, 6, "precision, small", precision_of_random, "small", 30)
    add(1, 10, "precision, medium", precision_of_random, "medium", 120)
    for name in DEMOS:
        add(1, 5, f"precision, {name}", precision_of_demo, name)
    add(1, 2, SOFTMAXES, differences)
    for family, seconds in LENGTHS[:2]:
        add(3, 1, f"kernels of a decode, {family} {seconds} s", decode_kernels, family, seconds)
        add(2, 3, f"decode, {family} {seconds} s, fp32 and bf16", decoding, family, seconds, ("fp32", "bf16"))
    add(2, 2, "sampling, small 30 s, fp32, eager", sampling, "small", 30, "fp32", "eager")
    add(2, 3, "sampling, medium 120 s, bf16, eager", sampling, "medium", 120, "bf16", "eager")
    add(2, 2, "draws", draws)
    add(2, 30, "sampling, medium 120 s, fp16, compiled", sampling, "medium", 120, "fp16", "compiled")
    return found


# part 1


@contextmanager
def tiny_release(variant: str) -> Iterator[Path]:
    """A recorded tiny model laid out as a release."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path) / variant
        shutil.copytree(DATA / "t5gemma-b-b-ul2", folder / "t5gemma-b-b-ul2")
        shutil.copyfile(DATA / variant / "model_config.json", folder / "model_config.json")
        shutil.copyfile(DATA / variant.removesuffix("-base") / "model.safetensors", folder / "model.safetensors")
        yield folder


def recorded(variant: str, lab: Lab) -> Rows:
    """Largest error of each kind of recorded case, by number format."""
    golden = golden_tensors(variant)
    cases = json.loads((DATA / "index.json").read_text(encoding="utf-8"))[variant]
    worst: dict[str, dict[str, float]] = {}
    with tiny_release(variant) as folder, tf32(False, False):
        for dtype in ("fp32", *HALVES):
            model = load(folder, device=lab.device, dtype=DTYPES[dtype])
            for kind, found, wanted in recorded_results(lab, model, golden, cases, variant in ("small", "medium")):
                errors = worst.setdefault(kind, {"model": variant, "": kind})
                errors[dtype] = max(errors.get(dtype, 0.0), relative(found.float().cpu(), wanted.float()))
    for errors in worst.values():
        yield RECORDED, errors


def recorded_results(lab: Lab, model: Model, golden: dict, cases: dict, autoencoder: bool) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(kind, result, recorded result) of all cases of a variant."""
    text = model.encode_text(cases["prompts"])
    yield "prompt embeddings", text.embeddings, golden["cond.prompt.embeds"]
    condition = model.condition(text, cases["seconds"])
    yield "conditioning", condition.cross_attn, golden["cond.cross_attn"]
    yield "conditioning", condition.global_cond, golden["cond.global"]
    given = {
        name: golden[f"dit.{name}"].to(lab.device, model.dtype) for name in ("cross_attn", "global", "local_add", "negative_cross_attn")
    }
    x, t, mask = golden["dit.x"].to(lab.device), golden["dit.t"], golden["dit.padding_mask"].bool()
    forward = functools.partial(model.velocity, x, t, given["cross_attn"], given["global"])
    yield "velocity", forward(local_add=given["local_add"]), golden["dit.v"]
    yield "velocity", forward(), golden["dit.v.no_local"]
    padded = forward(local_add=given["local_add"], padding_mask=mask)
    yield "velocity", padded.cpu() * mask[:, None], golden["dit.v.padded"] * mask[:, None]
    for case, options in GUIDANCE.items():
        more, valid = dict(options), torch.ones(1)
        if case.endswith("padded"):
            more["padding_mask"], valid = mask, mask[:, None]
        if case.endswith("neg"):
            more["negative_cross_attn"] = given["negative_cross_attn"]
        yield "guidance", forward(local_add=given["local_add"], cfg=4.0, **more).cpu() * valid, golden[f"dit.v.{case}"] * valid
    for case, (direction, source, options) in SAME.items() if autoencoder else ():
        if lab.tiny and "long" in case:  # a CPU is slow in 16 bits
            continue
        out = getattr(model, direction)(golden[f"same.{source}"].float(), **options)
        yield f"SAME, {direction}", out[..., ::37] if case.startswith("decode_long") else out, golden[f"same.{case}"]
    runs = list(cases["cases"].items())
    for key, case in runs if model.dtype == torch.float32 and not lab.tiny else runs[:2]:  # in 16 bits they take too long
        z = model.generate(**run_arguments(case, key, golden, model.config.schedule)).latents.cpu()
        for i, valid in enumerate(case["valid_lengths"]):
            yield "whole run, latents", z[i, :, :valid], golden[f"{key}.latents"][i, :, :valid]


def precision_of_demo(name: str, lab: Lab) -> Rows:
    """Every part of a trained demo in 16 bits against float32."""
    if not (DEMOS[name] / "model.safetensors").is_file():
        raise Skipped("the demo is not in assets/")
    seconds, steps = (0.5, 2) if lab.tiny else (4.0, 16)
    job = precision.Job(precision.PROMPTS["demo"], seconds, steps, padding=0.0 if lab.tiny else timeline.PADDING_SECONDS)

    def make(dtype: str) -> tuple[Model, tuple]:
        model = load(name, device=lab.device, dtype=DTYPES[dtype])
        return model, precision.rows_of(model, job.prompt)

    yield from compared(lab, f"{name}, trained, {seconds:g} s", make, job)


def precision_of_random(family: str, seconds: float, lab: Lab) -> Rows:
    """The same for a real-size model with random weights; both sides get the same embeddings."""
    case = lab.case(family, seconds)

    def make(dtype: str) -> tuple[Model, tuple]:
        model = lab.model(family, dtype)
        dim = model.config.conditioning.cond_dim
        mask = torch.ones(1, PROMPT_TOKENS, dtype=torch.bool)
        return model, (lab.randn(1, PROMPT_TOKENS, dim, seed=5), mask, torch.zeros(1, PROMPT_TOKENS, dtype=torch.long))

    yield from compared(lab, f"{case}, random", make, precision.Job("x", case.seconds, None, padding=case.padding))


def compared(lab: Lab, subject: str, make: Callable[[str], tuple[Model, tuple]], job: precision.Job) -> Rows:
    """make(dtype) -> a model, and the embeddings, mask and ids of the prompt."""
    with tf32(False, False):
        exact, (rows, mask, ids) = make("fp32")
        latents = precision.run(exact, job, rows, mask, ids)
        x = lab.randn(*latents.shape, seed=job.seed)
        velocities = precision.velocities(exact, x, rows, mask, job.seconds)
        audio = decode(exact.autoencoder, latents).float()
        sound = audio[..., : int(job.seconds * exact.config.sample_rate)]
        sound = sound / sound.abs().max()
        encoded = exact.encode(sound, 128)
    found: dict[str, dict] = {}

    def add(dtype: str, what: str, value: str) -> None:
        found.setdefault(what, {"model": subject, "": what})[dtype] = value

    def both(a: Tensor, b: Tensor) -> str:
        return precision.both(a.float().cpu(), b.float().cpu())

    for dtype in HALVES:
        model, (own, *_) = make(dtype)
        if model.text_encoder is not None:
            add(dtype, "text encoder: embeddings", both(own, rows))
        add(dtype, "transformer: one forward", both(precision.velocities(model, x, rows, mask, job.seconds), velocities))
        add(dtype, "SAME: encode", both(model.encode(sound, 128), encoded))
        add(dtype, "SAME: decode of the same latents", f"{snr(model.decode(latents, 128).float(), audio):.1f} dB")
        with_dit = precision.run(model, job, rows, mask, ids)
        everything = precision.run(model, job, own, mask, ids)
        add(dtype, "run, transformer in 16 bits: latents", both(with_dit, latents))
        add(dtype, "run, all in 16 bits: latents", both(everything, latents))
        with tf32(False, False):
            heard = exact.decode(with_dit, 128).float()
        add(dtype, "run, transformer in 16 bits: sound", f"{snr(heard, audio):.1f} dB")
        add(dtype, "run, all in 16 bits: sound", f"{snr(model.decode(everything, 128).float(), audio):.1f} dB")
    for row in found.values():
        yield PRECISION, row


def random_text_encoder(lab: Lab, dtype: str) -> TextEncoder:
    """T5Gemma's encoder at its real size, random weights, bytes as tokens; the recorded tiny one's config in tiny mode."""
    from tokenizers import Tokenizer

    values = json.loads((DATA / "t5gemma-b-b-ul2" / "config.json").read_text()) if lab.tiny else text_encoder_shapes()[0]
    config = config_from(values)
    model = empty_model(config)
    state = {name: torch.empty(tensor.shape, device=lab.device, dtype=DTYPES[dtype]) for name, tensor in model.state_dict().items()}
    fill(state.items(), lab.device)
    model.load_state_dict(state, strict=True, assign=True)
    return TextEncoder(model.to(lab.device), Tokenizer.from_str(json.dumps(tokenizer())), config.encoder)


def precision_of_text(lab: Lab) -> Rows:
    """Embeddings of the text encoder at its real size, and the time of a prompt."""
    errors, times, exact = {}, {}, None
    for dtype in ("fp32", *HALVES):
        encoder = random_text_encoder(lab, dtype)
        tokens = encoder.tokenize([precision.PROMPT], 256)
        tokens.ids.clamp_(max=encoder.config.vocab_size - 1)
        with tf32(False, False):
            out = encoder(tokens).float().cpu()
            times[dtype] = lab.ms(lambda encoder=encoder, tokens=tokens: encoder(tokens), 5)
        exact = out if exact is None else exact
        errors[dtype] = precision.both(out, exact)
    subject = f"text encoder, random, {int(tokens.mask.sum())} tokens"
    yield PRECISION, {"model": subject, "": "embeddings", **{dtype: errors[dtype] for dtype in HALVES}}
    yield PRECISION, {"model": subject, "": f"time; fp32 {times['fp32']:.1f} ms", **{dtype: f"{times[dtype]:.1f} ms" for dtype in HALVES}}


def rounded_difference(dtype: torch.dtype, attention_in: str, difference_in: str) -> Callable[..., Tensor]:
    """A replacement of `same.attend_difference`. attention_in, difference_in: "float32", or else `dtype`."""

    def attend_difference(q: Tensor, k: Tensor, q2: Tensor, k2: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        given = (part.float() if attention_in == "float32" else part.to(dtype) for part in (q, k, q2, k2, v))
        q1, k1, q2, k2, values = given
        first, second = attend(q1, k1, values, window=window), attend(q2, k2, values, window=window)
        out = first.float() - second.float() if difference_in == "float32" else first - second
        return out.to(v.dtype)

    return attend_difference


def sharp(lab: Lab) -> tuple[list[Tensor], int]:
    """q, k, q2, k2, v (1, H, N, 64) whose scores reach +-50 and whose two softmaxes nearly cancel, and a window: SAME-L's hard case."""
    shape = 1, 8, 1088, 64
    q, k = (5.5 * lab.randn(*shape, seed=seed).tanh() for seed in (1, 2))
    near = [x + 0.05 * lab.randn(*shape, seed=seed) for x, seed in ((q, 6), (k, 7))]
    return [q, k, *near, lab.randn(*shape, seed=3)], 17


def differences(lab: Lab) -> Rows:
    """What rounding costs in SAME's difference of two attentions: of a decode by trained weights, and where the two nearly cancel."""
    ways = (("float32", "float32"), ("16 bits", "float32"), ("16 bits", "16 bits"))
    given, window = sharp(lab)
    found = {(dtype, way): {"dtype": dtype, "attention in": way[0], "difference in": way[1]} for dtype in HALVES for way in ways}
    with tf32(False, False):
        exact = attend_difference(*given, window=window)
        for (dtype, way), row in found.items():
            rounded = rounded_difference(DTYPES[dtype], *way)(*given, window=window)
            row[SHARP] = relative(rounded.to(DTYPES[dtype]), exact)
        for name in DEMOS:
            models = {dtype: load(name, device=lab.device, dtype=DTYPES[dtype]).autoencoder for dtype in DTYPES}
            z = lab.randn(1, models["fp32"].config.latent_dim, 8 if lab.tiny else 64)
            audio = decode(models["fp32"], z)
            for (dtype, way), row in found.items():
                with patched(same_module, "attend_difference", rounded_difference(DTYPES[dtype], *way)):
                    row[f"{name}, decode, dB"] = snr(decode(models[dtype], z.to(DTYPES[dtype])).float(), audio)
    for row in found.values():
        yield DIFFERENCES, row


# part 2


def sampling(family: str, seconds: float, dtype: str, arm: str, lab: Lab) -> Rows:
    """Time of sampling. arm: "eager", "graphed" by CUDA graphs, "compiled" by torch.compile; their first run includes the preparation."""
    if arm == "graphed" and not lab.cuda:
        raise Skipped(f"CUDA graphs need a CUDA device, and this is {lab.device}")
    case = lab.case(family, seconds)
    model, row = lab.model(family, dtype), {"clip": str(case), "dtype": dtype, "arm": arm, "state": ""}

    def run() -> Tensor:
        return run_latents(model, case)

    if arm == "graphed":
        expected, graphs = run(), model.compile()
        row["first run, s"] = lab.once(run)
        row["against eager"] = relative(run(), expected)
        row["state"] = graphs.state
    elif arm == "compiled":
        expected, layers = run(), model.dit.transformer.layers
        torch._dynamo.reset()
        try:
            for layer in layers:  # one graph for all of them
                layer.compile(backend="eager" if lab.tiny else "inductor")
            row["first run, s"] = lab.once(run)
            row["against eager"] = relative(run(), expected)
            yield RUNS, {**row, **timing(lab.times(run), model.config.default_steps)}
        finally:
            for layer in layers:
                layer._compiled_call_impl = None
        return
    yield RUNS, {**row, **timing(lab.times(run), model.config.default_steps)}


def timing(times: Sequence[float], steps: int) -> dict[str, float]:
    ms = 1e3 * statistics.median(times)
    return {"ms": ms, "fastest": 1e3 * min(times), "a step, ms": ms / steps}


def draws(lab: Lab) -> Rows:
    """Host work that a fast step has to hide."""
    for case in lab.cases:
        settings = parse(lab.config(case.family))
        drawn = Draws(7, settings.same.latent_dim, timeline.lengths(settings, [case.seconds], case.padding))
        row = {"clip": str(case), "draw ms": lab.ms(drawn, 5)}
        row["to the device ms"] = lab.ms(functools.partial(to_device, drawn(), lab.device), 5)
        model, lengths = lab.model(case.family, "fp16"), timeline.lengths(settings, [case.seconds], case.padding)
        condition = model.condition(model.encode_text("x"), lengths.seconds)
        local = torch.zeros(1, settings.same.latent_dim + 1, lengths.frames, device=model.device, dtype=model.dtype)
        row["conditioner ms"] = lab.ms(lambda: model.condition(model.encode_text("x"), lengths.seconds), 5)  # noqa: B023
        prepare = functools.partial(model.dit.prepare, condition.cross_attn, condition.global_cond, local, lengths.frames, lengths.valid)
        inputs = prepare()
        features = model.dit.time_features(torch.ones(1), inputs)
        row["prepare ms"], row["adaLN values ms"] = (
            lab.ms(prepare, 5),
            lab.ms(functools.partial(model.dit.modulation_of, features, inputs), 5),
        )
        yield DRAWS, row


def decoding(family: str, seconds: float, dtypes: tuple[str, ...], lab: Lab) -> Rows:
    case = lab.case(family, seconds)
    for dtype in dtypes:
        job = functools.partial(decode, lab.same(family, dtype), lab.latents(case, dtype))
        yield DECODES, {"clip": str(case), "by": "ours", "SAME in": dtype, "ms": lab.ms(job)}


def sampling_by_reference(path: Path | None, family: str, seconds: float, lab: Lab) -> Rows:
    """The public code on the same weights, in its default number format: fp16 on a GPU, float32 elsewhere."""
    case, dtype = lab.case(family, seconds), "fp16" if lab.cuda else "fp32"
    row = {"clip": str(case), "dtype": dtype, "arm": "reference"}
    if path is None:
        raise Skipped("--reference names no checkout")
    job = lab.keep(("reference", family), lambda: reference_model(path, family, dtype, lab))
    model, steps = job.model, lab.module(family, dtype).config.default_steps
    conditioning = [{"prompt": "x", "seconds_total": case.seconds}]
    text = lab.model(family, dtype).encode_text("x")
    tensors = {**model.conditioner(conditioning, str(lab.device)), "prompt": [text.embeddings, text.mask.to(lab.device)]}

    def run() -> Tensor:
        return job.generate(
            conditioning=conditioning, conditioning_tensors=dict(tensors), duration=case.seconds, steps=steps, cfg_scale=1.0, seed=7,
            sample_size=job.model_config["sample_size"], return_latents=True, disable_tqdm=True,
        )  # fmt: skip

    row["first run, s"] = lab.once(run)
    yield RUNS, {**row, **timing(lab.times(run), steps)}
    with torch.inference_mode():
        z = run().to(next(model.pretransform.parameters()).dtype)
        first = lab.once(lambda: model.pretransform.decode(z))
        ms = lab.ms(lambda: model.pretransform.decode(z))
    yield DECODES, {"clip": str(case), "by": "reference", "SAME in": dtype, "ms": ms, "first, s": first}


def reference_model(path: Path, family: str, dtype: str, lab: Lab):
    """The public StableAudioModel with our random weights, without its text encoder."""
    sys.path.insert(0, str(path.absolute()))
    from stable_audio_3.factory import create_diffusion_cond_from_config
    from stable_audio_3.model import StableAudioModel

    config = lab.config(family)
    conditioners = config["model"]["conditioning"]["configs"]
    config["model"]["conditioning"]["configs"] = [one for one in conditioners if one["id"] != "prompt"]
    with torch.device(lab.device):
        model = create_diffusion_cond_from_config(config)
    missing, _ = model.load_state_dict(lab.module(family, dtype).state_dict(), strict=False)
    if missing := [name for name in missing if not name.endswith("inv_freq")]:
        raise RuntimeError(f"{len(missing)} tensors of the public code are not in ours, such as {missing[0]}")
    model.to(lab.device).eval().requires_grad_(False).to(DTYPES[dtype])
    model.use_lora, model.lora_names = False, []
    return StableAudioModel(model, config, str(lab.device), dtype == "fp16")


# part 3


class Operators(TorchDispatchMode):
    """Counts the operators that compute something; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not getattr(func, "is_view", False):
            self.counts[str(func)] = self.counts.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


def traced(lab: Lab, job: Callable[[], object]) -> list[dict]:
    """The kernels of one call after a warm-up, as torch's trace has them: name, dur in microseconds, cat. On a CPU: operators."""
    cpu, cuda = torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA
    if not lab.cuda:
        return trace(lab, job, cpu)
    with suppress(AssertionError):  # no profiler for the device alone
        events = trace(lab, job, cuda)
        if any(event.get("cat") == "kernel" for event in events):
            return events
    return trace(lab, job, cpu, cuda)


def trace(lab: Lab, job: Callable[[], object], *kinds: torch.profiler.ProfilerActivity) -> list[dict]:
    job()
    lab.sync()
    with torch.profiler.profile(activities=list(kinds)) as profile:
        job()
        lab.sync()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]


def kernel_rows(lab: Lab, call: str, arm: str, job: Callable[[], object], layers: int = 0) -> Rows:
    """Kernels on a GPU; elsewhere operators, whose times include those that they call. layers: of the transformer in a step."""
    events = traced(lab, job)
    kernels = [event for event in events if event.get("cat") == ("kernel" if lab.cuda else "cpu_op")]
    row = {"call": call, "arm": arm}
    if lab.cuda:
        row["kernels"], row["kernel ms"] = len(kernels), sum(event.get("dur", 0.0) for event in kernels) / 1e3
        row["copies and fills"] = sum(event.get("cat") in ("gpu_memcpy", "gpu_memset") for event in events)
    else:
        with Operators() as operators:
            job()
        row["operators"] = sum(operators.counts.values())
    if layers:
        row["per layer"] = row["kernels" if lab.cuda else "operators"] / layers
    yield KERNELS, {**row, "wall ms": lab.ms(job, 5)}
    totals: dict[str, list[float]] = {}
    for event in kernels:
        totals.setdefault(str(event.get("name")), []).append(event.get("dur", 0.0) / 1e3)
    for name, times in sorted(totals.items(), key=lambda entry: -sum(entry[1]))[:TOP]:
        yield TOPS, {"call": call, "arm": arm, "kernel": name[:100].replace("|", "/"), "count": len(times), "ms": sum(times)}


def step_kernels(family: str, seconds: float, dtype: str, lab: Lab) -> Rows:
    case = lab.case(family, seconds)
    step = lab.step(case, dtype)
    yield from kernel_rows(lab, f"step, {case}, {dtype}", "eager", step, step.dit.config.depth)


def decode_kernels(family: str, seconds: float, lab: Lab) -> Rows:
    case = lab.case(family, seconds)
    job = functools.partial(decode, lab.same(family, "fp16"), lab.latents(case, "fp16"))
    yield from kernel_rows(lab, f"decode, {case}", "SAME in fp16", job)


def products_of(step: Step) -> tuple[Callable[[], None], float]:
    """The bare matrix products of a step with the model's own weights, and their operations. Inputs rotate."""
    memory, items, jobs, operations, made = step.dit.config.memory_tokens, len(step.x), [], 0.0, {}
    for name, module in step.dit.named_modules():
        if not isinstance(module, nn.Linear) or any(part in name for part in ONCE + ONE_ROW):
            continue
        weight = module.weight
        shape = (items * (step.inputs.rows - (memory if "project_" in name else 0)), weight.shape[1])
        if shape not in made:
            made[shape] = [torch.randn(shape, device=weight.device).to(weight.dtype) for _ in range(3)]
        jobs.append((made[shape][len(jobs) % 3], weight.T))
        operations += 2.0 * shape[0] * weight.numel()

    def products() -> None:
        for x, weight in jobs:
            torch.mm(x, weight)

    return products, operations


def attention_of(step: Step) -> tuple[Callable[[], None], float]:
    """The bare attention calls of a step at their shapes, and their operations."""
    config, items = step.dit.config, len(step.x)
    n, calls = len(step.inputs.rotary[0]), 2 if config.differential else 1
    context, like = step.inputs.cross_attn.shape[1], step.inputs.cross_attn

    def heads(rows: int) -> Tensor:
        return torch.randn(items, config.heads, rows, config.head_dim, device=like.device).to(like.dtype)

    sets = [(heads(n), heads(n), heads(n), heads(step.inputs.rows), heads(context), heads(context)) for _ in range(3)]

    def attention() -> None:
        for layer in range(config.depth):
            q, k, v, q_cross, k_cross, v_cross = sets[layer % 3]
            for _ in range(calls):
                F.scaled_dot_product_attention(q, k, v)
                F.scaled_dot_product_attention(q_cross, k_cross, v_cross)

    one = 4.0 * items * config.width * (n * n + step.inputs.rows * context)
    return attention, one * calls * config.depth


def floor_of(lab: Lab, step: Step) -> dict[str, float]:
    """Milliseconds of the products and of attention, and the rates."""
    products, product_operations = products_of(step)
    attention, attention_operations = attention_of(step)
    ms = lab.kernel_ms(products, 3), lab.kernel_ms(attention, 3)
    return {
        "products ms": ms[0], "attention ms": ms[1], "floor ms": sum(ms), "products TFLOP/s": product_operations / ms[0] / 1e9,
        "attention TFLOP/s": attention_operations / ms[1] / 1e9,
    }  # fmt: skip


def floors(family: str, seconds: float, dtype: str, lab: Lab) -> Rows:
    case = lab.case(family, seconds)
    step = lab.step(case, dtype)
    row = {"step": f"{case}, {dtype}", **floor_of(lab, step), "eager ms": lab.ms(step, 5)}
    if lab.cuda:
        row["graph ms"] = lab.ms(lab.capture(step.evaluation())[0].replay, 9)
    yield FLOORS, {**row, **{f"{way} over floor": row[f"{way} ms"] / row["floor ms"] for way in ("eager", "graph") if f"{way} ms" in row}}


# part 4


def size(module: nn.Module, width: int | None = None) -> float:
    """Megabytes of the parameters, in their own format or `width` bytes each."""
    return sum(p.numel() * (width or p.element_size()) for p in module.parameters()) / 1e6


def memory(family: str, seconds: float, dtype: str, lab: Lab) -> Rows:
    """Peaks of sampling and decoding with only the named weights on the device; the text encoder is not there."""
    lab.clear()
    case, module = lab.case(family, seconds), lab.new_module(family, dtype)
    model, same = RandomModel(module.config, module, None, "random"), module.autoencoder
    z, head = lab.latents(case, dtype), {"clip": str(case), "dtype": dtype}
    transformer = size(module) - size(same)
    yield MEMORY, {**head, "what": f"weights: transformer {transformer:.0f}, SAME {size(same):.0f} ({size(same, 4):.0f} in fp32)"}
    yield MEMORY, {**head, "what": "sampling, all weights resident", **lab.memory(lambda: run_latents(model, case))}
    yield MEMORY, {**head, "what": "decode, all weights resident", **lab.memory(lambda: decode(same, z))}
    same.encoder = same.decoder = nn.Identity()
    yield MEMORY, {**head, "what": "sampling, transformer and conditioner resident", **lab.memory(lambda: run_latents(model, case))}
    module = model = same = None
    lab.clear()
    same = lab.new_module(family, dtype).autoencoder
    yield MEMORY, {**head, "what": "decode, SAME alone", **lab.memory(lambda: decode(same, z))}
    same = None
    lab.clear()


# part 6


def lora(lab: Lab) -> Rows:
    """A LoRA in the weights, and one that is scheduled, against the step without any."""
    for case in (lab.case("small", 30), lab.case("medium", 120)):
        model = lab.model(case.family, "fp16")
        plain = lab.ms(step_of(model, case), 7)
        for kind in ("lora", "dora-rows"):
            row = lora_benchmark.random_lora(model.module, kind, 16)
            found = {"model": f"{case}, fp16", "kind": f"{kind}, rank 16", "plain step ms": plain}
            found["apply ms"] = 1e3 * lab.once(functools.partial(model._apply, Stack((row,))))
            found["step ms, constant"] = lab.ms(step_of(model, case), 7)
            found["remove ms"] = 1e3 * lab.once(model.remove_loras)
            step = step_of(model, case)
            stack = Stack((lora_benchmark.random_lora(model.module, kind, 16, curve=(1.0, 1.0)),))
            job = functools.partial(stack.velocity, step.dit, step.x, step.t, step.inputs)
            found["first scheduled ms"] = 1e3 * lab.once(job)
            found["step ms, scheduled"] = lab.ms(job, 7)

            def new_state(step: Step = step, job: Callable = job) -> None:
                step.inputs.cache.adapted.clear()
                job()

            found["step ms, another state"] = lab.ms(new_state)
            yield LORA, {**found, "scheduled over plain": found["step ms, scheduled"] / plain}


def batches(lab: Lab) -> Rows:
    model = lab.model("small", "fp16")
    alone, together = (lab.case("small", 30, n) for n in (1, 8))
    steps = [lab.ms(step_of(model, case), 7) for case in (alone, together)]
    runs = [lab.ms(functools.partial(run_latents, model, case), 2) for case in (alone, together)]
    yield BATCHES, {
        "clip": f"{alone}, fp16", "step ms, 1": steps[0], "step ms, 8": steps[1], "step, 8 over 1": steps[1] / steps[0],
        "sampling ms, 1": runs[0], "sampling ms, 8": runs[1], "sampling, 8 over 1": runs[1] / runs[0],
    }  # fmt: skip


def flow_loss(lab: Lab, net: nn.Module, adapters: Adapters, seconds: float, checkpointing: bool = False) -> Callable:
    """The loss of LoRA training on random latents."""
    config = net.config
    frames = max(8, round(seconds * config.sample_rate / config.same.samples_per_frame))
    rows = lab.randn(1, config.conditioning.max_tokens, config.conditioning.cond_dim, dtype=next(net.parameters()).dtype)
    z = lab.randn(1, config.dit.io_channels, frames, seed=2)

    def batch(generator: torch.Generator) -> flow.Batch:
        condition = net.conditioner(rows, torch.ones(rows.shape[:2]).bool(), [seconds], adapters=adapters.now())
        return flow.Batch(z, [frames], condition)

    net.dit.gradient_checkpointing = checkpointing
    return flow.training_loss(net, batch, config.sample_rate / config.same.samples_per_frame)


@torch.enable_grad()
def trained(lab: Lab, family: str, dtype: str, checkpointing: bool) -> dict:
    """Time and memory of a training step, as `train_step.py` has it."""
    case, net = lab.case(family, 30), lab.new_module(family, dtype)
    net.pretransform = None  # the autoencoder takes no part
    adapters = Adapters(net, "dora-rows", 16)
    optimizer = torch.optim.AdamW(list(adapters.trained().values()), lr=1e-4)
    loss = flow_loss(lab, net, adapters, case.seconds, checkpointing)

    def train() -> None:
        value = loss(0, torch.Generator().manual_seed(0))["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if not bool(torch.isfinite(value)):
            raise RuntimeError(f"the loss became {float(value)}")

    train()
    found = {"model": f"{case}, {dtype}", "adapters": "dora-rows, rank 16", "checkpointing": str(checkpointing)}
    return {**found, "ms": lab.ms(train, 2, 0), "base MB": size(net), **lab.memory(train)}


def training(lab: Lab) -> Rows:
    lab.clear()
    for family, dtype, checkpointing in (("small-base", "bf16", False), ("small-base", "bf16", True), ("medium-base", "bf16", False)):
        yield TRAINING, trained(lab, family, dtype, checkpointing)


class Stop(Exception):
    """Ends a training run between two steps."""


def resumed(lab: Lab) -> Rows:
    """A run of 4 steps that is stopped after 2 and resumed, against one that is not; with and without averaged weights."""
    net = lab.new_module("small-base", "bf16")
    net.pretransform = None

    def run(folder: Path, ema: float, on_step: Callable | None = None) -> dict[str, Tensor]:
        adapters = Adapters(net, "lora", 4, include=("layers.0.",))
        inner = flow_loss(lab, net, adapters, lab.case("small-base", 10).seconds)

        def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {"loss": inner(step, generator)["loss"]}

        settings = Settings(4, 1e-3, warmup=0, ema=ema, record_every=10, save_every=10, seed=1)
        trainer = EMATrainer(adapters.trained(), settings, folder)
        trainer.run(loss, on_step=on_step)
        return {name: p.detach().clone() for name, p in trainer.averaged().items()}

    def stop(step: int, terms: dict) -> None:
        if step == 2:
            raise Stop

    for ema in (0.0, 0.999):
        row = {"averaging": ema}
        with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
            whole, again = run(Path(folder) / "whole", ema), run(Path(folder) / "again", ema)
            with suppress(Stop):
                run(Path(folder) / "stopped", ema, stop)
            row["two whole runs"] = agreement(again, whole)
            try:
                row["resumed"] = agreement(run(Path(folder) / "stopped", ema), whole)
            except Exception as error:  # this is what the row reports
                row["resumed"] = short(error)
        yield RESUME, row


def agreement(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    if all(torch.equal(found[name], value) for name, value in wanted.items()):
        return "the same bytes"
    return f"relative error {max(relative(found[name], value) for name, value in wanted.items() if bool(value.any())):.1e}"
