"""Progress, interruption and words to the user, the ComfyUI way."""

import logging
import time
from collections.abc import Callable

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from server import PromptServer

logger = logging.getLogger("sa3")
PATIENCE, PAUSE = 1.0, 0.5  # seconds: a shorter stage says nothing, and the line under a node does not change more often
LARGE = 100 * 2**20  # bytes of weights whose loading takes a while
_said: dict[str, tuple[str, str]] = {}  # node -> the run and its sentences, which a line of progress must not wipe out
_lines: set[str] = set()  # nodes under which a line of progress stands


class Progress:
    """The bar of the running node, and below it in words what is done and how long it still takes.

    `what`: a stage whose parts are counted, such as "decoding chunk"; none = only the bar. Calling it raises ComfyUI's own
    interruption when the user asked for it.
    """

    def __init__(self, total: int, what: str = ""):
        self.bar, self.what = comfy.utils.ProgressBar(total), what
        self.begun = self.started = time.monotonic()
        self.told = 0.0

    def start(self) -> None:
        """From here on time counts for what is left: what came before, such as loading, says nothing about the speed."""
        self.started = time.monotonic()

    def __call__(self, done: int, total: int, words: str = "", picture=None, begun: int | None = None) -> None:
        """words: in place of "<what> 3 of 8". picture: (format, PIL image, longest side), shown on the node. begun: done since `start`."""
        self.bar.update_absolute(done, total, picture)
        words = words or (self.what and f"{self.what} {done} of {total}")
        now = time.monotonic()
        taken = now - self.started
        if words and done < total and taken >= PATIENCE and now - self.told >= PAUSE:
            self.told = now
            tell(f"{words}, {duration(taken / max(done if begun is None else begun, 1) * (total - done))} left")
        check_interrupt()

    def part(self, index: int, count: int, name: str) -> Callable:
        """The progress of one of `count` equal parts, for what counts from 0 itself."""

        def progress(done: int, total: int, words: str = "", picture=None) -> None:
            words = words or f"{self.what} {done} of {total}"
            self(index * total + done, count * total, words if count == 1 else f"{name} {index + 1} of {count}, {words}", picture)

        return progress

    def finish(self) -> None:
        """Replaces the last line, if there was one."""
        context = get_executing_context()
        if context is not None and context.node_id in _lines:
            tell(f"done in {duration(time.monotonic() - self.begun)}")
            _lines.discard(context.node_id)


def duration(seconds: float) -> str:
    """5 s, 1:05 min, 2:00:00 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def check_interrupt() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def say(messages: list[str], node_id: str | None) -> None:
    """Sentences on the node itself and in the log."""
    for message in messages:
        logger.warning(message)
    if messages and node_id is not None:
        text = "\n".join(messages)
        _said[node_id] = (_run(), text)
        _send(text, node_id)


def tell(line: str) -> None:
    """A passing line on the running node, above what was said there. Nothing without one."""
    context = get_executing_context()
    if context is not None:
        run, said = _said.get(context.node_id, ("", ""))
        _lines.add(context.node_id)
        _send(f"{line}\n{said}" if said and run == _run() else line, context.node_id)


def _run() -> str:
    context = get_executing_context()
    return "" if context is None else context.prompt_id


def tell_loading(patcher, what: str) -> None:
    """Before weights are moved: say so where it takes a while."""
    if patcher.model_size() > LARGE and patcher.loaded_size() < patcher.model_size():
        tell(f"loading {what}")


def _send(text: str, node_id: str) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
