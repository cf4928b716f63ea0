"""Progress, interruption and words to the user, the ComfyUI way."""

import logging

import comfy.model_management
import comfy.utils
from server import PromptServer

logger = logging.getLogger("sa3")


class Progress:
    """The bar of the running node. Calling it raises ComfyUI's own interruption when the user asked for it."""

    def __init__(self, total: int):
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, done: int, total: int) -> None:
        self.bar.update_absolute(done, total)
        check_interrupt()


def check_interrupt() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def say(messages: list[str], node_id: str | None) -> None:
    """Sentences on the node itself and in the log."""
    for message in messages:
        logger.warning(message)
    server = getattr(PromptServer, "instance", None)
    if messages and server is not None and node_id is not None:
        server.send_progress_text("\n".join(messages), node_id)
