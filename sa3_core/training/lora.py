"""Training a LoRA on a base model, as the public trainer does it: frozen base, adapters in float32, exact resumption.

A run keeps its state, curves and samples in a folder of its own. LoRAs appear beside `out`: `name_step000250.safetensors` on the way
and when a run is interrupted, `name.safetensors` at the end.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__
from ..audio import files as audio_files
from ..errors import SA3Error
from ..files import publish, read_json
from ..lora.algebra import TYPES
from ..lora.formats import BASES, read_bases, read_lora
from ..lora.stack import checkpoint_bases
from ..models.conditioning import Condition
from . import dataset
from .adapters import Adapters
from .base import DTYPES, Source, load_base, sample
from .flow import Batch, FlowSettings, fixed_loss
from .flow import loss as flow_loss
from .loop import STATE, Settings, Trainer

RECORD_EVERY, MEASURE_EVERY, PROBES = 20, 100, 4  # steps; clips of each side of the split that the fixed losses are measured on
FLOW = FlowSettings(pairing=True)


@dataclass(frozen=True)
class LoRASettings:
    """kind: one of the eight types. alpha: None = rank. seconds: longest crop. include, exclude: parts of layer names, [a-b] for
    numbers. dtype: of the frozen base (DTYPES). validation: share of the clips held out. save_every: steps from one LoRA on the way
    to the next, preview_every: to the next sample of `prompt`; 0 = none. preview_seconds: of a sample. clip:
    largest norm of the gradients, 0 = any. checkpointing: the backward pass computes the layers again, for less memory."""

    kind: str = "dora-rows"
    rank: int = 16
    alpha: float | None = None
    steps: int = 1000
    lr: float = 1e-4
    batch: int = 1
    seconds: float = 30.0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: str = "fp32"
    seed: int = 42
    validation: float = 0.1
    save_every: int = 250
    preview_every: int = 250
    prompt: str = ""
    preview_seconds: float = 10.0
    preview_steps: int | None = None
    weight_decay: float = 0.01
    clip: float = 0.0
    checkpointing: bool = False
    flow: FlowSettings = FLOW

    def __post_init__(self):
        for name, allowed in (("kind", tuple(TYPES)), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in allowed:
                raise SA3Error(f"{name} is '{getattr(self, name)}'; expected one of {', '.join(allowed)}.")
        for name, least in (("steps", 1), ("batch", 1), ("save_every", 0), ("preview_every", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise SA3Error(f"{name} is {value}; expected a whole number of at least {least}.")
        for name in ("lr", "seconds", "preview_seconds"):
            if not 0 < getattr(self, name) < 1e5:
                raise SA3Error(f"{name} is {getattr(self, name)}; expected more than 0.")

    def identity(self) -> dict:
        """What must stay when a run is resumed: all but how long it goes on, and what it shows."""
        passing = {"steps", "checkpointing", "save_every", "preview_every", "prompt", "preview_seconds", "preview_steps"}
        return {key: value for key, value in json.loads(json.dumps(dataclasses.asdict(self))).items() if key not in passing}


class Watch:
    """What is told while it goes on. `stage` and `step` may raise to stop the run; it goes on where it was when started again."""

    def stage(self, done: int, total: int, words: str) -> None:
        """Before the first step."""

    def step(self, step: int, steps: int, loss: float) -> None:
        """After each step."""

    def record(self, history: list[dict]) -> None:
        """After each record: the history so far."""

    def sample(self, step: int, waveform: Tensor, rate: int) -> None:
        """A sample (C, N) made with the adapters as they are."""


@dataclass(frozen=True)
class Outcome:
    """The LoRA, the run's records, its loss curves (PNG), the last sample (C, N) if any was made, a report in words, and a sentence for
    each file that was left out."""

    path: Path
    history: list[dict]
    curves: Path
    sample: Tensor | None
    report: str
    rejected: list[str]


def train(
    source: Source, data: str | Path, out: str | Path, folder: str | Path, settings: LoRASettings, watch: Watch | None = None
) -> Outcome:
    """Train on the folder `data`, keep the run in `folder`, write the LoRA `out`. Started again with the same settings, it goes on.

    Raises SA3Error before any work when the base is post-trained, `out` belongs to something else, or the run was begun otherwise.
    """
    out, folder, watch = Path(out), Path(folder), watch or Watch()
    if not source.config.is_base:
        raise SA3Error(
            f"{source.name} is post-trained for few steps; LoRAs are trained on the -base model of the same size and then used on both. "
            "Load that one."
        )
    if out.suffix != ".safetensors":
        raise SA3Error(f"The LoRA's file is {out.name}; expected a name that ends in .safetensors.")
    run = _Run(source, out, folder, settings, watch)
    run.claim()
    clips = dataset.prepare(
        data, source.config, source.autoencoder, source.encode, settings.validation,
        lambda done, total, name: watch.stage(done, total, f"encoding {name}"),
    )  # fmt: skip
    run.begin(clips)
    if run.trainer.step < settings.steps:
        run.go()
    return run.outcome()


@dataclass
class _Run:
    source: Source
    out: Path
    folder: Path
    settings: LoRASettings
    watch: Watch
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # caption -> embeddings (n, dim), mask (n,)
    last_sample: Tensor | None = None

    @functools.cached_property
    def identity(self) -> dict:
        return {"base": self.source.name, "autoencoder": self.source.autoencoder, **self.settings.identity()}

    @functools.cached_property
    def word(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def claim(self) -> None:
        """Check that folder and file are free, or of this very run."""
        note = self.folder / "run.json"
        if note.is_file():
            begun = read_json(note, "the settings of a training run")
            begun = begun if isinstance(begun, dict) else {}
            other = [f"{key} {begun.get(key)} is now {value}" for key, value in self.identity.items() if begun.get(key) != value]
            if other:
                raise SA3Error(
                    f"The run in {self.folder} was begun with other settings ({'; '.join(other)}); give another name, or set them back."
                )
        if self.out.exists() and (not (self.folder / STATE).is_file() or read_lora(self.out).config.get("run") != self.word):
            raise SA3Error(f"{self.out} exists already and is not of this run; choose another name.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(self.identity, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SA3Error(f"The run cannot be kept in {self.folder} ({error}).") from error

    def begin(self, clips: dataset.Dataset) -> None:
        """Everything that a step needs."""
        settings, source = self.settings, self.source
        self.clips = clips
        self.watch.stage(0, 1, "encoding captions")
        captions = list(dict.fromkeys(clip.caption for clip in (*clips.training, *clips.validation)))
        for start in range(0, len(captions), 8):
            group = captions[start : start + 8]
            self.rows |= dict(zip(group, zip(*source.texts(group), strict=True), strict=True))
        self.watch.stage(0, 1, f"reading {source.name}")
        self.net = load_base(source, settings.dtype)
        bases = None
        if settings.kind.endswith("-xs"):
            kept = self.folder / BASES
            bases = read_bases(kept) if kept.is_file() else checkpoint_bases(source.checkpoint)
        self.adapters = Adapters(
            self.net, settings.kind, settings.rank, settings.alpha, settings.include, settings.exclude, settings.seed, bases,
            lambda done, total: self.watch.stage(done, total, "SVD bases, layer"),
        )  # fmt: skip
        if bases is not None and not (self.folder / BASES).is_file():
            tensors = {name: basis.cpu().contiguous() for name, basis in self.adapters.svd_bases().items()}
            publish(self.folder / BASES, lambda part: save_file(tensors, part))
        loop = Settings(
            settings.steps, settings.lr, (0.9, 0.95), settings.weight_decay, warmup=0, final=1.0, clip=settings.clip or math.inf, ema=0.0,
            record_every=RECORD_EVERY, save_every=settings.save_every or max(settings.steps, 1), seed=settings.seed % 2**31,
            loss_scale=1024.0 if settings.dtype == "fp16" else 1.0,
        )  # fmt: skip
        self.trainer = Trainer(self.adapters.trained(), loop, self.folder)
        self.resumed = self.trainer.step
        spf = source.config.same.samples_per_frame
        longest = source.config.sample_size // spf
        self.window = max(1, min(longest, math.ceil(settings.seconds * source.config.sample_rate / spf)))

    def go(self) -> None:
        trainer, settings = self.trainer, self.settings
        rate = self.source.config.sample_rate / self.source.config.same.samples_per_frame
        inner = flow_loss(self.net, self._draw, settings.flow, rate, settings.checkpointing)

        def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {"loss": inner(step, generator)["loss"]}

        def measure() -> dict[str, float]:
            return self._fixed() if trainer.step % MEASURE_EVERY == 0 or trainer.step == settings.steps else {}

        def report(step: int, means: dict) -> None:
            self.watch.record(trainer.history)

        def between(step: int, terms: dict) -> None:
            if settings.save_every and step % settings.save_every == 0 and step < settings.steps:
                self._write(self._at(step))
            if settings.prompt and settings.preview_every and step % settings.preview_every == 0 and step < settings.steps:
                self._sample(step)
            if step < settings.steps:
                self.watch.step(step, settings.steps, terms["loss"])

        if trainer.step == 0 and not trainer.history:
            trainer.history.append({"step": 0, **self._fixed()})
        try:
            trainer.run(loss, report, measure, between)
        except BaseException:
            if 0 < trainer.step < settings.steps and not self._at(trainer.step).exists():
                self._write(self._at(trainer.step))
            raise

    @property
    def curves(self) -> Path:
        return self.folder / "losses.png"

    def _at(self, step: int) -> Path:
        return self.out.with_name(f"{self.out.stem}_step{step:06}.safetensors")

    def _draw(self, generator: torch.Generator) -> Batch:
        """A batch of different clips where there are enough of them, seen by the adapters as they are now."""
        clips, n = self.clips.training, self.settings.batch
        order = torch.cat([torch.randperm(len(clips), generator=generator) for _ in range(-(-n // len(clips)))])[:n]
        return self._batch([clips[i] for i in order.tolist()], generator)

    def _batch(self, clips: Sequence[dataset.Encoded], generator: torch.Generator | None) -> Batch:
        config, device = self.source.config, self.source.device
        crops = [self.clips.crop(clip, self.window, generator) for clip in clips]
        seconds = [float(clip.seconds) for clip in clips]
        effective = [-(-int(s * config.sample_rate) // config.same.samples_per_frame) for s in seconds]
        condition = self._condition([clip.caption for clip in clips], seconds)
        return Batch(torch.stack([z for z, _ in crops]).to(device), [n for _, n in crops], condition, effective)

    def _condition(self, captions: Sequence[str], seconds: Sequence[float]) -> Condition:
        rows, masks = (nn.utils.rnn.pad_sequence([self.rows[caption][i] for caption in captions], batch_first=True) for i in (0, 1))
        dtype = next(self.net.parameters()).dtype
        return self.net.conditioner(rows.to(self.source.device, dtype), masks, seconds, adapters=self.adapters.now())

    @torch.no_grad()
    def _fixed(self) -> dict[str, float]:
        """Mean loss at fixed noise levels over the beginnings of a few clips, trained on and held out."""
        found = {}
        for name, clips in (("training", self.clips.training), ("validation", self.clips.validation)):
            levels = [fixed_loss(self.net, self._batch([clip], None), i) for i, clip in enumerate(clips[:PROBES])]
            if levels:
                found[name] = sum(sum(level.values()) / len(level) for level in levels) / len(levels)
        return found

    def _sample(self, step: int) -> None:
        settings, source = self.settings, self.source
        seconds = min(settings.preview_seconds, source.config.max_seconds)
        if settings.prompt not in self.rows:
            self.rows[settings.prompt] = tuple(part[0] for part in source.texts([settings.prompt]))

        def progress(done: int, total: int, denoised: Tensor) -> None:
            self.watch.stage(done + 1, total, f"a sample at step {step}:")

        with torch.no_grad():
            condition = self._condition([settings.prompt], [seconds])
            audio = sample(source, self.net, condition, seconds, settings.seed, settings.preview_steps, progress)
        self.last_sample = audio
        with_name = self.folder / f"sample_step{step:06}.wav"
        with_name.unlink(missing_ok=True)
        audio_files.write(with_name, audio, source.config.sample_rate, "wav16")
        self.watch.sample(step, audio, source.config.sample_rate)

    def _write(self, path: Path) -> None:
        settings, clips = self.settings, self.clips
        minutes = sum(clip.valid for clip in (*clips.training, *clips.validation)) / clips.frame_rate / 60
        more = {
            "step": self.trainer.step, "epoch": self.trainer.step * settings.batch // max(1, len(clips.training)), "lr": settings.lr,
            "batch": settings.batch, "seed": settings.seed, "seconds": settings.seconds, "base_dtype": settings.dtype,
            "clips": len(clips.training), "held_out": len(clips.validation), "minutes": round(minutes, 2), "data": clips.digest(),
            "run": self.word, "trainer": f"sa3_core {__version__}",
        }  # fmt: skip
        tensors = {name: tensor.contiguous() for name, tensor in self.adapters.tensors().items()}
        bad = next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
        if bad is not None:
            raise SA3Error(f"The tensor '{bad}' is beyond 16-bit numbers at step {self.trainer.step}; train with a lower rate.")
        # One key, because the order of several is not fixed and the same run shall give the same file.
        header = {"lora_config": json.dumps({**self.adapters.config, "base_model": self.source.name, **more})}
        publish(path, lambda part: save_file(tensors, part, header))

    def outcome(self) -> Outcome:
        trainer, settings = self.trainer, self.settings
        new = True
        if self.out.exists():
            before = read_lora(self.out).config.get("step")
            new = before != trainer.step
            if new:
                os.replace(self.out, self._at(int(before)))  # the same run, shorter: kept under its step
        if new:
            self._write(self.out)
        if settings.prompt:
            self._sample(trainer.step)
        measured = [row for row in trainer.history if "training" in row]
        shape = f"{settings.kind}, rank {settings.rank}, {len(self.adapters.layers)} layers"
        lines = [f"{self.out.name}: {shape}, trained on {self.source.name}"]
        lines.append(f"{trainer.step} steps" + (f", {self.resumed} of them before" if self.resumed else "") + f" of batch {settings.batch}")
        for name in ("training", "validation"):
            if measured and name in measured[-1]:
                best = min(measured, key=lambda row: row.get(name, math.inf))
                lines.append(
                    f"{name} loss at fixed noise: {measured[0].get(name, math.nan):.4f} before, {measured[-1][name]:.4f} now, "
                    f"lowest {best[name]:.4f} at step {best['step']}"
                )
        lines.append(self.clips.describe())
        return Outcome(self.out, trainer.history, self.curves, self.last_sample, "\n".join(lines), self.clips.rejected)
