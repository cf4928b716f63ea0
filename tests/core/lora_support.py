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


PRODUCTS = ["loha", "lokr", "lokr 1", "lokr 2", "lokr 12"]  # lokr, and which of its two matrices are factored


def product_tensors(form: str, weight: torch.Tensor, rank: int, seed: int, magnitudes: str = "") -> dict[str, torch.Tensor]:
    """The tensors of one LoHa or LoKr layer under their names in files, as small as a trained update. magnitudes: rows, cols or none."""
    g = torch.Generator().manual_seed(seed)
    out, inner = weight.flatten(1).shape
    family, _, factored = form.partition(" ")
    a, b = (next(n for n in (4, 3, 2, 1) if size % n == 0) for size in (out, inner))
    shapes = [(out, inner), (out, inner)] if family == "loha" else [(a, b), (out // a, inner // b)]
    made = {}
    for i, (rows, cols) in enumerate(shapes, 1):
        stem, size = f"{'hada' if family == 'loha' else 'lokr'}_w{i}", 0.5 * float(weight.float().std()) ** 0.5
        if family == "loha" or str(i) in factored:
            made[f"{stem}_a"] = torch.randn(rows, rank, generator=g) * size
            made[f"{stem}_b"] = torch.randn(rank, cols, generator=g)
        else:
            made[stem] = torch.randn(rows, cols, generator=g) * size
    if magnitudes:
        axis = 0 if magnitudes == "rows" else 1
        shape = [size if i == axis else 1 for i, size in enumerate(weight.shape)]
        norms = weight.float().transpose(0, axis).flatten(1).norm(dim=1)
        made["dora_scale"] = (norms * (1 + 0.1 * torch.randn(len(norms), generator=g))).reshape(shape)
    return made


def product_delta(tensors: dict[str, torch.Tensor], alpha: float | None) -> torch.Tensor:
    """The update (out, in) of one layer by its definition, in float64."""
    t, rank, matrices = {name: tensor.double().flatten(1) for name, tensor in tensors.items()}, None, []
    for stem in ("hada_w1", "hada_w2") if "hada_w1_a" in t else ("lokr_w1", "lokr_w2"):
        matrices.append(t[stem] if stem in t else t[f"{stem}_a"] @ t[f"{stem}_b"])
        rank = t[f"{stem}_b"].shape[0] if stem not in t else rank
    delta = matrices[0] * matrices[1] if "hada_w1_a" in t else torch.kron(*matrices)
    return delta * (1 if alpha is None or rank is None else alpha / rank)


def write_products(
    path: Path, module, form: str = "loha", rank: int = 2, alpha: float | None = None, seed: int = 0, magnitudes: str = "",
    spell=lambda layer: f"diffusion_model.{layer}",
) -> Path:  # fmt: skip
    """Write a LoHa or LoKr file for all layers of a ConditionedDiT. spell: a layer's name in the file."""
    tensors = {}
    for i, (layer, part) in enumerate(targets(module).items()):
        made = product_tensors(form, part.weight.detach(), rank, seed * 1000 + i, magnitudes)
        made |= {} if alpha is None else {"alpha": torch.tensor(float(alpha))}
        tensors |= {f"{spell(layer)}.{name}": tensor for name, tensor in made.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def latents(model, **more) -> torch.Tensor:
    """The latents of a short run."""
    return model.generate("a drum", duration=0.5, steps=4, seed=3, return_latents=True, padding=0.5, **more).latents
