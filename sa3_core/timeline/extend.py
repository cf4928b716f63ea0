"""Windows for continuing past a model's longest clip."""

from dataclasses import dataclass
from itertools import pairwise

from ..config import ModelConfig
from ..errors import SA3Error


@dataclass(frozen=True)
class Window:
    """One pass, in samples of the model's rate: how much of the tail it sees, and how much it adds."""

    context: int
    new: int

    @property
    def samples(self) -> int:
        return self.context + self.new


def windows(config: ModelConfig, given: int, added: int, context: float, longest: float = 0.0) -> list[Window]:
    """Passes that continue a clip of `given` samples by `added`.

    context: seconds of the tail each pass sees. longest: seconds of a pass, 0 = the model's longest. The passes add equal parts, so
    none is a mere stump. Each is conditioned on its own length, which is what the model was trained to fill.
    """
    rate, spf = config.sample_rate, config.same.samples_per_frame
    limit = config.max_seconds
    span = limit if longest == 0 else longest
    if not 0 < span <= limit:
        raise SA3Error(f"A window of {span:g} s does not fit this model; expected at most {limit:.1f} s.")
    if not spf / rate <= context <= span / 2:
        raise SA3Error(f"The context is {context:g} s; expected at least one frame and at most half the window of {span:g} s.")
    if added < 1:
        raise SA3Error("Nothing is to be added; expected more than 0 seconds.")
    # The first pass may see less than the asked context, when the clip is short.
    room = int(span * rate) - int(context * rate)
    passes = -(-added // room)
    cuts = [added * i // passes for i in range(passes + 1)]
    parts = [end - start for start, end in pairwise(cuts)]
    seen, out = given, []
    for part in parts:
        out.append(Window(min(seen, int(context * rate)), part))
        seen += part
    return out
