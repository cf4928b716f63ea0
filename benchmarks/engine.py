"""One side of a comparison in a process of its own, which loads once and then runs when it is told: lines of JSON in and out.

run.py starts one for each column of its table. They take turns step by step: each rests while the others compute theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import sa3_core
from benchmarks.measure import Peak, timed
from benchmarks.reference import Reference
from sa3_core import config as configs
from sa3_core import timeline
from sa3_core.backends.cpu import CPU
from sa3_core.checkpoints.tensors import DTYPES

PROMPT = "Warm analogue pads over a slow four to the floor beat, 100 BPM"
TEXT_ONLY = 900_000  # number of the first prompt that no run uses
ONCE = ("to_kv", "to_local_embed", "to_cond_embed", "to_global_embed")  # computed once per run, not in a step
ONE_ROW = ("to_timestep_embed", "global_cond_embedder")


def prompt_of(seed: int) -> str:
    """Words that were not encoded before, as many for every seed."""
    return f"{PROMPT}, take {seed:06}"


class Clock:
    """The time of one job, without that in which it rests. rest(): returns when the others had their turn."""

    def __init__(self, rest: Callable[[], None]):
        self._rest, self._since = rest, time.perf_counter()
        self.steps: list[float] = []  # seconds; the first has what comes before the steps in it
        self.total = 0.0

    def step(self, *_: object) -> None:
        """A step is over."""
        self.steps.append(self.stop())
        self._rest()
        self._since = time.perf_counter()

    def stop(self) -> float:
        seconds = time.perf_counter() - self._since
        self.total += seconds
        return seconds


class Ours:
    """A release through sa3_core."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.model = sa3_core.load(folder, dtype=dtype)
        self.text_dtype = self.model.text_encoder.model.dtype

    def text(self, seed: int) -> None:
        self.model.encode_text(prompt_of(seed))

    def run(self, seed: int, seconds: float, steps: int, batch: int, clock: Clock, stages: dict, keep: dict) -> None:
        """One whole job; what it took goes into `clock` and `stages`, its results into `keep`."""
        decode = self.model._decode

        def timed_decode(z, *args, **kwargs):
            keep.setdefault("latents", z.clone())
            start = time.perf_counter()
            audio = decode(z, *args, **kwargs)
            stages.setdefault("decode", []).append(time.perf_counter() - start)
            return audio

        self.model._decode = timed_decode
        prompts = [prompt_of(1000 * seed + i) for i in range(batch)]
        done = self.model.generate(prompts, seconds, steps=steps, seed=seed, callback=clock.step)
        del self.model._decode
        stages["decode"] = [sum(stages["decode"])]
        keep["audio"] = done.audio[0]


class Products:
    """The Linear products of one step, nothing else: plain torch, same shapes and number format, weights of its own for each layer."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.config = configs.read(folder / "model_config.json")
        self.dit, self.dtype, self.text_dtype = sa3_core.build(self.config).dit, dtype, dtype
        self.weights = {
            name: torch.empty(module.weight.shape, dtype=dtype).uniform_(-0.03, 0.03)
            for name, module in self.dit.named_modules()
            if isinstance(module, torch.nn.Linear) and not any(part in name for part in ONCE)
        }

    @torch.inference_mode()
    def run(self, seed: int, seconds: float, steps: int, batch: int, clock: Clock, stages: dict, keep: dict) -> None:
        memory = self.config.dit.memory_tokens
        rows = CPU().padded_rows(memory + max(timeline.lengths(self.config, [seconds]).valid))
        items = batch if self.config.default_cfg == 1 else 2 * batch
        inputs = {}
        for name, weight in self.weights.items():
            tokens = rows - memory if "project_" in name else rows
            shape = (items, weight.shape[1]) if any(part in name for part in ONE_ROW) else (items, tokens, weight.shape[1])
            inputs[name] = shape
        made = {shape: torch.randn(shape).to(self.dtype) for shape in set(inputs.values())}

        for _ in range(steps):
            for name, weight in self.weights.items():
                F.linear(made[inputs[name]], weight)
            clock.step()


def make(options: argparse.Namespace):
    if options.kind == "reference":
        return Reference(options.reference, options.folder, DTYPES[options.dtype])
    if options.kind == "products":
        return Products(options.folder, DTYPES[options.dtype])
    return Ours(options.folder, DTYPES[options.dtype])


def serve(options: argparse.Namespace) -> None:
    """Answer each line that says what to do with one that says how long it took."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    torch.set_num_threads(options.threads)

    def answer(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    with Peak() as peak:
        start = time.perf_counter()
        engine = make(options)
        seconds = time.perf_counter() - start
    answer(load=seconds, extra=peak.extra, text_dtype=str(engine.text_dtype).removeprefix("torch."))

    def rest() -> None:
        answer(resting=True)
        sys.stdin.readline()

    for line in iter(sys.stdin.readline, ""):
        answer(**work(engine, rest, **json.loads(line)))


def work(engine, rest: Callable[[], None], seed: int, seconds: float, steps: int, batch: int = 1, save: str | None = None) -> dict:
    """One job: seconds of its stages, and the most memory that it took."""
    stages, keep = {}, {}
    if hasattr(engine, "text"):
        stages["text encode"] = [timed(lambda: engine.text(TEXT_ONLY + seed))]
    with Peak() as peak:

        def rest_unwatched() -> None:
            with peak.paused():
                rest()

        clock = Clock(rest_unwatched)
        engine.run(seed, seconds, steps, batch, clock, stages, keep)
        clock.stop()
    stages["step"] = clock.steps[1:]
    if "decode" in stages:
        stages["whole run"] = [clock.total]
    if keep and save:
        save_file({name: tensor.float().contiguous() for name, tensor in keep.items()}, save)
    return {"stages": stages, "extra": peak.extra}


class Engine:
    """The parent's side: a process that has loaded when this is made."""

    def __init__(self, kind: str, folder: Path, dtype: str, threads: int, reference: Path | None = None):
        self.kind, self.dtype = kind, dtype
        command = [sys.executable, __file__, "--kind", kind, "--folder", str(folder), "--dtype", dtype, "--threads", str(threads)]
        command += ["--reference", str(reference)] if reference else []
        environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        loaded = self._answer()
        self.text_dtype = loaded["text_dtype"]
        self.stages: dict[str, list[float]] = {"load": [loaded["load"]]}  # seconds
        self.last: dict[str, list[float]] = {}  # those of the latest job
        self.peaks = {"load": loaded["extra"], "whole run": 0}  # bytes

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()

    def run(self, count: bool = True, **job) -> Iterator[None]:
        """One job (seed, seconds, steps, batch, save), a step with each `next`. Its stages are added to those before, if they count."""
        answer = self._ask(json.dumps(job))
        while "resting" in answer:
            yield
            answer = self._ask("")
        self.last = answer["stages"]
        for stage, times in self.last.items() if count else ():
            self.stages.setdefault(stage, []).extend(times)
        self.peaks["whole run"] = max(self.peaks["whole run"], answer["extra"] if count else 0)

    def _ask(self, line: str) -> dict:
        with suppress(BrokenPipeError):  # what became of it is told below
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            words = "its own words are above. Each column holds a model: where memory was short (-9), ask for fewer."
            sys.exit(f"The process of '{self.kind}' in {self.dtype} ended with {self._process.wait()}; {words}")
        return json.loads(line)


def take_turns(jobs: Sequence[Iterator[None]]) -> None:
    """All to their ends, a step of each before the next of any: what slows the machine for a while slows them alike."""
    going = list(jobs)
    while going:
        going = [job for job in going if next(job, job) is not job]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["ours", "reference", "products"], required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--reference", type=Path)
    serve(parser.parse_args())


if __name__ == "__main__":
    main()
