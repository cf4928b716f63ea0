"""LoRAs stacked on one model: which layers, how strong, at which noise levels.

Constant adapters become part of the weights (`Stack.patches`). From the first scheduled one of a layer on, the rest runs in the forward
pass (`Stack.velocity`), in the same algebra.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..models.conditions import Conditions, row_index
from ..models.dit import DiT
from .algebra import AdaptedWeight, Adapter, compose
from .formats import SECONDS, LoRA

CACHED_STRENGTHS = 2  # per run: enough for on and off; a curve never returns to an earlier value

Scheduled = dict[str, list[tuple[int, Adapter, str]]]  # layer -> (index into Stack.loras, adapter, mode), from bottom to top
ReadWeight = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]  # (layer, like) -> weight and bias in float32


def targets(module: nn.Module) -> dict[str, nn.Module]:
    """Every layer that an adapter can change, by its name in LoRA files: the transformer's Linear and Conv1d, the seconds embedder."""
    layers = {name: layer for name, layer in module.dit.named_modules() if isinstance(layer, (nn.Linear, nn.Conv1d))}
    return {**layers, SECONDS: module.conditioner.get_submodule(SECONDS)}


def weight_name(layer: str) -> str:
    """The name of a layer's weight in the release's file."""
    return f"conditioner.{layer}.weight" if layer == SECONDS else f"model.model.{layer}.weight"


@dataclass(frozen=True, eq=False)
class StackedLoRA:
    """One LoRA of a stack: its adapters for layers that the model has and that are not skipped, and when they act."""

    lora: LoRA
    layers: dict[str, Adapter]
    strength: float = 1.0
    seconds_strength: float = 1.0  # of the seconds embedder, which runs once before the steps
    interval: tuple[float, float] = (0.0, 1.0)  # noise levels, both inclusive
    curve: tuple[float, ...] | None = None  # multipliers of the strength over the steps
    mode: str = "chain"
    warnings: tuple[str, ...] = ()

    @property
    def scheduled(self) -> bool:
        """Whether the strength depends on the noise level."""
        return self.strength != 0 and (self.curve is not None or self.interval[0] > 0 or self.interval[1] < 1)

    def strength_of(self, layer: str) -> float:
        return self.seconds_strength if layer == SECONDS else self.strength

    @functools.cached_property
    def active(self) -> list[str]:
        """Layers with a strength other than 0."""
        return [layer for layer in self.layers if self.strength_of(layer) != 0]

    def strengths_at(self, t: Tensor, sigmas: Tensor | None) -> list[float]:
        """Strength for each item at times t (B,). sigmas (B, steps + 1): the run's noise levels, None = unknown."""
        low, high = self.interval
        strengths = ((t >= low) & (t <= high)).float() * self.strength
        if self.curve is not None:
            strengths = strengths * torch.stack([self._on_curve(t[i], None if sigmas is None else sigmas[i]) for i in range(len(t))])
        return strengths.tolist()

    def _on_curve(self, t: Tensor, sigmas: Tensor | None) -> Tensor:
        """The curve's value, constant within a step. A curve with neither a value per step nor per noise level is interpolated."""
        curve = torch.tensor(self.curve, dtype=torch.float32)
        if sigmas is None:
            position = (1 - t) * (len(curve) - 1)
        else:
            steps = len(sigmas) - 1
            step = ((sigmas[:-1] >= t).sum() - 1).clamp(min=0)
            points = steps if len(curve) == steps + 1 else max(steps - 1, 1)
            position = step * (len(curve) - 1) / points
        below = position.floor().clamp(0, len(curve) - 1)
        left, right = curve[int(below)], curve[min(int(below) + 1, len(curve) - 1)]
        return left + (right - left) * (position - below)

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
        parts = [self.lora.describe(), f"{len(self.active)} of {len(self.lora.layers)} layers", f"strength {self.strength:g}"]
        if SECONDS in self.layers and self.seconds_strength != self.strength:
            parts.append(f"seconds {self.seconds_strength:g}")
        if self.curve is not None:
            parts.append(f"curve of {len(self.curve)} points")
        if self.interval != (0.0, 1.0):
            parts.append(f"noise levels {self.interval[0]:g} to {self.interval[1]:g}")
        return ", ".join([*parts, self.mode])


@dataclass(frozen=True, eq=False)
class Stack:
    """LoRAs from bottom to top. Immutable: `with_lora` returns a new stack."""

    loras: tuple[StackedLoRA, ...] = ()

    def with_lora(self, lora: StackedLoRA) -> "Stack":
        shared = [other.lora.name for other in self.loras if SECONDS in other.active] if SECONDS in lora.active else []
        if shared:
            warning = (
                f"The seconds embedder is changed by {lora.lora.name} and by {', '.join(shared)}; together they can give NaN and silence. "
                "Set seconds_strength to 0 on all but one to leave it out."
            )
            lora = replace(lora, warnings=(*lora.warnings, warning))
        return Stack((*self.loras, lora))

    @property
    def warnings(self) -> list[str]:
        return [warning for lora in self.loras for warning in lora.warnings]

    def describe(self) -> str:
        return "\n".join([lora.describe() for lora in self.loras] + [f"Warning: {warning}" for warning in self.warnings])

    def record(self) -> list[dict]:
        return [lora.record() for lora in self.loras]

    @functools.cached_property
    def _split(self) -> tuple[Scheduled, Scheduled]:
        """The adapters of each layer that are merged into its weight, and those above them that run in the forward pass."""
        constant, scheduled = {}, {}
        for layer in dict.fromkeys(layer for lora in self.loras for layer in lora.active):
            adapters = [(i, lora.layers[layer], lora.mode) for i, lora in enumerate(self.loras) if layer in lora.active]
            first = next((k for k, (i, *_) in enumerate(adapters) if layer != SECONDS and self.loras[i].scheduled), len(adapters))
            if any(mode == "sum" for *_, mode in adapters[first:]):
                first = 0  # a delta against the base needs the base's own weight in the forward pass
            constant[layer], scheduled[layer] = adapters[:first], adapters[first:]
        return tuple({layer: adapters for layer, adapters in part.items() if adapters} for part in (constant, scheduled))

    def patches(self) -> dict[str, list[tuple[Adapter, float, str]]]:
        """Layer -> (adapter, strength, mode) to merge into its weight."""
        return {
            layer: [(adapter, self.loras[i].strength_of(layer), mode) for i, adapter, mode in adapters]
            for layer, adapters in self._split[0].items()
        }

    @property
    def scheduled(self) -> Scheduled:
        """The adapters that run in the forward pass."""
        return self._split[1]

    def velocity(
        self, dit: DiT, x: Tensor, t: Tensor, inputs: Conditions, sigmas: Tensor | None = None, read: ReadWeight | None = None,
        run: Callable | None = None,
    ) -> Tensor:  # fmt: skip
        """`dit(x, t, inputs)` with the scheduled adapters at their strengths for t (B,), item by item.

        sigmas (steps + 1,) or (b, steps + 1): the run's noise levels; B may be a multiple of b. read(layer, like): weight and bias
        in float32 of a module that a host keeps elsewhere, on the device of `like`. run(x, t, inputs): called in place of dit.
        """
        t = t.detach().float().cpu()
        if sigmas is not None:
            sigmas = sigmas.float().cpu().reshape(-1, sigmas.shape[-1])
            sigmas = sigmas.repeat(len(t) // len(sigmas), 1)
        strengths = list(zip(*(lora.strengths_at(t, sigmas) for lora in self.loras), strict=True))
        groups = {one: [i for i, other in enumerate(strengths) if other == one] for one in dict.fromkeys(strengths)}
        scheduled, run, read = self._on_device(inputs), run or dit, read or _read
        if len(groups) == 1:
            return run(x, t, _inputs_at(strengths[0], dit, inputs, scheduled, read))
        out = torch.empty_like(x)
        for one, items in groups.items():
            index = row_index(items, x.device)
            out[index] = run(x[index], t[items], _inputs_at(one, dit, inputs.part(items), scheduled, read)).to(out.dtype)
        return out

    def _on_device(self, inputs: Conditions) -> Scheduled:
        """`scheduled` on the run's device in float32, copied in the run's first step."""
        scheduled = inputs.cache.scheduled
        if not scheduled:
            scheduled |= {
                layer: [(i, adapter.to(inputs.cross_attn.device, torch.float32), mode) for i, adapter, mode in adapters]
                for layer, adapters in self.scheduled.items()
            }
        return scheduled


@dataclass(frozen=True, eq=False)
class AdaptedLinear:
    """The adapted forward pass of a Linear, or a Conv1d with kernel 1, whose own weight stays unchanged."""

    weight: AdaptedWeight
    bias: Tensor | None

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(layer, nn.Conv1d):
            return self.weight.linear(x, layer, self.bias)
        return self.weight.linear(x.mT, lambda rows: layer(rows.mT).mT, self.bias).mT


def _inputs_at(strengths: tuple[float, ...], dit: DiT, inputs: Conditions, scheduled: Scheduled, read: ReadWeight) -> Conditions:
    """The run's constants with the adapters at these strengths of the LoRAs, cached."""
    cache = inputs.cache.adapted
    if strengths in cache:
        return cache[strengths]
    device, dtype, adapters, names = inputs.cross_attn.device, inputs.cross_attn.dtype, {}, []
    for name, stack in scheduled.items():
        active = [(adapter, strengths[i], mode) for i, adapter, mode in stack if strengths[i] != 0]
        if not active:
            continue
        layer, bias, weight = dit.get_submodule(name), None, torch.empty(0, device=device, dtype=torch.float32)
        if any(adapter.rows is not None or adapter.cols is not None for adapter, *_ in active):  # norms need the base weight
            weight, bias = read(layer, inputs.cross_attn)
            weight = weight.flatten(1)
        adapters[layer] = AdaptedLinear(compose(weight, active).to(dtype), None if bias is None else bias.to(dtype))
        names.append(name)
    cache[strengths] = dit.refresh(inputs, names, adapters) if adapters else inputs
    while len(cache) > CACHED_STRENGTHS:
        del cache[next(iter(cache))]
    return cache[strengths]


def _read(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    return layer.weight.float(), None if layer.bias is None else layer.bias.float()
