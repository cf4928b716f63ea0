"""What torch.compile and CUDA graphs share: a run uses the faster way, or records why it did not."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar

from torch import Tensor

from ..models.conditions import Conditions
from ..models.dit import DiT

Value = TypeVar("Value")
SCHEDULED = "a LoRA is scheduled over the run"


class Outcome(Enum):
    """What became of a run, or of a part of it."""

    USED = "used"
    PENDING = "pending"  # still being prepared; a later run will use it
    SKIPPED = "skipped"  # for a reason


class Accelerator:
    """A faster way through the transformer, for any number of models."""

    name: str  # for people
    done: str  # in one word, a run that used it

    def __init__(self) -> None:
        self._running = False
        # of the current run, or of the last one
        self._outcomes: dict[tuple[Outcome, str], None] = {}
        self._cached: dict = {}

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, inputs: Conditions) -> Tensor:
        """`dit(x, t, inputs)`."""
        raise NotImplementedError

    def _begin(self, wait: bool) -> None:
        """A run begins."""

    def _end(self, finished: bool) -> None:
        """A run has finished, or was interrupted."""

    def join(self) -> None:
        """Block until preparation in the background has finished."""

    def retry(self) -> None:
        """Forget earlier failures: their cause may have been fixed."""

    @contextmanager
    def run(self, wait: bool = False) -> Iterator[None]:
        """One run. wait: prepare before it instead of in the background. A run inside a run is part of it."""
        if self._running:
            yield
            return
        self._outcomes, self._cached = {}, {}
        self._begin(wait)
        self._running, finished = True, False
        try:
            yield
            finished = True
        finally:
            self._running, self._cached = False, {}
            self._end(finished)

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What `compute` returns, computed once per run."""
        if not self._running:
            return compute()
        if key not in self._cached:
            self._cached[key] = compute()
        return self._cached[key]

    def _note(self, outcome: Outcome, reason: str = "") -> None:
        self._outcomes[outcome, reason] = None

    def skip(self, reason: str) -> None:
        """Record that the run, or a part of it, is computed eagerly, and why."""
        self._note(Outcome.SKIPPED, reason)

    @property
    def outcomes(self) -> list[tuple[Outcome, str]]:
        """What became of the latest run and its parts, each with a reason or ""."""
        return list(self._outcomes)

    @property
    def state(self) -> str:
        """`outcomes` in words."""
        words = {Outcome.USED: self.done, Outcome.PENDING: f"not {self.done} yet", Outcome.SKIPPED: f"not {self.done}: "}
        others = [words[outcome] + reason for outcome, reason in self._outcomes if outcome is not Outcome.USED]
        if (Outcome.USED, "") not in self._outcomes:
            return "; ".join(others) or "not used yet"
        return f"partly {self.done}: " + "; ".join(others) if others else self.done

    @property
    def reason(self) -> str:
        """Why the latest run, or a part of it, was computed eagerly; "" where nothing was skipped."""
        return "; ".join(reason for outcome, reason in self._outcomes if outcome is Outcome.SKIPPED)

    @property
    def remarks(self) -> list[str]:
        """What the user should know of the latest run."""
        return [f"This run went without {self.name}: {self.reason}."] if self.reason else []
