"""What a MODEL carries for its runs, under one key of its transformer_options."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from ...sa3_core.backends.accelerator import Accelerator
from ...sa3_core.lora.stack import Stack

KEY = "sa3"


@dataclass(frozen=True)
class RunOptions:
    """stack: LoRAs. accelerator, wait: a faster way through the layers, and whether it is prepared before the first run.

    Of a run: sigmas (B, steps + 1), the noise levels per item. Of a step: times, t (B,) as core has it and on the CPU, where it is read
    without waiting for the device.
    """

    stack: Stack = field(default_factory=Stack)
    accelerator: Accelerator | None = None
    wait: bool = False
    sigmas: Tensor | None = None
    times: tuple[Tensor, Tensor] | None = None

    def __deepcopy__(self, memo) -> "RunOptions":
        return self  # core copies a MODEL's options deeply; nothing here changes

    @contextmanager
    def run(self) -> Iterator[None]:
        """One run: what is sampled inside counts as a whole for the accelerator."""
        if self.accelerator is None:
            yield
            return
        with self.accelerator.run(self.wait):
            yield

    def times_of(self, timestep: Tensor) -> Tensor | None:
        """The CPU's copy of `timestep`, or None: other nodes may evaluate the model at times of their own."""
        return self.times[1] if self.times is not None and self.times[0] is timestep else None


def read(model_options: dict) -> RunOptions:
    """The options in a MODEL's model_options, or in transformer_options."""
    return model_options.get("transformer_options", model_options).get(KEY) or RunOptions()


def changed(model_options: dict, **changes) -> dict:
    """A copy of model_options with changed RunOptions."""
    options = model_options.get("transformer_options", {})
    return {**model_options, "transformer_options": {**options, KEY: replace(read(model_options), **changes)}}
