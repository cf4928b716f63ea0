"""The transformer's step as a CUDA graph: captured once per shape, then replayed without launching each kernel.

A graph contains addresses. Inputs are copied into its own buffers; weights are read in place, so their addresses are in its cache key.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..models.conditions import Conditions, LocalInput, StepCache
from ..models.dit import DiT

log = logging.getLogger("sa3")
SCHEDULED = "a LoRA is scheduled over the run (one of interval 0 to 1 is recorded)"
MAX_GRAPHS = 4  # shapes; their activations share one memory pool


class Graphs:
    """Captured steps of any number of models, on CUDA devices (ROCm's included). What cannot be captured is computed eagerly.

    obstacle(dit): why the host's transformer must be computed eagerly at present, or ""; called when a run begins to use a graph.
    """

    def __init__(self, obstacle: Callable[[DiT], str] = lambda dit: ""):
        self._steps: OrderedDict[tuple, CapturedStep] = OrderedDict()
        self._pool = None
        self._obstacle = obstacle
        self._failure = ""  # reason of the latest failed capture
        self._running = False
        # of the current run, or of the latest one
        self._used = False
        self._reasons: dict[str, None] = {}

    @contextmanager
    def run(self) -> Iterator[None]:
        """Context of one run; a nested one belongs to the outer run."""
        if self._running:
            yield
            return
        self._used, self._reasons, self._running = False, {}, True
        try:
            yield
        finally:
            self._running = False

    @property
    def reason(self) -> str:
        """Why the latest run, or a part of it, was computed eagerly; "" if nothing was."""
        return "; ".join(self._reasons)

    @property
    def state(self) -> str:
        """How the latest run was computed, in words."""
        if self._reasons:
            return f"{'partly' if self._used else 'not'} graphed: {self.reason}"
        return "graphed" if self._used else "not used yet"

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """`dit(x, t, conditions)`."""
        step = next((step for step in self._steps.values() if step.holds(dit, conditions) and step.x.shape == x.shape), None)
        if step is None:
            if reason := self._failure or self._obstacle(dit) or (SCHEDULED if conditions.adapters else self._unusable(x)):
                self._reasons[reason] = None
                return dit(x, t, conditions)
            step = self._captured(cache_key(dit, x, conditions))
        if step is None:
            out = dit(x, t, conditions)  # also warms up cuBLAS and the allocator for the capture
            self._capture(dit, x, t, conditions)
            return out
        self._used = True
        return step(x, dit.time_features(t, conditions), conditions)

    @staticmethod
    def _unusable(x: Tensor) -> str:
        """Why a step with this input cannot be captured, or ""."""
        if x.device.type != "cuda":
            return f"they are for CUDA devices, and this model computes on {x.device}, where compiling has no effect (leave it out)"
        return "gradients are enabled" if torch.is_grad_enabled() else ""

    def _captured(self, key: tuple) -> "CapturedStep | None":
        if key in self._steps:
            self._steps.move_to_end(key)
        return self._steps.get(key)

    def _capture(self, dit: DiT, x: Tensor, t: Tensor, conditions: Conditions) -> None:
        """Add a captured step. After a failure, runs are eager and report why."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            self._steps[cache_key(dit, x, conditions)] = CapturedStep(dit, x, dit.time_features(t, conditions), conditions, self._pool)
        except torch.OutOfMemoryError:
            self.clear()  # eager execution had enough memory
            self._reasons["there is not enough memory for a recording"] = None
        except Exception as error:  # of torch, or of Triton's compiler
            self.clear()
            self._failure = f"the recording failed ({(str(error) or type(error).__name__).splitlines()[0][:120]})"
            log.warning("The step could not be recorded as a CUDA graph: %s", error)
        while len(self._steps) > MAX_GRAPHS:
            self._steps.popitem(last=False)

    def clear(self) -> None:
        """Discard all graphs and their memory."""
        self._steps.clear()
        self._pool = None


class CapturedStep:
    """Velocity (B, C, T) of x (B, C, T) at times with features (B, 256), for conditions of one set of shapes."""

    def __init__(self, dit: DiT, x: Tensor, features: Tensor, conditions: Conditions, pool):
        self.x, self.features, self._out = x.clone(), features.clone(), torch.empty_like(x)
        self._conditions = with_tensors(conditions, [part.clone() for part in tensors_of(conditions)])
        self._dit, self._loaded = weakref.ref(dit), weakref.ref(conditions)

        def compute() -> None:
            # the output buffer is allocated outside: tensors allocated during the capture belong to the graph
            self._out.copy_(dit.step(self.x, dit.modulation_of(self.features, self._conditions), self._conditions))

        self._replay = capture(compute, x.device, pool)

    def holds(self, dit: DiT, conditions: Conditions) -> bool:
        """Whether it is a step of this network, and its buffers contain these conditions."""
        return self._dit() is dit and self._loaded() is conditions

    def __call__(self, x: Tensor, features: Tensor, conditions: Conditions) -> Tensor:
        self.x.copy_(x)
        self.features.copy_(features)
        if self._loaded() is not conditions:
            torch._foreach_copy_(tensors_of(self._conditions), tensors_of(conditions))
            self._loaded = weakref.ref(conditions)
        self._replay()
        return self._out.clone()


def capture(function: Callable[[], None], device: torch.device, pool) -> Callable[[], None]:
    """Capture the kernels of `function` as a graph; returns its replay."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # other threads may allocate meanwhile
        try:
            function()
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay


def cache_key(dit: DiT, x: Tensor, conditions: Conditions) -> tuple:
    """The shapes, dtypes and weight addresses that a graph depends on."""
    c, shapes = conditions, tuple((part.shape, part.dtype) for part in tensors_of(conditions))
    weights = tuple(part.data_ptr() for part in (*dit.parameters(), *dit.buffers()))
    return id(dit), x.shape, x.dtype, x.device, c.frames, c.cross_bias is None, c.local is None, shapes, weights


def tensors_of(conditions: Conditions) -> list[Tensor]:
    """The tensors that a step reads."""
    c = conditions
    tensors = [part for layer in c.cross_kv for part in layer] + ([] if c.local is None else c.local.embeddings)
    return [*tensors, c.global_embed, *c.rotary, *(part for part in (c.cross_bias, c.lengths) if part is not None)]


def with_tensors(conditions: Conditions, tensors: list[Tensor]) -> Conditions:
    """The conditions with other tensors, in the order of `tensors_of`."""
    c, rest = conditions, iter(tensors)
    cross_kv = [tuple(next(rest) for _ in layer) for layer in c.cross_kv]
    local = c.local and LocalInput(c.local.rows, [next(rest) for _ in c.local.embeddings])
    embed, rotary = next(rest), (next(rest), next(rest))
    bias, lengths = (None if part is None else next(rest) for part in (c.cross_bias, c.lengths))
    cache = StepCache()
    return replace(c, cross_kv=cross_kv, local=local, global_embed=embed, rotary=rotary, cross_bias=bias, lengths=lengths, cache=cache)
