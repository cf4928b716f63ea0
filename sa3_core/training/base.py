"""The frozen base model of a LoRA: its network, and the functions of its host that encode, decode and embed captions."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import timeline
from ..checkpoints.checkpoint import load_into, open_checkpoint
from ..checkpoints.tensors import DTYPES
from ..config import ModelConfig
from ..models.conditioning import Condition
from ..models.release import ConditionedDiT
from ..sampling import runs
from ..sampling.draws import MAX_SEED
from ..sampling.guidance import Guidance
from ..sampling.predictor import Predictor
from .dataset import Encode


@dataclass
class BaseModel:
    """checkpoint: file or folder of the model. autoencoder: `fingerprint` of the autoencoder. load_encoder() -> an encoder.

    encode_texts(prompts) -> embeddings (B, n, dim), mask (B, n). decode(latents (1, D, T)) -> audio (1, C, N).
    """

    config: ModelConfig
    name: str
    checkpoint: Path
    autoencoder: str
    load_encoder: Callable[[], Encode]
    encode_texts: Callable[[list[str]], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights, 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_network(base: BaseModel, dtype: str = "fp32") -> ConditionedDiT:
    """The base's transformer and conditioner, frozen, loaded from its file so that patches of the host's copy do not apply."""
    opened = open_checkpoint(base.checkpoint)
    net = ConditionedDiT(base.config, device="meta", dtype=DTYPES[dtype])
    return load_into(net, opened.tensors, opened.prefix, DTYPES[dtype], base.device)


@torch.no_grad()
def sample(
    base: BaseModel, net: ConditionedDiT, condition: Condition, seconds: float, seed: int, steps: int | None = None, callback=None
) -> Tensor:  # fmt: skip
    """Audio (C, N) generated with the base's default sampler and guidance. callback: as in `sampling.runs.run`."""
    config = base.config
    line = timeline.lengths(config, [seconds])
    plan = runs.plan(config, line, steps=steps, seed=seed % MAX_SEED)
    cross = condition.cross_attn
    local = torch.zeros(1, config.dit.local_dim, line.frames, device=cross.device, dtype=cross.dtype)
    velocity = Predictor.prepare(net.dit, condition, local, line.frames, line.valid, Guidance(config.default_cfg))
    z = runs.run(velocity, plan, channels=config.same.latent_dim, device=cross.device, callback=callback)
    audio = base.decode(z[:, :, : timeline.decode_frames(config, line, 0)])
    return audio[0, :, : line.samples[0]].float().cpu().clamp(-1, 1)
