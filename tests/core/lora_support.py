"""Tiny LoRA files of every adapter type, written at run time."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from sa3_core.lora.algebra import TYPES
from sa3_core.lora.stack import SECONDS, targets

KINDS = list(TYPES)


def tensors_of(kind: str, weight: torch.Tensor, rank: int, seed: int, size: float = 0.3) -> dict[str, torch.Tensor]:
    """The native tensors of one adapter for a weight (out, ...). size: of the update relative to the weight. -xs types include U and V."""
    g = torch.Generator().manual_seed(seed)
    w = weight.flatten(1).float()
    out, inner = w.shape

    def randn(*shape):
        return torch.randn(*shape, generator=g)

    scale = size * float(w.std()) / rank**0.5
    if kind.endswith("-xs"):
        made = {"M_xs": randn(rank, rank) * scale, "U": randn(out, rank), "V": randn(inner, rank)}
    else:
        made = {"lora_A": randn(rank, inner), "lora_B": randn(out, rank) * scale}
    axes = TYPES[kind]
    signs = {"r": torch.sign(randn(out) + 1), "c": torch.sign(randn(inner) + 1)}
    norms = {"r": w.norm(dim=1) * (1 + 0.1 * randn(out)) * signs["r"], "c": w.norm(dim=0) * (1 + 0.1 * randn(inner)) * signs["c"]}
    return made | {f"magnitude_{axis}" if len(axes) == 2 else "magnitude": norms[axis] for axis in axes}


def native_name(layer: str) -> str:
    return layer if layer == SECONDS else f"model.{layer}"


def write_lora(
    path: Path, module, kind: str = "lora", rank: int = 2, alpha: float | None = None, seed: int = 0, size: float = 0.3,
    only=lambda layer: True, **config,
) -> Path:  # fmt: skip
    """Write a native file for the layers of a ConditionedDiT that `only` selects. config: further keys of its lora_config."""
    tensors = {}
    for i, (layer, part) in enumerate(targets(module).items()):
        if only(layer):
            made = tensors_of(kind, part.weight.detach(), rank, seed * 1000 + i, size)
            tensors |= {f"{native_name(layer)}.parametrizations.weight.0.{name}": tensor for name, tensor in made.items()}
    config = {"rank": rank, "alpha": rank if alpha is None else alpha, "adapter_type": kind, **config}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"lora_config": json.dumps(config)})
    return path
