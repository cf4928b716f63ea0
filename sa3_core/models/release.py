"""The networks of a release, under the parameter names of its files."""

from torch import nn

from .. import config as configs
from ..config import ModelConfig
from . import operations
from .conditioning import Conditioner
from .dit import DiT
from .same import SAME


class ConditionedDiT(nn.Module):
    """Diffusion transformer (``model.model.*``) and conditioner (``conditioner.*``): what sampling needs."""

    def __init__(self, config: ModelConfig, operations=operations, device=None, dtype=None):
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.model = DiT(config.dit, operations, device, dtype)
        self.conditioner = Conditioner(config.conditioning, operations, device, dtype)

    @property
    def dit(self) -> DiT:
        return self.model.model


class StableAudio(ConditionedDiT):
    """A generative release with its autoencoder (``pretransform.model.*``)."""

    def __init__(self, config: ModelConfig, operations=operations, device=None, dtype=None):
        super().__init__(config, operations, device, dtype)
        self.pretransform = nn.Module()
        self.pretransform.model = SAME(config.same, operations, device, dtype)

    @property
    def autoencoder(self) -> SAME:
        return self.pretransform.model


def build(config: ModelConfig | dict, device="meta", dtype=None) -> nn.Module:
    """The module of a model_config.json, parsed or not: `StableAudio`, or `SAME` for a standalone autoencoder.

    Its state_dict has the names and shapes of the released file, without rotary tables.
    """
    config = configs.parse(config) if isinstance(config, dict) else config
    if config.dit is None:
        return SAME(config.same, device=device, dtype=dtype)
    return StableAudio(config, device=device, dtype=dtype)
