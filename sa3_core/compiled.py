"""The transformer's layers through torch.compile: one graph serves all of them, and is made beside the runs, not in front of the first.

Compiled code rounds otherwise, so what is ready when a run begins is used in all of it, and what becomes ready meanwhile waits for the
next. Adapters that come and go during a run take other ways through the layers; such runs are not compiled.
"""

import copy
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .dit import DiT, DiTInputs, Layer
from .layers import forwards

log = logging.getLogger(__name__)
_WITHOUT = "not compiled: "
COMES_AND_GOES = "a LoRA comes and goes during the run"


class Compiled:
    """Compiled layers of any number of models. say(words): told what a run waits for. backend: torch's.

    A graph is made for a kind of step: number formats, devices, guidance or none, padding or none; not for a length. state: what
    became of the latest run, in words. Torch keeps the machine code on disk (TORCHINDUCTOR_CACHE_DIR), so that later sessions only load it.
    """

    def __init__(self, say: Callable[[str], None] | None = None, backend: str = "inductor"):
        self.state, self.failure = "not used yet", ""
        self._say = say or (lambda words: None)
        self._backend = backend
        self._ready: set = set()
        self._usable: frozenset = frozenset()  # at the start of this run
        self._met: dict = {}  # kind -> arguments of a layer, to be compiled for
        self._worker: threading.Thread | None = None
        self._wait = False

    @functools.cached_property
    def _function(self) -> Callable:
        """Made when it is used: torch's compiler takes a second to import."""
        return torch.compile(Layer.forward, dynamic=True, backend=self._backend)

    def __deepcopy__(self, memo) -> "Compiled":
        return self  # hosts copy their options deeply

    @contextmanager
    def run(self, wait: bool = False) -> Iterator[None]:
        """One sampling run: what is ready now is used in all of it, what is missing is compiled behind it. wait: in front of it."""
        self._usable, self._met, self._wait = frozenset(self._ready), {}, wait
        yield
        if self._met and not self.failure and not self.busy:
            self._worker = threading.Thread(target=self._compile, args=(self._met,), name="sa3-compile", daemon=True)
            self._worker.start()

    @property
    def obstacle(self) -> str:
        """Why the latest run went without, "" where nothing is in the way."""
        return self.state.removeprefix(_WITHOUT) if self.state.startswith(_WITHOUT) else ""

    @property
    def busy(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    def join(self) -> None:
        """Until what is being compiled is ready."""
        if self._worker is not None:
            self._worker.join()

    def skip(self, obstacle: str) -> None:
        """This run goes without, and this is why."""
        self.state = _WITHOUT + obstacle

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, inputs: DiTInputs) -> Tensor:
        """`dit(x, t, inputs)`."""
        kinds: dict[int, tuple] = {}  # by the number of items: that of one layer is that of all

        def through(layer: Layer, *args) -> Tensor:
            items = len(args[0])
            if items not in kinds:
                kinds[items] = self._kind(layer, args)
            return self._function(layer, *args) if self._compiled(kinds[items], layer, args) else Layer.forward(layer, *args)

        with forwards([(layer, functools.partial(through, layer)) for layer in dit.transformer.layers]):
            return dit(x, t, inputs)

    def _compiled(self, kind, layer: Layer, args: tuple) -> bool:
        if self.failure:
            return False
        if kind in self._usable:
            self.state = "compiled"
            return True
        if self._wait:
            self._say("compiling the transformer")
            self._make(kind, layer, args)
            self._usable = frozenset(self._ready)
            return self._compiled(kind, layer, args)
        if kind not in self._met:
            self.state = "not compiled yet"
            self._met[kind] = _copy(layer), args, torch.is_inference_mode_enabled(), torch.get_num_threads()
        return False

    @staticmethod
    def _kind(layer: Layer, args: tuple) -> tuple:
        def of(x):
            if not isinstance(x, Tensor):
                return x
            return str(x.device), x.dtype, x.is_inference(), tuple((min(n, 2), min(s, 2)) for n, s in zip(x.shape, x.stride(), strict=True))

        weight = layer.self_attn.to_qkv.weight
        state = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_num_threads()
        return str(pytree.tree_map(of, args)), *state, of(weight), tuple(weight.shape), args[0].shape[-1]

    def _compile(self, met: dict) -> None:
        for kind, (layer, args, inference, threads) in met.items():
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)  # a thread of its own starts with torch's default; graphs are made for a number
            with torch.inference_mode(inference), torch.no_grad():
                self._make(kind, layer, args)
        met.clear()  # a layer and its arguments take memory

    def _make(self, kind, layer: Layer, args: tuple) -> None:
        if not self.failure:
            try:
                self._function(layer, *args)
                self._ready.add(kind)
            except Exception as error:  # whatever a compiler may raise: the run goes on without it, and says so
                told = f"{type(error).__name__}: {error}".splitlines()
                self.failure = " ".join(told[:2])  # torch tells the cause in its second line
                self.skip(self.failure)
                log.warning("The layers could not be compiled and run as they are: %s", self.failure)


def _copy(layer: Layer) -> Layer:
    """A layer of its own to compile for: the host may move the model's weights meanwhile."""
    with torch.inference_mode(layer.self_attn.to_qkv.weight.is_inference()):
        twin = copy.deepcopy(layer, {})
    twin.__dict__.pop("forward", None)
    return twin
