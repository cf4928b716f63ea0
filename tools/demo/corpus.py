"""Synthetic captioned sounds, 44.1 kHz stereo, as a pure function of (seed, index).

A caption is a template around a scene: a single sound, a steady rhythm, "A, then B" or "A and B". Pitch words name ranges of the
fundamental (`PITCHES`); the other parameters are continuous random variables. `held_out` holds a tenth of all captions out of training.
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sa3_core.config import RATE

PITCHES = {"low": (80.0, 200.0), "mid": (250.0, 500.0), "high": (700.0, 1200.0)}  # Hz
PITCH_WORDS = {"low": ("low", "deep"), "mid": ("mid", "middle"), "high": ("high", "bright")}
TEMPI = (60, 75, 90, 100, 120, 140, 150, 180)  # beats per minute
SPACINGS = {"every second": 1.0, "every half second": 0.5, "every quarter second": 0.25}
MASS = ("wind", "rain", "static")  # uncountable nouns
MASS_TEMPLATES = ("{}", "the {}", "some {}", "the sound of {}", "just {}")
TEMPLATES = ("{}", "a {}", "the {}", "one {}", "the sound of a {}", "just a {}", "a plain {}", "a clear {}")


class Random:
    """Random numbers of one clip, seeded by a hash of (seed, index)."""

    def __init__(self, seed: int, index: int):
        digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def choice(self, options):
        return options[int(torch.randint(len(options), (), generator=self.generator))]

    def noise(self, n: int) -> Tensor:
        return torch.randn(n, generator=self.generator)


@dataclass(frozen=True)
class Example:
    """audio (2, N) in [-1, 1]; kind: class of the sound, or "scene"; spacing: seconds between the hits of a rhythm; parts: all kinds."""

    caption: str
    audio: Tensor
    kind: str
    pitch: str | None = None
    spacing: float | None = None
    parts: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.audio.shape[-1] / RATE


def _time(n: int) -> Tensor:
    return torch.arange(n) / RATE


def _sine(frequency: Tensor | float, n: int, phase: float = 0.0) -> Tensor:
    """n samples of a sine. frequency: Hz, constant or per sample (n,)."""
    if isinstance(frequency, Tensor):
        return torch.sin(2 * math.pi * torch.cumsum(frequency.double() / RATE, 0) + phase).float()
    return torch.sin(2 * math.pi * frequency * _time(n).double() + phase).float()


def _fade(x: Tensor, attack: float, release: float) -> Tensor:
    """Linear fades; attack and release in seconds."""
    t = _time(len(x))
    return x * (t / attack).clamp(max=1) * ((len(x) / RATE - t) / release).clamp(max=1)


def _shape(noise: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """Noise with the spectrum gain(frequency in Hz), rms 1."""
    spectrum = torch.fft.rfft(noise) * gain(torch.fft.rfftfreq(len(noise), 1 / RATE))
    x = torch.fft.irfft(spectrum, len(noise))
    return x / x.square().mean().sqrt().clamp_min(1e-9)


def _partials(rng: Random, f: float, n: int, ratios, gains, decays) -> Tensor:
    t = _time(n)
    parts = [
        gain * _sine(f * ratio, n, rng.uniform(0, 6.28)) * torch.exp(-t / decay)
        for ratio, gain, decay in zip(ratios, gains, decays, strict=True)
    ]
    return _fade(sum(parts), 0.002, 0.02)


def tone(rng: Random, n: int, f: float) -> Tensor:
    x = _sine(f, n) + rng.uniform(0, 0.15) * _sine(2 * f, n) + rng.uniform(0, 0.08) * _sine(3 * f, n)
    return _fade(x, rng.uniform(0.01, 0.03), rng.uniform(0.03, 0.1))


def chord(ratios: tuple[float, ...]) -> Callable:
    def synthesise(rng: Random, n: int, f: float) -> Tensor:
        return _fade(sum(_sine(0.8 * f * ratio, n, rng.uniform(0, 6.28)) for ratio in ratios), 0.02, 0.1)

    return synthesise


def bell(rng: Random, n: int, f: float) -> Tensor:
    decay = rng.uniform(0.5, 1.0)
    return _partials(rng, f, n, (1, 2, 2.76), (1, 0.4, 0.15), (decay, decay / 2, decay / 3))


def pluck(rng: Random, n: int, f: float) -> Tensor:
    decay = rng.uniform(0.25, 0.5)
    return _partials(rng, f, n, (1, 2, 3, 4), (1, 0.45, 0.2, 0.1), (decay, decay / 2, decay / 3, decay / 4))


def beep(rng: Random, n: int, f: float) -> Tensor:
    length = min(n, int(rng.uniform(0.12, 0.2) * RATE))
    return torch.nn.functional.pad(_fade(_sine(f, length), 0.005, 0.02), (0, n - length))


def sweep(direction: int) -> Callable:
    def synthesise(rng: Random, n: int, f: float) -> Tensor:
        low, high = rng.uniform(120, 220), rng.uniform(800, 1200)
        ramp = torch.linspace(0, 1, n) if direction > 0 else torch.linspace(1, 0, n)
        return _fade(_sine(low * (high / low) ** ramp, n), 0.02, 0.05)

    return synthesise


def siren(low: float, high: float) -> Callable:
    """A vibrato with a rate between `low` and `high` Hz."""

    def synthesise(rng: Random, n: int, f: float) -> Tensor:
        centre, depth, rate = rng.uniform(550, 700), rng.uniform(180, 260), rng.uniform(low, high)
        return _fade(_sine(centre + depth * torch.sin(2 * math.pi * rate * _time(n)), n), 0.02, 0.05)

    return synthesise


def kick(rng: Random, n: int, f: float) -> Tensor:
    t = _time(n)
    frequency = rng.uniform(45, 60) + rng.uniform(80, 140) * torch.exp(-t / 0.03)
    return _fade(_sine(frequency, n) * torch.exp(-t / rng.uniform(0.08, 0.14)), 0.002, 0.01)


def snare(rng: Random, n: int, f: float) -> Tensor:
    t = _time(n)
    body = _sine(rng.uniform(170, 220), n) * torch.exp(-t / 0.05)
    rattle = _shape(rng.noise(n), lambda hz: 1 / (1 + (800 / hz.clamp_min(1)) ** 2)) * torch.exp(-t / rng.uniform(0.06, 0.1))
    return _fade(0.6 * body + 0.35 * rattle, 0.001, 0.01)


def hat(rng: Random, n: int, f: float) -> Tensor:
    return _shape(rng.noise(n), lambda hz: 1 / (1 + (6000 / hz.clamp_min(1)) ** 4)) * torch.exp(-_time(n) / rng.uniform(0.02, 0.04)) * 0.4


def click(rng: Random, n: int, f: float) -> Tensor:
    return _sine(rng.uniform(1200, 1800), n) * torch.exp(-_time(n) / rng.uniform(0.003, 0.006))


def wind(rng: Random, n: int, f: float) -> Tensor:
    corner, t = rng.uniform(600, 1200), _time(n)
    x = _shape(rng.noise(n), lambda hz: (hz > 60) / (1 + (hz / corner) ** 1.2))
    swell = 1 + 0.5 * torch.sin(2 * math.pi * rng.uniform(0.2, 0.5) * t + rng.uniform(0, 6.28))
    return _fade(0.3 * x * swell, 0.05, 0.1)


def rain(rng: Random, n: int, f: float) -> Tensor:
    x = _shape(rng.noise(n), lambda hz: 1 / (1 + (2500 / hz.clamp_min(1)) ** 2))
    drops = (torch.rand(n, generator=rng.generator) < 25 / RATE).float() * rng.noise(n).abs() * 5
    splash = torch.exp(-_time(1000) / 0.003)
    size = n + 1000
    wet = torch.fft.irfft(torch.fft.rfft(drops * torch.sign(rng.noise(n)), size) * torch.fft.rfft(splash, size), size)[:n]
    return _fade(0.15 * x + 0.1 * _shape(wet, lambda hz: 1 / (1 + (1500 / hz.clamp_min(1)) ** 2)), 0.03, 0.05)


def static(rng: Random, n: int, f: float) -> Tensor:
    return _fade(0.25 * rng.noise(n), 0.02, 0.03)


@dataclass(frozen=True)
class Sound:
    """nouns: its names. synthesise(rng, samples, fundamental) -> mono (N,). pitched: pitch words apply. sustained: fills the clip."""

    nouns: tuple[str, ...]
    synthesise: Callable
    pitched: bool = False
    sustained: bool = True


SOUNDS = {
    "tone": Sound(("tone", "note", "hum", "steady tone"), tone, pitched=True),
    "major chord": Sound(("major chord", "happy chord"), chord((1, 1.26, 1.498)), pitched=True),
    "minor chord": Sound(("minor chord", "sad chord"), chord((1, 1.189, 1.498)), pitched=True),
    "bell": Sound(("bell", "bell sound"), bell, pitched=True, sustained=False),
    "pluck": Sound(("pluck", "string pluck", "plucked string"), pluck, pitched=True, sustained=False),
    "beep": Sound(("beep", "short beep"), beep, pitched=True, sustained=False),
    "rising chirp": Sound(("rising chirp", "rising sweep"), sweep(1)),
    "falling chirp": Sound(("falling chirp", "falling sweep"), sweep(-1)),
    "slow siren": Sound(("slow siren",), siren(0.4, 0.7)),
    "fast siren": Sound(("fast siren",), siren(1.5, 2.5)),
    "kick": Sound(("kick", "kick drum"), kick, sustained=False),
    "snare": Sound(("snare", "snare drum"), snare, sustained=False),
    "hat": Sound(("hat", "hi hat"), hat, sustained=False),
    "click": Sound(("click", "short click"), click, sustained=False),
    "wind": Sound(("wind", "blowing wind"), wind),
    "rain": Sound(("rain", "falling rain"), rain),
    "static": Sound(("static", "white noise", "noise"), static),
}
PITCHED = tuple(name for name, sound in SOUNDS.items() if sound.pitched)
SUSTAINED = tuple(name for name, sound in SOUNDS.items() if sound.sustained)
SINGLES = (*SOUNDS, "tone", "tone", "bell", "beep", "wind", "kick")  # sounds that are hard to learn or often requested are more frequent
HITS = ("kick", "kick", "kick", "snare", "hat", "click", "beep", "bell", "pluck")  # sounds of rhythms; kicks are three times as frequent


@dataclass(frozen=True)
class Part:
    """One sound of a scene. words: without a template; audio (N,): peak 1."""

    words: str
    audio: Tensor
    kind: str
    pitch: str | None = None
    spacing: float | None = None


def _named(rng: Random, sound: Sound) -> tuple[str, str | None, float]:
    """Random words for a sound, their pitch word if any, and a random fundamental in Hz within the pitch's range."""
    pitch = rng.choice(tuple(PITCHES)) if sound.pitched else None
    f = rng.log_uniform(*PITCHES[pitch or "mid"])
    words = rng.choice(sound.nouns)
    return f"{rng.choice(PITCH_WORDS[pitch])} {words}" if pitch else words, pitch, f


def _single(rng: Random, n: int, kind: str) -> Part:
    sound = SOUNDS[kind]
    words, pitch, f = _named(rng, sound)
    if sound.sustained:
        return Part(words, _peak(sound.synthesise(rng, n, f)), kind, pitch)
    start = min(int(rng.uniform(0.03, 0.08) * RATE), n // 4)
    return Part(words, torch.cat((torch.zeros(start), _peak(sound.synthesise(rng, n - start, f)))), kind, pitch)


def _rhythm(rng: Random, n: int, kind: str) -> Part:
    """A steady rhythm of one hit. The first hit is near the start; in a third of the clips anywhere within the first period."""
    sound = SOUNDS[kind]
    if rng.uniform(0, 1) < 0.6:
        rhythm, spacing = rng.choice(tuple(SPACINGS.items()))
    else:
        tempo = rng.choice(TEMPI)
        rhythm, spacing = f"at {tempo} bpm", 60 / tempo
    words, pitch, f = _named(rng, sound)
    first = rng.uniform(0.03, 0.08) if rng.uniform(0, 1) < 0.67 else rng.uniform(0.0, spacing)
    hit = _peak(sound.synthesise(rng, min(n, int(1.5 * RATE)), f))
    return Part(f"{words} {rhythm}", _peak(repeated(hit, n, first, spacing)), kind, pitch, spacing)


def repeated(hit: Tensor, n: int, first: float, spacing: float) -> Tensor:
    """n samples with a hit (N,) at `first` seconds and then every `spacing` seconds."""
    out = torch.zeros(n + len(hit))
    beat = 0
    while (start := round((first + beat * spacing) * RATE)) < n:
        out[start : start + len(hit)] += hit
        beat += 1
    return out[:n]


def _peak(x: Tensor) -> Tensor:
    return x / x.abs().max().clamp_min(1e-6)


def _part(rng: Random, n: int, kind: str | None, rhythmic: float) -> Part:
    if rng.uniform(0, 1) < rhythmic and kind in (None, *HITS):
        return _rhythm(rng, n, kind or rng.choice(HITS))
    return _single(rng, n, kind or rng.choice(SINGLES))


def _with_article(part: Part) -> str:
    return part.words if part.kind in MASS else f"a {part.words}"


def clip(seed: int, index: int, seconds: float, kind: str | None = None, rhythmic: float = 0.4) -> Example:
    """Clip `index` of the corpus `seed`. kind: a key of SOUNDS, None = any scene. rhythmic: probability of a steady rhythm.

    Even seeds give training captions, odd seeds held-out captions: a scene with the wrong kind of caption is drawn again.
    """
    for attempt in range(100):
        rng = Random(seed, index * 100 + attempt)
        scene = _scene(rng, round(seconds * RATE), kind, rhythmic)
        if held_out(scene.caption) == bool(seed % 2):
            return scene
    raise AssertionError("a hundred captions in a row are on the wrong side of the split")


def held_out(caption: str) -> bool:
    """Whether a caption is held out of training: a tenth of them, by a hash whose salt puts every sound on both sides."""
    return hashlib.sha256(f"3164{caption}".encode()).digest()[0] % 10 == 0


def templates(kind: str) -> tuple[str, ...]:
    return MASS_TEMPLATES if kind in MASS else TEMPLATES


def held_out_captions(kind: str, pitch: str | None = None, rhythm: str = "") -> list[str]:
    """The held-out captions of a sound. rhythm: a key of SPACINGS, or such as "at 120 bpm"."""
    prefixes = [f"{word} " for word in PITCH_WORDS[pitch]] if pitch else [""]
    phrases = [f"{prefix}{noun} {rhythm}".strip() for prefix in prefixes for noun in SOUNDS[kind].nouns]
    captions = [template.format(phrase) for template in templates(kind) for phrase in phrases]
    return [caption for caption in captions if held_out(caption)]


def stated_spacing(caption: str) -> float | None:
    """Seconds between the hits when the caption is a single steady rhythm, else None."""
    if re.search(r",| and | with | under ", caption):
        return None
    if tempo := re.search(r"at (\d+) bpm", caption):
        return 60 / int(tempo[1])
    return next((spacing for rhythm, spacing in SPACINGS.items() if rhythm in caption), None)


def _scene(rng: Random, n: int, kind: str | None, rhythmic: float) -> Example:
    pick = rng.uniform(0, 1) if kind is None else 0.0
    if pick < 0.78:
        part = _part(rng, n, kind, rhythmic)
        caption, mono, parts = rng.choice(templates(part.kind)).format(part.words), part.audio, (part,)
    elif pick < 0.92:
        cut = int(n * rng.uniform(0.45, 0.55))
        parts = (_part(rng, cut, None, rhythmic), _part(rng, n - cut, None, rhythmic))
        caption = f"{_with_article(parts[0])}, then {_with_article(parts[1])}"
        mono = torch.cat((_fade(parts[0].audio, 1e-5, 0.01), parts[1].audio))
    else:
        parts = (_single(rng, n, rng.choice(SUSTAINED)), _rhythm(rng, n, rng.choice(HITS)))
        caption = f"{_with_article(parts[0])} {rng.choice(('and', 'with', 'under'))} {_with_article(parts[1])}"
        mono = 0.4 * parts[0].audio + 0.6 * parts[1].audio
    gain = rng.uniform(0.45, 0.8)
    mono = gain * mono
    if rng.uniform(0, 1) < 0.15:  # off-centre
        pan = rng.uniform(0.25, 0.75) * math.pi / 2
        audio = math.sqrt(2) * torch.stack((math.cos(pan) * mono, math.sin(pan) * mono))
    else:
        audio = torch.stack((mono, mono))
    main = parts[0]
    name = main.kind if len(parts) == 1 else "scene"
    return Example(caption, audio.clamp(-1, 1), name, main.pitch, main.spacing if len(parts) == 1 else None, tuple(p.kind for p in parts))


def vocabulary() -> list[str]:
    """All words of the captions, sorted."""
    texts = [*TEMPLATES, *MASS_TEMPLATES, *SPACINGS, "at bpm then and with under ,", *map(str, TEMPI)]
    texts += [noun for sound in SOUNDS.values() for noun in sound.nouns] + [word for words in PITCH_WORDS.values() for word in words]
    return sorted({word for text in texts for word in text.replace("{}", "").replace(",", " , ").split()})
