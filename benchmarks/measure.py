"""What the benchmarks share: the clock, the peak of memory, the machine in a line, how far two tensors are apart."""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import Tensor

INTERVAL = 0.01  # seconds between two looks at the process


class Peak:
    """The most anonymous memory of a process in a block, above what it held when the block began; bytes. Linux only."""

    def __init__(self, pid: int | None = None) -> None:
        self._status = Path(f"/proc/{pid or os.getpid()}/status")
        self._over, self._going = threading.Event(), threading.Event()
        self._going.set()
        self.extra = 0

    def __enter__(self) -> Peak:
        self._start = self._now()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is looked at: the process rests, and others are timed."""
        self._going.clear()
        try:
            yield
        finally:
            self._going.set()

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self._going.wait()
            self.extra = max(self.extra, self._now() - self._start)

    def _now(self) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


def timed(job: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def hardware() -> str:
    """Processor, cores, instruction set, memory, load, torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    flags = next((line for line in lines if line.startswith("flags")), "")
    extra = {"avx512_bf16": "bf16", "amx_tile": "AMX"}
    units = [torch.backends.cpu.get_cpu_capability(), *(name for flag, name in extra.items() if flag in flags)]
    size = psutil.virtual_memory().total / 2**30
    return f"{name}, {os.cpu_count()} cores ({' + '.join(units)}), {size:.0f} GB, load average {os.getloadavg()[0]:.1f} before"


def cell(times: Sequence[float], extra: int = 0) -> str:
    """`1.23 s (1.20), +567 MB`: the median, the fastest of several, the memory where it was watched."""
    if not times:
        return ""
    digits = 2 if statistics.median(times) >= 0.1 else 4
    fastest = f" ({min(times):.{digits}f})" if len(times) > 1 else ""
    return f"{statistics.median(times):.{digits}f} s{fastest}" + (f", +{extra / 1e6:,.0f} MB" if extra else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown: the first column is words, the others figures."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||"""
    return float((a.double() - b.double()).norm() / b.double().norm())


def snr(a: Tensor, b: Tensor) -> float:
    """dB of b above the difference; infinite for equal tensors."""
    error = relative(a, b)
    return math.inf if error == 0 else -20 * math.log10(error)
