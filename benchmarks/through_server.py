"""The shared workflow through a real ComfyUI: the first prompt loads, the later ones have other seeds and prompts."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.engine import prompt_of
from benchmarks.measure import Peak
from sa3_core.checkpoints.tensors import DTYPES
from tools.launcher.job import fill, read_graph
from tools.launcher.server import Event, Server

ROOT = Path(__file__).resolve().parent.parent
NODES = {"SA3_ModelLoader": "load", "SA3_TextEncode": "text encode", "SA3_SAMEDecode": "decode"}


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


class ServerEngine:
    """A column of the table as `engine.Engine` is one."""

    kind = "ComfyUI"

    def __init__(self, comfyui: Path, models: Path, release: str, dtype: str, threads: int):
        self.dtype, self.stages, self.peaks = dtype, {}, {"whole run": 0}
        self.core: dict[str, list[float]] = {}  # what core took for the same jobs, just before
        self.text_dtype = str(DTYPES[dtype]).removeprefix("torch.")
        self._graph = read_graph(ROOT / "workflows" / "api" / "text_to_audio.json")
        loader = next(node for node in self._graph.values() if node["class_type"] == "SA3_ModelLoader")
        loader["inputs"] |= {"model": release, "dtype": dtype}
        self._stack = ExitStack()
        base = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        before = set(psutil.Process().children())
        self._server = self._stack.enter_context(Server(comfyui, base, packs=[ROOT], models=[models], environ=environ))
        (self._process,) = set(psutil.Process().children()) - before

    def __enter__(self) -> ServerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_core(self, stages: dict[str, list[float]]) -> None:
        for stage, times in stages.items():
            self.core.setdefault(stage, []).extend(times)

    def run(self, seed: int, seconds: float, steps: int, count: bool = True, **job) -> Iterator[None]:
        """One prompt, in one turn. Without `count` it is the first: its load is kept, the rest only warms up."""
        values = {"duration": seconds, "seed": seed, "steps": steps, "prompt": prompt_of(1000 * seed)}
        clock = Clock(fill(self._graph, values))
        with Peak(self._process.pid) as peak:
            self._server.wait(self._server.queue(clock.graph), clock)
        stages = clock.stages()
        if not count:
            self.stages |= {"load": stages["load"], "first run": [clock.total]}
            self.peaks["first run"] = peak.extra
            return
        for stage, times in (stages | {"whole run": [clock.total]}).items():
            self.stages.setdefault(stage, []).extend(times)
        self.peaks["whole run"] = max(self.peaks["whole run"], peak.extra)
        yield from ()
