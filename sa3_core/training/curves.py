"""Loss curves as an image and as a PNG file."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
WIDTH, HEIGHT, MARGIN = 800, 400, 12


def draw_curves(history: Sequence[dict]) -> tuple[Image.Image, str]:
    """The records of a `Trainer` on a logarithmic axis, one line per term, and a text with the range and the colours.

    Labels: the highest and lowest value on the left, the last step on the lower right. Values that are not finite are skipped.
    """
    steps, curves = [row["step"] for row in history], by_name(history)
    values = [v for curve in curves.values() for v in curve if v > 0 and math.isfinite(v)]
    low, high = math.log10(min(values, default=0.1)), math.log10(max(values, default=1.0))

    def row(value: float) -> int:
        position = (math.log10(max(value, 1e-12)) - low) / max(high - low, 1e-3)
        return HEIGHT - MARGIN - round(min(max(position, 0), 1) * (HEIGHT - 2 * MARGIN))

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    for power in range(math.ceil(low), math.floor(high) + 1):  # a grid line per decade
        canvas.line((0, row(10.0**power), WIDTH, row(10.0**power)), "gainsboro")
    last = max(max(steps, default=1), 1)
    colours = dict(zip(curves, itertools.cycle(COLOURS)))
    for name, curve in curves.items():
        points = [(MARGIN + round(s / last * (WIDTH - 2 * MARGIN)), row(v)) for s, v in zip(steps, curve, strict=True) if math.isfinite(v)]
        canvas.line(points, colours[name])
    for text, place in ((f"{10**high:.3g}", (4, 2)), (f"{10**low:.3g}", (4, HEIGHT - 14)), (f"{last}", (WIDTH - 64, HEIGHT - 14))):
        canvas.text(place, text, "black")
    legend = "; ".join(f"{name}: rgb{colour}" for name, colour in colours.items())
    return image, f"steps 0..{last}, log10 {low:.2f}..{high:.2f}. {legend}"


def draw_history(history: Sequence[dict]) -> torch.Tensor:
    """`draw_curves` as an image (H, W, 3) between 0 and 1."""
    return torch.from_numpy(np.array(draw_curves(history)[0])).float() / 255


def by_name(history: Sequence[dict]) -> dict[str, list[float]]:
    """The values of each term, nan where a record lacks it."""
    names = [name for name in dict.fromkeys(name for row in reversed(history) for name in row) if name != "step"]
    return {name: [row.get(name, math.nan) for row in history] for name in names}


def write_curves(path: str | Path, history: Sequence[dict]) -> None:
    """`draw_curves` as a PNG file with the text in its Description."""
    image, text = draw_curves(history)
    info = PngInfo()
    info.add_text("Description", text)
    image.save(path, "PNG", pnginfo=info)
