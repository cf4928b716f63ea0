"""The training loop of the demo models: warm-up, cosine decay, and an exponential moving average (EMA) of the weights."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sa3_core.training.trainer import STATE, Loss, Trainer, TrainerSettings


@dataclass(frozen=True)
class Settings(TrainerSettings):
    """lr: peak learning rate. warmup: steps of linear warm-up. final: fraction of the peak at the end of the cosine decay.

    ema: decay of the averaged weights; 0 = no averaging.
    """

    warmup: int = 100
    final: float = 0.02
    ema: float = 0.999

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class EMATrainer(Trainer):
    """A Trainer that also keeps the EMA of the weights (`average`, by name)."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], settings: Settings, folder: str | Path):
        self.average = {name: p.detach().clone() for name, p in parameters.items()} if settings.ema else {}
        super().__init__(parameters, settings, folder)

    def train_step(self, loss: Loss) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.step)
        terms = super().train_step(loss)
        # The decay grows with the step; a constant one would keep a large share of the initial weights.
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, mean in self.average.items():
                mean.lerp_(self.parameters[name], 1 - decay)
        return terms

    def reset_average(self) -> None:
        """Set the averages to the current weights."""
        self.average = {name: self.parameters[name].detach().clone() for name in self.average}

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights; without averaging the current ones."""
        return self.average or {name: p.detach() for name, p in self.parameters.items()}

    @torch.no_grad()
    def copy_average(self) -> None:
        """Copy the averaged weights into the network."""
        for name, mean in self.averaged().items():
            self.parameters[name].copy_(mean)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"average/{name}": mean for name, mean in self.average.items()}

    def load(self) -> None:
        super().load()
        with safe_open(self.folder / STATE, "pt") as file:
            self.average = {name: file.get_tensor(f"average/{name}").to(mean.device) for name, mean in self.average.items()}
