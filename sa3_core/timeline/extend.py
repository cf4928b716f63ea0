"""Windows of a continuation beyond the model's longest clip."""

from dataclasses import dataclass
from itertools import pairwise

from ..config import ModelConfig
from ..errors import SA3Error


@dataclass(frozen=True)
class Window:
    """One pass, in samples at the model's rate."""

    context: int  # samples of the existing tail that condition the pass
    new: int  # samples that it adds

    @property
    def samples(self) -> int:
        return self.context + self.new


def windows(config: ModelConfig, given: int, added: int, context: float, longest: float = 0.0) -> list[Window]:
    """Passes that extend a clip of `given` samples by `added`, in parts of equal size.

    context: seconds of the tail that condition a pass; less in the first pass of a short clip. longest: seconds of a pass, 0 = the
    model's longest.
    """
    rate, spf = config.sample_rate, config.same.samples_per_frame
    limit = config.max_seconds
    span = limit if longest == 0 else longest
    if not 0 < span <= limit:
        raise SA3Error(f"A window of {span:g} s does not fit this model; expected at most {limit:.1f} s.")
    if not spf / rate <= context <= span / 2:
        raise SA3Error(f"The context is {context:g} s; expected at least one frame and at most half the window of {span:g} s.")
    if added < 1:
        raise SA3Error(f"The continuation has {added} samples; expected more than 0 seconds.")
    room = int(span * rate) - int(context * rate)
    passes = -(-added // room)
    ends = [added * i // passes for i in range(passes + 1)]
    return [Window(min(given + start, int(context * rate)), end - start) for start, end in pairwise(ends)]
