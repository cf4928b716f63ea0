"""Evaluation of a model trained on the corpus: metrics of audio generated from held-out captions. options: see `Model.generate`."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sa3_core.timeline.splicing import splice

from . import corpus
from .autoencoder import snr
from .metrics import BEAT, centroid, flatness, level_db, mono, onsets, spacing

PADDING = 1.0  # seconds after each clip


def generate(model, captions: Sequence[str], seconds: float = 3.0, seed: int = 0, **options) -> list[Tensor]:
    """One clip (2, N) per caption."""
    options = {"padding": PADDING, **options}
    return model.generate(list(captions), duration=seconds, seed=seed, **options).audio


def held_out_captions(kind: str, pitch: str | None = None, rhythm: str = "", count: int = 4) -> list[str]:
    """`count` held-out captions of a sound, repeated when there are fewer."""
    return list(itertools.islice(itertools.cycle(corpus.held_out_captions(kind, pitch, rhythm)), count))


def round_trip(model, kind: str, pitch: str | None = None, count: int = 8) -> list[float]:
    """SNR in dB of encoding and decoding, for `count` clips of 2 s that are not in the training data."""
    ratios, index = [], 0
    while len(ratios) < count:
        clip = corpus.clip(101, index, 2.0, kind)
        index += 1
        if clip.pitch == pitch and clip.spacing is None:
            n = clip.audio.shape[-1]
            ratios.append(snr(model.decode(model.encode(clip.audio[None]))[0, :, :n], clip.audio))
    return ratios


def centroids(model, kind: str, seed: int, count: int = 4, **options) -> dict[str, list[float]]:
    """Spectral centroids in Hz of generated clips, by pitch word."""
    captions = {pitch: held_out_captions(kind, pitch, count=count) for pitch in corpus.PITCHES}
    clips = iter(generate(model, [c for group in captions.values() for c in group], 2.0, seed, **options))
    return {pitch: [centroid(mono(next(clips))) for _ in group] for pitch, group in captions.items()}


def ordered_pairs(by_pitch: dict[str, list[float]]) -> tuple[int, int]:
    """(pairs of clips in the correct order, all pairs), for clips with different pitch words."""
    order = [by_pitch[pitch] for pitch in corpus.PITCHES]
    pairs = [a < b for low, high in itertools.combinations(order, 2) for a in low for b in high]
    return sum(pairs), len(pairs)


def flatnesses(model, kind: str, seed: int, count: int = 4, **options) -> list[float]:
    """Spectral flatness of generated clips."""
    pitch = "mid" if kind in corpus.PITCHED else None
    captions = held_out_captions(kind, pitch, count=count)
    return [flatness(mono(clip)) for clip in generate(model, captions, 2.0, seed, **options)]


def spacings(model, rhythm: str, seed: int, kind: str = "kick", count: int = 8, seconds: float = 4.0, **options) -> list[float]:
    """Median distance of the onsets of each generated clip, in seconds. rhythm: a key of corpus.SPACINGS."""
    pitch = "mid" if kind in corpus.PITCHED else None
    captions = held_out_captions(kind, pitch, rhythm, count)
    return [spacing(mono(clip)) for clip in generate(model, captions, seconds, seed, **options)]


def on_the_beat(measured: Sequence[float], expected: float) -> int:
    """Number of spacings within BEAT seconds of the expected one."""
    return sum(abs(value - expected) <= BEAT for value in measured)


def inpainted(model, seed: int, **options) -> dict[str, float]:
    """Inpaint a high tone between 1.5 and 2.5 s of a low tone of 4 s.

    inside, outside: centroids in Hz. kept: largest change of a sample outside the region. seam: largest step between neighbouring
    samples at the two seams, divided by the largest one elsewhere.
    """
    tone = _tone("low", 4.0)
    region = [(1.5, 2.5)]
    (result,) = generate(
        model, held_out_captions("tone", "high", count=1), 4.0, seed, source_audio=(corpus.RATE, tone), regions=region, **options
    )
    clip = splice(tone[None], result[None], region, corpus.RATE)[0][0]
    start, stop = round(1.5 * corpus.RATE), round(2.5 * corpus.RATE)
    fade = round(0.05 * corpus.RATE)
    kept = torch.cat(((clip - tone)[:, : start - fade], (clip - tone)[:, stop + fade :]), dim=1)
    steps = mono(clip).diff().abs()
    seams = max(float(steps[at - fade : at + fade].max()) for at in (start, stop))
    inner = float(torch.cat((steps[start + fade : stop - fade], steps[: start - fade])).max())
    inside = mono(clip)[start + 2 * fade : stop - 2 * fade]
    return {"inside": centroid(inside), "outside": centroid(mono(tone)), "kept": float(kept.abs().max()), "seam": seams / inner}


def continued(model, seed: int, count: int = 4, **options) -> list[float]:
    """Continue 2 s of kicks every half second to 4 s: the share of beats in the new part that have an onset, per clip."""
    shares = []
    for i in range(count):
        source, first = _rhythm(i)
        caption = held_out_captions("kick", rhythm="every half second", count=i + 1)[i]
        padded = torch.nn.functional.pad(source, (0, 2 * corpus.RATE))
        (clip,) = generate(model, [caption], 4.0, seed + i, source_audio=(corpus.RATE, padded), regions=[(2.0, 4.0)], **options)
        beats = [beat for k in range(9) if 2.1 < (beat := first + 0.5 * k) < 3.9]
        times = onsets(mono(clip))
        shares.append(sum(any(abs(beat - time) <= BEAT for time in times) for beat in beats) / len(beats))
    return shares


def audio_to_audio(model, seed: int, noise_level: float, **options) -> tuple[float, float]:
    """Centroids in Hz of a high tone and of the result of audio to audio with a low tone's caption."""
    tone = _tone("high", 2.0)
    options = {"init_audio": (corpus.RATE, tone), "init_noise_level": noise_level, **options}
    (clip,) = generate(model, held_out_captions("tone", "low", count=1), 2.0, seed, **options)
    return centroid(mono(tone)), centroid(mono(clip))


def negative_prompts(model, seed: int, count: int = 6, **options) -> tuple[float, float]:
    """Median centroids in Hz of "a tone" with the negative prompts "a low tone" and "a high tone"."""

    def median(negative: str) -> float:
        clips = generate(model, ["a tone"] * count, 2.0, seed, negative_prompt=negative, **options)
        return float(torch.tensor([centroid(mono(clip)) for clip in clips]).median())

    return median("a low tone"), median("a high tone")


def end_levels(model, seed: int, seconds: Sequence[float] = (1.5, 2.0, 3.0, 5.0), **options) -> list[tuple[int, float]]:
    """(samples, level) of a tone of each duration; level: dB from 0.5 to 0.15 s before the end, relative to the middle."""
    result = []
    for duration, caption in zip(seconds, held_out_captions("tone", "mid", count=len(seconds)), strict=True):
        (clip,) = generate(model, [caption], duration, seed, **options)
        x, n = mono(clip), clip.shape[-1]
        end = x[n - round(0.5 * corpus.RATE) : n - round(0.15 * corpus.RATE)]
        result.append((n, level_db(end) - level_db(x[n // 3 : n // 2])))
    return result


def _tone(pitch: str, seconds: float) -> Tensor:
    """A tone of the corpus (2, N) that is not in the training data."""
    clips = (corpus.clip(103, index, seconds, "tone") for index in itertools.count())
    return next(clip.audio for clip in clips if clip.pitch == pitch and clip.spacing is None)


def _rhythm(index: int) -> tuple[Tensor, float]:
    """Two seconds of kicks every half second (2, N), and the time of the first in seconds."""
    rng = corpus.Random(105, index)
    hit = corpus.SOUNDS["kick"].synthesise(rng, corpus.RATE // 2, 0.0)
    hit = 0.6 * hit / hit.abs().max()
    first = rng.uniform(0.03, 0.3)
    return corpus.repeated(hit, 2 * corpus.RATE, first, 0.5).expand(2, -1).clone(), first
