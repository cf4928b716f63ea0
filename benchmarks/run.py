"""Times a real-size model stage by stage, through sa3_core and through a real ComfyUI server, and prints one table.

    python benchmarks/run.py [--release small-music] [--seconds 30] [--server]

Without --models the weights are random, made in a temporary folder and deleted afterwards: time and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import sa3_core  # noqa: E402
from benchmarks.make_release import make_release  # noqa: E402
from launcher.job import fill, read_graph  # noqa: E402
from launcher.server import Event, Server  # noqa: E402

PROMPT = "Warm analogue pads over a slow four to the floor beat, 100 BPM"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STAGES = ["load", "text encode", "step", "decode", "whole run"]
NODES = {"SA3_ModelLoader": "load", "SA3_TextEncode": "text encode", "SA3_SAMEDecode": "decode"}
Measured = dict[str, list[tuple[float, int]]]  # stage -> runs of seconds, bytes of extra peak anonymous memory


class Peak:
    """The most anonymous memory of a process in a block, above what it held when the block began."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self.extra = 0

    def __enter__(self) -> Peak:
        self._start = self._now()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.extra = max(self.extra, self._now() - self._start)

    def _now(self) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


def timed(job) -> tuple[float, int]:
    """Seconds and extra peak memory of one call."""
    with Peak(os.getpid()) as peak:
        start = time.perf_counter()
        job()
        seconds = time.perf_counter() - start
    return seconds, peak.extra


def in_process(folder: Path, options: argparse.Namespace) -> Measured:
    """The stages through sa3_core; a first short run warms up."""
    loaded = []
    stages: Measured = defaultdict(list)
    stages["load"].append(timed(lambda: loaded.append(sa3_core.load(folder, dtype=DTYPES[options.dtype]))))
    (model,) = loaded
    model.generate(PROMPT, duration=1.0, steps=1)
    for seed in range(options.repeat):
        stages["text encode"].append(timed(lambda: model.encode_text(PROMPT)))
        ticks = []
        run = timed(lambda seed=seed, ticks=ticks: sample(model, options, seed, ticks))
        stages["whole run"].append(run)
        stages["step"] += [(after - before, 0) for before, after in itertools.pairwise(ticks[:-1])]
        stages["decode"].append((ticks[-1] - ticks[-2], 0))
    return stages


def sample(model, options: argparse.Namespace, seed: int, ticks: list[float]) -> None:
    """One whole run; `ticks` gets the time after each step and at the end."""
    model.generate(PROMPT, duration=options.seconds, steps=options.steps, seed=seed, callback=lambda *_: ticks.append(time.perf_counter()))
    ticks.append(time.perf_counter())


def through_server(comfyui: Path, models: Path, options: argparse.Namespace) -> Measured:
    """The same through ComfyUI and the shared workflow: the first prompt loads, the later ones have other seeds and prompts."""
    graph = read_graph(ROOT / "workflows" / "api" / "text_to_audio.json")
    loader = next(node for node in graph.values() if node["class_type"] == "SA3_ModelLoader")
    loader["inputs"] |= {"model": options.release, "dtype": options.dtype}
    stages: Measured = defaultdict(list)
    with tempfile.TemporaryDirectory() as base, Server(comfyui, Path(base), packs=[ROOT], models=[models]) as server:
        (process,) = psutil.Process().children()
        for seed in range(options.repeat + 1):
            values = {"duration": options.seconds, "seed": seed, "steps": options.steps, "prompt": f"{PROMPT}, take {seed}"}
            clock = Clock(fill(graph, values))
            with Peak(process.pid) as peak:
                server.wait(server.queue(clock.graph), clock)
            for stage, times in clock.stages().items():
                if (seed == 0) == (stage == "load"):
                    stages[stage] += [(seconds, 0) for seconds in times]
            stages["first run" if seed == 0 else "whole run"].append((clock.total, peak.extra))
    return stages


class Clock:
    """When each node of a run began and each step ended."""

    def __init__(self, graph: dict) -> None:
        self.graph = graph
        self._seen: list[tuple[float, str, str]] = []  # when, kind of event, class of node

    def __call__(self, event: Event) -> None:
        node = self.graph.get(str(event.data.get("node")), {}).get("class_type", "")
        self._seen.append((time.perf_counter(), event.kind, node))

    @property
    def total(self) -> float:
        return self._seen[-1][0] - self._seen[0][0]

    def stages(self) -> dict[str, list[float]]:
        """Seconds of each node's stage, and of each step but the first (it waits for the weights)."""
        marks = [(when, node) for when, kind, node in self._seen if kind == "executing"] + [(self._seen[-1][0], "")]
        out = {NODES[node]: [end - start] for (start, node), (end, _) in itertools.pairwise(marks) if node in NODES}
        steps = [when for when, kind, node in self._seen if kind == "progress" and node == "SA3_Sampler"]
        return out | {"step": [after - before for before, after in itertools.pairwise(steps)]}


def hardware() -> str:
    """Processor, cores, instruction set, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    flags = next((line for line in lines if line.startswith("flags")), "")
    units = [torch.backends.cpu.get_cpu_capability(), *(["AMX"] if "amx_tile" in flags else [])]
    return f"{name}, {os.cpu_count()} cores ({' + '.join(units)}), {psutil.virtual_memory().total / 2**30:.0f} GB"


def cell(runs: list[tuple[float, int]]) -> str:
    """`1.23 s (1.20), +567 MB`: the median, the fastest of several, the most memory where it was watched."""
    if not runs:
        return ""
    times, extra = [seconds for seconds, _ in runs], max(extra for _, extra in runs)
    fastest = f" ({min(times):.2f})" if len(times) > 1 else ""
    return f"{statistics.median(times):.2f} s{fastest}" + (f", +{extra / 1e6:,.0f} MB" if extra else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="small-music", help="small-music, small-sfx, medium or one of their -base")
    parser.add_argument("--models", type=Path, help="holds checkpoints/stable-audio-3-RELEASE, as ComfyUI's models folder does")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the median is told")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--server", action="store_true", help="also through a real ComfyUI")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".run" / "comfyui", help="a ComfyUI tree (else the one run.py made)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the server
    busy = os.getloadavg()[0]
    with ExitStack() as stack:
        models = options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = models / "checkpoints" / f"stable-audio-3-{options.release}"
        if options.models is None:
            make_release(options.release, folder)
        columns = {"sa3_core": in_process(folder, options)}
        if options.server:
            columns["ComfyUI server"] = through_server(options.comfyui.expanduser().absolute(), models, options)
    weights = "random weights" if options.models is None else f"weights of {options.models}"
    print(f"{hardware()}, load average {busy:.1f} before; {options.threads} threads; torch {torch.__version__}")
    job = f"{options.release}, {options.seconds:g} s, {options.steps} steps, {options.dtype}, {weights}"
    print(f"{job}; median (fastest) of {options.repeat} runs\n")
    print("| stage | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for stage in [*STAGES, "first run"]:
        if any(stage in measured for measured in columns.values()):
            print(f"| {stage} | " + " | ".join(cell(measured.get(stage, [])) for measured in columns.values()) + " |")


if __name__ == "__main__":
    main()
