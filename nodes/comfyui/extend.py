"""Continuation beyond the model's longest clip, in windows that each see the end of the audio so far."""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...sa3_core.audio.waveform import to_model
from ...sa3_core.sampling import runs
from ...sa3_core.sampling.draws import item_seed
from ...sa3_core.sampling.guidance import Guidance
from ...sa3_core.timeline.durations import decode_frames, seconds_of
from ...sa3_core.timeline.extend import Window, windows
from ...sa3_core.timeline.splicing import splice
from . import run_options
from . import sampling as host
from .latent import encode_clip, mask_regions, read_latent
from .live_preview import LivePreview
from .progress import Progress, check_interrupt, logger
from .vae import CHUNK, OVERLAP, SA3VAE


@dataclass
class ExtendJob:
    """A continuation in windows. Finished windows survive an interruption: the same job resumes after them.

    seed: each window draws from this seed and its number. steps None, sampler "auto": the model's. crossfade: seconds at each join.
    """

    model: Any
    vae: SA3VAE
    positive: list
    negative: list | None
    guidance: Guidance
    seed: int
    steps: int | None
    sampler: str
    crossfade: float
    live: LivePreview | None = None

    finished_windows: ClassVar[dict[str, list[Tensor]]] = {}  # fingerprint of the last interrupted job -> its finished windows

    def run(self, waveform: Tensor, rate: int, added: int, context: float, window: float) -> tuple[Tensor, str]:
        """Append `added` samples to a waveform (1, C, N): the longer one at the same rate and channels, and a seam report.

        context: seconds of existing audio that each window sees. window: its longest duration in seconds, 0 = the model's.
        """
        config = self.model.model.sa3_config
        model_rate, tail_samples = config.sample_rate, int(context * config.sample_rate)
        tail = to_model("The AUDIO", rate, waveform[..., -int(context * rate) - rate :], model_rate, config.same.audio_channels)
        tail = tail[..., -tail_samples:]
        new_samples = -(-added * model_rate // rate) + (rate != model_rate)  # one to spare, so that resampling back never falls short
        parts = windows(config, tail.shape[-1], new_samples, context, window)
        key = self._fingerprint(waveform, rate, parts)
        finished = self.finished_windows.get(key, [])
        self.finished_windows.clear()
        self.finished_windows[key] = finished
        if finished:
            logger.warning("Resuming after %d of %d windows, which were finished before an interruption.", len(finished), len(parts))
        bar = Progress(1)
        with run_options.read(self.model.model_options).run():
            for i, part in enumerate(parts):
                if i == len(finished):
                    finished.append(self._generate(tail[..., -part.context :], part, i, bar.part(i, len(parts), "window")))
                tail = torch.cat((tail, finished[i]), dim=-1)[..., -tail_samples:]
        del self.finished_windows[key]
        bar.finish()
        n = waveform.shape[-1]
        generated = pad(torch.cat(finished, dim=-1), (round(n * model_rate / rate), 0))
        region = (n / rate, (n + added) / rate)
        out, report = splice(pad(waveform, (0, added)), generated, [region], rate, model_rate, self.crossfade)
        return out, str(report)

    def _generate(self, tail: Tensor, part: Window, number: int, progress) -> Tensor:
        """The new samples (1, C, part.new) of a window at the model's rate, after a tail (1, C, part.context)."""
        config = self.vae.sa3_config
        rate, seconds = config.sample_rate, seconds_of(part.samples, config.sample_rate)
        region = (part.context / rate, seconds)
        latent, _ = mask_regions(encode_clip(self.vae, tail, seconds, 0.0, CHUNK, OVERLAP, check_interrupt), [region])
        read = read_latent(latent, config)
        plan = runs.plan(config, read.lengths, steps=self.steps, sampler=self.sampler, seed=item_seed(self.seed, number))
        z = host.sample(self.model, self.positive, read, plan, self.guidance, self.negative, progress, self.live)
        audio = self.vae.decode_latents(z[..., : decode_frames(config, read.lengths, 0)], progress=check_interrupt)
        audio = pad(audio, (0, max(0, part.samples - audio.shape[-1])))[..., : part.samples]
        spliced, _ = splice(pad(tail, (0, part.new)), audio, [region], rate, rate, self.crossfade)
        return spliced[..., part.context :]

    def _fingerprint(self, waveform: Tensor, rate: int, parts: list[Window]) -> str:
        """A hash of everything that the windows' samples depend on."""
        digest = hashlib.sha256(waveform.contiguous().cpu().numpy().tobytes())
        for conditioning in (self.positive, self.negative or []):
            for embeddings, _ in conditioning:
                digest.update(embeddings.contiguous().cpu().numpy().tobytes())
        model = (self.model.patches_uuid, self.model.model.sa3_name)
        digest.update(repr((rate, parts, self.guidance, self.seed, self.steps, self.sampler, self.crossfade, *model)).encode())
        return digest.hexdigest()
