"""Waveforms and spectrograms as images: RGB tensors (H, W, 3) between 0 and 1."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import SA3Error
from .waveform import check_clip

KINDS, SCALES = ("both", "waveform", "spectrogram"), ("mel", "log", "linear")
WINDOW = 0.046  # seconds per FFT, rounded to a power of two in samples
LOWEST = 20.0  # Hz, lower end of the logarithmic scale
FRAMES = 512  # FFTs per block
QUIET, LOUD = -100.0, -10.0  # dB relative to a full-scale sine, of the darkest and the brightest colour
BACKGROUND, ENVELOPE, CORE, CLIPPED = (0.055, 0.063, 0.086), (0.23, 0.48, 0.68), (0.55, 0.80, 0.94), (0.96, 0.36, 0.30)
GRADIENT = [(0.02, 0.02, 0.05), (0.13, 0.08, 0.31), (0.38, 0.11, 0.48), (0.68, 0.19, 0.45), (0.92, 0.40, 0.31), (0.99, 0.70, 0.35),
            (1.0, 0.97, 0.78)]  # fmt: skip
LARGEST = 1e9  # amplitude; the power of a larger one would overflow float32
FONT = ImageFont.load_default()


def draw(
    clip: Tensor, rate: int, width: int = 1024, height: int = 512, kind: str = "both", scale: str = "mel",
    quiet: float = QUIET, loud: float = LOUD, axes: bool = True,
) -> Tensor:  # fmt: skip
    """An image (height, width, 3) of a clip (C, N): its waveform, its spectrogram, or both (waveform in the upper third).

    quiet, loud: dB relative to a full-scale sine, of the darkest and the brightest colour. axes: seconds and Hz at the edges.
    """
    check_clip("The audio", clip, rate)
    if kind not in KINDS or scale not in SCALES:
        raise SA3Error(f"The image is '{kind}' on the scale '{scale}'; choose of {', '.join(KINDS)} and of {', '.join(SCALES)}.")
    if width < 16 or height < 16:
        raise SA3Error(f"The image would be {width} x {height}; expected at least 16 x 16 pixels.")
    if loud <= quiet:
        raise SA3Error(f"The loud end is {loud:g} dB and the quiet end {quiet:g} dB; the loud one must be higher.")
    clip = clip.detach().float().clamp(-LARGEST, LARGEST)
    upper = {"waveform": height, "spectrogram": 0, "both": height // 3}[kind]
    parts = [waveform(clip, width, upper)] if upper else []
    if upper < height:
        lower = spectrogram(clip, rate, width, height - upper, scale, quiet, loud)
        parts.append(_frequency_axis(lower, rate, scale) if axes else lower)
    image = torch.cat(parts)
    return _time_axis(image, clip.shape[-1] / rate) if axes else image


def waveform(clip: Tensor, width: int, height: int) -> Tensor:
    """An image with one lane per channel: range of samples per column, RMS as a brighter core, red where full scale is exceeded."""
    lanes = min(clip.shape[0], max(1, height // 8))
    bounds = [height * i // lanes for i in range(lanes + 1)]
    high, low = (F.adaptive_max_pool1d(sign * clip[None, :lanes], width)[0] * sign for sign in (1, -1))  # (C, W)
    rms = F.adaptive_avg_pool1d(clip[None, :lanes].square(), width)[0].sqrt()
    out = torch.tensor(BACKGROUND, device=clip.device, dtype=torch.float32).repeat(height, width, 1)
    for lane, (top, bottom) in enumerate(itertools.pairwise(bounds)):
        rows = bottom - top
        centre = 1 - (2 * torch.arange(rows, device=clip.device) + 1)[:, None] / rows  # amplitude at the centre of each row
        for lower, upper, colour in ((low[lane], high[lane], ENVELOPE), (-rms[lane], rms[lane], CORE)):
            middle, half = (upper + lower) / 2, ((upper - lower) / 2).clamp(min=0.5 / rows if colour is ENVELOPE else 0)
            top_edge, bottom_edge = (middle + half).clamp(-1, 1), (middle - half).clamp(-1, 1)
            covered = torch.minimum(top_edge, centre + 1 / rows) - torch.maximum(bottom_edge, centre - 1 / rows)
            out[top:bottom] = _blend(out[top:bottom], colour, (covered * rows / 2).clamp(0, 1))
        clipped = torch.zeros(rows, width, device=clip.device, dtype=torch.float32)
        clipped[: max(1, rows // 16)] = (high[lane] > 1).float()
        clipped[-max(1, rows // 16) :] = (low[lane] < -1).float()
        out[top:bottom] = _blend(out[top:bottom], CLIPPED, clipped)
    return out


def spectrogram(clip: Tensor, rate: int, width: int, height: int, scale: str = "mel", quiet: float = QUIET, loud: float = LOUD) -> Tensor:
    """An image of the power over time and frequency, averaged over channels, low frequencies at the bottom."""
    return colours(row_power(column_power(clip, rate, width), rate, height, scale), quiet, loud)


def column_power(clip: Tensor, rate: int, columns: int) -> Tensor:
    """Power spectra (bins, columns) of a clip (C, N), averaged within each column; 1 = a full-scale sine in its bin."""
    size = 1 << max(6, round(math.log2(WINDOW * rate)))
    length = clip.shape[-1]
    hop = max(1, min(size // 2, length // columns))
    window = torch.hann_window(size, device=clip.device, dtype=torch.float32)
    frames = F.pad(clip.float(), (size // 2, size // 2)).unfold(-1, size, hop)  # (C, F, size), a view
    column = (torch.arange(frames.shape[1], device=clip.device) * hop * columns // length).clamp(max=columns - 1)
    out = torch.zeros(size // 2 + 1, columns, device=clip.device, dtype=torch.float32)
    for start in range(0, frames.shape[1], FRAMES):
        spectra = torch.fft.rfft(frames[:, start : start + FRAMES] * window).abs().square().mean(0)  # (F, bins)
        out.index_add_(1, column[start : start + FRAMES], spectra.T.contiguous())
    counts = torch.bincount(column, minlength=columns)
    # In a short clip, a column without a frame repeats the one before.
    filled = torch.cummax(torch.where(counts > 0, torch.arange(columns, device=clip.device), 0), 0).values
    return (out / counts.clamp(min=1))[:, filled] / (window.sum() / 2).square()


def row_power(power: Tensor, rate: int, height: int, scale: str = "mel") -> Tensor:
    """Power (bins, W) summed into image rows (height, W) by triangular filters, each as wide as a row or a bin, whichever is wider."""
    bins = power.shape[0]
    grid = frequencies(rate, height, scale).to(power.device) / (rate / 2) * (bins - 1)  # in bins
    reach = (grid[:-1] - grid[1:]).clamp(min=1).to(power)
    reach = torch.cat((reach[:1], reach))[:, None]
    distance = (torch.arange(bins, device=power.device)[None] - grid[:, None]).abs()
    return (1 - distance / reach).clamp(min=0).to(power) @ power


def frequencies(rate: int, height: int, scale: str) -> Tensor:
    """Frequencies (height,) in Hz at the centres of the rows, highest first."""
    position = 1 - (torch.arange(height, dtype=torch.float64) + 0.5) / height
    top = rate / 2
    if scale == "linear":
        return position * top
    if scale == "log":
        return LOWEST * (top / LOWEST) ** position
    return 700 * ((1 + top / 700) ** position - 1)  # mel: 2595 lg(1 + f / 700)


def colours(power: Tensor, quiet: float = QUIET, loud: float = LOUD) -> Tensor:
    """Colours (H, W, 3) of power (H, W), on a scale in dB from `quiet` to `loud`."""
    level = ((10 * torch.log10(power.clamp(min=1e-20)) - quiet) / (loud - quiet)).clamp(0, 1)
    stops = torch.tensor(GRADIENT, device=power.device, dtype=power.dtype)
    position = level * (len(stops) - 1)
    index = position.long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[index], stops[index + 1], (position - index)[..., None])


def _blend(image: Tensor, colour: tuple, alpha: Tensor) -> Tensor:
    """A colour blended over an image (H, W, 3) by alpha (H, W)."""
    return torch.lerp(image, torch.tensor(colour, device=image.device, dtype=image.dtype).expand_as(image), alpha[..., None])


def _time_axis(image: Tensor, duration: float) -> Tensor:
    """The image with ticks and times along the bottom edge."""
    height, width, _ = image.shape
    most = max(1, width // 100)
    step = next(s for k in range(-4, 6) for s in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if duration / s <= most)
    step = next((s for s in (15, 30, 60, 120, 300, 600) if s >= step), step) if step >= 10 else step
    for i in range(1, math.ceil(duration / step)):
        time = i * step
        minutes, rest = divmod(round(time), 60)
        text = f"{minutes}:{rest:02}" if duration >= 60 else f"{time:.4f}".rstrip("0").rstrip(".") + "s"
        x = round(time / duration * width)
        image = draw_text(image, text, height - 1, x + 4)
        image[-6:, min(x, width - 1)] = 0.9
    return image


def _frequency_axis(image: Tensor, rate: int, scale: str) -> Tensor:
    """The image with ticks and frequencies along the left edge."""
    height = image.shape[0]
    grid, last = frequencies(rate, height, scale), height - 24  # above the time axis
    for hertz in (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000):
        y = int((grid - hertz).abs().argmin())
        if hertz >= rate / 2 or y > last or y < 12:
            continue
        image = draw_text(image, f"{hertz // 1000}k" if hertz >= 1000 else f"{hertz}", y + 6, 8)
        image[y, :5] = 0.9
        last = y - 26
    return image


def draw_text(image: Tensor, text: str, bottom: int, left: int) -> Tensor:
    """The image with text on a darkened background, its lower left corner at (bottom, left); unchanged where the text does not fit."""
    page = Image.new("L", (round(FONT.getlength(text)) + 4, 14))
    ImageDraw.Draw(page).text((2, 1), text, 255, FONT)
    alpha = torch.from_numpy(np.array(page)).float() / 255
    height, width = alpha.shape
    top = bottom - height
    if top < 0 or left < 0 or left + width > image.shape[1]:
        return image
    out = image.clone()
    box = out[top:bottom, left : left + width]
    out[top:bottom, left : left + width] = torch.lerp(box * 0.45, torch.full_like(box, 0.92), alpha.to(image)[..., None])
    return out
