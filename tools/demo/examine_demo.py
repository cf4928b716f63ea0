"""Asks a demo model what it was trained for and writes the answers into its card, assets/<model>/README.md.

    python tools/demo/examine_demo.py [demo] [demo-medium]    # ten minutes of a core for each; prints the tables too

Captions are those held out of training, seeds are 5000 and up (the tests use others, so does the choice of settings).
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import sa3_core
from tools.demo import (
    corpus,
    evaluate,
)
from tools.demo.metrics import centroid, flatness, mono

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
SEED = 5000


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: list[float], digits: int = 0) -> str:
    """Median and range."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "none"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def round_trips(model) -> str:
    rows = []
    for kind, sound in corpus.SOUNDS.items():
        for pitch in corpus.PITCHES if sound.pitched else [None]:
            rows.append([f"{pitch} {kind}" if pitch else kind, spread(evaluate.round_trip(model, kind, pitch), 1)])
    return table(["sound", "SNR in dB"], rows)


def sounds(model) -> str:
    """Brightness and flatness of every class, asked and real."""
    rows = []
    for kind, sound in corpus.SOUNDS.items():
        for pitch in corpus.PITCHES if sound.pitched else [None]:
            made = [mono(clip) for clip in evaluate.make(model, evaluate.pick(kind, pitch), 2.0, SEED)]
            real = [mono(clip.audio) for i in range(30) if (clip := corpus.clip(111, i, 2.0, kind)).pitch == pitch and not clip.spacing]
            row = [f"{pitch} {kind}" if pitch else kind, spread([centroid(x) for x in made]), spread([centroid(x) for x in real])]
            rows.append([*row, spread([flatness(x) for x in made], 4), spread([flatness(x) for x in real], 4)])
    return table(["asked for", "brightness in Hz", "of the corpus", "flatness", "of the corpus"], rows)


def orders(model) -> str:
    rows = []
    for kind in corpus.PITCHED:
        right = [evaluate.ordered_pairs(evaluate.centroids(model, kind, SEED + i)) for i in range(2)]
        rows.append([kind, f"{sum(r for r, _ in right)} of {sum(n for _, n in right)}"])
    return table(["sound", "pairs of pitch words in order"], rows)


def rhythms(model) -> str:
    """With the model's defaults, and with weaker guidance."""
    settings, count, rows = {"within 60 ms": {}, "within 60 ms, cfg 3": {"cfg": 3.0}}, 8, []
    for when, wanted in corpus.SPACINGS.items():
        for kind in ("kick", "click", "pluck"):
            row = [f"{kind} {when}"]
            for options in settings.values():
                found = evaluate.spacings(model, when, SEED, kind, count, 4.0, **options)
                row += [f"{evaluate.on_the_beat(found, wanted)} of {count}", spread(found, 2)]
            rows.append(row)
    return table(["asked for", *(name for title in settings for name in (title, "spacing found in s"))], rows)


def modes(model) -> str:
    inner = [evaluate.inpainted(model, SEED + i) for i in range(4)]
    near, far = ([evaluate.varied(model, SEED + i, level) for i in range(4)] for level in (0.2, 1.0))
    from_low, from_high = evaluate.pushed_away(model, SEED)
    rows = [
        [
            "inpaint: a high tone inside a low one",
            f"inside {spread([x['inside'] for x in inner])} Hz, outside {inner[0]['outside']:.0f} Hz",
        ],
        ["inpaint: largest step at the seams over the largest elsewhere", spread([x["seam"] for x in inner], 2)],
        ["continue: beats of the new part that have an onset", f"{100 * statistics.mean(evaluate.continued(model, SEED, 8)):.0f} %"],
        ["audio to audio at 0.2, source's brightness over the result's", spread([a / b for a, b in near], 2)],
        ["audio to audio at 1.0, high source, low caption: the same", spread([a / b for a, b in far], 2)],
        ['"a tone" without "a low tone" / without "a high tone"', f"{from_low:.0f} / {from_high:.0f} Hz"],
        ["tone of 1.5, 2, 3, 5 s: its end against its middle", ", ".join(f"{db:.1f}" for _, db in evaluate.tails(model, SEED)) + " dB"],
    ]
    return table(["what", "found"], rows)


SECTIONS = {
    "Autoencoder, there and back (clips of 2 s, median and range of 8)": round_trips,
    "Brightness and noisiness of what was asked (median and range of 4)": sounds,
    "Pitch words": orders,
    "Rhythms (clips of 4 s)": rhythms,
    "Modes": modes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=list(sa3_core.DEMOS), metavar="MODEL", help="all when none is named")
    for name in parser.parse_args().models or sa3_core.DEMOS:
        examine(name)


def examine(name: str) -> None:
    model, parts, path = sa3_core.load(name), [BEGIN], sa3_core.DEMOS[name] / "README.md"
    for title, section in SECTIONS.items():
        parts.append(f"### {title}\n\n{section(model)}")
        print(f"\n{parts[-1]}", flush=True)
    card = path.read_text(encoding="utf-8")
    head, tail = card.split(BEGIN)[0], card.split(END)[1]
    path.write_text(head + "\n\n".join(parts) + f"\n\n{END}" + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
