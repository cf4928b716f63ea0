"""The transformer's layers through torch.compile: one graph serves all of them, compiled in the background.

Compiled code rounds differently, so a run uses what was ready when it began, throughout; what becomes ready meanwhile is used by the
next run. Steps with adapters in the forward pass are not compiled.
"""

import copy
import functools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..models.conditions import Conditions
from ..models.dit import DiT, Layer
from .accelerator import SCHEDULED, Accelerator, Outcome

log = logging.getLogger(__name__)
# Settings of torch's compiler, where its version has them. Its default limit is eight graphs for all models and cache keys together;
# errors are raised even where another pack suppresses them, which also forbids the third.
SETTINGS = {"recompile_limit": 64, "cache_size_limit": 64, "fail_on_recompile_limit_hit": True, "suppress_errors": False}


class Compiled(Accelerator):
    """Compiled layers of any number of models. say(words): called with what a run waits for. backend: torch's.

    A graph serves all lengths. Number formats, devices, guidance and padding are part of its cache key. Torch keeps the machine code on
    disk (TORCHINDUCTOR_CACHE_DIR), so that later sessions only load it.
    """

    name, done = "torch.compile", "compiled"

    def __init__(self, say: Callable[[str], None] | None = None, backend: str = "inductor"):
        super().__init__()
        self._say, self._backend = say or (lambda words: None), backend
        self._ready: set = set()
        self._failed: dict[tuple, str] = {}  # cache key -> why
        self._worker: threading.Thread | None = None
        # of the current run, or of the last one
        self._wait = False
        self._usable: frozenset = frozenset()
        self._missing: dict = {}  # cache key -> what to compile for

    @functools.cached_property
    def _function(self) -> Callable:
        """Created on first use: torch's compiler takes a second to import."""
        return torch.compile(Layer.forward, dynamic=True, backend=self._backend)

    def _begin(self, wait: bool) -> None:
        """What is ready now is used throughout the run; what is missing is compiled after it, or before its first use where it waits.

        While something is being compiled, runs are eager.
        """
        if wait:
            self.join()
        self._wait, self._missing = wait, {}
        self._usable = frozenset() if self.busy else frozenset(self._ready)

    def _end(self, finished: bool) -> None:
        missing, self._missing = self._missing, {}
        if finished and missing and not self.busy:
            self._worker = threading.Thread(target=self._compile, args=(missing,), name="sa3-compile", daemon=True)
            self._worker.start()

    @property
    def busy(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    def join(self) -> None:
        if self._worker is not None:
            self._worker.join()

    def retry(self) -> None:
        self._failed = {}

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, inputs: Conditions) -> Tensor:
        if inputs.adapters:
            self.skip(SCHEDULED)
            return dit(x, t, inputs)
        keys: dict[int, tuple] = {}  # by the number of items: one layer's is that of all

        def run_layer(layer: Layer, *args) -> Tensor:
            items = len(args[0])
            if items not in keys:
                keys[items] = self._cache_key(layer, args)
            return (self._function if self._is_compiled(keys[items], layer, args) else Layer.__call__)(layer, *args)

        return dit(x, t, inputs, run_layer)

    def _is_compiled(self, key: tuple, layer: Layer, args: tuple) -> bool:
        if self._wait and self._running and key not in self._usable and key not in self._failed:
            self._say("compiling the transformer")
            self._make(key, layer, args)
            self._usable = frozenset(self._ready)
        if key in self._usable:
            self._note(Outcome.USED)
            return True
        if key in self._failed:
            self.skip(self._failed[key])
        else:
            self._note(Outcome.PENDING)
            if self._running and key not in self._missing:
                self._missing[key] = _copy(layer), args, torch.is_inference_mode_enabled(), torch.get_num_threads()
        return False

    @staticmethod
    def _cache_key(layer: Layer, args: tuple) -> tuple:
        """All that torch would compile another graph for."""

        def of(x):
            if not isinstance(x, Tensor):
                return x
            order = tuple(sorted(range(x.dim()), key=x.stride))
            sizes = tuple((min(n, 2), min(s, 2)) for n, s in zip(x.shape, x.stride(), strict=True))
            return str(x.device), x.dtype, x.is_inference(), x._is_view(), order, sizes

        h, local = args[0], args[4]
        share = 0 if local is None else min(len(h) // len(local), 2)  # items to a local row
        weights = frozenset((str(p.device), p.dtype, p.is_inference()) for p in layer.parameters())
        state = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_num_threads()
        return str(pytree.tree_map(of, args)), share, weights, tuple(layer.self_attn.to_qkv.weight.shape), *state

    def _compile(self, missing: dict) -> None:
        for key, (layer, args, inference, threads) in missing.items():
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)  # a new thread starts with torch's default; a graph is compiled for one number
            with torch.inference_mode(inference), torch.no_grad(), suppress(torch.OutOfMemoryError):  # a later run tries once more
                self._make(key, layer, args)

    def _make(self, key: tuple, layer: Layer, args: tuple) -> None:
        try:
            import torch._dynamo.config as dynamo
            import torch.fx.experimental._config as fx

            settings = {name: value for name, value in SETTINGS.items() if hasattr(dynamo, name)}
            with dynamo.patch(settings), fx.patch(use_duck_shape=False):  # prompt rows and heads may be equal by chance
                self._function(layer, *args)
            self._ready.add(key)
        except torch.OutOfMemoryError:
            raise  # no fault of the compiler
        except Exception as error:  # whatever a compiler may raise: the run is eager instead, and says so
            lines = f"{type(error).__name__}: {error}".splitlines()
            self._failed[key] = " ".join(lines[:2])  # torch gives the cause in its second line
            log.warning("The layers could not be compiled and are computed eagerly: %s", self._failed[key])


def _copy(layer: Layer) -> Layer:
    """A copy to compile for: the host may move the model's weights meanwhile."""
    twin = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    for module in twin.modules():
        for name, p in module._parameters.items():
            if p is not None:
                with torch.inference_mode(p.is_inference()):
                    module._parameters[name] = torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
    return twin
