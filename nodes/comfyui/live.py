"""What is coming, while it is sampled: a spectrogram of the denoised estimate on the running node, within a budget of time."""

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
from .preview import image

MODES = ("auto", "on", "off")
SHARE = 0.04  # of the run's own time so far, for all its pictures together
EVERY = 1.0  # seconds between two pictures, at least
PIECES, FINER = (12, 64), 1.5  # places of each item that the first picture shows, and that any shows; growth from one to the next
LANES = 4  # items shown, one above the other
SIZE = (384, 192)  # pixels


def wanted(mode: str) -> bool:
    """auto: when ComfyUI's own previews are on (--preview-method, or the editor's setting). Never without a browser that looks."""
    server = getattr(PromptServer, "instance", None)
    if mode == "off" or server is None or server.client_id is None:
        return False
    return mode == "on" or args.preview_method != LatentPreviewMethod.NoPreviews


def remember(model, vae) -> None:
    """The MODEL's own autoencoder, for as long as it is held elsewhere."""
    model.model.sa3_vae = weakref.ref(vae)


def autoencoder(model):
    found = getattr(model.model, "sa3_vae", None)
    return None if found is None else found()


def live_picture(mode: str, vae) -> "LivePicture | None":
    """What draws the pictures of a run, if any are wanted and there is something to draw them with."""
    if mode not in MODES:
        raise SA3Error(f"preview is '{mode}'; choose one of {', '.join(MODES)}.")
    return LivePicture(vae) if vae is not None and wanted(mode) else None


class LivePicture:
    """Pictures of a run, as many and as fine as the budget allows.

    SAME decodes short pieces of the estimate at even distances, each alone, where its weights lie; nothing is moved for it. So a
    picture is coarse, and its pieces lack their neighbours. The run itself reads nothing from here.
    """

    def __init__(self, vae):
        self.vae, self.config = vae, vae.sa3_config
        self.begun = self.last = None
        self.spent, self.cost, self.count = 0.0, None, float(PIECES[0])  # seconds on all pictures; on a piece; pieces of the next

    def begin(self) -> None:
        """From here on the run has taken time."""
        if self.begun is None:
            self.begun = self.last = time.perf_counter()

    def __call__(self, estimate: Tensor, lengths: Lengths):
        """estimate (B, D, T) -> what ComfyUI's progress takes as a preview, or None when it is not time yet."""
        now, lanes = time.perf_counter(), min(LANES, estimate.shape[0])
        budget = SHARE * (now - self.begun - self.spent) - self.spent
        trial = self.cost is None  # a single piece tells what the others will cost
        count = 1 if trial else int(self.count)
        if now - self.last < EVERY or budget <= 0 or (not trial and budget < count * lanes * self.cost):
            return None
        device = self._device()
        if device is None:
            return None
        estimate = estimate[:lanes].to(device, self.vae.vae_dtype)
        _ = estimate[0, 0, 0].item()  # a device may still be at the last step, which is not this picture's time
        start = time.perf_counter()
        drawn = self._draw(estimate, lengths, count)
        taken = time.perf_counter() - start
        self.spent, self.cost = self.spent + taken, taken / (count * lanes)
        if trial:
            return None
        self.last, self.count = time.perf_counter(), min(self.count * FINER, PIECES[1])
        return drawn

    def _device(self) -> torch.device | None:
        """Where the decoder's weights lie, if all lie in one place. Under dynamic VRAM: where those are that it computed with last."""
        if is_dynamic(self.vae.patcher):
            return self.vae.device if self.vae.patcher.loaded_size() else self.vae.patcher.offload_device
        places = {weight.device for weight in self.vae.first_stage_model.parameters()}
        return places.pop() if len(places) == 1 else None

    @torch.inference_mode()
    def _draw(self, estimate: Tensor, lengths: Lengths, count: int):
        align, spf = self.config.same.decoder.align, self.config.same.samples_per_frame
        size, strips = max(2, align), []
        for lane, samples in zip(estimate, lengths.samples, strict=False):
            last = max(0, min(-(-samples // spf), lane.shape[-1]) - size)
            starts = [round(i * last / max(count - 1, 1) / align) * align for i in range(count)]
            pieces = torch.stack([lane[:, start : start + size] for start in starts])  # (K, D, size)
            sound = self.vae.first_stage_model.decode(pieces).float().cpu()  # (K, C, N)
            middle = sound[..., sound.shape[-1] // 4 : -(sound.shape[-1] // 4)]
            strips.append(torch.cat([spectrogram.column_power(piece, self.config.sample_rate, 1) for piece in middle], dim=1))
        return ("JPEG", image(_stacked(strips, self.config.sample_rate)), max(SIZE))


def _stacked(strips: list[Tensor], rate: int) -> Tensor:
    """Power spectra (bins, K) of each item as one picture (H, W, 3), a dark line between items."""
    width, height = SIZE
    lanes = []
    for i, strip in enumerate(strips):
        top, bottom = height * i // len(strips), height * (i + 1) // len(strips)
        levels = spectrogram.rows(strip, rate, bottom - top).clamp(min=1e-20).log10()
        wide = torch.nn.functional.interpolate(levels[None], size=width, mode="linear", align_corners=True)[0]
        lane = spectrogram.coloured(10**wide)
        lane[0] *= float(i == 0)
        lanes.append(lane)
    return torch.cat(lanes)
