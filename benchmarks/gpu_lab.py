"""Shared state of the device benchmark: real-size modules with random weights, clocks, CUDA graphs, error measures."""

from __future__ import annotations

import functools
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks import measure
from benchmarks.make_release import RELEASES, SEED, draw
from sa3_core import config as configs
from sa3_core import timeline
from sa3_core.backends.device import backend_of
from sa3_core.checkpoints.tensors import DTYPES
from sa3_core.models.conditions import Conditions
from sa3_core.models.dit import DiT
from sa3_core.models.release import build
from sa3_core.models.same import SAME
from sa3_core.models.text_encoder import Text
from sa3_core.pipeline import Model

Made = TypeVar("Made")
NAMES = {"small": "small-music", "medium": "medium", "small-base": "small-music-base", "medium-base": "medium-base"}
TINY_SHARE = 180  # --tiny divides every duration by this
PROMPT_TOKENS = 24
WARM = 0.04  # seconds that a GPU works before it is timed: its clock rises from idle
GRAPHED_CALLS = 10  # calls per captured graph when kernels are timed without launch overhead


class Skipped(Exception):
    """Why an item cannot run here; reported as such, not as a failure."""


@dataclass(frozen=True)
class Case:
    """A duration of a model family, real or shortened."""

    family: str
    seconds: float
    batch: int = 1
    padding: float = timeline.PADDING_SECONDS

    def __str__(self) -> str:
        return f"{self.family} {self.seconds:.3g} s" + (f" x {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Step:
    """One evaluation of the transformer, inputs prepared."""

    dit: DiT
    x: Tensor
    t: Tensor
    inputs: Conditions

    def __call__(self) -> Tensor:
        return self.dit(self.x, self.t, self.inputs)

    def evaluation(self) -> Callable[[], Tensor]:
        """The same with cached adaLN values and without splitting of batches: what a CUDA graph can capture."""
        return functools.partial(self.dit.step, self.x, self.dit.modulation(self.t, self.inputs), self.inputs)


class RandomModel(Model):
    """A release with random weights and no text encoder: every prompt has the same cached random embeddings."""

    def encode_text(self, prompts) -> Text:
        n = 1 if isinstance(prompts, str) else len(prompts)
        text = self._text
        return Text(text.embeddings.expand(n, -1, -1), text.mask.expand(n, -1), text.input_ids.expand(n, -1))

    @functools.cached_property
    def _text(self) -> Text:
        conditioning = self.config.conditioning
        generator = torch.Generator().manual_seed(SEED)
        rows = torch.randn(1, conditioning.max_tokens, conditioning.cond_dim, generator=generator).to(self.device, self.dtype)
        mask = torch.arange(conditioning.max_tokens)[None] < PROMPT_TOKENS
        with torch.no_grad():
            return Text(self.module.conditioner.prompt(rows, mask), mask, torch.zeros_like(mask, dtype=torch.long))


class Lab:
    """Everything the measurements share. tiny: the recorded tiny configs and short clips in place of the releases."""

    def __init__(self, device: str, tiny: bool = False):
        self.device, self.tiny = torch.device(device), tiny
        self.cuda = self.device.type == "cuda"
        if tiny and not self.cuda:
            torch.set_num_threads(1)
        self.notes: list[str] = []
        self._kept: dict = {}

    # models

    def case(self, family: str, seconds: float, batch: int = 1) -> Case:
        return Case(family, seconds / TINY_SHARE, batch, 0.0) if self.tiny else Case(family, seconds, batch)

    @property
    def cases(self) -> list[Case]:
        return [self.case("small", 30), self.case("medium", 120), self.case("medium", 380)]

    def config(self, family: str) -> dict:
        path = ROOT / "tests" / "data" / family / "model_config.json" if self.tiny else RELEASES / f"{NAMES[family]}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def new_module(self, family: str, dtype: str) -> nn.Module:
        """A release built on the device, its weights drawn from a seed: the same in every number format."""
        module = build(configs.parse(self.config(family)), dtype=DTYPES[dtype]).to_empty(device=self.device)
        fill([*module.named_parameters(), *module.named_buffers()], self.device)
        return module.eval().requires_grad_(False)

    def keep(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What make() returned first, until `clear`."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def module(self, family: str, dtype: str) -> nn.Module:
        """`new_module`, cached."""
        return self.keep(("module", family, dtype), lambda: self.new_module(family, dtype))

    def model(self, family: str, dtype: str) -> RandomModel:
        module = self.module(family, dtype)
        return RandomModel(module.config, module, None, f"random {family}")

    def same(self, family: str, dtype: str) -> SAME:
        return self.module(family, dtype).autoencoder

    def clear(self) -> None:
        """Free what is cached."""
        self._kept.clear()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def step(self, case: Case, dtype: str) -> Step:
        return step_of(self.model(case.family, dtype), case)

    def latents(self, case: Case, dtype: str) -> Tensor:
        """Random latents with as many frames as the decode of the case needs."""
        config = configs.parse(self.config(case.family))
        lengths = timeline.lengths(config, [case.seconds], case.padding)
        frames = timeline.decode_frames(config, lengths, 0)
        return self.randn(1, config.same.latent_dim, frames, dtype=DTYPES[dtype])

    def randn(self, *shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers on the device, the same on every device."""
        if math.prod(shape) > 2**24:  # too many to draw on the CPU
            return torch.randn(shape, device=self.device, generator=torch.Generator(self.device).manual_seed(seed)).to(dtype)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device, dtype)

    # clocks

    def check(self) -> None:
        """Raise where the device cannot compute any more."""
        self.sync()
        torch.ones(8, device=self.device).sum().item()

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def once(self, job: Callable[[], object]) -> float:
        """Wall-clock seconds of one call, device work included."""
        self.sync()
        start = time.perf_counter()
        job()
        self.sync()
        return time.perf_counter() - start

    def times(self, job: Callable[[], object], repeat: int = 3, warm: int = 1) -> list[float]:
        self.warm(job, warm)
        return [self.once(job) for _ in range(1 if self.tiny else repeat)]

    def warm(self, job: Callable[[], object], calls: int = 1) -> None:
        """Some calls, on a GPU at least `WARM` seconds of them."""
        start = time.perf_counter()
        for _ in range(calls):
            job()
        while self.cuda and time.perf_counter() - start < WARM:
            job()
            torch.cuda.synchronize()

    def ms(self, job: Callable[[], object], repeat: int = 3, warm: int = 1) -> float:
        """Median wall-clock milliseconds of a call, launches included."""
        return 1e3 * statistics.median(self.times(job, repeat, warm))

    def kernel_ms(self, job: Callable[[], object], calls: int = GRAPHED_CALLS, repeat: int = 5) -> float:
        """Median milliseconds of a call without launch overhead: calls are captured in a CUDA graph and replayed.

        What cannot be captured is timed by events, which a note reports.
        """
        if not self.cuda:
            return self.ms(job, repeat)

        def several() -> None:
            for _ in range(calls):
                job()

        try:
            replay = self.capture(several, warm=1)[0].replay
        except Exception as error:
            self.sync()
            self.note(f"{job_name(job)} was not captured ({short(error)}); its kernels are timed with their launches.")
            replay = several
        times = []
        self.warm(replay)
        for _ in range(repeat):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / calls)
        return statistics.median(times)

    def capture(self, job: Callable[[], Tensor | None], warm: int = 3) -> tuple:
        """A CUDA graph of job() and what the call returned; elsewhere an object that calls the job again."""
        if not self.cuda:
            out = job()
            return SimpleNamespace(replay=lambda: out.copy_(job()) if isinstance(out, Tensor) else job()), out
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm):
                job()
        current = torch.cuda.current_stream()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                out = job()
        except BaseException:
            torch.cuda.set_stream(current)  # torch leaves its own where the end of a capture fails
            raise
        return graph, out

    # memory

    def memory(self, job: Callable[[], object]) -> dict[str, float]:
        """Megabytes on the device: before a call, the most allocated and reserved in it. Zeros where torch does not count."""
        if not self.cuda:
            job()
            return {"before MB": 0.0, "allocated MB": 0.0, "reserved MB": 0.0}
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        torch.cuda.synchronize()
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"before MB": before / 1e6, "allocated MB": peaks[0] / 1e6, "reserved MB": peaks[1] / 1e6}

    # words

    def note(self, words: str) -> None:
        self.notes.append(words)

    def describe(self) -> dict[str, str]:
        """Device, software and settings in words."""
        found = {"torch": torch.__version__, "Python": sys.version.split()[0], "models": "tiny" if self.tiny else "real size"}
        if not self.cuda:
            with suppress(OSError):  # it reads what only Linux tells
                found["processor"] = measure.hardware()
            return {"device": str(self.device), **found}
        properties = torch.cuda.get_device_properties(self.device)
        found |= {
            "device": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "TF32 by default": f"products {torch.backends.cuda.matmul.allow_tf32}, convolutions {torch.backends.cudnn.allow_tf32}",
        }
        with suppress(Exception):
            query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
            found["driver, clock, its maximum, power limit"] = subprocess.run(
                query, capture_output=True, text=True, timeout=20
            ).stdout.strip()
        return found


def fill(tensors: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Random values as `make_release` draws them for these names, drawn on the device."""
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad(), torch.device(device):
        for name, value in tensors:
            value.copy_(draw(name, value.shape, generator))


def step_of(model: Model, case: Case) -> Step:
    """A step of a text-to-audio run; modulation rows are cached as in the second call of a run."""
    config = model.config
    lengths = timeline.lengths(config, [case.seconds] * case.batch, case.padding)
    condition = model.condition(model.encode_text(["x"] * case.batch), lengths.seconds)
    local = torch.zeros(case.batch, config.same.latent_dim + 1, lengths.frames, device=model.device, dtype=model.dtype)
    inputs = model.dit.prepare(condition.cross_attn, condition.global_cond, local, lengths.frames, lengths.valid)
    x = torch.randn(case.batch, config.same.latent_dim, lengths.frames, generator=torch.Generator().manual_seed(3)).to(model.device)
    step = Step(model.dit, x, torch.full((case.batch,), 0.5), inputs)
    model.dit.modulation(step.t, inputs)
    return step


def run_latents(model: Model, case: Case) -> Tensor:
    """Latents of a whole run with the model's own sampler and steps."""
    given = ["x"] * case.batch, [case.seconds] * case.batch
    return model.generate(*given, seed=7, padding=case.padding, return_latents=True).latents


def decode(same: SAME, z: Tensor, chunk: int | None = 128) -> Tensor:
    """The pipeline's decode: chunks of 128 frames with 32 shared, as many in a pass as suits the memory. chunk None: a single pass."""
    memory = backend_of(z.device).memory(z.device)
    return same.decode(z, chunk, 32, at_once=same.chunks_at_once(chunk, len(z), z.dtype, memory))


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b|| in float64; infinite for another shape or values that are not finite."""
    a, b = (x.detach().cpu() if x.device.type == "mps" else x.detach() for x in (a, b))
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return math.inf
    return measure.relative(a, b)


def snr(a: Tensor, b: Tensor) -> float:
    """dB of b above the difference."""
    error = relative(a, b)
    return math.inf if error == 0 else -20 * math.log10(error) if math.isfinite(error) else -math.inf


def short(error: BaseException) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def job_name(job: Callable) -> str:
    return getattr(job, "__qualname__", type(job).__name__).replace(".<locals>", "")


@contextmanager
def tf32(products: bool, convolutions: bool) -> Iterator[None]:
    """TF32 allowed or forbidden in a block. torch's own default: False, True."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    """Another value of an attribute in a block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
