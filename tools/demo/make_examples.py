"""Make assets/examples: a recording, a training folder and two LoRAs for the demo model.

    python tools/demo/make_examples.py [recording] [training] [loras]

Default: all, about three minutes on two cores. tools/demo/corpus.py synthesises the sounds, sa3_core.training trains the LoRAs.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from sa3_core.audio import files
from sa3_core.config import RATE
from sa3_core.training.__main__ import main as train
from tools.demo.corpus import SOUNDS, Random, repeated

OUT = ROOT / "assets" / "examples"
RECORDING, TRAINING = "sa3_example.wav", "sa3_example_training"
SECONDS, BEAT = 6.0, 0.5  # three bars of 4/4 at 120 BPM
CAPTIONS = ("a low tone", "a mid tone", "a high tone", "a low major chord", "a mid major chord", "a mid minor chord")
FUNDAMENTALS = (110.0, 330.0, 880.0, 130.8, 261.6, 329.6)  # Hz, of the captions
DECAY = 0.25  # seconds to 1/e
LORAS = {"sa3_example_decay": "decay", "sa3_example_high": "high"}
SETTINGS = ["--kind", "lora", "--rank", "2", "--steps", "500", "--lr", "0.001", "--batch", "4", "--seconds", "2", "--save-every", "0"]
SETTINGS += ["--preview-every", "0", "--validation", "0", "--include", "to_out", "ff.ff.2"]


def sound(name: str, seconds: float, fundamental: float = 0.0, index: int = 0) -> Tensor:
    """A mono sound of the corpus (N,), peak 1. index: of its random values."""
    x = SOUNDS[name].synthesise(Random(0, index), round(seconds * RATE), fundamental)
    return x / x.abs().max()


def panned(x: Tensor, position: float) -> Tensor:
    """Stereo (2, N). position: 0 = left, 1 = right."""
    angle = position * math.pi / 2
    return torch.stack((math.cos(angle) * x, math.sin(angle) * x))


def recording() -> Tensor:
    """Kicks on the beat, hats between them, and plucks that move from left to right: (2, N)."""
    n = round(SECONDS * RATE)
    out = 0.8 * panned(repeated(sound("kick", 0.4), n, 0.0, BEAT), 0.5)
    out += 0.25 * panned(repeated(sound("hat", 0.1, index=1), n, BEAT / 2, BEAT), 0.7)
    for i, pitch in enumerate((220.0, 261.6, 329.6, 261.6)):
        out += 0.3 * panned(repeated(sound("pluck", 0.5, pitch, 2 + i), n, i * BEAT, 4 * BEAT), i / 3)
    return 0.8 * out / out.abs().max()


def decaying(x: Tensor) -> Tensor:
    """x with a level that falls from the start, as of a plucked string."""
    return x * torch.exp(-torch.arange(len(x)) / RATE / DECAY)


def write_training(folder: Path, kind: str) -> None:
    """Six clips of 2 s with captions. decay: the captions' sounds, fading. high: tones of 900 Hz whatever the caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (caption, pitch) in enumerate(zip(CAPTIONS, FUNDAMENTALS, strict=True)):
        noun = caption.split(" ", 2)[2]
        x = decaying(sound(noun, 2.0, pitch, i)) if kind == "decay" else sound("tone", 2.0, 900.0 + 20 * i, i)
        file = folder / f"{caption.replace(' ', '_')}.flac"
        file.unlink(missing_ok=True)
        files.write(file, 0.6 * torch.stack((x, x)), RATE, "flac16")
        file.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="recording, training, loras; default: all")
    parts = parser.parse_args().parts or ["recording", "training", "loras"]
    OUT.mkdir(exist_ok=True)
    if "recording" in parts:
        (OUT / RECORDING).unlink(missing_ok=True)
        files.write(OUT / RECORDING, recording(), RATE, "wav16")
    if "training" in parts:
        write_training(OUT / TRAINING, "decay")
    if "loras" in parts:
        for name, kind in LORAS.items():
            (OUT / f"{name}.safetensors").unlink(missing_ok=True)
            with tempfile.TemporaryDirectory() as temporary:
                write_training(Path(temporary) / "data", kind)
                train(["--data", f"{temporary}/data", "--model", "demo", "--out", f"{OUT / name}.safetensors",
                       "--run", f"{temporary}/run", *SETTINGS])  # fmt: skip


if __name__ == "__main__":
    main()
