"""Progress and interruption, the ComfyUI way."""

import comfy.model_management
import comfy.utils


class Progress:
    """The bar of the running node. `step` raises ComfyUI's own interruption when the user asked for it."""

    def __init__(self, total: int):
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, done: int, total: int) -> None:
        self.bar.update_absolute(done, total)
        check_interrupt()


def check_interrupt() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
