"""LoRA files fitted to a model: SVD bases of -xs files, matching layers, shapes and families."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import open_checkpoint
from ..errors import SA3Error
from .algebra import MODES, Adapter, svd_bases
from .formats import BASES, Bases, LoRA, matches, read_bases, read_lora
from .stack import StackedLoRA, targets, weight_name

FAMILIES = {3: "small", 5: "medium"}  # by the number of projections in to_qkv; medium has differential attention


def open_lora(
    path: str | Path, module: nn.Module, model_name: str, checkpoint: Path, base: Callable[[str | None], Path | None] | Path | None = None
) -> LoRA:  # fmt: skip
    """Read a LoRA for a model (a `ConditionedDiT`) and complete an -xs file with its SVD bases.

    The bases come from `svd_bases.safetensors` next to the LoRA or next to its base; otherwise they are computed, in minutes, from the
    weights of its base or else of `checkpoint`, the loaded model's. base: the checkpoint that the LoRA was trained on, a file with its
    bases, or a function from the base's name to one of them.
    """
    lora = read_lora(path)
    family, own = (_variant(lora.base) or "").partition("-")[0], _family_of(module)
    if family and family != own:
        raise SA3Error(f"{lora.path} does not fit {model_name}, a {own} model: it was trained on {lora.base}; load a {family} model.")
    if not lora.needs_bases:
        return lora
    base = base(lora.base) if callable(base) else base
    candidates = [lora.path.parent / BASES]
    if base is not None:
        candidates.append(base if base.name.endswith(BASES) else (base if base.is_dir() else base.parent) / BASES)
    stored = next((file for file in candidates if file.is_file()), None)
    if stored is not None:
        return lora.with_bases(read_bases(stored))
    source = checkpoint if base is None else base
    completed, name = lora.with_bases(checkpoint_bases(source)), open_checkpoint(source).name
    if _variant(lora.base) is not None and _variant(lora.base) == _variant(name):
        return completed
    warning = (
        f"{lora.name} ({lora.kind}) was trained on {lora.base or 'an unnamed base'}; its bases are taken from {name}. "
        f"Unless that is the same checkpoint it will sound wrong: put the base's SVD bases next to it as {BASES}."
    )
    return replace(completed, warnings=(*completed.warnings, warning))


def checkpoint_bases(checkpoint: Path) -> Bases:
    """SVD bases computed from a checkpoint's own weights, in seconds per layer."""
    opened = open_checkpoint(checkpoint)

    def bases(layer: str, rank: int) -> tuple[Tensor, Tensor]:
        name = opened.prefix + weight_name(layer)
        if name not in opened.tensors.names:
            raise SA3Error(
                f"The LoRA changes the layer '{layer}', which {opened.name} does not have; it is for another base: load that one."
            )
        return svd_bases(opened.tensors.read(name).flatten(1), rank)

    return bases


def fit_lora(
    lora: LoRA, module: nn.Module, model_name: str, strength: float = 1.0, interval: Sequence[float] = (0, 1),
    skip_layers: str | Iterable[str] = (), seconds_strength: float | None = None, mode: str = "chain",
    curve: Sequence[float] | Tensor | None = None,
) -> StackedLoRA:  # fmt: skip
    """A LoRA fitted to a model (a `ConditionedDiT`), settings and shapes checked.

    skip_layers: parts of layer names, [a-b] for numbers. seconds_strength: None = strength. Settings as in `StackedLoRA`.
    """
    if mode not in MODES:
        raise SA3Error(f"The LoRA mode is '{mode}'; expected {' or '.join(MODES)}.")
    seconds_strength = strength if seconds_strength is None else seconds_strength
    try:
        low, high = (float(value) for value in interval)
    except (TypeError, ValueError) as error:
        raise SA3Error(f"The LoRA's interval is {interval!r}; expected two noise levels, start and end.") from error
    for name, value in {"strength": strength, "seconds_strength": seconds_strength, "start": low, "end": high}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise SA3Error(f"The LoRA's {name} is {value}; expected a finite number.")
    if low > high:
        raise SA3Error(f"The LoRA's interval runs from {low} to {high}; expected start <= end.")
    if curve is not None:
        try:
            values = torch.as_tensor(curve, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SA3Error(f"The strength curve is {curve!r}; expected a list of finite multipliers, one per step.") from error
        if values.dim() != 1 or not len(values) or not bool(torch.isfinite(values).all()):
            raise SA3Error(f"The strength curve has shape {tuple(values.shape)}; expected a list of finite multipliers, one per step.")
        curve = tuple(values.tolist())
    if not isinstance(skip_layers, (str, list, tuple)) or not all(isinstance(part, str) for part in skip_layers):
        raise SA3Error(f"skip_layers is {skip_layers!r}; expected parts of layer names.")
    skip = [part.strip() for part in (skip_layers.split(",") if isinstance(skip_layers, str) else skip_layers)]
    layers = {layer: adapter for layer, adapter in _fitting_layers(lora, module, model_name).items() if not matches(layer, skip)}
    if not layers:
        raise SA3Error(f"{lora.name}: the layer filter '{', '.join(skip)}' leaves none of its {len(lora.layers)} layers; name fewer.")
    warnings = list(lora.warnings)
    base, own = _variant(lora.base), _variant(model_name)
    # A base model and its post-trained form take each other's LoRAs by design.
    if base is not None and own is not None and base.removesuffix("-base") != own.removesuffix("-base"):
        warnings.append(f"{lora.name} was trained on {lora.base}, this model is {model_name}; it fits, but was trained on other sounds.")
    if len(layers) < len(lora.layers) and not any(skip):
        warnings.append(f"{lora.name}: {len(lora.layers) - len(layers)} of its layers are not in this model.")
    return StackedLoRA(lora, layers, strength, seconds_strength, (low, high), curve, mode, tuple(warnings))


def _fitting_layers(lora: LoRA, module: nn.Module, model_name: str) -> dict[str, Adapter]:
    """The layers of a file that the model has, shapes checked. None at all is an SA3Error."""
    known = targets(module)
    spelled = {name.replace(".", "_"): name for name in known}  # kohya writes underscores
    layers = {spelled.get(name, name): adapter for name, adapter in lora.layers.items() if name in known or name in spelled}
    if not layers:
        raise SA3Error(
            f"{lora.path} fits no layer of {model_name}: it has '{next(iter(lora.layers))}', the model '{next(iter(known))}'. "
            "It was trained on another kind of model: use it with that one."
        )
    for name, adapter in layers.items():
        weight = known[name].weight
        shape = (weight.shape[0], weight.numel() // weight.shape[0])
        if misfit := adapter.misfit(shape):
            raise SA3Error(
                f"{lora.path} does not fit {model_name}: layer '{name}' has {misfit}, the model's weight is {shape[0]} x {shape[1]}. "
                f"The LoRA is for {lora.base or 'an unnamed base'}{_family_in(lora)}, this model is of the {_family_of(module)} "
                f"family, width {module.dit.config.width}. Load a model that fits."
            )
    return layers


def _family_in(lora: LoRA) -> str:
    """The family of a file in parentheses, from the shapes of its attention layers; empty if unknown."""
    for name, adapter in lora.layers.items():
        if name.endswith("self_attn.to_qkv") and not adapter.needs_bases:
            out, width = adapter.update.shape
            return f" ({FAMILIES.get(out // width, 'unknown')} family, width {width})"
    return ""


def _family_of(module: nn.Module) -> str:
    return FAMILIES[5 if module.dit.config.differential else 3]


def _variant(name: str | None) -> str | None:
    """The variant named in a text, small alone included; None if there is none."""
    found = re.search(r"(small-music|small-sfx|small|medium)(-base)?", (name or "").lower().replace("_", "-"))
    return None if found is None else found[0]
