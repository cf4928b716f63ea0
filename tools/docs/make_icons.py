"""Draw the pack's icon and banner for ComfyUI's registry: docs/pictures/icon.png (400 x 400) and banner.png (1260 x 540, 21:9).

    python tools/docs/make_icons.py

Both show a waveform of which one region is regenerated. Needs Pillow.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
PAPER, INK, REGION, NEW = (24, 27, 34), (122, 162, 247), (52, 44, 30), (240, 170, 84)
SMOOTH = 4  # drawn this much larger, then reduced


def waveform(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], bars: int, region: tuple[float, float]) -> None:
    """Draw bars of a beat that decays, those within `region` (shares of the width) as regenerated."""
    left, top, right, bottom = box
    width, middle = (right - left) / bars, (top + bottom) / 2
    start, end = (left + share * (right - left) for share in region)
    draw.rounded_rectangle((start, top, end, bottom), width, REGION)
    for i in range(bars):
        x = left + (i + 0.5) * width
        beat = math.exp(-4.0 * (i * 4 / bars % 1)) * (0.75 + 0.25 * math.cos(2 * math.pi * i / bars))
        height = (0.1 + 0.8 * beat * (0.8 + 0.2 * math.sin(i * 2.4))) * (bottom - top) / 2
        draw.rounded_rectangle(
            (x - 0.3 * width, middle - height, x + 0.3 * width, middle + height), 0.3 * width, NEW if start < x < end else INK
        )


def picture(size: tuple[int, int], draw_on) -> Image.Image:
    large = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), PAPER)
    draw_on(ImageDraw.Draw(large))
    return large.resize(size, Image.LANCZOS)


def icon(draw: ImageDraw.ImageDraw) -> None:
    waveform(draw, tuple(SMOOTH * edge for edge in (30, 70, 370, 330)), 16, (0.5, 0.75))


def banner(draw: ImageDraw.ImageDraw) -> None:
    waveform(draw, tuple(SMOOTH * edge for edge in (60, 230, 1200, 490)), 64, (0.5, 0.75))
    draw.text((60 * SMOOTH, 50 * SMOOTH), "Stable Audio 3", "white", ImageFont.load_default(96 * SMOOTH))
    text = "text to audio, inpainting, continuation, loops and LoRA training"
    draw.text((64 * SMOOTH, 165 * SMOOTH), text, INK, ImageFont.load_default(34 * SMOOTH))


if __name__ == "__main__":
    for name, size, draw_on in (("icon", (400, 400), icon), ("banner", (1260, 540), banner)):
        picture(size, draw_on).quantize(128).save(PICTURES / f"{name}.png", optimize=True)
