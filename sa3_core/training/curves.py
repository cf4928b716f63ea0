"""Loss curves as an image and as a PNG file, without a plotting library."""

import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ..audio.spectrogram import draw_text

COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
WIDTH, HEIGHT, MARGIN = 800, 400, 12


def draw_curves(steps: Sequence[int], curves: dict[str, Sequence[float]]) -> tuple[torch.Tensor, str]:
    """One line per curve on a logarithmic axis: an 8-bit RGB image (H, W, 3), and a text with its range and colours.

    Labels: the highest and lowest value on the left, the last step on the lower right. Values that are not finite are skipped.
    """
    image = torch.full((HEIGHT, WIDTH, 3), 255, dtype=torch.uint8)
    values = [v for curve in curves.values() for v in curve if v > 0 and math.isfinite(v)]
    low, high = math.log10(min(values, default=0.1)), math.log10(max(values, default=1.0))

    def row(value: float) -> int:
        position = (math.log10(max(value, 1e-12)) - low) / max(high - low, 1e-3)
        return HEIGHT - MARGIN - round(min(max(position, 0), 1) * (HEIGHT - 2 * MARGIN))

    for power in range(math.ceil(low), math.floor(high) + 1):  # a grid line per decade
        image[row(10.0**power)] = 220
    last = max(max(steps, default=1), 1)
    colours = dict(zip(curves, itertools.cycle(COLOURS)))
    for name, curve in curves.items():
        points = [(MARGIN + round(s / last * (WIDTH - 2 * MARGIN)), row(v)) for s, v in zip(steps, curve, strict=True) if math.isfinite(v)]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            n = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(n + 1):
                image[y0 + (y1 - y0) * i // n, x0 + (x1 - x0) * i // n] = torch.tensor(colours[name], dtype=torch.uint8)
    labelled = image.float() / 255
    for text, bottom, left in ((_decimal(10**high), 20, 4), (_decimal(10**low), HEIGHT - 2, 4), (f"{last}", HEIGHT - 2, WIDTH - 64)):
        labelled = draw_text(labelled, text, bottom, left)
    legend = "; ".join(f"{name}: rgb{colour}" for name, colour in colours.items())
    return (labelled * 255).round().to(torch.uint8), f"steps 0..{last}, log10 {low:.2f}..{high:.2f}. {legend}"


def draw_history(history: Sequence[dict]) -> torch.Tensor:
    """The records of a `Trainer` as an image (H, W, 3)."""
    return draw_curves([row["step"] for row in history], by_name(history))[0]


def by_name(history: Sequence[dict]) -> dict[str, list[float]]:
    """The values of each term, nan where a record lacks it."""
    names = [name for name in dict.fromkeys(name for row in reversed(history) for name in row) if name != "step"]
    return {name: [row.get(name, math.nan) for row in history] for name in names}


def write_curves(path: str | Path, steps: Sequence[int], curves: dict[str, Sequence[float]]) -> None:
    """Write `draw_curves` as a PNG file with the legend in its Description."""
    image, text = draw_curves(steps, curves)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = torch.cat((torch.zeros(HEIGHT, 1, dtype=torch.uint8), image.flatten(1)), dim=1)  # filter type 0 before each row
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    description = b"Description\0" + text.encode("latin-1", "replace")
    chunks = ((b"IHDR", header), (b"tEXt", description), (b"IDAT", zlib.compress(rows.numpy().tobytes(), 9)), (b"IEND", b""))
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))


def _decimal(value: float) -> str:
    """Three significant digits without an exponent, which the glyphs lack."""
    return f"{float(f'{value:.3g}'):.15f}".rstrip("0").rstrip(".")
