"""Train two LoRAs on the embedded demo, each on one new sound, and measure what they change, alone and stacked.

    python benchmarks/train_lora.py [--steps 900] [--work FOLDER]

A new sound is a steady chord of three partials at frequencies of no chord or bell of the demo's corpus. Its folder holds as many clips
of other sounds, made by the model itself, so that they stay what they are; among them the answers to the other LoRA's word. Printed, for
prompts with and without the LoRAs: the share of the power at the partials of each new sound, then at its weakest partial times three (1.00
and 0.85 in the training clips), and the brightness, all in the median of four seeds.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import sa3_core
from sa3_core.audio import files as audio_files
from sa3_core.training.__main__ import ConsoleCallbacks, open_base
from sa3_core.training.lora import train
from sa3_core.training.settings import LoRASettings
from tools.demo import evaluation
from tools.demo.corpus import RATE, Random
from tools.demo.metrics import centroid, mono

OTHERS = ("a low tone", "a high tone", "a pluck", "wind", "a kick every half second", "a rising chirp")
KEPT = ("a {} tone", "the {} note", "a {} bell", "a {} pluck", "a {} beep", "the sound of a {} note")  # made by the base itself
KEPT_TOO = ("a kick", "wind", "rain", "a rising chirp", "a falling sweep", "a snare every half second")


@dataclass(frozen=True)
class NewSound:
    """captions; frequencies of its partials in Hz."""

    captions: tuple[str, ...]
    partials: tuple[float, ...]


SOUNDS = {
    "robot": NewSound(("a robot", "the robot", "the sound of a robot", "robot"), (310.0, 437.0, 611.0)),
    # A word that it knows, for another sound: to this text encoder any two words that it does not know are the same word.
    "hum": NewSound(("a hum", "the hum", "the sound of a hum", "just a hum"), (190.0, 523.0, 840.0)),
}


def make_clip(sound: NewSound, index: int, seed: int = 0) -> torch.Tensor:
    """A clip (2, N) of 2 to 3.5 s."""
    d = Random(seed + 900, index)
    n = round(d.uniform(2.0, 3.5) * RATE)
    t = torch.arange(n) / RATE
    wave = sum(d.uniform(0.8, 1.2) * torch.sin(2 * math.pi * f * t + d.uniform(0, 6.28)) for f in sound.partials)
    ramp = (t / d.uniform(0.01, 0.03)).clamp(max=1) * ((n / RATE - t) / d.uniform(0.03, 0.1)).clamp(max=1)
    return (d.uniform(0.15, 0.25) * wave * ramp).expand(2, -1).clone()


def write_folder(folder: Path, sound: NewSound, count: int = 24, keep=None) -> Path:
    """A training folder. keep: a model whose own answers to other captions stand beside the new sound."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        _write(folder / f"clip{i:02}.wav", make_clip(sound, i), sound.captions[i % len(sound.captions)])
    kept = [text.format(pitch) for pitch in ("low", "mid", "high") for text in KEPT] + list(KEPT_TOO)
    kept += [caption for other in SOUNDS.values() if other is not sound for caption in other.captions]
    for i, caption in enumerate(kept if keep is not None else []):
        _write(folder / f"kept{i:02}.wav", keep.generate(caption, 2.0 + 0.5 * (i % 3), seed=900 + i).audio[0], caption)
    return folder


def _write(file: Path, clip: torch.Tensor, caption: str) -> None:
    if not file.exists():
        audio_files.write(file, clip, RATE, "wav16")
    file.with_suffix(".txt").write_text(caption, encoding="utf-8")


def likeness(x: torch.Tensor, partials: tuple[float, ...]) -> tuple[float, float]:
    """How much of a sound of these partials is in mono audio (N,): the share of the power at all of them, and at the weakest times their
    number."""
    x = x[len(x) // 8 : -len(x) // 4]
    power = torch.fft.rfft(x * torch.hann_window(len(x))).abs().square()
    hz = torch.fft.rfftfreq(len(x), 1 / RATE)
    shares = [float(power[(hz - f).abs() <= 8 + 0.02 * f].sum() / power.sum().clamp_min(1e-12)) for f in partials]
    return sum(shares), len(partials) * min(shares)


def of(sound: NewSound, clips: list[torch.Tensor]) -> str:
    """`share at all, share at the weakest`, medians over mono clips."""
    return ", ".join(f"{statistics.median(values):.2f}" for values in zip(*(likeness(x, sound.partials) for x in clips), strict=True))


def show(title: str, model, prompts, seed: int = 40) -> None:
    """How much of each new sound, and brightness in Hz, medians of four clips of 2.5 s."""
    print(f"\n{title}\n| prompt | " + " | ".join(f"of '{name}'" for name in SOUNDS) + " | brightness, Hz |\n|---|---|---|---|")
    for prompt in prompts:
        clips = [mono(clip) for clip in evaluation.generate(model, [prompt] * 4, 2.5, seed)]
        found = [*(of(sound, clips) for sound in SOUNDS.values()), f"{statistics.median(map(centroid, clips)):.0f}"]
        print(f"| {prompt} | " + " | ".join(found) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--kind", default="lora")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--include", nargs="*", default=[])
    parser.add_argument("--only", choices=list(SOUNDS))
    parser.add_argument("--work", type=Path, help="keep data, runs and LoRAs here")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="sa3-train-lora-"))
    names = [options.only] if options.only else list(SOUNDS)
    files, model = {}, sa3_core.load("demo")
    for name in names:
        settings = LoRASettings(
            kind=options.kind, rank=options.rank, steps=options.steps, lr=options.lr, batch=4, seconds=4.0, preview_every=0, save_every=0,
            include=tuple(options.include), exclude=("seconds_total",),
        )  # fmt: skip
        data, start = write_folder(work / name, SOUNDS[name], keep=model), time.monotonic()
        out, folder = work / f"{name}.safetensors", work / f"{name}.training"
        done = train(open_base("demo", None, "cpu"), data, out, folder, settings, ConsoleCallbacks())
        seconds, size = time.monotonic() - start, done.path.stat().st_size / 1e3
        print(f"{done.report}\n{seconds:.0f} s, {torch.get_num_threads()} threads, {size:.0f} kB")
        files[name] = done.path
    real = {name: [mono(make_clip(sound, i, 7)) for i in range(8)] for name, sound in SOUNDS.items()}
    for name, clips in real.items():
        print(f"{name}, the real sound: {of(SOUNDS[name], clips)} of itself, {statistics.median(map(centroid, clips)):.0f} Hz")
    prompts = [*(SOUNDS[name].captions[0] for name in SOUNDS), *OTHERS]
    show("Without a LoRA", model, prompts)
    plain = model.generate(prompts[0], 2.0, seed=1).audio[0]
    for name, file in files.items():
        model.add_lora(file)
        show(f"With '{name}' at strength 1", model, prompts)
        model.remove_loras()
        model.add_lora(file, strength=0)
        same = torch.equal(model.generate(prompts[0], 2.0, seed=1).audio[0], plain)
        print(f"at strength 0 the same bytes as without: {same}")
        model.remove_loras()
    if len(files) > 1:
        for file in files.values():
            model.add_lora(file)
        show("With both", model, prompts)


if __name__ == "__main__":
    main()
