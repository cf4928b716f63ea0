"""Loss curves as a PNG, without a plotting library."""

import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ..audio.spectrogram import write

COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
WIDTH, HEIGHT, MARGIN = 800, 400, 12


def draw_curves(steps: Sequence[int], curves: dict[str, Sequence[float]]) -> tuple[torch.Tensor, str]:
    """One line per curve on a logarithmic axis, white ground, as an 8-bit picture (H, W, 3), and what its colours mean.

    Numbers: the highest and lowest value at the left, the last step at the lower right. Points that are not finite are passed over.
    """
    image = torch.full((HEIGHT, WIDTH, 3), 255, dtype=torch.uint8)
    values = [v for curve in curves.values() for v in curve if v > 0 and math.isfinite(v)]
    low, high = math.log10(min(values, default=0.1)), math.log10(max(values, default=1.0))
    span = max(high - low, 1e-3)

    def row(value: float) -> int:
        share = (math.log10(max(value, 1e-12)) - low) / span
        return HEIGHT - MARGIN - round(min(max(share, 0), 1) * (HEIGHT - 2 * MARGIN))

    for power in range(math.ceil(low), math.floor(high) + 1):  # a line per decade
        image[row(10.0**power)] = 220
    last = max(max(steps, default=1), 1)
    for colour, curve in zip(COLOURS * (1 + len(curves) // len(COLOURS)), curves.values(), strict=False):
        points = [(MARGIN + round(s / last * (WIDTH - 2 * MARGIN)), row(v)) for s, v in zip(steps, curve, strict=True) if math.isfinite(v)]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            n = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(n + 1):
                image[y0 + (y1 - y0) * i // n, x0 + (x1 - x0) * i // n] = torch.tensor(colour, dtype=torch.uint8)
    labelled = image.float() / 255
    for text, bottom, left in ((_plain(10**high), 20, 4), (_plain(10**low), HEIGHT - 2, 4), (f"{last}", HEIGHT - 2, WIDTH - 64)):
        labelled = write(labelled, text, bottom, left)
    legend = "; ".join(f"{name}: rgb{colour}" for name, colour in zip(curves, COLOURS * (1 + len(curves) // 6), strict=False))
    return (labelled * 255).round().to(torch.uint8), f"steps 0..{last}, log10 {low:.2f}..{high:.2f}. {legend}"


def write_curves(path: str | Path, steps: Sequence[int], curves: dict[str, Sequence[float]]) -> None:
    """`draw_curves` as a PNG file, what its colours mean in the file's text."""
    image, text = draw_curves(steps, curves)
    Path(path).write_bytes(png(image, {"Description": text}))


def draw_history(history: Sequence[dict]) -> torch.Tensor:
    """The records of a `loop.Trainer` as a picture (H, W, 3)."""
    return draw_curves([row["step"] for row in history], by_name(history))[0]


def by_name(history: Sequence[dict]) -> dict[str, list[float]]:
    """The values of each term, nan where a record lacks it."""
    names = [name for name in dict.fromkeys(name for row in reversed(history) for name in row) if name != "step"]
    return {name: [row.get(name, math.nan) for row in history] for name in names}


def png(image: torch.Tensor, text: dict[str, str] | None = None) -> bytes:
    """An 8-bit RGB image (H, W, 3) as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = image.shape
    rows = torch.cat((torch.zeros(height, 1, dtype=torch.uint8), image.reshape(height, -1)), dim=1)  # filter type 0 before each row
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    parts += [chunk(b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1", "replace")) for key, value in (text or {}).items()]
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(rows.numpy().tobytes(), 9)), chunk(b"IEND", b"")])


def _plain(value: float) -> str:
    """Three digits of a number above 0, without an exponent: the picture's glyphs have none."""
    return f"{float(f'{value:.3g}'):.15f}".rstrip("0").rstrip(".")
