"""LoRAs stacked on one model: which layers, how strong, when.

What is constant over a run becomes part of the weights (`Stack.patches`). From the first scheduled row of a layer on, the rest runs
in the forward pass (`Stack.velocity`), in the same algebra.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import open_checkpoint
from ..errors import SA3Error
from ..models.dit import DiT, DiTInputs, row_index
from ..models.layers import Adapters
from .algebra import MODES, Adapter, Form, compose, svd_bases
from .formats import BASES, SECONDS, LoRA, matches, read_bases, read_lora

FAMILIES = {3: "small", 5: "medium"}  # by the parts of to_qkv: medium attends differentially
KEPT_STATES = 2  # per run: on and off; a curve moves on and does not come back


def targets(module: nn.Module) -> dict[str, nn.Module]:
    """Every layer that an adapter can change, by its name in LoRA files: the transformer's Linear and Conv1d, the seconds embedder."""
    layers = {name: layer for name, layer in module.dit.named_modules() if isinstance(layer, (nn.Linear, nn.Conv1d))}
    return {**layers, SECONDS: module.conditioner.get_submodule(SECONDS)}


def weight_name(layer: str) -> str:
    """The name of a layer's weight in the release's file."""
    return f"conditioner.{layer}.weight" if layer == SECONDS else f"model.model.{layer}.weight"


@dataclass(frozen=True, eq=False)
class Row:
    """One LoRA of a stack with its layers that fit the model and are not skipped."""

    lora: LoRA
    layers: dict[str, Adapter]
    strength: float = 1.0
    seconds_strength: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    curve: tuple[float, ...] | None = None
    mode: str = "chain"
    warnings: tuple[str, ...] = ()

    @property
    def scheduled(self) -> bool:
        return self.strength != 0 and (self.curve is not None or self.interval[0] > 0 or self.interval[1] < 1)

    def strength_of(self, layer: str) -> float:
        return self.seconds_strength if layer == SECONDS else self.strength

    @functools.cached_property
    def active(self) -> list[str]:
        return [layer for layer in self.layers if self.strength_of(layer) != 0]

    def at(self, t: Tensor, sigmas: Tensor | None) -> list[float]:
        """Strength for each item at times t (B,). sigmas (B, steps + 1): the run's noise levels, None = unknown."""
        low, high = self.interval
        inside = ((t >= low) & (t <= high)).float() * self.strength
        if self.curve is not None:
            inside = inside * torch.stack([self._on_curve(t[i], None if sigmas is None else sigmas[i]) for i in range(len(t))])
        return inside.tolist()

    def _on_curve(self, t: Tensor, sigmas: Tensor | None) -> Tensor:
        """The curve's value, held over each step. One value per step, or per noise level; any other number is stretched."""
        curve = torch.tensor(self.curve, dtype=torch.float32)
        if sigmas is None:
            place = (1 - t) * (len(curve) - 1)
        else:
            steps = len(sigmas) - 1
            step = ((sigmas[:-1] >= t).sum() - 1).clamp(min=0)
            points = steps if len(curve) == steps + 1 else max(steps - 1, 1)
            place = step * (len(curve) - 1) / points
        below = place.floor().clamp(0, len(curve) - 1)
        left, right = curve[int(below)], curve[min(int(below) + 1, len(curve) - 1)]
        return left + (right - left) * (place - below)

    def record(self) -> dict:
        """Plain values for the record of a run."""
        return {
            "file": self.lora.name,
            "type": self.lora.kind,
            "ranks": self.lora.ranks,
            "base": self.lora.base,
            "layers": [len(self.active), len(self.lora.layers)],
            "strength": self.strength,
            "seconds_strength": self.seconds_strength,
            "interval": list(self.interval),
            "curve": None if self.curve is None else [round(value, 6) for value in self.curve],
            "mode": self.mode,
        }

    def describe(self) -> str:
        shown = [f"{len(self.active)} of {len(self.lora.layers)} layers", f"strength {self.strength:g}"]
        if SECONDS in self.layers and self.seconds_strength != self.strength:
            shown.append(f"seconds {self.seconds_strength:g}")
        if self.curve is not None:
            shown.append(f"curve of {len(self.curve)} points")
        if self.interval != (0.0, 1.0):
            shown.append(f"noise levels {self.interval[0]:g} to {self.interval[1]:g}")
        return ", ".join([self.lora.describe(), *shown, self.mode])


@dataclass(frozen=True, eq=False)
class Stack:
    """Rows from bottom to top. Immutable: `with_row` makes another."""

    rows: tuple[Row, ...] = ()

    def __deepcopy__(self, memo) -> "Stack":
        return self  # hosts copy their options deeply; a stack never changes

    def with_row(self, row: Row) -> "Stack":
        shared = [other.lora.name for other in self.rows if SECONDS in other.active] if SECONDS in row.active else []
        if shared:
            warning = (
                f"The seconds embedder is changed by {row.lora.name} and by {', '.join(shared)}; together they can give NaN and silence. "
                "Set seconds_strength to 0 on all but one to leave it out."
            )
            row = replace(row, warnings=(*row.warnings, warning))
        return Stack((*self.rows, row))

    @property
    def warnings(self) -> list[str]:
        return [warning for row in self.rows for warning in row.warnings]

    def describe(self) -> str:
        return "\n".join([row.describe() for row in self.rows] + [f"Warning: {warning}" for warning in self.warnings])

    def record(self) -> list[dict]:
        return [row.record() for row in self.rows]

    @functools.cached_property
    def _entries(self) -> dict[str, tuple[list[tuple[int, Adapter, str]], int]]:
        """Per layer its (row, adapter, mode), and how many of them are part of the weight."""
        found = {}
        for layer in dict.fromkeys(layer for row in self.rows for layer in row.active):
            entries = [(i, row.layers[layer], row.mode) for i, row in enumerate(self.rows) if layer in row.active]
            first = next((k for k, (i, *_) in enumerate(entries) if layer != SECONDS and self.rows[i].scheduled), len(entries))
            if any(mode == "sum" for *_, mode in entries[first:]):
                first = 0  # a delta against the base needs the base's own weight in the forward pass
            found[layer] = entries, first
        return found

    def patches(self) -> dict[str, list[tuple[Adapter, float, str]]]:
        """Layer -> (adapter, strength, mode) that are constant over a run."""
        return {
            layer: [(adapter, self.rows[i].strength_of(layer), mode) for i, adapter, mode in entries[:first]]
            for layer, (entries, first) in self._entries.items()
            if first
        }

    @functools.cached_property
    def scheduled(self) -> dict[str, list[tuple[int, Adapter, str]]]:
        """Layer -> (row, adapter, mode) that run in the forward pass."""
        return {layer: entries[first:] for layer, (entries, first) in self._entries.items() if entries[first:]}

    def velocity(
        self, dit: DiT, x: Tensor, t: Tensor, inputs: DiTInputs, sigmas: Tensor | None = None, read: Callable | None = None,
        run: Callable | None = None,
    ) -> Tensor:  # fmt: skip
        """`dit(x, t, inputs)` with the scheduled rows as they are at t (B,), each item by its own.

        sigmas (steps + 1,) or (b, steps + 1): the run's noise levels; B may be a multiple of b. read(layer, like): weight and bias
        in float32 of a module that a host keeps elsewhere, as it computes with them on an input of this type and device.
        run(x, t, inputs): in place of dit, for inputs with adapters or without.
        """
        t = t.detach().float().cpu()
        if sigmas is not None:
            sigmas = sigmas.float().cpu().reshape(-1, sigmas.shape[-1])
            sigmas = sigmas.repeat(len(t) // len(sigmas), 1)
        states = list(zip(*(row.at(t, sigmas) for row in self.rows), strict=True))
        groups = {state: [i for i, other in enumerate(states) if other == state] for state in dict.fromkeys(states)}
        rows, run = self._rows(inputs), run or dit
        if len(groups) == 1:
            return run(x, t, self._inputs_at(states[0], dit, inputs, rows, read))
        out = torch.empty_like(x)
        for state, items in groups.items():
            index = row_index(items, x.device)
            out[index] = run(x[index], t[items], self._inputs_at(state, dit, inputs.part(items), rows, read)).to(out.dtype)
        return out

    def _rows(self, inputs: DiTInputs) -> dict[str, list[tuple[int, Adapter, str]]]:
        """`scheduled` where the run computes, in float32: fetched in its first step, since a curve needs them in each."""
        if "scheduled" not in inputs.shared:
            inputs.shared["scheduled"] = {
                layer: [(i, adapter.to(inputs.cross_attn.device, torch.float32), mode) for i, adapter, mode in entries]
                for layer, entries in self.scheduled.items()
            }
        return inputs.shared["scheduled"]

    @staticmethod
    def _inputs_at(state: tuple[float, ...], dit: DiT, inputs: DiTInputs, scheduled: dict, read) -> DiTInputs:
        """The run's constants with the adapters at these strengths of the rows."""
        cache = inputs.cache.setdefault("states", {})
        if state not in cache:
            adapters, names = _adapters_at(state, dit, inputs, scheduled, read or _read)
            cache[state] = dit.refresh(inputs, names, adapters) if adapters else inputs
            while len(cache) > KEPT_STATES:
                del cache[next(iter(cache))]
        return cache[state]


@dataclass(frozen=True, eq=False)
class AdaptedLinear:
    """A Linear, or a Conv1d with kernel 1, whose output goes through a form; its weight stays untouched."""

    form: Form
    bias: Tensor | None

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(layer, nn.Conv1d):
            return self.form.linear(x, layer, self.bias)
        return self.form.linear(x.mT, lambda rows: layer(rows.mT).mT, self.bias).mT


def _adapters_at(state: tuple[float, ...], dit: DiT, inputs: DiTInputs, scheduled: dict, read) -> tuple[Adapters, list[str]]:
    """Adapters of the layers that are active at these strengths, and the layers' names."""
    device, dtype, adapters, names = inputs.cross_attn.device, inputs.cross_attn.dtype, {}, []
    for name, entries in scheduled.items():
        active = [(adapter, state[i], mode) for i, adapter, mode in entries if state[i] != 0]
        if not active:
            continue
        layer, bias, weight = dit.get_submodule(name), None, torch.empty(0, device=device, dtype=torch.float32)
        if any(adapter.rows is not None or adapter.cols is not None for adapter, *_ in active):
            weight, bias = read(layer, inputs.cross_attn)
            weight = weight.flatten(1)
        adapters[layer] = AdaptedLinear(compose(weight, active).to(dtype), None if bias is None else bias.to(dtype))
        names.append(name)
    return adapters, names


def _read(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    return layer.weight.float(), None if layer.bias is None else layer.bias.float()


# Rows from files


def make_row(
    lora: LoRA,
    module: nn.Module,
    model_name: str,
    strength: float = 1.0,
    interval: Sequence[float] = (0, 1),
    skip_layers: str | Iterable[str] = (),
    seconds_strength: float | None = None,
    mode: str = "chain",
    curve: Sequence[float] | Tensor | None = None,
) -> Row:
    """A LoRA fitted to a model (a `Generator`), checked. skip_layers: parts of layer names, [a-b] for numbers."""
    if mode not in MODES:
        raise SA3Error(f"The LoRA mode is '{mode}'; expected {' or '.join(MODES)}.")
    numbers = {"strength": strength, "seconds_strength": strength if seconds_strength is None else seconds_strength}
    numbers |= {"start": interval[0], "end": interval[1]}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise SA3Error(f"The LoRA's {name} is {value}; expected a number.")
    if interval[0] > interval[1]:
        raise SA3Error(f"The LoRA's interval runs from {interval[0]} to {interval[1]}; expected start <= end.")
    skip = [part.strip() for part in (skip_layers.split(",") if isinstance(skip_layers, str) else skip_layers)]
    layers = {layer: adapter for layer, adapter in _fitting(lora, module, model_name).items() if not matches(layer, skip)}
    if not layers:
        raise SA3Error(f"{lora.name}: the layer filter '{', '.join(skip)}' leaves none of its {len(lora.layers)} layers.")
    warnings = [*lora.warnings, *_foreign(lora, model_name)]
    if len(layers) < len(lora.layers) and not any(skip):
        warnings.append(f"{lora.name}: {len(lora.layers) - len(layers)} of its layers are not in this model.")
    low, high = (float(value) for value in interval)
    return Row(lora, layers, numbers["strength"], numbers["seconds_strength"], (low, high), _curve(curve), mode, tuple(warnings))


def _fitting(lora: LoRA, module: nn.Module, model_name: str) -> dict[str, Adapter]:
    """The layers of a file that the model has, shapes checked. None at all is an error."""
    known = targets(module)
    spelled = {name.replace(".", "_"): name for name in known}  # kohya writes underscores
    layers = {spelled.get(name, name): adapter for name, adapter in lora.layers.items() if name in known or name in spelled}
    if not layers:
        raise SA3Error(
            f"{lora.path} fits no layer of {model_name}: it has '{next(iter(lora.layers))}', the model '{next(iter(known))}'. "
            "It was made for another kind of model."
        )
    for name, adapter in layers.items():
        weight = known[name].weight
        shape = (weight.shape[0], weight.numel() // weight.shape[0])
        if misfit := adapter.misfit(shape):
            raise SA3Error(
                f"{lora.path} does not fit {model_name}: layer '{name}' has {misfit}, the model's weight is {shape[0]} x {shape[1]}. "
                f"The LoRA is for {lora.base or 'a base it does not name'}{_family(lora)}, this model is of the {_own_family(module)} "
                f"family, width {module.dit.config.width}."
            )
    return layers


def _family(lora: LoRA) -> str:
    """Of a file, by the shapes of its attention layers."""
    for name, adapter in lora.layers.items():
        if name.endswith("self_attn.to_qkv") and adapter.down is not None:
            out, width = adapter.up.shape[0], adapter.down.shape[1]
            return f" ({FAMILIES.get(out // width, 'unknown')} family, width {width})"
    return ""


def _own_family(module: nn.Module) -> str:
    return FAMILIES[5 if module.dit.config.differential else 3]


def _variant(name: str | None) -> str | None:
    found = re.search(r"(small-music|small-sfx|small|medium)(-base)?", (name or "").lower().replace("_", "-"))
    return None if found is None else found[0]


def _foreign(lora: LoRA, model_name: str) -> list[str]:
    """A model of another training set. Its -base and post-trained forms take each other's LoRAs by design."""
    base, here = _variant(lora.base), _variant(model_name)
    if base is None or here is None or base.removesuffix("-base") == here.removesuffix("-base"):
        return []
    return [f"{lora.name} was trained on {lora.base}, this model is {model_name}; it fits, but was made for another sound."]


def _curve(curve) -> tuple[float, ...] | None:
    if curve is None:
        return None
    values = torch.as_tensor(curve, dtype=torch.float32)
    if values.dim() != 1 or not len(values) or not bool(torch.isfinite(values).all()):
        raise SA3Error(f"The strength curve has shape {tuple(values.shape)}; expected a list of finite multipliers, one per step.")
    return tuple(values.tolist())


def open_lora(path: str | Path, module: nn.Module, model_name: str, checkpoint: Path, base: Callable | Path | None = None) -> LoRA:
    """Read a LoRA for a model and complete it: an -xs file gets its SVD bases.

    They come from `svd_bases.safetensors` beside the LoRA or beside its base, else (slowly) from the weights of its base, else of
    `checkpoint`, the loaded model's. base: the checkpoint that the LoRA was trained on, a file of its bases, or a function from the
    base's name to one of them.
    """
    lora = read_lora(path)
    family, own = (_variant(lora.base) or "").partition("-")[0], _own_family(module)
    if family and family != own:
        raise SA3Error(
            f"{lora.path} does not fit {model_name}: it was trained on {lora.base}, this model is of the {own} family. "
            f"Load the {family} model for it."
        )
    if not lora.needs_bases:
        return lora
    base = base(lora.base) if callable(base) else base
    beside = [lora.path.parent / BASES]
    if base is not None:
        beside.append(base if base.name.endswith(BASES) else (base if base.is_dir() else base.parent) / BASES)
    stored = next((file for file in beside if file.is_file()), None)
    if stored is not None:
        return lora.with_bases(read_bases(stored))
    source = checkpoint if base is None else base
    found, name = lora.with_bases(checkpoint_bases(source)), open_checkpoint(source).name
    if _variant(lora.base) is not None and _variant(lora.base) == _variant(name):
        return found
    warning = (
        f"{lora.name} ({lora.kind}) was trained on {lora.base or 'a base it does not name'}; its bases are taken from {name}. "
        f"Unless that is the same checkpoint it will sound wrong: put the base's SVD bases beside it as {BASES}."
    )
    return replace(found, warnings=(*found.warnings, warning))


def checkpoint_bases(checkpoint: Path):
    """bases(layer, rank) from the SVD of a checkpoint's own weights: seconds a layer."""
    opened = open_checkpoint(checkpoint)

    def bases(layer: str, rank: int) -> tuple[Tensor, Tensor]:
        name = opened.prefix + weight_name(layer)
        if name not in opened.tensors.names:
            raise SA3Error(f"The LoRA changes the layer '{layer}', which {opened.name} does not have; it is for another base.")
        return svd_bases(opened.tensors.read(name).flatten(1), rank)

    return bases
