"""The transformer's step as a CUDA graph: recorded once per shape, then replayed without a launch per kernel.

A graph holds addresses. What changes from step to step and from run to run is copied into buffers of the graph's own; weights are read
where they lie, so a graph is valid as long as they stay there, which its key checks at the beginning of each run.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..models.conditions import Conditions, LocalInput, StepCache
from ..models.dit import DiT
from .accelerator import SCHEDULED, Accelerator, Outcome

log = logging.getLogger("sa3")
KEPT_GRAPHS = 4  # shapes; their activations share one pool of memory


class Graphs(Accelerator):
    """Recorded steps of any number of models, for runs on a CUDA device (ROCm's included)."""

    name, done = "CUDA graphs", "graphed"

    def __init__(self):
        super().__init__()
        self._steps: OrderedDict[tuple, Step] = OrderedDict()
        self._pool = None
        self._failed = ""  # why the last recording came to nothing

    def retry(self) -> None:
        self._failed = ""

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, inputs: Conditions) -> Tensor:
        if reason := self._failed or (SCHEDULED if inputs.adapters else self.once("unusable", lambda: self._unusable(x))):
            self.skip(reason)
            return dit(x, t, inputs)
        step = self._step(dit, x, inputs)
        if step is not None:
            self._note(Outcome.USED)
            return step(x, dit.time_features(t, inputs), inputs)
        out = dit(x, t, inputs)  # also what cuBLAS and the allocator want before a recording
        self._record(dit, x, t, inputs)
        return out

    @staticmethod
    def _unusable(x: Tensor) -> str:
        """Why these inputs cannot be recorded, or ""."""
        if x.device.type != "cuda":
            return f"they are for CUDA devices, and this model computes on {x.device}"
        if torch.is_grad_enabled():
            return "gradients are wanted"
        return ""

    def _step(self, dit: DiT, x: Tensor, inputs: Conditions) -> "Step | None":
        """The recording for these inputs, or None."""
        for step in self._steps.values():
            if step.serves(inputs) and step.x.shape == x.shape:
                return step
        key = key_of(dit, x, inputs)
        step = self._steps.get(key)
        if step is not None:
            self._steps.move_to_end(key)
        return step

    def _record(self, dit: DiT, x: Tensor, t: Tensor, inputs: Conditions) -> None:
        """Keep a recording for inputs like these. Where it cannot be made, runs go on without and say why."""
        if self._pool is None:
            self._pool = new_pool()
        try:
            self._steps[key_of(dit, x, inputs)] = Step(dit, x, dit.time_features(t, inputs), inputs, self._pool)
        except torch.OutOfMemoryError:
            self.clear()  # the run itself had room
        except RuntimeError as error:
            self.clear()
            self._failed = f"the recording failed ({str(error).splitlines()[0][:120]})"
            log.warning("The step could not be recorded as a CUDA graph: %s", error)
        while len(self._steps) > KEPT_GRAPHS:
            self._steps.popitem(last=False)

    def clear(self) -> None:
        """Discard all recordings and their memory."""
        self._steps.clear()
        self._pool = None


class Step:
    """One recording: velocity (B, C, T) of x (B, C, T) at times with features (B, 256), for a run's inputs of the same shapes."""

    def __init__(self, dit: DiT, x: Tensor, features: Tensor, inputs: Conditions, pool):
        self.x, self.features, self._out = x.clone(), features.clone(), torch.empty_like(x)
        self._inputs = with_tensors(inputs, [part.clone() for part in tensors_of(inputs)])
        self._loaded = weakref.ref(inputs)

        def compute() -> None:
            # into a tensor of our own: what is allocated while a graph is recorded belongs to the graph
            self._out.copy_(dit.step(self.x, dit.modulation_of(self.features, self._inputs), self._inputs))

        self._replay = record(compute, x.device, pool)

    def serves(self, inputs: Conditions) -> bool:
        """Whether its buffers hold these inputs already."""
        return self._loaded() is inputs

    def __call__(self, x: Tensor, features: Tensor, inputs: Conditions) -> Tensor:
        self.x.copy_(x)
        self.features.copy_(features)
        if not self.serves(inputs):
            torch._foreach_copy_(tensors_of(self._inputs), tensors_of(inputs))
            self._loaded = weakref.ref(inputs)
        self._replay()
        return self._out.clone()


def new_pool():
    return torch.cuda.graph_pool_handle()


def record(function: Callable[[], None], device: torch.device, pool) -> Callable[[], None]:
    """A function's kernels as one graph: what replays it."""
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


def key_of(dit: DiT, x: Tensor, inputs: Conditions) -> tuple:
    """What a recording depends on: shapes, types, and where the weights lie."""
    shapes = tuple((part.shape, part.dtype) for part in tensors_of(inputs))
    weights = tuple(part.data_ptr() for part in (*dit.parameters(), *dit.buffers()))
    return id(dit), x.shape, x.dtype, x.device, inputs.frames, inputs.cross_bias is None, inputs.local is None, shapes, weights


def tensors_of(inputs: Conditions) -> list[Tensor]:
    """What a step reads of a run's inputs."""
    found = [part for layer in inputs.cross_kv for part in layer]
    found += [] if inputs.local is None else inputs.local.embeddings
    return [*found, inputs.global_embed, *inputs.rotary, *(part for part in (inputs.cross_bias, inputs.key_mask) if part is not None)]


def with_tensors(inputs: Conditions, tensors: list[Tensor]) -> Conditions:
    """The inverse of `tensors_of`: the inputs of a step made of other tensors."""
    rest = iter(tensors)
    cross_kv = [tuple(next(rest) for _ in layer) for layer in inputs.cross_kv]
    local = inputs.local and LocalInput(inputs.local.rows, [next(rest) for _ in inputs.local.embeddings])
    global_embed, rotary = next(rest), (next(rest), next(rest))
    bias, mask = (None if part is None else next(rest) for part in (inputs.cross_bias, inputs.key_mask))
    return replace(
        inputs, cross_kv=cross_kv, local=local, global_embed=global_embed, rotary=rotary, cross_bias=bias, key_mask=mask, cache=StepCache(),
    )  # fmt: skip
