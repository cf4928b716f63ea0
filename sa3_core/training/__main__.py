"""Trains a LoRA from a folder of audio with captions.

    python -m sa3_core.training --data FOLDER --model models/checkpoints/stable-audio-3-small-music-base --out models/loras/mine.safetensors

FOLDER holds audio files, each with its caption in a .txt file beside it, or a table captions.csv with the columns file and caption.
Ctrl-C saves; the same command goes on where it was. docs/training.md says how to choose.
"""

import argparse
import signal
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

import torch

from ..checkpoints import checkpoint, releases
from ..errors import SA3Error
from ..lora.algebra import TYPES
from ..models.same import SAME
from ..pipeline import DEMOS
from .base import DTYPES, Source, digest_of
from .dataset import ENCODE_CHUNK, ENCODE_OVERLAP
from .lora import LoRASettings, Watch, train

EVERY = 5.0  # seconds between two lines of progress


class Lines(Watch):
    """Progress as lines. Ctrl-C is heeded after the step that is under way; a second one at once."""

    def __init__(self):
        self.told, self.begun, self.stopped = 0.0, None, False
        self.before = signal.signal(signal.SIGINT, self._stop)

    def _stop(self, *_) -> None:
        self.stopped = True
        print("stopping after this step; once more to stop at once", flush=True)
        signal.signal(signal.SIGINT, self.before)

    def _heed(self) -> None:
        if self.stopped:
            raise KeyboardInterrupt

    def stage(self, done: int, total: int, words: str) -> None:
        self._heed()
        if done in (0, total) or time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            print(f"{words}" + (f" {done} of {total}" if total > 1 else ""), flush=True)

    def step(self, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        self.begun = self.begun or (now, step)
        if now - self.told >= EVERY and step > self.begun[1]:
            self.told = now
            left = (now - self.begun[0]) / (step - self.begun[1]) * (steps - step)
            print(f"step {step} of {steps}, loss {loss:.4f}, {left / 60:.1f} minutes left", flush=True)
        self._heed()

    def record(self, history: list[dict]) -> None:
        if "training" in history[-1]:
            print("  ".join(f"{name} {value:.6g}" for name, value in history[-1].items()), flush=True)


def source_of(model: str, text_encoder: str | None, device: str) -> Source:
    """The parts of a model on disk; autoencoder and text encoder are in memory only while they are used."""
    opened = checkpoint.open_checkpoint(DEMOS.get(model, model))
    if opened.config.dit is None:
        raise SA3Error(f"{opened.path} is a standalone autoencoder; a LoRA needs a generative model.")
    config = opened.config
    encoder = text_encoder or opened.text_encoder or releases.cached_text_encoder(config.conditioning.cond_dim)
    if encoder is None:
        raise SA3Error(f"{opened.name} has no text encoder beside it; name the folder t5gemma-b-b-ul2 with --text-encoder.")

    def autoencoder(place: str = device) -> SAME:
        return checkpoint.load_into(SAME(config.same, device="meta"), opened.tensors, opened.same_prefix, torch.float32, place)

    def encode():
        same = autoencoder()
        return torch.no_grad()(lambda audio: same.encode(audio.to(device), ENCODE_CHUNK, ENCODE_OVERLAP))

    def texts(prompts: list[str]):
        loaded = checkpoint.load_text_encoder(encoder, torch.float32, device, config.conditioning.cond_dim)
        tokens = loaded.tokenize(prompts, config.conditioning.max_tokens)
        rows = loaded(tokens).float().cpu()
        return rows, tokens.mask[:, : rows.shape[1]]

    def decode(z):
        with torch.no_grad():
            return autoencoder().decode(z.to(device), ENCODE_CHUNK, ENCODE_OVERLAP)

    return Source(config, opened.name, opened.path, digest_of(autoencoder("cpu")), encode, texts, decode, device)


def parser() -> argparse.ArgumentParser:
    default = {one.name: None if one.default is MISSING else one.default for one in fields(LoRASettings)}
    made = argparse.ArgumentParser("python -m sa3_core.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True, help="folder with audio and captions")
    made.add_argument("--model", required=True, help="a -base release: its folder or file, or: demo, demo-medium")
    made.add_argument("--out", required=True, type=Path, help="the LoRA, NAME.safetensors; nothing else is overwritten")
    made.add_argument("--run", type=Path, help="folder of state, curves and samples (OUT without ending, .training)")
    made.add_argument("--text-encoder", help="the folder t5gemma-b-b-ul2, where it lies elsewhere")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", type=int, help="of the CPU")
    made.add_argument("--kind", choices=list(TYPES), default=default["kind"])
    made.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="of the frozen base; auto: bf16 on a GPU, else fp32")
    for name, words in {
        "rank": "", "alpha": "(rank)", "steps": "", "lr": "", "batch": "clips a step", "seconds": "longest crop", "seed": "",
        "validation": "share of the clips held out", "save_every": "steps; 0 = only at the end", "preview_every": "steps; 0 = at the end",
        "preview_seconds": "", "weight_decay": "", "clip": "largest norm of the gradients, 0 = any",
    }.items():  # fmt: skip
        kind = float if name == "alpha" else type(default[name])
        shown = words if name == "alpha" else f"{words} ({default[name]})".strip()
        made.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default[name], help=shown)
    made.add_argument("--prompt", default="", help="make samples of this on the way")
    made.add_argument("--preview-steps", type=int, help="sampling steps of a sample (the model's own)")
    made.add_argument("--checkpointing", action="store_true", help="less memory, some 40 %% more time, the same result")
    for name in ("include", "exclude"):
        made.add_argument(f"--{name}", nargs="*", default=[], metavar="PART", help="parts of layer names, [a-b] for numbers")
    return made


def main(arguments: list[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    if given["dtype"] == "auto":
        given["dtype"] = "fp32" if given["device"] == "cpu" else "bf16"
    given |= {name: tuple(given[name]) for name in ("include", "exclude")}
    watch = Lines()
    try:
        settings = LoRASettings(**{one.name: given[one.name] for one in fields(LoRASettings) if one.name in given})
        source = source_of(given["model"], given["text_encoder"], given["device"])
        done = train(source, given["data"], given["out"], given["run"] or given["out"].with_suffix(".training"), settings, watch)
    except SA3Error as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; what is done is saved. The same command goes on from here.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, watch.before)
    print(f"{done.report}\ncurves: {done.curves}\n{done.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
