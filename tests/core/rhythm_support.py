"""Recordings of known tempo: clicks, drum patterns with swing, unevenness and noise, and chords."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

RATE = 44100
STEPS = 4  # per beat
# hits per step of a bar of four beats, in sixteenths: kick, snare, hat
PATTERNS = {
    "rock": ("x.......x.x.....", "....x.......x...", "x.x.x.x.x.x.x.x."),
    "house": ("x...x...x...x...", "....x.......x...", "..x...x...x...x."),
    "break": ("x.........x.....", "....x.......x...", "xxxxxxxxxxxxxxxx"),
}


def _time(seconds: float) -> Tensor:
    return torch.arange(int(seconds * RATE)) / RATE


def click() -> Tensor:
    t = _time(0.01)
    return torch.sin(2 * math.pi * 1500 * t) * torch.exp(-200 * t)


def kick() -> Tensor:
    t = _time(0.2)
    return torch.sin(2 * math.pi * torch.cumsum(50 + 100 * torch.exp(-40 * t), 0) / RATE) * torch.exp(-18 * t)


def snare(generator: torch.Generator) -> Tensor:
    t = _time(0.15)
    return (0.5 * torch.randn(len(t), generator=generator) + 0.4 * torch.sin(2 * math.pi * 190 * t)) * torch.exp(-28 * t)


def hat(generator: torch.Generator) -> Tensor:
    t = _time(0.05)
    return 0.3 * torch.randn(len(t) + 1, generator=generator).diff() * torch.exp(-90 * t)


def note(midi: float, seconds: float, decay: float = 1.5) -> Tensor:
    t = _time(seconds)
    frequency = 440 * 2 ** ((midi - 69) / 12)
    return sum(torch.sin(2 * math.pi * frequency * k * t) / k**1.3 for k in range(1, 6)) * torch.exp(-decay * t)


def add(clip: Tensor, sound: Tensor, at: float) -> None:
    """Add a sound to a clip (N,) at a time in seconds."""
    start = round(at * RATE)
    if 0 <= start < len(clip):
        part = clip[start : start + len(sound)]
        part += sound[: len(part)]


def clicks(bpm: float, seconds: float, first: float) -> Tensor:
    return repeated(lambda: click(), bpm, seconds, first)


def repeated(sound: Callable[[], Tensor], bpm: float, seconds: float, first: float) -> Tensor:
    """A sound on every beat (N,)."""
    clip = torch.zeros(int(seconds * RATE))
    for beat in range(int((seconds - first) * bpm / 60) + 1):
        add(clip, sound(), first + beat * 60 / bpm)
    return clip


def drums(bpm: float, seconds: float, first: float, pattern: str, swing: float = 0.0, noise: float = 0.0, seed: int = 0) -> Tensor:
    """A pattern (N,). swing: 0 = straight, 1 = the second eighth as late as in triplets. Hits are 3 ms early or late (RMS)."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    clip = torch.zeros(int(seconds * RATE))
    for step in range(int((seconds - first) * bpm / 60 * STEPS) + 1):
        within = step % STEPS / STEPS
        late = swing * (within / 3 if within <= 0.5 else (1 - within) / 3)
        at = first + (step // STEPS + within + late) * 60 / bpm
        for row, sound in zip(PATTERNS[pattern], (kick, lambda: snare(generator), lambda: hat(generator)), strict=True):
            if row[step % len(row)] == "x":
                add(clip, sound(), at + rng.gauss(0, 0.003))
    return clip + noise * torch.randn(len(clip), generator=generator)


def melody(bpm: float, seconds: float, first: float, seed: int = 0) -> Tensor:
    """A note of a pentatonic scale on every beat (N,)."""
    rng = random.Random(seed)
    return repeated(lambda: 0.3 * note(rng.choice((45, 48, 50, 52, 55, 57)), min(1.2 * 60 / bpm, 0.8), 5.0), bpm, seconds, first)


def song(tonic: int, minor: bool, seed: int = 0) -> Tensor:
    """Sixteen triads of a key with bass and a melody (N,). tonic: 0 = C to 11 = B."""
    rng = random.Random(seed)
    scale = (0, 2, 3, 5, 7, 8, 10) if minor else (0, 2, 4, 5, 7, 9, 11)
    parts = []
    for i in range(16):
        degree = rng.choice((0, 3, 4, 5, 0, 0)) if i % 4 and i < 15 else 0
        triad = [scale[(degree + k) % 7] + 12 * ((degree + k) // 7) + (minor and degree == 4 and k == 2) for k in (0, 2, 4)]
        voices = [note(48 + tonic + tone, 0.5) for tone in triad]
        parts.append(sum(voices) + 0.7 * note(36 + tonic + triad[0], 0.5) + 0.6 * note(60 + tonic + rng.choice(scale), 0.5))
    return torch.cat(parts)
