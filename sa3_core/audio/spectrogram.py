"""Pictures of sound: waveform and spectrogram as RGB tensors (H, W, 3) between 0 and 1. The same clip gives the same picture."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SA3Error
from .waveform import check_clip

KINDS, SCALES = ("both", "waveform", "spectrogram"), ("mel", "log", "linear")
WINDOW = 0.046  # seconds of a spectrum, to the nearest power of two in samples
LOWEST = 20.0  # Hz, where a logarithmic scale begins
FRAMES = 512  # spectra worked on at once
QUIET, LOUD = -100.0, -10.0  # dB below a full-scale sine: the dark and the bright end
BACKGROUND, ENVELOPE, CORE, BEYOND = (0.055, 0.063, 0.086), (0.23, 0.48, 0.68), (0.55, 0.80, 0.94), (0.96, 0.36, 0.30)
GRADIENT = [(0.02, 0.02, 0.05), (0.13, 0.08, 0.31), (0.38, 0.11, 0.48), (0.68, 0.19, 0.45), (0.92, 0.40, 0.31), (0.99, 0.70, 0.35),
            (1.0, 0.97, 0.78)]  # fmt: skip
GLYPHS = {  # 3 x 5 pixels, rows from the top
    "0": "75557", "1": "26227", "2": "71747", "3": "71317", "4": "55711", "5": "74717", "6": "74757", "7": "71122", "8": "75757",
    "9": "75717", ".": "00002", ":": "02020", "k": "45655", "s": "03617",
}  # fmt: skip


def draw(
    clip: Tensor, rate: int, width: int = 1024, height: int = 512, kind: str = "both", scale: str = "mel",
    quiet: float = QUIET, loud: float = LOUD, axes: bool = True,
) -> Tensor:  # fmt: skip
    """A clip (C, N) as (height, width, 3): its waveform, its spectrogram, or the one (a third of the height) above the other.

    quiet, loud: dB relative to a full-scale sine, of the darkest and the brightest colour. axes: seconds and Hz at the edges.
    """
    check_clip("The audio", clip, rate)
    if kind not in KINDS or scale not in SCALES:
        raise SA3Error(f"The picture is '{kind}' on the scale '{scale}'; choose of {', '.join(KINDS)} and of {', '.join(SCALES)}.")
    if width < 16 or height < 16:
        raise SA3Error(f"The picture would be {width} x {height}; expected at least 16 x 16 pixels.")
    if loud <= quiet:
        raise SA3Error(f"The loud end is {loud:g} dB and the quiet end {quiet:g} dB; the loud one must be higher.")
    clip = clip.detach().float()
    upper = {"waveform": height, "spectrogram": 0, "both": height // 3}[kind]
    parts = []
    if upper:
        parts.append(waveform(clip, width, upper))
    if upper < height:
        lower = spectrogram(clip, rate, width, height - upper, scale, quiet, loud)
        parts.append(_hertz(lower, rate, scale) if axes else lower)
    out = torch.cat(parts)
    return _seconds(out, clip.shape[-1] / rate) if axes else out


def waveform(clip: Tensor, width: int, height: int) -> Tensor:
    """Lowest and highest sample of each column, the RMS as a brighter core, a lane per channel; red where full scale is exceeded."""
    lanes = min(clip.shape[0], max(1, height // 8))
    bounds = [height * i // lanes for i in range(lanes + 1)]
    high, low = (F.adaptive_max_pool1d(sign * clip[None, :lanes], width)[0] * sign for sign in (1, -1))  # (C, W)
    rms = F.adaptive_avg_pool1d(clip[None, :lanes].square(), width)[0].sqrt()
    out = torch.tensor(BACKGROUND, device=clip.device, dtype=torch.float32).repeat(height, width, 1)
    for lane, (top, bottom) in enumerate(itertools.pairwise(bounds)):
        rows = bottom - top
        centre = 1 - (2 * torch.arange(rows, device=clip.device) + 1)[:, None] / rows  # amplitude at each row's middle
        for lower, upper, colour in ((low[lane], high[lane], ENVELOPE), (-rms[lane], rms[lane], CORE)):
            middle, half = (upper + lower) / 2, ((upper - lower) / 2).clamp(min=0.5 / rows if colour is ENVELOPE else 0)
            top_edge, bottom_edge = (middle + half).clamp(-1, 1), (middle - half).clamp(-1, 1)
            covered = torch.minimum(top_edge, centre + 1 / rows) - torch.maximum(bottom_edge, centre - 1 / rows)
            out[top:bottom] = _laid(out[top:bottom], colour, (covered * rows / 2).clamp(0, 1))
        edge = torch.zeros(rows, width, device=clip.device, dtype=torch.float32)
        edge[: max(1, rows // 16)] = (high[lane] > 1).float()
        edge[-max(1, rows // 16) :] = (low[lane] < -1).float()
        out[top:bottom] = _laid(out[top:bottom], BEYOND, edge)
    return out


def spectrogram(clip: Tensor, rate: int, width: int, height: int, scale: str = "mel", quiet: float = QUIET, loud: float = LOUD) -> Tensor:
    """Power over time and frequency, low tones at the bottom, the mean of all channels."""
    power = column_power(clip, rate, width)
    return coloured(rows(power, rate, height, scale), quiet, loud)


def column_power(clip: Tensor, rate: int, columns: int) -> Tensor:
    """Mean power spectrum (bins, columns) of each stretch of a clip (C, N); a full-scale sine has 1 in its bin."""
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
    # A clip shorter than the picture is wide has columns without a frame of their own.
    filled = torch.cummax(torch.where(counts > 0, torch.arange(columns, device=clip.device), 0), 0).values
    return (out / counts.clamp(min=1))[:, filled] / (window.sum() / 2).square()


def rows(power: Tensor, rate: int, height: int, scale: str = "mel") -> Tensor:
    """Power (bins, W) gathered into rows (height, W) of the picture by triangles as wide as a row or a bin, whichever is wider."""
    bins = power.shape[0]
    grid = frequencies(rate, height, scale).to(power.device) / (rate / 2) * (bins - 1)  # in bins
    reach = (grid[:-1] - grid[1:]).clamp(min=1).to(power)
    reach = torch.cat((reach[:1], reach))[:, None]
    distance = (torch.arange(bins, device=power.device)[None] - grid[:, None]).abs()
    return (1 - distance / reach).clamp(min=0).to(power) @ power


def frequencies(rate: int, height: int, scale: str) -> Tensor:
    """The frequency in Hz at the middle of each row (height,), highest first."""
    place = 1 - (torch.arange(height, dtype=torch.float64) + 0.5) / height
    top = rate / 2
    if scale == "linear":
        return place * top
    if scale == "log":
        return LOWEST * (top / LOWEST) ** place
    return 700 * ((1 + top / 700) ** place - 1)  # mel: 2595 lg(1 + f / 700)


def coloured(power: Tensor, quiet: float = QUIET, loud: float = LOUD) -> Tensor:
    """Power (H, W) as colours (H, W, 3), in decibels between the two ends."""
    level = ((10 * torch.log10(power.clamp(min=1e-20)) - quiet) / (loud - quiet)).clamp(0, 1)
    stops = torch.tensor(GRADIENT, device=power.device, dtype=power.dtype)
    place = level * (len(stops) - 1)
    index = place.long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[index], stops[index + 1], (place - index)[..., None])


def _laid(picture: Tensor, colour, cover: Tensor) -> Tensor:
    """A colour over the picture (H, W, 3), by coverage (H, W)."""
    return torch.lerp(picture, torch.tensor(colour, device=picture.device, dtype=picture.dtype).expand_as(picture), cover[..., None])


def _seconds(picture: Tensor, duration: float) -> Tensor:
    """Ticks and times along the bottom."""
    height, width, _ = picture.shape
    most = max(1, width // 100)
    step = next(s for k in range(-4, 6) for s in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if duration / s <= most)
    step = next((s for s in (15, 30, 60, 120, 300, 600) if s >= step), step) if step >= 10 else step
    for i in range(1, math.ceil(duration / step)):
        time = i * step
        minutes, rest = divmod(round(time), 60)
        text = f"{minutes}:{rest:02}" if duration >= 60 else f"{time:.4f}".rstrip("0").rstrip(".") + "s"
        x = round(time / duration * width)
        picture = write(picture, text, height - 1, x + 4)
        picture[-6:, min(x, width - 1)] = 0.9
    return picture


def _hertz(picture: Tensor, rate: int, scale: str) -> Tensor:
    """Frequencies at the left."""
    height = picture.shape[0]
    grid, last = frequencies(rate, height, scale), height - 24  # above the times
    for hertz in (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000):
        y = int((grid - hertz).abs().argmin())
        if hertz >= rate / 2 or y > last or y < 12:
            continue
        picture = write(picture, f"{hertz // 1000}k" if hertz >= 1000 else f"{hertz}", y + 6, 8)
        picture[y, :5] = 0.9
        last = y - 26
    return picture


def write(picture: Tensor, text: str, bottom: int, left: int) -> Tensor:
    """Words with their lower left corner at (bottom, left), in double size on a darker ground; what does not fit is left out."""
    pixels = torch.cat([_glyph(one) for one in text], dim=1)[:, :-1].repeat_interleave(2, 0).repeat_interleave(2, 1)
    ground = F.pad(pixels, (2, 2, 2, 2)).to(picture)
    height, width = ground.shape
    top = bottom - height
    if top < 0 or left < 0 or left + width > picture.shape[1]:
        return picture
    out = picture.clone()
    place = out[top:bottom, left : left + width]
    out[top:bottom, left : left + width] = torch.lerp(place * 0.45, torch.full_like(place, 0.92), ground[..., None])
    return out


def _glyph(character: str) -> Tensor:
    """(5, 4): the glyph and a column of space."""
    return torch.tensor([[int(digit) >> (2 - x) & 1 if x < 3 else 0 for x in range(4)] for digit in GLYPHS[character]], dtype=torch.float32)
