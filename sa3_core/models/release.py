"""The networks of a release put together under the release's own names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import config as configs
from ..config import ModelConfig
from ..errors import SA3Error
from ..sampling.guidance import Guidance
from . import operations
from .conditioning import Conditioner
from .dit import DiT, DiTInputs
from .same import SAME


class Generator(nn.Module):
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


class Release(Generator):
    """A whole generative release, autoencoder included (``pretransform.model.*``)."""

    def __init__(self, config: ModelConfig, operations=operations, device=None, dtype=None):
        super().__init__(config, operations, device, dtype)
        self.pretransform = nn.Module()
        self.pretransform.model = SAME(config.same, operations, device, dtype)

    @property
    def autoencoder(self) -> SAME:
        return self.pretransform.model


def build(config: ModelConfig | dict, device="meta", dtype=None) -> nn.Module:
    """The module of a model_config.json (its contents or the parsed config): `Release`, or `SAME` for a standalone autoencoder.

    Its state_dict has the names and shapes of the released file, apart from recomputed rotary tables.
    """
    config = configs.parse(config) if isinstance(config, dict) else config
    if config.dit is None:
        return SAME(config.same, device=device, dtype=dtype)
    return Release(config, device=device, dtype=dtype)


class Predictor:
    """velocity(x, t) of one run: guidance around the transformer over inputs prepared once."""

    def __init__(
        self,
        dit: DiT,
        cond: DiTInputs,
        uncond: DiTInputs | None = None,
        guidance: Guidance | None = None,
        lengths: Sequence[int] | None = None,
    ):
        self.dit, self.cond, self.guidance, self.lengths = dit, cond, guidance or Guidance(), lengths
        self.both = None
        if self.guidance.cfg != 1:
            if uncond is None:
                raise SA3Error("Guidance needs an unconditional input.")
            self.both = DiTInputs.join([cond, uncond])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, T), t (B,) on the CPU -> guided velocity (B, C, T) in x's type."""
        if self.both is None or not bool(self.guidance.active(t).any()):
            return self.dit(x, t, self.cond).to(x.dtype)
        v_cond, v_uncond = self.dit(torch.cat((x, x)), torch.cat((t, t)), self.both).to(x.dtype).chunk(2)
        return self.guidance.apply(x, t, v_cond, v_uncond, self.lengths)
