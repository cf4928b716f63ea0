"""The loop that all training shares: AdamW, warm-up and cosine, clipping, weight averages, exact resumption, curves."""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SA3Error
from .curves import by_name, write_curves

STATE = "state.safetensors"  # in the folder of a run


@dataclass(frozen=True)
class Settings:
    """lr: peak learning rate. final: share of it left at the end of the cosine. ema: decay of the averaged weights, 0 = none."""

    steps: int
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup: int = 100
    final: float = 0.02
    clip: float = 1.0
    ema: float = 0.999
    record_every: int = 100
    save_every: int = 500
    seed: int = 0
    loss_scale: float = 1.0  # of the backward pass, for networks in float16; a step whose gradients overflow is left out

    def rate(self, step: int) -> float:
        """Learning rate of step `step` (from 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


Loss = Callable[[int, torch.Generator], dict[str, Tensor]]


class Trainer:
    """Runs `loss(step, generator)` over `parameters`; what it returns under "loss" is minimised, the rest is recorded.

    Step k draws from a generator seeded by (seed, k) alone, so a run that was stopped and resumed equals one that was not.
    folder: where state.safetensors, losses.csv and losses.png are kept; a state found there is continued.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], settings: Settings, folder: str | Path):
        self.parameters, self.settings, self.folder = parameters, settings, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        decayed = [p for p in parameters.values() if p.dim() > 1]
        rest = [p for p in parameters.values() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas)
        self.average = {name: p.detach().clone() for name, p in parameters.items()} if settings.ema else {}
        self.step, self.history = 0, []
        self.window: list[dict[str, float]] = []  # terms of the steps since the last record
        if (self.folder / STATE).is_file():
            self._load()

    def run(
        self,
        loss: Loss,
        report: Callable[[int, dict], None] | None = None,
        measure: Callable[[], dict[str, float]] | None = None,
        between: Callable[[int, dict], None] | None = None,
    ) -> None:
        """Train to the last step. report(step, means since the last record). measure(): more values for each record.

        between(step, terms): after each step; when it raises, to stop the run, the state is saved first.
        """
        while self.step < self.settings.steps:
            terms = self._one(loss)
            self.window.append(terms)
            self.step += 1
            if self.step % self.settings.record_every == 0 or self.step == self.settings.steps:
                means = {name: sum(t[name] for t in self.window) / len(self.window) for name in terms}
                means |= measure() if measure is not None else {}
                self.history.append({"step": self.step, **means})
                self.window = []
                if report is not None:
                    report(self.step, means)
            if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                self.save()
            if between is not None:
                try:
                    between(self.step, terms)
                except BaseException:
                    self.save()
                    raise

    def _one(self, loss: Loss) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.settings.seed * 2**32 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        terms = loss(self.step, generator)
        value = terms["loss"]
        if not bool(torch.isfinite(value)):
            raise SA3Error(f"The loss became {float(value.detach())} at step {self.step}; resume from the last state with a lower rate.")
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.settings.loss_scale
        (value * scale).backward()
        if scale != 1:
            for p in self.parameters.values():
                if p.grad is not None:
                    p.grad.div_(scale)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        if scale == 1 or bool(torch.isfinite(norm)):
            self.optimizer.step()
        # An average that starts at the start would remember it: the decay grows with the steps taken.
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, mean in self.average.items():
                mean.lerp_(self.parameters[name], 1 - decay)
        return {name: float(term.detach()) for name, term in terms.items()}

    def restart_average(self) -> None:
        """Begin the averages at the weights as they are now."""
        self.average = {name: self.parameters[name].detach().clone() for name in self.average}

    def averaged(self) -> dict[str, Tensor]:
        """The weights to keep: the averaged ones, the live ones without averaging."""
        return self.average or {name: p.detach() for name, p in self.parameters.items()}

    def save(self) -> None:
        tensors = {f"weight/{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": mean for name, mean in self.average.items()}
        for name, p in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[p].items() if isinstance(value, Tensor)}
        path = self.folder / STATE
        # One key, because the order of several is not fixed and equal states shall be equal files.
        note = json.dumps({"step": self.step, "history": self.history, "window": self.window, "settings": repr(self.settings)})
        save_file({name: t.contiguous() for name, t in tensors.items()}, f"{path}.part", {"state": note})
        os.replace(f"{path}.part", path)
        write_losses(self.folder / "losses.csv", self.history)
        if self.history:
            write_curves(self.folder / "losses.png", [row["step"] for row in self.history], by_name(self.history))

    def _load(self) -> None:
        with safe_open(self.folder / STATE, "pt") as file:
            note, names = json.loads(file.metadata()["state"]), set(file.keys())
            if missing := [name for name in self.parameters if f"weight/{name}" not in names]:
                raise SA3Error(f"{self.folder} holds the state of another network: '{missing[0]}' is missing. Train in an empty folder.")
            self.step, self.history, self.window = note["step"], note["history"], note.get("window", [])
            for name, p in self.parameters.items():
                weight = file.get_tensor(f"weight/{name}")
                if weight.shape != p.shape:
                    found, wanted = list(weight.shape), list(p.shape)
                    raise SA3Error(f"{self.folder} holds the state of another network: '{name}' is {found}, expected {wanted}.")
                p.data.copy_(weight)
                moments = {
                    key: file.get_tensor(f"{key}/{name}").to(p.device) for key in ("exp_avg", "exp_avg_sq") if f"{key}/{name}" in names
                }
                self.optimizer.state[p] = {"step": file.get_tensor(f"step/{name}"), **moments} if moments else {}  # AdamW counts on the CPU
            self.average = {name: file.get_tensor(f"average/{name}").to(mean.device) for name, mean in self.average.items()}


def write_losses(path: Path, rows: Iterable[dict]) -> None:
    rows = list(rows)
    if rows:
        names = ["step", *by_name(rows)]
        lines = [",".join(f"{row[name]:.6g}" if name in row else "" for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]) + "\n", encoding="utf-8")
