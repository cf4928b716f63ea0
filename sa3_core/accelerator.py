"""A faster way through the transformer's layers: a run takes it, or tells why it did not."""

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from .dit import DiT, DiTInputs
from .layers import forwards

Found = TypeVar("Found")
COMES_AND_GOES = "a LoRA comes and goes during the run"


class Accelerator:
    """What `Compiled` and `Packed` share: what one run is, and what became of it."""

    name: str  # for people
    done: str  # in one word, what became of a run that took it

    def __init__(self) -> None:
        self._running = False
        # of the run that is on, or of the last one
        self._outcomes: dict[str, None] = {}
        self._found: dict = {}

    def __deepcopy__(self, memo) -> "Accelerator":
        return self  # hosts copy their options deeply

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, inputs: DiTInputs) -> Tensor:
        """`dit(x, t, inputs)`."""
        raise NotImplementedError

    def _begin(self, wait: bool) -> None:
        """A run begins."""

    def _end(self, finished: bool) -> None:
        """A run is over, or was stopped."""

    def join(self) -> None:
        """Until what is being prepared is ready."""

    def try_again(self) -> None:
        """What failed may have been mended."""

    @contextmanager
    def run(self, wait: bool = False) -> Iterator[None]:
        """One run. wait: what takes time is done in front of it. A run inside a run is part of it."""
        if self._running:
            yield
            return
        self._outcomes, self._found = {}, {}
        self._begin(wait)
        self._running, finished = True, False
        try:
            yield
            finished = True
        finally:
            self._running, self._found = False, {}
            self._end(finished)

    def once(self, what: Hashable, find: Callable[[], Found]) -> Found:
        """What `find` finds, looked for once in a run."""
        if not self._running:
            return find()
        if what not in self._found:
            self._found[what] = find()
        return self._found[what]

    def skip(self, obstacle: str) -> None:
        """This run goes without, and this is why."""
        self._outcomes[f"not {self.done}: {obstacle}"] = None

    @property
    def state(self) -> str:
        """What became of the latest run, in words."""
        if self.done in self._outcomes and len(self._outcomes) > 1:
            return f"partly {self.done}: " + "; ".join(outcome for outcome in self._outcomes if outcome != self.done)
        return "; ".join(self._outcomes) or "not used yet"

    @property
    def obstacle(self) -> str:
        """Why the latest run, or a part of it, went without; "" where nothing is in the way."""
        without = f"not {self.done}: "
        return "; ".join(outcome.removeprefix(without) for outcome in self._outcomes if outcome.startswith(without))

    @property
    def remarks(self) -> list[str]:
        """What the user should know of the latest run."""
        return [f"This run went without {self.name}: {self.obstacle}."] if self.obstacle else []


def through(forward: Callable[..., Tensor], dit: DiT, x: Tensor, t: Tensor, inputs: DiTInputs, at_once: int | None = None) -> Tensor:
    """`dit(x, t, inputs, at_once)` with forward(layer, *args) for its layers."""
    with forwards([(layer, functools.partial(forward, layer)) for layer in dit.transformer.layers]):
        return dit(x, t, inputs, at_once)
