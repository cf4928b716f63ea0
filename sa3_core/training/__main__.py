"""Train a LoRA on a folder of captioned audio.

    python -m sa3_core.training --data FOLDER --model models/checkpoints/stable-audio-3-small-music-base --out models/loras/mine.safetensors

FOLDER contains audio files, each with its caption in a .txt file next to it, or a table captions.csv with the columns file and caption.
Ctrl-C saves; the same command resumes. docs/training.md describes the settings.
"""

import argparse
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

import torch

from ..checkpoints import checkpoint
from ..checkpoints.download import cached_text_encoder
from ..checkpoints.tensors import DTYPES
from ..errors import SA3Error
from ..lora.algebra import TYPES
from ..models.same import SAME
from ..pipeline import DEMOS
from .base import BaseModel, fingerprint
from .dataset import ENCODE_CHUNK, ENCODE_OVERLAP
from .lora import Callbacks, train
from .settings import LoRASettings

INTERVAL = 5.0  # seconds between lines of progress


class ConsoleCallbacks(Callbacks):
    """Progress on stdout. The first Ctrl-C stops after the current step, a second one immediately."""

    def __init__(self):
        self.printed, self.started, self.interrupted = 0.0, None, False
        self.previous_handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_) -> None:
        self.interrupted = True
        print("stopping after this step; press Ctrl-C again to stop immediately", flush=True)
        signal.signal(signal.SIGINT, self.previous_handler)

    def _print(self, text: str, always: bool = False) -> None:
        """Print a line of progress when the last one is old enough. Raises KeyboardInterrupt after Ctrl-C."""
        if always or time.monotonic() - self.printed >= INTERVAL:
            self.printed = time.monotonic()
            print(text, flush=True)
        if self.interrupted:
            raise KeyboardInterrupt

    def stage(self, done: int, total: int, text: str) -> None:
        self._print(text + (f" {done} of {total}" if total > 1 else ""), done in (0, total))

    def step(self, step: int, steps: int, loss: float) -> None:
        self.started = self.started or (time.monotonic(), step)
        begin, first = self.started
        minutes = (time.monotonic() - begin) / max(1, step - first) * (steps - step) / 60
        self._print(f"step {step} of {steps}, loss {loss:.4f}" + (f", {minutes:.1f} minutes left" if step > first else ""))

    def record(self, history: list[dict]) -> None:
        if "training" in history[-1]:
            print("  ".join(f"{name} {value:.6g}" for name, value in history[-1].items()), flush=True)


def open_base(model: str, text_encoder: str | None, device: str) -> BaseModel:
    """A base model on disk or a demo. Autoencoder and text encoder are loaded only while they are used."""
    opened = checkpoint.open_checkpoint(DEMOS.get(model, model))
    if opened.config.dit is None:
        raise SA3Error(f"{opened.path} is a standalone autoencoder; a LoRA needs a generative model: name one.")
    config = opened.config
    encoder = text_encoder or opened.text_encoder or cached_text_encoder(config.conditioning.cond_dim)
    if encoder is None:
        raise SA3Error(f"{opened.name} has no text encoder next to it; name the folder t5gemma-b-b-ul2 with --text-encoder.")

    def load_autoencoder(device: str = device) -> SAME:
        return checkpoint.load_into(SAME(config.same, device="meta"), opened.tensors, opened.same_prefix, torch.float32, device)

    def load_encoder():
        same = load_autoencoder()
        return torch.no_grad()(lambda audio: same.encode(audio.to(device), ENCODE_CHUNK, ENCODE_OVERLAP))

    def encode_texts(prompts: list[str]):
        loaded = checkpoint.load_text_encoder(encoder, torch.float32, device, config.conditioning.cond_dim)
        tokens = loaded.tokenize(prompts, config.conditioning.max_tokens)
        embeddings = loaded(tokens).float().cpu()
        return embeddings, tokens.mask[:, : embeddings.shape[1]]

    def decode(z):
        with torch.no_grad():
            return load_autoencoder().decode(z.to(device), ENCODE_CHUNK, ENCODE_OVERLAP)

    autoencoder = fingerprint(load_autoencoder("cpu"))
    return BaseModel(config, opened.name, opened.path, autoencoder, load_encoder, encode_texts, decode, device)


def parser() -> argparse.ArgumentParser:
    defaults = LoRASettings()
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m sa3_core.training", description=__doc__, formatter_class=style)
    add = parser.add_argument
    add("--data", required=True, help="folder with audio and captions")
    add("--model", required=True, help="folder or file of a -base release, or: demo, demo-medium")
    add("--out", required=True, type=Path, help="the LoRA, NAME.safetensors; files of other runs are not overwritten")
    add("--run", type=Path, help="folder of state, curves and samples (NAME.training)")
    add("--text-encoder", help="folder t5gemma-b-b-ul2, when it is not next to the model")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads")
    add("--kind", choices=list(TYPES), default=defaults.kind, help=f"adapter type ({defaults.kind})")
    add("--dtype", choices=["auto", *DTYPES], default="auto", help="of the frozen base; auto: bf16 on a GPU, else fp32")
    add("--alpha", type=float, help="the update is scaled by alpha / rank (rank)")
    for name, text in {
        "rank": "", "steps": "", "lr": "learning rate", "batch": "clips per step", "seconds": "longest crop", "seed": "",
        "validation": "share of the clips held out", "save_every": "steps; 0 = only at the end", "preview_every": "steps; 0 = at the end",
        "preview_seconds": "", "weight_decay": "", "clip": "largest norm of the gradients; 0 = no clipping",
    }.items():  # fmt: skip
        default = getattr(defaults, name)
        add(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} ({default})".strip())
    add("--prompt", default="", help="prompt of the samples")
    add("--preview-steps", type=int, help="sampling steps of a sample (the model's default)")
    add("--checkpointing", action="store_true", help="less memory, about 40 %% more time, the same result")
    for name in ("include", "exclude"):
        add(f"--{name}", nargs="*", default=[], metavar="PART", help="parts of layer names, [a-b] for numbers")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = vars(parser().parse_args(arguments))
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    if options["dtype"] == "auto":
        options["dtype"] = "fp32" if options["device"] == "cpu" else "bf16"
    options |= {name: tuple(options[name]) for name in ("include", "exclude")}
    callbacks = ConsoleCallbacks()
    try:
        settings = LoRASettings(**{field.name: options[field.name] for field in fields(LoRASettings) if field.name in options})
        base = open_base(options["model"], options["text_encoder"], options["device"])
        folder = options["run"] or options["out"].with_suffix(".training")
        result = train(base, options["data"], options["out"], folder, settings, callbacks)
    except SA3Error as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the state is saved. The same command resumes.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, callbacks.previous_handler)
    print(f"{result.report}\ncurves: {result.curves}\n{result.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
