"""Progress bar, status line and warnings of the running node, and ComfyUI's interruption."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from server import PromptServer

logger = logging.getLogger("sa3")
STATUS_DELAY, STATUS_INTERVAL = 1.0, 0.5  # seconds before a stage's first status line, and between two of them
LARGE = 100 * 2**20  # bytes of weights from which on loading is shown
RESUME = "; queue again to resume"


@dataclass
class Shown:
    """What a node shows in one run: a status line, and the warnings below it."""

    prompt_id: str
    status: str = ""
    warnings: str = ""
    reached: str = ""  # stage, where an interruption would stop it
    timed: bool = False  # the status line is of a stage that will report its time


_shown: dict[str, Shown] = {}  # by node id


class Progress:
    """Progress bar of the running node, and a status line with the time left.

    stage: what is counted, such as "decoding chunk"; "" shows the bar alone. resumes: an interrupted stage goes on there when it is
    queued again. A call raises ComfyUI's interruption once the user has cancelled the run.
    """

    def __init__(self, total: int, stage: str = "", resumes: bool = False):
        self.bar, self.stage, self.resumes = comfy.utils.ProgressBar(total), stage, resumes
        self.created, self.status_at = time.monotonic(), 0.0
        self.first: tuple[float, float] | None = None  # time and share done at the first report; loading comes before it

    def __call__(self, done: int, total: int, text: str = "", picture=None) -> None:
        """Update bar and status line.

        text: in place of "<stage> 3 of 8". picture: (format, PIL image, longest side) to show on the node.
        """
        self.bar.update_absolute(done, total, picture)
        text = text or (self.stage and f"{self.stage} {done} of {total}")
        now, share, shown = time.monotonic(), done / total, _running()
        self.first = self.first or (now, share)
        if text and shown is not None:
            shown.reached = text + RESUME * self.resumes
        if text and done < total and now - self.created >= STATUS_DELAY and now - self.status_at >= STATUS_INTERVAL:
            self.status_at = now
            before, share_before = self.first
            left = f", {duration((now - before) * (1 - share) / (share - share_before))} left" if share > share_before else ""
            show_status(f"{text}{left}", timed=True)
        check_interrupt()

    def part(self, index: int, count: int, name: str) -> Callable:
        """The progress callback (done, total) of one of `count` equal parts, called `name`."""

        def progress(done: int, total: int, text: str = "", picture=None) -> None:
            text = text or f"{self.stage} {done} of {total}"
            self(index * total + done, count * total, text if count == 1 else f"{name} {index + 1} of {count}, {text}", picture)

        return progress

    def finish(self) -> None:
        """Replace the status line, if there is one, by the time taken."""
        shown = _running()
        if shown is not None and shown.timed:
            show_status(f"done in {duration(time.monotonic() - self.created)}")


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
    shown = _running()
    for message in messages:
        if shown is None or message not in shown.warnings.splitlines():
            logger.warning(message)
    if messages and shown is not None:
        shown.warnings = "\n".join(messages)
        _send(shown)


def show_status(line: str, timed: bool = False) -> None:
    """Show a line on the running node, above the warnings of this run. timed: the time taken replaces it at the end of the stage."""
    shown = _running()
    if shown is not None:
        shown.status, shown.timed = line, timed
        _send(shown)


def show_stop() -> None:
    """Show on the running node where the user's interruption has stopped it."""
    shown = _running()
    if shown is not None:
        show_status(f"stopped at {shown.reached}" if shown.reached else "stopped")


def show_loading(patcher, what: str) -> None:
    """Show that a large model is about to be loaded onto its device."""
    if patcher.model_size() > LARGE and patcher.loaded_size() < patcher.model_size():
        show_status(f"loading {what}", timed=True)


def _running() -> Shown | None:
    """What the running node shows; None outside of a run."""
    context = get_executing_context()
    if context is None:
        return None
    if context.node_id not in _shown or _shown[context.node_id].prompt_id != context.prompt_id:
        _shown[context.node_id] = Shown(context.prompt_id)
    return _shown[context.node_id]


def _send(shown: Shown) -> None:
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is not None:
        server.send_progress_text("\n".join(filter(None, (shown.status, shown.warnings))), context.node_id)
