"""Progress bar, status line and warnings of the running node, and ComfyUI's interruption."""

import logging
import time
from collections.abc import Callable

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from server import PromptServer

logger = logging.getLogger("sa3")
STATUS_DELAY, STATUS_INTERVAL = 1.0, 0.5  # seconds before a stage's first status line, and between two of them
LARGE = 100 * 2**20  # bytes of weights from which on loading is shown
_warnings: dict[str, tuple[str, str]] = {}  # node id -> prompt id and its warnings, which every status line repeats
_with_status: set[str] = set()  # ids of the nodes that show a status line


class Progress:
    """Progress bar of the running node, and a status line with the time left.

    stage: what is counted, such as "decoding chunk"; "" shows the bar alone. A call raises ComfyUI's interruption once the user has
    cancelled the run.
    """

    def __init__(self, total: int, stage: str = ""):
        self.bar, self.stage = comfy.utils.ProgressBar(total), stage
        self.created, self.status_at = time.monotonic(), 0.0
        self.first: tuple[float, float] | None = None  # time and share done at the first report; loading comes before it

    def __call__(self, done: int, total: int, text: str = "", picture=None) -> None:
        """Update bar and status line.

        text: in place of "<stage> 3 of 8". picture: (format, PIL image, longest side) to show on the node.
        """
        self.bar.update_absolute(done, total, picture)
        text = text or (self.stage and f"{self.stage} {done} of {total}")
        now, share = time.monotonic(), done / total
        self.first = self.first or (now, share)
        if text and done < total and now - self.created >= STATUS_DELAY and now - self.status_at >= STATUS_INTERVAL:
            self.status_at = now
            before, share_before = self.first
            left = f", {duration((now - before) * (1 - share) / (share - share_before))} left" if share > share_before else ""
            show_status(f"{text}{left}")
        check_interrupt()

    def part(self, index: int, count: int, name: str) -> Callable:
        """The progress callback (done, total) of one of `count` equal parts, called `name`."""

        def progress(done: int, total: int, text: str = "", picture=None) -> None:
            text = text or f"{self.stage} {done} of {total}"
            self(index * total + done, count * total, text if count == 1 else f"{name} {index + 1} of {count}, {text}", picture)

        return progress

    def finish(self) -> None:
        """Replace the status line, if there is one, by the time taken."""
        context = get_executing_context()
        if context is not None and context.node_id in _with_status:
            show_status(f"done in {duration(time.monotonic() - self.created)}")
            _with_status.discard(context.node_id)


def duration(seconds: float) -> str:
    """5 s, 1:05 min, 2:00:00 h."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{s:02} h"
    return f"{minutes}:{s:02} min" if minutes else f"{s} s"


def check_interrupt(*progress) -> None:
    """Raise ComfyUI's interruption if the user has cancelled the run. Also a progress callback that shows nothing."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def warn(*messages: str) -> None:
    """Log warnings and show them on the running node, in place of its earlier ones; those that it shows already are not logged again."""
    context = get_executing_context()
    prompt_id, shown = (None, "") if context is None else _warnings.get(context.node_id, (None, ""))
    for message in messages:
        if context is None or prompt_id != context.prompt_id or message not in shown.splitlines():
            logger.warning(message)
    if messages and context is not None:
        text = "\n".join(messages)
        _warnings[context.node_id] = (context.prompt_id, text)
        _send(text, context.node_id)


def show_status(line: str) -> None:
    """Show a line on the running node, above the warnings of this run."""
    context = get_executing_context()
    if context is not None:
        prompt_id, warnings = _warnings.get(context.node_id, (None, ""))
        _with_status.add(context.node_id)
        _send(f"{line}\n{warnings}" if prompt_id == context.prompt_id else line, context.node_id)


def show_loading(patcher, what: str) -> None:
    """Show that a large model is about to be loaded onto its device."""
    if patcher.model_size() > LARGE and patcher.loaded_size() < patcher.model_size():
        show_status(f"loading {what}")


def _send(text: str, node_id: str) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
