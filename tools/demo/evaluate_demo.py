"""Evaluate the demo models and write the tables into their cards, assets/<model>/README.md.

    python tools/demo/evaluate_demo.py [demo] [demo-medium]    # about ten minutes of one core per model

Captions are those held out of training. Seeds start at 5000; the tests and the choice of settings use others.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import sa3_core
from tools.demo import corpus, evaluation
from tools.demo.metrics import centroid, flatness, mono

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
SEED = 5000


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: list[float], digits: int = 0) -> str:
    """Median and range of the finite values, as text."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "none"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def round_trips(model) -> str:
    """SNR of encoding and decoding, per class of sound."""
    rows = []
    for kind, sound in corpus.SOUNDS.items():
        for pitch in corpus.PITCHES if sound.pitched else [None]:
            rows.append([f"{pitch} {kind}" if pitch else kind, spread(evaluation.round_trip(model, kind, pitch), 1)])
    return table(["sound", "SNR in dB"], rows)


def sounds(model) -> str:
    """Spectral centroid and flatness of every class, generated and in the corpus."""
    rows = []
    for kind, sound in corpus.SOUNDS.items():
        for pitch in corpus.PITCHES if sound.pitched else [None]:
            generated = [mono(clip) for clip in evaluation.generate(model, evaluation.held_out_captions(kind, pitch), 2.0, SEED)]
            real = [mono(clip.audio) for i in range(30) if (clip := corpus.clip(111, i, 2.0, kind)).pitch == pitch and not clip.spacing]
            row = [f"{pitch} {kind}" if pitch else kind, spread([centroid(x) for x in generated]), spread([centroid(x) for x in real])]
            rows.append([*row, spread([flatness(x) for x in generated], 4), spread([flatness(x) for x in real], 4)])
    return table(["prompt", "centroid in Hz", "centroid of the corpus", "flatness", "flatness of the corpus"], rows)


def pitch_orders(model) -> str:
    """Pairs of clips whose centroids have the order of their pitch words, per class of sound."""
    rows = []
    for kind in corpus.PITCHED:
        right = [evaluation.ordered_pairs(evaluation.centroids(model, kind, SEED + i)) for i in range(2)]
        rows.append([kind, f"{sum(r for r, _ in right)} of {sum(n for _, n in right)}"])
    return table(["sound", "pairs of pitch words in the correct order"], rows)


def rhythms(model) -> str:
    """Clips whose onsets have the requested spacing, with the default guidance and with weaker guidance."""
    settings, count, rows = {"within 60 ms": {}, "within 60 ms, cfg 3": {"cfg": 3.0}}, 8, []
    for when, wanted in corpus.SPACINGS.items():
        for kind in ("kick", "click", "pluck"):
            row = [f"{kind} {when}"]
            for options in settings.values():
                measured = evaluation.spacings(model, when, SEED, kind, count, 4.0, **options)
                row += [f"{evaluation.on_the_beat(measured, wanted)} of {count}", spread(measured, 2)]
            rows.append(row)
    return table(["prompt", *(name for title in settings for name in (title, "measured spacing in s"))], rows)


def modes(model) -> str:
    """Inpainting, continuation, audio to audio, negative prompts and durations."""
    inner = [evaluation.inpainted(model, SEED + i) for i in range(4)]
    inside = spread([x["inside"] for x in inner])
    near, far = ([evaluation.audio_to_audio(model, SEED + i, level) for i in range(4)] for level in (0.2, 1.0))
    from_low, from_high = evaluation.negative_prompts(model, SEED)
    rows = [
        ["inpaint: a high tone inside a low one", f"inside {inside} Hz, outside {inner[0]['outside']:.0f} Hz"],
        ["inpaint: largest step at the seams / largest step elsewhere", spread([x["seam"] for x in inner], 2)],
        ["continue: beats of the new part that have an onset", f"{100 * statistics.mean(evaluation.continued(model, SEED, 8)):.0f} %"],
        ["audio to audio at 0.2: centroid of the source / centroid of the result", spread([a / b for a, b in near], 2)],
        ["audio to audio at 1.0, high source, low prompt: the same ratio", spread([a / b for a, b in far], 2)],
        ['"a tone" with negative prompt "a low tone" / "a high tone"', f"{from_low:.0f} / {from_high:.0f} Hz"],
        [
            "tones of 1.5, 2, 3, 5 s: level at the end relative to the middle",
            ", ".join(f"{db:.1f}" for _, db in evaluation.end_levels(model, SEED)) + " dB",
        ],
    ]
    return table(["metric", "result"], rows)


SECTIONS = {
    "Autoencoder round trip (clips of 2 s, median and range of 8)": round_trips,
    "Brightness (spectral centroid) and noisiness (spectral flatness) (median and range of 4)": sounds,
    "Pitch words": pitch_orders,
    "Rhythms (clips of 4 s)": rhythms,
    "Modes": modes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(sa3_core.DEMOS)}; default: all")
    models = parser.parse_args().models or list(sa3_core.DEMOS)
    if unknown := set(models) - set(sa3_core.DEMOS):
        parser.error(f"unknown: {', '.join(unknown)}")
    for name in models:
        write_card(name)


def write_card(name: str) -> None:
    """Evaluate a demo and replace the tables of its card."""
    model, parts, path = sa3_core.load(name), [BEGIN], sa3_core.DEMOS[name] / "README.md"
    for title, section in SECTIONS.items():
        parts.append(f"### {title}\n\n{section(model)}")
        print(f"\n{parts[-1]}", flush=True)
    card = path.read_text(encoding="utf-8")
    head, tail = card.split(BEGIN)[0], card.split(END)[1]
    path.write_text(head + "\n\n".join(parts) + f"\n\n{END}" + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
