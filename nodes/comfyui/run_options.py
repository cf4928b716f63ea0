"""What a MODEL carries for its runs, under one key of its model_options and their transformer_options."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from torch import Tensor

from ...sa3_core.backends.graphs import Graphs
from ...sa3_core.lora.stack import Stack

KEY = "sa3"


@dataclass(frozen=True)
class RunOptions:
    """Of a MODEL: stack, its LoRAs; graphs, its CUDA graphs.

    Of a run: sigmas (B, steps + 1), the noise levels per item. Of a step: times, core's timestep tensor (B,) and its copy on the CPU,
    which is read without synchronising with the device.
    """

    stack: Stack = field(default_factory=Stack)
    graphs: Graphs | None = None
    sigmas: Tensor | None = None
    times: tuple[Tensor, Tensor] | None = None

    def __deepcopy__(self, memo) -> "RunOptions":
        return self  # immutable; core deep-copies a MODEL's options

    def run(self) -> AbstractContextManager:
        """A context in which all sampling is one run of the CUDA graphs."""
        return nullcontext() if self.graphs is None else self.graphs.run()

    def times_of(self, timestep: Tensor) -> Tensor | None:
        """The CPU copy of `timestep`, or None for another tensor: other nodes may evaluate the model at their own times."""
        return self.times[1] if self.times is not None and self.times[0] is timestep else None


def read(model_options: dict) -> RunOptions:
    """The options in a MODEL's model_options, or in its transformer_options."""
    return model_options.get("transformer_options", {}).get(KEY) or model_options.get(KEY) or RunOptions()


def updated(model_options: dict, **changes) -> dict:
    """A copy of model_options with changed RunOptions, kept twice: another node may replace transformer_options."""
    options, changed = model_options.get("transformer_options", {}), replace(read(model_options), **changes)
    return {**model_options, KEY: changed, "transformer_options": {**options, KEY: changed}}
