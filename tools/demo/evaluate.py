"""What a model trained on the corpus has learned: it is asked with captions that were held out, and its answers are measured."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sa3_core.timeline.splicing import splice

from . import corpus
from .autoencoder import snr
from .metrics import BEAT, centroid, flatness, level_db, mono, onsets, spacing

PADDING = 1.0  # seconds behind each clip


def make(model, captions: Sequence[str], seconds: float = 3.0, seed: int = 0, **options) -> list[Tensor]:
    """One clip (2, N) per caption."""
    options = {"padding": PADDING, **options}
    return model.generate(list(captions), duration=seconds, seed=seed, **options).audio


def pick(kind: str, pitch: str | None = None, when: str = "", count: int = 4) -> list[str]:
    """`count` held-out captions, repeated where there are fewer."""
    return list(itertools.islice(itertools.cycle(corpus.unseen(kind, pitch, when)), count))


def round_trip(model, kind: str, pitch: str | None = None, count: int = 8) -> list[float]:
    """SNR in dB of encode and decode over `count` clips of 2 s that training never saw."""
    found, index = [], 0
    while len(found) < count:
        clip = corpus.clip(101, index, 2.0, kind)
        index += 1
        if clip.pitch == pitch and clip.spacing is None:
            n = clip.audio.shape[-1]
            found.append(snr(model.decode(model.encode(clip.audio[None]))[0, :, :n], clip.audio))
    return found


def centroids(model, kind: str, seed: int, count: int = 4, **options) -> dict[str, list[float]]:
    """Brightness in Hz of clips asked for in each pitch."""
    captions = {pitch: pick(kind, pitch, count=count) for pitch in corpus.PITCHES}
    clips = iter(make(model, [c for group in captions.values() for c in group], 2.0, seed, **options))
    return {pitch: [centroid(mono(next(clips))) for _ in group] for pitch, group in captions.items()}


def ordered_pairs(by_pitch: dict[str, list[float]]) -> tuple[int, int]:
    """(pairs in the right order, all pairs) over every two clips of different pitch words."""
    order = [by_pitch[pitch] for pitch in corpus.PITCHES]
    pairs = [a < b for low, high in itertools.combinations(order, 2) for a in low for b in high]
    return sum(pairs), len(pairs)


def flatnesses(model, kind: str, seed: int, count: int = 4, **options) -> list[float]:
    pitch = "mid" if kind in corpus.PITCHED else None
    return [flatness(mono(clip)) for clip in make(model, pick(kind, pitch, count=count), 2.0, seed, **options)]


def spacings(model, when: str, seed: int, kind: str = "kick", count: int = 8, seconds: float = 4.0, **options) -> list[float]:
    """Median distance of onsets, in seconds, per clip."""
    pitch = "mid" if kind in corpus.PITCHED else None
    return [spacing(mono(clip)) for clip in make(model, pick(kind, pitch, when, count), seconds, seed, **options)]


def on_the_beat(found: Sequence[float], wanted: float) -> int:
    return sum(abs(value - wanted) <= BEAT for value in found)


def inpainted(model, seed: int, **options) -> dict[str, float]:
    """A low tone of 4 s whose second between 1.5 and 2.5 is asked anew as a high one.

    Returns the centroid inside and outside in Hz, the largest change of a sample outside the region, and the largest jump between
    neighbouring samples at the two seams over the largest one elsewhere.
    """
    tone = _source("tone", "low", 4.0)
    region = [(1.5, 2.5)]
    (made,) = make(model, pick("tone", "high", count=1), 4.0, seed, source_audio=(corpus.RATE, tone), regions=region, **options)
    clip = splice(tone[None], made[None], region, corpus.RATE)[0][0]
    start, stop = round(1.5 * corpus.RATE), round(2.5 * corpus.RATE)
    fade = round(0.05 * corpus.RATE)
    kept = torch.cat(((clip - tone)[:, : start - fade], (clip - tone)[:, stop + fade :]), dim=1)
    steps = mono(clip).diff().abs()
    seams = max(float(steps[at - fade : at + fade].max()) for at in (start, stop))
    inner = float(torch.cat((steps[start + fade : stop - fade], steps[: start - fade])).max())
    inside = mono(clip)[start + 2 * fade : stop - 2 * fade]
    return {"inside": centroid(inside), "outside": centroid(mono(tone)), "kept": float(kept.abs().max()), "seam": seams / inner}


def continued(model, seed: int, count: int = 4, **options) -> list[float]:
    """Kicks every half second for 2 s, continued to 4 s: the share of beats in the new part that have an onset, per clip."""
    shares = []
    for i in range(count):
        source, first = _rhythm(i)
        caption = pick("kick", when="every half second", count=i + 1)[i]
        laid = torch.nn.functional.pad(source, (0, 2 * corpus.RATE))
        (clip,) = make(model, [caption], 4.0, seed + i, source_audio=(corpus.RATE, laid), regions=[(2.0, 4.0)], **options)
        beats = [beat for k in range(9) if 2.1 < (beat := first + 0.5 * k) < 3.9]
        found = onsets(mono(clip))
        shares.append(sum(any(abs(beat - time) <= BEAT for time in found) for beat in beats) / len(beats))
    return shares


def varied(model, seed: int, noise_level: float, **options) -> tuple[float, float]:
    """Centroids of a high tone and of what audio to audio makes of it under a low tone's caption."""
    tone = _source("tone", "high", 2.0)
    (clip,) = make(model, pick("tone", "low", count=1), 2.0, seed, init_audio=(corpus.RATE, tone), init_noise_level=noise_level, **options)
    return centroid(mono(tone)), centroid(mono(clip))


def pushed_away(model, seed: int, count: int = 6, **options) -> tuple[float, float]:
    """Median centroid in Hz of "a tone" with "a low tone" and with "a high tone" as the negative prompt."""

    def middle(negative: str) -> float:
        clips = make(model, ["a tone"] * count, 2.0, seed, negative_prompt=negative, **options)
        return float(torch.tensor([centroid(mono(clip)) for clip in clips]).median())

    return middle("a low tone"), middle("a high tone")


def tails(model, seed: int, seconds: Sequence[float] = (1.5, 2.0, 3.0, 5.0), **options) -> list[tuple[int, float]]:
    """Samples of a tone of each duration, and its level in dB over the last half second but 0.15 s, against its middle."""
    result = []
    for duration, caption in zip(seconds, pick("tone", "mid", count=len(seconds)), strict=True):
        (clip,) = make(model, [caption], duration, seed, **options)
        x, n = mono(clip), clip.shape[-1]
        end = x[n - round(0.5 * corpus.RATE) : n - round(0.15 * corpus.RATE)]
        result.append((n, level_db(end) - level_db(x[n // 3 : n // 2])))
    return result


def _source(kind: str, pitch: str, seconds: float) -> Tensor:
    for index in itertools.count():
        clip = corpus.clip(103, index, seconds, kind)
        if clip.pitch == pitch and clip.spacing is None:
            return clip.audio
    raise AssertionError


def _rhythm(index: int) -> tuple[Tensor, float]:
    """Two seconds of kicks half a second apart, and the time of the first."""
    d = corpus.Draw(105, index)
    hit = corpus.SOUNDS["kick"].make(d, corpus.RATE // 2, 0.0)
    hit = 0.6 * hit / hit.abs().max()
    first = d.uniform(0.03, 0.3)
    return corpus.repeated(hit, 2 * corpus.RATE, first, 0.5).expand(2, -1).clone(), first
