"""The networks of a release put together under the release's own names."""

from torch import nn

from .. import config as configs
from ..config import ModelConfig
from . import operations
from .conditioning import Conditioner
from .dit import DiT
from .same import SAME


class ConditionedDiT(nn.Module):
    """Diffusion transformer and conditioner: the part of a release that sampling needs (``model.model.*``, ``conditioner.*``)."""

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
    """A whole generative release, autoencoder included (``pretransform.model.*``)."""

    def __init__(self, config: ModelConfig, operations=operations, device=None, dtype=None):
        super().__init__(config, operations, device, dtype)
        self.pretransform = nn.Module()
        self.pretransform.model = SAME(config.same, operations, device, dtype)

    @property
    def autoencoder(self) -> SAME:
        return self.pretransform.model


def build(config: ModelConfig | dict, device="meta", dtype=None) -> nn.Module:
    """The module of a model_config.json (its contents or the parsed config): `StableAudio`, or `SAME` for a standalone autoencoder.

    Its state_dict has the names and shapes of the released file, apart from recomputed rotary tables.
    """
    config = configs.parse(config) if isinstance(config, dict) else config
    if config.dit is None:
        return SAME(config.same, device=device, dtype=dtype)
    return StableAudio(config, device=device, dtype=dtype)
