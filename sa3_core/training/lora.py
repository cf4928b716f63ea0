"""LoRA training on a base model as in the public trainer: frozen base, float32 adapters, exact resumption.

LoRAs are saved as `name_step000250.safetensors` at intervals and on interruption, and as `name.safetensors` at the end.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..audio import files as audio_files
from ..checkpoints.tensors import is_finite, save
from ..errors import SA3Error
from ..lora.fit import checkpoint_bases
from ..lora.formats import BASES, read_bases, read_lora
from ..models.conditioning import Condition
from . import dataset
from .adapters import Adapters
from .base import BaseModel, load_network, sample
from .flow import Batch, fixed_noise_loss, training_loss
from .run_files import RunFiles
from .settings import LoRASettings
from .trainer import CURVES, Trainer, TrainerSettings

RECORD_EVERY, EVALUATE_EVERY = 20, 100  # steps
EVALUATION_CLIPS = 4  # of each side of the split
TEXT_BATCH = 8  # captions encoded at once


class Callbacks:
    """Progress of a run. `stage` and `step` may raise to stop it; a later call of `train` resumes."""

    def stage(self, done: int, total: int, text: str) -> None:
        """During preparation and sampling."""

    def step(self, step: int, steps: int, loss: float) -> None:
        """After each step."""

    def record(self, history: list[dict]) -> None:
        """After each record, with all records."""

    def sample(self, step: int, waveform: Tensor, rate: int) -> None:
        """After a sample (C, N) was generated."""


@dataclass(frozen=True)
class TrainingResult:
    """path: the LoRA. history: records. curves: PNG of the losses. sample (C, N): the last one. skipped: a sentence per skipped file."""

    path: Path
    history: list[dict]
    curves: Path
    sample: Tensor | None
    report: str
    skipped: list[str]


def train(
    base: BaseModel, data: str | Path, out: str | Path, folder: str | Path, settings: LoRASettings, callbacks: Callbacks | None = None
) -> TrainingResult:
    """Train a LoRA on the audio folder `data` and write it to `out`; an unfinished run in `folder` is resumed.

    Raises SA3Error before any training when the base is post-trained, or when `out` or `folder` belongs to another run.
    """
    callbacks = callbacks or Callbacks()
    if not base.config.is_base:
        raise SA3Error(
            f"{base.name} is post-trained for few steps; LoRAs are trained on the -base model of the same size and then work on both. "
            "Load that one."
        )
    files = RunFiles(Path(out), Path(folder), {"base": base.name, "autoencoder": base.autoencoder, **settings.identity()})
    files.create()
    clips = dataset.load(
        data, base.config, base.autoencoder, base.load_encoder, settings.validation,
        lambda done, total, name: callbacks.stage(done, total, f"encoding {name}"),
    )  # fmt: skip
    files.check_data(clips.fingerprint())
    run = _TrainingRun(base, clips, files, settings, callbacks)
    if run.trainer.step < settings.steps:
        run.train()
    return run.finish()


class _TrainingRun:
    def __init__(self, base: BaseModel, clips: dataset.Dataset, files: RunFiles, settings: LoRASettings, callbacks: Callbacks):
        self.base, self.clips, self.files, self.settings, self.callbacks = base, clips, files, settings, callbacks
        self.embeddings: dict[str, tuple[Tensor, Tensor]] = {}  # caption -> (n, dim), mask (n,)
        self.last_sample: Tensor | None = None
        callbacks.stage(0, 1, "encoding captions")
        self.embed(list(dict.fromkeys(clip.caption for clip in clips.clips)))
        callbacks.stage(0, 1, f"loading {base.name}")
        self.net = load_network(base, settings.dtype)
        self.net.dit.gradient_checkpointing = settings.checkpointing
        self.adapters = self.create_adapters()
        trainer_settings = TrainerSettings(
            settings.steps, settings.lr, weight_decay=settings.weight_decay, clip=settings.clip or math.inf, record_every=RECORD_EVERY,
            save_every=settings.save_every or settings.steps, seed=settings.seed % 2**31,
            loss_scale=1024.0 if settings.dtype == "fp16" else 1.0,
        )  # fmt: skip
        self.trainer = Trainer(self.adapters.trained(), trainer_settings, files.folder)
        self.resumed_step = self.trainer.step
        config, spf = base.config, base.config.same.samples_per_frame
        self.crop_frames = max(1, min(config.sample_size // spf, math.ceil(settings.seconds * config.sample_rate / spf)))

    def embed(self, captions: list[str]) -> None:
        """Add captions to `embeddings`."""
        for start in range(0, len(captions), TEXT_BATCH):
            group = captions[start : start + TEXT_BATCH]
            self.embeddings |= dict(zip(group, zip(*self.base.encode_texts(group), strict=True), strict=True))

    def create_adapters(self) -> Adapters:
        """The adapters of the settings. The bases of -xs types are cached in the run's folder, because their SVD takes minutes."""
        settings, path, bases = self.settings, self.files.folder / BASES, None
        if settings.kind.endswith("-xs"):
            bases = read_bases(path) if path.is_file() else checkpoint_bases(self.base.checkpoint)
        adapters = Adapters(
            self.net, settings.kind, settings.rank, settings.alpha, settings.include, settings.exclude, settings.seed, bases,
            lambda done, total: self.callbacks.stage(done, total, "SVD bases, layer"),
        )  # fmt: skip
        if bases is not None and not path.is_file():
            save(path, {name: basis.cpu() for name, basis in adapters.svd_bases().items()})
        return adapters

    def train(self) -> None:
        """Train to the last step; an interruption saves the adapters first."""
        trainer, settings, files = self.trainer, self.settings, self.files
        flow_loss = training_loss(self.net, self.random_batch, self.clips.frame_rate)

        def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {"loss": flow_loss(step, generator)["loss"]}

        def evaluate() -> dict[str, float]:
            return self.evaluate() if trainer.step % EVALUATE_EVERY == 0 or trainer.step == settings.steps else {}

        def on_step(step: int, terms: dict) -> None:
            if step == settings.steps:
                return
            if settings.save_every and step % settings.save_every == 0:
                self.save(files.lora_at(step))
            if settings.prompt and settings.preview_every and step % settings.preview_every == 0:
                self.sample(step)
            self.callbacks.step(step, settings.steps, terms["loss"])

        if trainer.step == 0 and not trainer.history:
            trainer.history.append({"step": 0, **self.evaluate()})
        try:
            trainer.run(loss, lambda step, means: self.callbacks.record(trainer.history), evaluate, on_step)
        except BaseException:
            if 0 < trainer.step < settings.steps and not files.lora_at(trainer.step).exists():
                self.save(files.lora_at(trainer.step))
            raise

    def random_batch(self, generator: torch.Generator) -> Batch:
        """Random crops of random training clips; no clip twice unless the batch is larger than the dataset."""
        clips, n = self.clips.training, self.settings.batch
        order = torch.cat([torch.randperm(len(clips), generator=generator) for _ in range(-(-n // len(clips)))])[:n]
        return self.batch([clips[i] for i in order.tolist()], generator)

    def batch(self, clips: Sequence[dataset.EncodedClip], generator: torch.Generator | None) -> Batch:
        """Crops of clips (without a generator: their beginnings), conditioned through the current adapters."""
        config = self.base.config
        crops = [self.clips.crop(clip, self.crop_frames, generator) for clip in clips]
        seconds = [float(clip.seconds) for clip in clips]
        durations = [-(-int(s * config.sample_rate) // config.same.samples_per_frame) for s in seconds]
        condition = self.condition([clip.caption for clip in clips], seconds)
        return Batch(torch.stack([z for z, _ in crops]).to(self.base.device), [n for _, n in crops], condition, durations)

    def condition(self, captions: Sequence[str], seconds: Sequence[float]) -> Condition:
        """The condition of a batch, with the current adapters."""
        pairs = zip(*(self.embeddings[caption] for caption in captions), strict=True)
        embeddings, mask = (nn.utils.rnn.pad_sequence(list(rows), batch_first=True) for rows in pairs)
        dtype = next(self.net.parameters()).dtype
        return self.net.conditioner(embeddings.to(self.base.device, dtype), mask, seconds, adapters=self.adapters.now())

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss at fixed noise over the beginnings of a few training and validation clips."""
        values = {}
        for name in ("training", "validation"):
            clips = getattr(self.clips, name)[:EVALUATION_CLIPS]
            losses = [fixed_noise_loss(self.net, self.batch([clip], None), i) for i, clip in enumerate(clips)]
            if losses:
                values[name] = sum(losses) / len(losses)
        return values

    def sample(self, step: int) -> None:
        """Generate audio of the prompt with the current adapters and save it."""
        settings, rate = self.settings, self.base.config.sample_rate
        seconds = min(settings.preview_seconds, self.base.config.max_seconds)
        if settings.prompt not in self.embeddings:
            self.embed([settings.prompt])

        def progress(done: int, total: int, denoised: Tensor) -> None:
            self.callbacks.stage(done + 1, total, f"a sample at step {step}:")

        with torch.no_grad():
            condition = self.condition([settings.prompt], [seconds])
            audio = sample(self.base, self.net, condition, seconds, settings.seed, settings.preview_steps, progress)
        self.last_sample = audio
        path = self.files.folder / f"sample_step{step:06}.wav"
        path.unlink(missing_ok=True)
        audio_files.write(path, audio, rate, "wav16")
        self.callbacks.sample(step, audio, rate)

    def save(self, path: Path) -> None:
        """Write the adapters as a LoRA with their settings in its metadata (atomically)."""
        settings, clips, step = self.settings, self.clips, self.trainer.step
        epoch = step * settings.batch // max(1, len(clips.training))
        tensors = self.adapters.tensors()
        overflow = next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
        if overflow is not None:
            raise SA3Error(f"The tensor '{overflow}' exceeds the range of float16 at step {step}; train with a lower learning rate.")
        # One metadata key: safetensors does not fix the order of several, and the same run must give the same file.
        config = {
            **self.adapters.config, "base_model": self.base.name, "step": step, "epoch": epoch, "lr": settings.lr,
            "batch": settings.batch, "seed": settings.seed, "seconds": settings.seconds, "base_dtype": settings.dtype,
            "clips": len(clips.training), "held_out": len(clips.validation), "minutes": round(clips.minutes, 2),
            "data": clips.fingerprint(), "run": self.files.run_id, "trainer": f"sa3_core {__version__}",
        }  # fmt: skip
        save(path, tensors, {"lora_config": json.dumps(config)})

    def finish(self) -> TrainingResult:
        """Save the LoRA and a last sample. A shorter result of the same run is renamed to its step."""
        out, step = self.files.out, self.trainer.step
        saved = read_lora(out).config.get("step") if out.exists() else None
        if saved != step:
            if saved is not None:
                os.replace(out, self.files.lora_at(int(saved)))
            self.save(out)
        if self.settings.prompt:
            self.sample(step)
        return TrainingResult(out, self.trainer.history, self.files.folder / CURVES, self.last_sample, self.report(), self.clips.skipped)

    def report(self) -> str:
        """The LoRA, the number of steps, the losses and the dataset, as lines of text."""
        settings, history = self.settings, self.trainer.history
        resumed = f", {self.resumed_step} of them before" if self.resumed_step else ""
        lines = [
            f"{self.files.out.name}: {settings.kind}, rank {settings.rank}, {len(self.adapters.layers)} layers, "
            f"trained on {self.base.name}",
            f"{self.trainer.step} steps{resumed} of batch {settings.batch}",
        ]
        rows = [row for row in history if "training" in row]
        for name in ("training", "validation"):
            if rows and name in rows[-1]:
                best = min(rows, key=lambda row: row.get(name, math.inf))
                lines.append(
                    f"{name} loss at fixed noise: {rows[0].get(name, math.nan):.4f} before, {rows[-1][name]:.4f} now, "
                    f"lowest {best[name]:.4f} at step {best['step']}"
                )
        return "\n".join([*lines, self.clips.describe()])
