"""The settings of a LoRA training run."""

import dataclasses
import json
from dataclasses import dataclass

from ..checkpoints.tensors import DTYPES
from ..errors import SA3Error
from ..lora.algebra import TYPES
from .flow import MASKS

MAX_RANK = 1024  # the narrowest layers of the released models are as wide
CHANGEABLE = {"steps", "checkpointing", "save_every", "preview_every", "prompt", "preview_seconds", "preview_steps"}


@dataclass(frozen=True)
class LoRASettings:
    """kind: adapter type (TYPES). alpha: None = rank. seconds: longest crop. include, exclude: parts of layer names, [a-b] for numbers.
    dtype: of the frozen base (DTYPES). validation: share of the clips held out. save_every, preview_every: steps between intermediate
    LoRAs and between samples of `prompt`; 0 = only at the end. preview_steps: None = the model's. clip: largest norm of the gradients,
    0 = no clipping. checkpointing: recompute the layers in the backward pass."""

    kind: str = "dora-rows"
    rank: int = 16
    alpha: float | None = None
    steps: int = 1000
    lr: float = 1e-4
    batch: int = 1
    seconds: float = 30.0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: str = "fp32"
    seed: int = 42
    validation: float = 0.1
    save_every: int = 250
    preview_every: int = 250
    prompt: str = ""
    preview_seconds: float = 10.0
    preview_steps: int | None = None
    weight_decay: float = 0.01
    clip: float = 0.0
    checkpointing: bool = False

    def __post_init__(self):
        for name, allowed in (("kind", tuple(TYPES)), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in allowed:
                raise SA3Error(f"{name} is '{getattr(self, name)}'; expected one of {', '.join(allowed)}.")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= MAX_RANK:
            raise SA3Error(f"rank is {self.rank}; expected a whole number from 1 to {MAX_RANK}.")
        for name, least in (("steps", 1), ("batch", 1), ("save_every", 0), ("preview_every", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise SA3Error(f"{name} is {value}; expected a whole number of at least {least}.")
        for name in ("lr", "seconds", "preview_seconds"):
            if not 0 < getattr(self, name) < 1e5:
                raise SA3Error(f"{name} is {getattr(self, name)}; expected more than 0 and less than 100000.")

    def identity(self) -> dict:
        """The settings, as JSON values, that must stay the same when a run is resumed."""
        values = {**dataclasses.asdict(self), "flow": {"masks": MASKS, "pairing": True}}
        return {key: value for key, value in json.loads(json.dumps(values)).items() if key not in CHANGEABLE}
