"""The transformer's layers through torch.compile: one graph serves all of them, and is made beside the runs, not in front of the first.

Compiled code rounds otherwise, so what is ready when a run begins is used in all of it, and what becomes ready meanwhile waits for the
next. Adapters that come and go during a run take other ways through the layers; such runs are not compiled.
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

from .accelerator import Accelerator, through
from .dit import DiT, DiTInputs, Layer
from .linear_op import with_operator

log = logging.getLogger(__name__)
NOT_YET = "not compiled yet"
# Of torch's compiler, where its version knows them. Its own limit of graphs is eight for all models and kinds together; errors are told
# even where another pack has them hidden, which also forbids the third.
SETTINGS = {"recompile_limit": 64, "cache_size_limit": 64, "fail_on_recompile_limit_hit": True, "suppress_errors": False}


class Compiled(Accelerator):
    """Compiled layers of any number of models. say(words): told what a run waits for. backend: torch's.

    A graph is made for a kind of step: number formats, devices, guidance or none, padding or none; not for a length. Torch keeps the
    machine code on disk (TORCHINDUCTOR_CACHE_DIR), so that later sessions only load it.
    """

    name, done = "torch.compile", "compiled"

    def __init__(self, say: Callable[[str], None] | None = None, backend: str = "inductor"):
        super().__init__()
        self._say, self._backend = say or (lambda words: None), backend
        self._ready: set = set()
        self._failed: dict[tuple, str] = {}  # kind -> why
        self._worker: threading.Thread | None = None
        # of the run that is on, or of the last one
        self._wait = False
        self._usable: frozenset = frozenset()
        self._met: dict = {}  # kind -> what to compile for

    @functools.cached_property
    def _function(self) -> Callable:
        """Made when it is used: torch's compiler takes a second to import."""
        return torch.compile(Layer.forward, dynamic=True, backend=with_operator(self._backend))

    def _begin(self, wait: bool) -> None:
        """What is ready now is used in all of the run, what is missing is compiled behind it, or in it where the run waits for it.

        While something is being compiled, runs go as they are.
        """
        if wait:
            self.join()
        self._wait, self._met = wait, {}
        self._usable = frozenset() if self.busy else frozenset(self._ready)

    def _end(self, finished: bool) -> None:
        met, self._met = self._met, {}
        if finished and met and not self.busy:
            self._worker = threading.Thread(target=self._compile, args=(met,), name="sa3-compile", daemon=True)
            self._worker.start()

    @property
    def busy(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    def join(self) -> None:
        """Until what is being compiled is ready."""
        if self._worker is not None:
            self._worker.join()

    def try_again(self) -> None:
        self._failed = {}

    def velocity(
        self,
        dit: DiT,
        x: Tensor,
        t: Tensor,
        inputs: DiTInputs,
        otherwise: Callable[..., Tensor] = Layer.forward,
        at_once: int | None = None,
    ) -> Tensor:
        """otherwise(layer, *args): how a layer runs that is not compiled. at_once: as `DiT.forward` has it."""
        kinds: dict[int, tuple] = {}  # by the number of items: that of one layer is that of all

        def forward(layer: Layer, *args) -> Tensor:
            items = len(args[0])
            if items not in kinds:
                kinds[items] = self._kind(layer, args)
            return (self._function if self._is_compiled(kinds[items], layer, args) else otherwise)(layer, *args)

        return through(forward, dit, x, t, inputs, at_once)

    def _is_compiled(self, kind: tuple, layer: Layer, args: tuple) -> bool:
        if self._wait and self._running and kind not in self._usable and kind not in self._failed:
            self._say("compiling the transformer")
            self._make(kind, layer, args)
            self._usable = frozenset(self._ready)
        if kind in self._usable:
            self._outcomes[self.done] = None
            return True
        if kind in self._failed:
            self.skip(self._failed[kind])
        else:
            self._outcomes[NOT_YET] = None
            if self._running and kind not in self._met:
                self._met[kind] = _copy(layer), args, torch.is_inference_mode_enabled(), torch.get_num_threads()
        return False

    @staticmethod
    def _kind(layer: Layer, args: tuple) -> tuple:
        """All that torch would make another graph for."""

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

    def _compile(self, met: dict) -> None:
        for kind, (layer, args, inference, threads) in met.items():
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)  # a thread of its own starts with torch's default; graphs are made for a number
            with torch.inference_mode(inference), torch.no_grad(), suppress(torch.OutOfMemoryError):  # there will be another run
                self._make(kind, layer, args)

    def _make(self, kind: tuple, layer: Layer, args: tuple) -> None:
        try:
            import torch._dynamo.config as dynamo
            import torch.fx.experimental._config as fx

            settings = {name: value for name, value in SETTINGS.items() if hasattr(dynamo, name)}
            with dynamo.patch(settings), fx.patch(use_duck_shape=False):  # equal numbers of prompt rows and heads are no law
                self._function(layer, *args)
            self._ready.add(kind)
        except torch.OutOfMemoryError:
            raise  # no fault of the compiler
        except Exception as error:  # whatever a compiler may raise: the run goes on without it, and says so
            told = f"{type(error).__name__}: {error}".splitlines()
            self._failed[kind] = " ".join(told[:2])  # torch tells the cause in its second line
            log.warning("The layers could not be compiled and run as they are: %s", self._failed[kind])


def _copy(layer: Layer) -> Layer:
    """A layer of its own to compile for: the host may move the model's weights meanwhile."""
    twin = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    twin.__dict__.pop("forward", None)
    for module in twin.modules():
        for name, p in module._parameters.items():
            if p is not None:
                with torch.inference_mode(p.is_inference()):
                    module._parameters[name] = torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
    return twin
