"""A training loop with AdamW, gradient clipping, exact resumption and loss curves."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoints.tensors import save
from ..errors import SA3Error
from .curves import by_name, write_curves

log = logging.getLogger("sa3")
STATE = "state.safetensors"
CSV = "losses.csv"
CURVES = "losses.png"

Loss = Callable[[int, torch.Generator], dict[str, Tensor]]  # (step, generator) -> scalar terms; "loss" is minimised


@dataclass(frozen=True)
class TrainerSettings:
    """clip: largest norm of the gradients. record_every, save_every: steps. loss_scale: factor of the loss in the backward pass, for
    float16 networks. Steps whose gradients are not finite are skipped."""

    steps: int
    lr: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    record_every: int = 100
    save_every: int = 500
    seed: int = 0
    loss_scale: float = 1.0


class Trainer:
    """Minimises a loss over `parameters` (name -> parameter). Resumes the state in `folder`, which also receives CSV and CURVES.

    Step k draws from a generator seeded by (seed, k), so a resumed run ends in the same bytes as an uninterrupted one.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], settings: TrainerSettings, folder: str | Path):
        self.parameters, self.settings, self.folder = parameters, settings, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        matrices = [p for p in parameters.values() if p.dim() > 1]
        vectors = [p for p in parameters.values() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.95))
        self.step, self.skipped, self.history = 0, 0, []
        self.window: list[dict[str, float]] = []  # terms of the steps since the last record
        if (self.folder / STATE).is_file():
            self.load()

    def run(
        self, loss: Loss, on_record: Callable[[int, dict], None] | None = None, evaluate: Callable[[], dict[str, float]] | None = None,
        on_step: Callable[[int, dict], None] | None = None,
    ) -> None:  # fmt: skip
        """Train up to the last step.

        evaluate(): more values for each record. on_record(step, means since the last record and the evaluation). on_step(step, terms):
        may raise to stop the run; the state is saved first.
        """
        settings = self.settings
        while self.step < settings.steps:
            terms = self.train_step(loss)
            self.window.append(terms)
            self.step += 1
            last = self.step == settings.steps
            if self.step % settings.record_every == 0 or last:
                means = {name: sum(t[name] for t in self.window) / len(self.window) for name in terms}
                means |= evaluate() if evaluate is not None else {}
                self.history.append({"step": self.step, **means})
                self.window = []
                if on_record is not None:
                    on_record(self.step, means)
            if self.step % settings.save_every == 0 or last:
                self.save()
            if on_step is not None:
                try:
                    on_step(self.step, terms)
                except BaseException:
                    self.save()
                    raise

    def train_step(self, loss: Loss) -> dict[str, float]:
        """One optimiser step; returns the terms of the loss."""
        generator = torch.Generator().manual_seed(self.settings.seed * 2**32 + self.step)
        terms = loss(self.step, generator)
        value = terms["loss"]
        if not bool(torch.isfinite(value)):
            raise SA3Error(
                f"The loss is {float(value.detach())} at step {self.step}; expected a finite number. Resume from the last state with a "
                "lower learning rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.settings.loss_scale
        (value * scale).backward()
        if scale != 1:
            for p in self.parameters.values():
                if p.grad is not None:
                    p.grad.div_(scale)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        else:
            self.skipped += 1
            log.warning("Step %d is skipped: its gradients are not finite (%d skipped so far).", self.step, self.skipped)
        return {name: float(term.detach()) for name, term in terms.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the saved state: weights and the optimiser's moments."""
        tensors = {f"weight/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[p].items() if isinstance(value, Tensor)}
        return tensors

    def save(self) -> None:
        """Write the state (atomically), the records as CSV and the curves as PNG."""
        # One metadata key: safetensors does not fix the order of several, and equal states must be equal files.
        note = json.dumps({"step": self.step, "history": self.history, "window": self.window, "settings": repr(self.settings)})
        save(self.folder / STATE, self.tensors(), {"state": note})
        if self.history:
            _write_csv(self.folder / CSV, self.history)
            write_curves(self.folder / CURVES, self.history)

    def load(self) -> None:
        """Resume the state in the folder. Raises SA3Error when it is damaged or belongs to another network."""
        try:
            self._read_state()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            way_out = "delete it to begin again, or choose another name"
            raise SA3Error(f"The state of the run, {self.folder / STATE}, is damaged ({error}); {way_out}.") from error

    def _read_state(self) -> None:
        with safe_open(self.folder / STATE, "pt") as file:
            note, names = json.loads(file.metadata()["state"]), set(file.keys())
            other = f"{self.folder} contains the state of another network"
            if missing := [name for name in self.parameters if f"weight/{name}" not in names]:
                raise SA3Error(f"{other}: '{missing[0]}' is missing. Train in an empty folder.")
            self.step, self.history, self.window = note["step"], note["history"], note.get("window", [])
            for name, p in self.parameters.items():
                weight = file.get_tensor(f"weight/{name}")
                if weight.shape != p.shape:
                    raise SA3Error(f"{other}: '{name}' is {list(weight.shape)}, expected {list(p.shape)}. Train in an empty folder.")
                p.data.copy_(weight)
                keys = [key for key in ("exp_avg", "exp_avg_sq") if f"{key}/{name}" in names]
                moments = {key: file.get_tensor(f"{key}/{name}").to(p.device) for key in keys}
                # AdamW keeps its step counter on the CPU.
                self.optimizer.state[p] = {"step": file.get_tensor(f"step/{name}"), **moments} if moments else {}


def _write_csv(path: Path, rows: Sequence[dict]) -> None:
    names = ["step", *by_name(rows)]
    lines = [",".join(f"{row[name]:.6g}" if name in row else "" for name in names) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]) + "\n", encoding="utf-8")
