"""What a LoRA is trained on: a base model's network, loaded anew, and a way to use the parts around it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import timeline
from ..checkpoints.checkpoint import load_into, open_checkpoint
from ..config import ModelConfig
from ..models.conditioning import Condition
from ..models.dit import DiTInputs
from ..models.release import Generator, Predictor
from ..sampling import runs
from ..sampling.draws import MAX_SEED
from ..sampling.guidance import Guidance
from .dataset import Encode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Source:
    """The base model and the parts around it.

    checkpoint: the file or folder of the base. autoencoder: a word that changes with its weights. encode(): an encoder, made ready.
    texts(prompts): rows (B, n, dim) and mask (B, n). decode(latents (1, D, T)) -> audio (1, C, N).
    """

    config: ModelConfig
    name: str
    checkpoint: Path
    autoencoder: str
    encode: Callable[[], Encode]
    texts: Callable[[list[str]], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"


def digest_of(module: nn.Module) -> str:
    """A word that changes with any weight of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_base(source: Source, dtype: str = "fp32") -> Generator:
    """Transformer and conditioner of the base, frozen, from its file: whatever a host has on its own copy takes no part."""
    opened = open_checkpoint(source.checkpoint)
    net = Generator(source.config, device="meta", dtype=DTYPES[dtype])
    return load_into(net, opened.tensors, opened.prefix, DTYPES[dtype], source.device)


@torch.no_grad()
def sample(
    source: Source, net: Generator, condition: Condition, seconds: float, seed: int, steps: int | None = None, callback=None
) -> Tensor:  # fmt: skip
    """A clip (C, N) of the network as it is, with the base's own sampler and guidance."""
    config = source.config
    line = timeline.lengths(config, [seconds])
    plan = runs.plan(config, line, steps=steps, seed=seed % MAX_SEED)
    cross = condition.cross_attn
    local = torch.zeros(1, config.dit.local_dim, line.frames, device=cross.device, dtype=cross.dtype)

    def prepared(context: Tensor) -> DiTInputs:
        return net.dit.prepare(context, condition.global_cond, local, line.frames, line.valid, condition.adapters)

    blank = prepared(net.conditioner.unconditional(1, cross))
    velocity = Predictor(net.dit, prepared(cross), blank, Guidance(config.default_cfg), line.valid)
    z = runs.run(velocity, plan, channels=config.same.latent_dim, device=cross.device, callback=callback)
    audio = source.decode(z[:, :, : timeline.decode_frames(config, line, 0)])
    return audio[0, :, : line.samples[0]].float().cpu().clamp(-1, 1)
