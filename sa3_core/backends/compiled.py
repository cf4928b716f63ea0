"""The transformer's layers through torch.compile: one graph for all of them, compiled in the background.

Compiled code rounds differently. A run therefore uses the graphs that were ready when it began; later ones serve the next run. Steps with
adapters in the forward pass are computed eagerly.
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
# Settings of torch's compiler, if its version has them. The default limit is eight graphs for all models and cache keys together.
# suppress_errors may be set by another pack; torch rejects it together with fail_on_recompile_limit_hit.
SETTINGS = {"recompile_limit": 64, "cache_size_limit": 64, "fail_on_recompile_limit_hit": True, "suppress_errors": False}


class Compiled(Accelerator):
    """Compiled layers of any number of models. say(words): called when a run waits for the compiler. backend: of torch.compile.

    A graph serves all lengths; dtypes, devices, guidance and padding are part of its cache key. Torch caches the machine code on disk
    (TORCHINDUCTOR_CACHE_DIR), so later sessions only load it.
    """

    name, done = "torch.compile", "compiled"

    def __init__(self, say: Callable[[str], None] | None = None, backend: str = "inductor"):
        super().__init__()
        self._say, self._backend = say or (lambda words: None), backend
        self._ready: set[tuple] = set()  # cache keys
        self._failed: dict[tuple, str] = {}  # cache key -> reason
        self._worker: threading.Thread | None = None
        # of the current run, or of the latest one
        self._wait = False
        self._usable: frozenset[tuple] = frozenset()
        self._missing: dict[tuple, tuple] = {}  # cache key -> arguments of `_compile`

    @functools.cached_property
    def _function(self) -> Callable:
        """Created on first use: torch's compiler takes a second to import."""
        return torch.compile(Layer.forward, dynamic=True, backend=self._backend)

    def _begin(self, wait: bool) -> None:
        """While a graph is being compiled, runs are eager."""
        if wait:
            self.join()
        self._wait, self._missing = wait, {}
        self._usable = frozenset() if self.busy else frozenset(self._ready)

    def _end(self, finished: bool) -> None:
        missing, self._missing = self._missing, {}
        if finished and missing and not self.busy:
            self._worker = threading.Thread(target=self._compile_all, args=(missing,), name="sa3-compile", daemon=True)
            self._worker.start()

    @property
    def busy(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    def join(self) -> None:
        if self._worker is not None:
            self._worker.join()

    def retry(self) -> None:
        self._failed = {}

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        if conditions.adapters:
            self.skip(SCHEDULED)
            return dit(x, t, conditions)
        keys: dict[int, tuple] = {}  # number of items -> cache key, which all layers share

        def run_layer(layer: Layer, *args) -> Tensor:
            items = len(args[0])
            if items not in keys:
                keys[items] = self._cache_key(layer, args)
            return (self._function if self._use_compiled(keys[items], layer, args) else Layer.__call__)(layer, *args)

        return dit(x, t, conditions, run_layer)

    def _use_compiled(self, key: tuple, layer: Layer, args: tuple) -> bool:
        """Whether the graph of this key is usable; otherwise requests it for the next run, or compiles it first if the run waits."""
        if self._wait and self._running and key not in self._usable and key not in self._failed:
            self._say("compiling the transformer")
            self._compile(key, layer, args)
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
        """The properties of a call on which torch specializes a graph."""

        def properties(x):
            if not isinstance(x, Tensor):
                return x
            order = tuple(sorted(range(x.dim()), key=x.stride))
            sizes = tuple((min(n, 2), min(s, 2)) for n, s in zip(x.shape, x.stride(), strict=True))
            return str(x.device), x.dtype, x.is_inference(), x._is_view(), order, sizes

        h, local = args[0], args[4]
        share = 0 if local is None else min(len(h) // len(local), 2)  # items per local row
        weights = frozenset((str(p.device), p.dtype, p.is_inference()) for p in layer.parameters())
        state = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_num_threads()
        return str(pytree.tree_map(properties, args)), share, weights, tuple(layer.self_attn.to_qkv.weight.shape), *state

    def _compile_all(self, missing: dict[tuple, tuple]) -> None:
        for key, (layer, args, inference, threads) in missing.items():
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)  # graphs are specialized on it, and a new thread starts with torch's default
            with torch.inference_mode(inference), torch.no_grad(), suppress(torch.OutOfMemoryError):  # a later run tries again
                self._compile(key, layer, args)

    def _compile(self, key: tuple, layer: Layer, args: tuple) -> None:
        try:
            import torch._dynamo.config as dynamo
            import torch.fx.experimental._config as fx

            settings = {name: value for name, value in SETTINGS.items() if hasattr(dynamo, name)}
            with dynamo.patch(settings), fx.patch(use_duck_shape=False):  # prompt rows and heads may be equal by chance
                self._function(layer, *args)
            self._ready.add(key)
        except torch.OutOfMemoryError:
            raise  # not a failure of the compiler
        except Exception as error:  # compilers raise exceptions of any type; the run falls back to eager execution
            lines = f"{type(error).__name__}: {error}".splitlines()
            self._failed[key] = " ".join(lines[:2])  # torch states the cause in its second line
            log.warning("The layers could not be compiled and are computed eagerly: %s", self._failed[key])


def _copy(layer: Layer) -> Layer:
    """A copy for the compiler, since the host may move the model's weights meanwhile."""
    twin = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    for module in twin.modules():
        for name, p in module._parameters.items():
            if p is not None:
                with torch.inference_mode(p.is_inference()):
                    module._parameters[name] = torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
    return twin
