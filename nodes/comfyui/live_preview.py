"""Live preview while sampling: a coarse spectrogram of the denoised estimate on the running node, within a time budget."""

import time
import weakref

import torch
from comfy.cli_args import LatentPreviewMethod, args
from server import PromptServer
from torch import Tensor

from ...sa3_core.audio import spectrogram
from ...sa3_core.errors import SA3Error
from ...sa3_core.timeline.durations import Lengths
from .patchers import is_dynamic
from .preview import to_pil

MODES = ("auto", "on", "off")
TIME_SHARE = 0.04  # of the node's time so far, for all previews together
INTERVAL = 1.0  # seconds between two previews, at least
PIECES, GROWTH = (12, 64), 1.5  # decoded pieces per item in the first preview and at most; growth from one preview to the next
MAX_ITEMS = 4  # shown, one above the other
SIZE = (384, 192)  # pixels


def enabled(mode: str) -> bool:
    """Whether previews are shown. auto: when ComfyUI's own are (--preview-method, or the editor's setting). Never without a browser."""
    server = getattr(PromptServer, "instance", None)
    if mode == "off" or server is None or server.client_id is None:
        return False
    return mode == "on" or args.preview_method != LatentPreviewMethod.NoPreviews


def attach_autoencoder(model, vae) -> None:
    """Let the previews of a MODEL use the VAE of its loader, for as long as that is in use elsewhere."""
    model.model.sa3_vae = weakref.ref(vae)


def attached_autoencoder(model):
    """The VAE of a MODEL's loader; None when it is gone."""
    reference = getattr(model.model, "sa3_vae", None)
    return None if reference is None else reference()


def live_preview(mode: str, vae) -> "LivePreview | None":
    """The previews of a run; None when they are off or there is no autoencoder."""
    if mode not in MODES:
        raise SA3Error(f"preview is '{mode}'; choose one of {', '.join(MODES)}.")
    return LivePreview(vae) if vae is not None and enabled(mode) else None


class LivePreview:
    """Spectrograms of a run's denoised estimate, as many and as fine as the time budget allows.

    SAME decodes short, evenly spaced pieces of the estimate, each without its neighbours, on the device where its weights already are.
    """

    def __init__(self, vae):
        self.vae = vae
        self.started = self.last = time.perf_counter()  # times of the node's start and of the last preview
        self.spent, self.piece_cost = 0.0, None  # seconds: on all previews, on one piece
        self.pieces = float(PIECES[0])  # per item, in the next preview

    def __call__(self, estimate: Tensor, lengths: Lengths):
        """(format, image, longest side) of an estimate (B, D, T), as ComfyUI's progress bar takes it; None while over budget."""
        now, items = time.perf_counter(), min(MAX_ITEMS, estimate.shape[0])
        budget = TIME_SHARE * (now - self.started - self.spent) - self.spent
        trial = self.piece_cost is None  # the first piece measures the cost and is not shown
        pieces = 1 if trial else int(self.pieces)
        if now - self.last < INTERVAL or budget <= 0 or (not trial and budget < pieces * items * self.piece_cost):
            return None
        device = self._device()
        if device is None:
            return None
        estimate = estimate[:items].to(device, self.vae.vae_dtype)
        estimate[0, 0, 0].item()  # wait for the sampling step, whose time is not the preview's
        start = time.perf_counter()
        preview = self._draw(estimate, lengths, pieces)
        taken = time.perf_counter() - start
        self.spent, self.piece_cost = self.spent + taken, taken / (pieces * items)
        if trial:
            return None
        self.last, self.pieces = time.perf_counter(), min(self.pieces * GROWTH, PIECES[1])
        return preview

    def _device(self) -> torch.device | None:
        """The device of all the decoder's weights, None when they are on several; under dynamic VRAM, the one it last computed on."""
        if is_dynamic(self.vae.patcher):
            return self.vae.device if self.vae.patcher.loaded_size() else self.vae.patcher.offload_device
        devices = {weight.device for weight in self.vae.first_stage_model.parameters()}
        return devices.pop() if len(devices) == 1 else None

    @torch.inference_mode()
    def _draw(self, estimate: Tensor, lengths: Lengths, count: int):
        config = self.vae.sa3_config
        align, samples_per_frame = config.same.decoder.align, config.same.samples_per_frame
        size, spectra = max(2, align), []
        for item, samples in zip(estimate, lengths.samples, strict=False):
            last = max(0, min(-(-samples // samples_per_frame), item.shape[-1]) - size)
            starts = [round(i * last / max(count - 1, 1) / align) * align for i in range(count)]
            pieces = torch.stack([item[:, start : start + size] for start in starts])  # (K, D, size)
            audio = self.vae.first_stage_model.decode(pieces).float().cpu()  # (K, C, N)
            middle = audio[..., audio.shape[-1] // 4 : -(audio.shape[-1] // 4)]
            spectra.append(torch.cat([spectrogram.column_power(piece, config.sample_rate, 1) for piece in middle], dim=1))
        return ("JPEG", to_pil(_stack(spectra, config.sample_rate)), max(SIZE))


def _stack(spectra: list[Tensor], rate: int) -> Tensor:
    """Power spectra (bins, K) of each item as one image (H, W, 3), with a dark line between items."""
    width, height = SIZE
    images = []
    for i, power in enumerate(spectra):
        top, bottom = height * i // len(spectra), height * (i + 1) // len(spectra)
        levels = spectrogram.row_power(power, rate, bottom - top).clamp(min=1e-20).log10()
        levels = torch.nn.functional.interpolate(levels[None], size=width, mode="linear", align_corners=True)[0]
        images.append(spectrogram.colours(10**levels))
        if i:
            images[i][0] = 0
    return torch.cat(images)
