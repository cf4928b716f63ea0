"""The interface of torch.compile and CUDA graphs: a run uses the accelerator, or records why it was computed eagerly."""

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
    """How a run, or a part of it, was computed."""

    USED = "used"
    PENDING = "pending"  # eagerly; preparation continues in the background
    SKIPPED = "skipped"  # eagerly, for a reason


class Accelerator:
    """A faster forward pass of the transformer, for any number of models."""

    name: str  # in messages
    done: str  # participle for a run that used it

    def __init__(self) -> None:
        self._running = False
        # of the current run, or of the latest one
        self._outcomes: dict[tuple[Outcome, str], None] = {}
        self._cached: dict = {}

    def velocity(self, dit: DiT, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """`dit(x, t, conditions)`."""
        raise NotImplementedError

    def _begin(self, wait: bool) -> None:
        """Called when a run begins."""

    def _end(self, finished: bool) -> None:
        """Called when a run has finished or was interrupted."""

    def join(self) -> None:
        """Block until background preparation has finished."""

    def retry(self) -> None:
        """Forget earlier failures, whose cause may have been fixed."""

    @contextmanager
    def run(self, wait: bool = False) -> Iterator[None]:
        """Context of one run; a nested one belongs to the outer run. wait: prepare before the run instead of in the background."""
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
        """The result of `compute`, cached for the current run."""
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
    def state(self) -> str:
        """How the latest run was computed, in words."""
        words = {Outcome.PENDING: f"not {self.done} yet", Outcome.SKIPPED: f"not {self.done}: "}
        eager = "; ".join(words[outcome] + reason for outcome, reason in self._outcomes if outcome in words)
        if (Outcome.USED, "") not in self._outcomes:
            return eager or "not used yet"
        return f"partly {self.done}: {eager}" if eager else self.done

    @property
    def reason(self) -> str:
        """Why the latest run, or a part of it, was computed eagerly; "" if nothing was skipped."""
        return "; ".join(reason for outcome, reason in self._outcomes if outcome is Outcome.SKIPPED)

    @property
    def warnings(self) -> list[str]:
        """Warnings about the latest run, for the user."""
        return [f"This run went without {self.name}: {self.reason}."] if self.reason else []
