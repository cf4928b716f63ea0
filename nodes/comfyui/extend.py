"""Continuing past the model's longest clip: one window after the other, each seeing the tail of what there is."""

import hashlib

import torch
from torch import Tensor

from ...sa3_core.audio.waveform import to_model
from ...sa3_core.sampling import runs
from ...sa3_core.sampling.draws import item_seed
from ...sa3_core.sampling.guidance import Guidance
from ...sa3_core.timeline.durations import decode_frames, seconds_of
from ...sa3_core.timeline.extend import Window, windows
from ...sa3_core.timeline.splicing import splice
from . import sampling as host
from .latent import encode_clip, mask_regions, read_latent
from .model import compiled_run
from .progress import Progress, check_interrupt, logger
from .vae import CHUNK, OVERLAP


class ExtendJob:
    """A continuation in windows. What is finished survives an interruption: the same job goes on where it stopped."""

    unfinished: dict[str, list[Tensor]] = {}  # of the last interrupted job only

    def __init__(
        self, model, vae, positive, negative, guidance: Guidance, seed: int, steps: int | None, sampler: str, crossfade: float, live=None
    ):
        self.live = live  # LivePreview of the run, or None
        self.model, self.vae, self.positive, self.negative, self.guidance = model, vae, positive, negative, guidance
        self.seed, self.steps, self.sampler, self.crossfade = seed, steps, sampler, crossfade
        self.config = model.model.sa3_config

    def run(self, waveform: Tensor, rate: int, added: int, context: float, window: float) -> tuple[Tensor, str]:
        """Append `added` samples to waveform (1, C, N). Returns the longer clip at its own rate and channels, and a seam report."""
        model_rate, channels = self.config.sample_rate, self.config.same.audio_channels
        tail_length = int(context * model_rate)
        tail = to_model("The AUDIO", rate, waveform[..., -int(context * rate) - rate :], model_rate, channels)[..., -tail_length:]
        # One more sample than asked when rates differ, so that resampling back never falls short.
        passes = windows(self.config, tail.shape[-1], -(-added * model_rate // rate) + (rate != model_rate), context, window)
        key = self._key(waveform, rate, passes)
        finished = self.unfinished.get(key, [])
        self.unfinished.clear()
        self.unfinished[key] = finished
        if finished:
            logger.warning("%d of %d windows were finished before an interruption and are kept.", len(finished), len(passes))
        bar = Progress(1)
        with compiled_run(self.model):
            for i, part in enumerate(passes):
                if i == len(finished):
                    finished.append(self._pass(tail[..., -part.context :], part, i, bar.part(i, len(passes), "window")))
                tail = torch.cat((tail, finished[i]), dim=-1)[..., -tail_length:]
        del self.unfinished[key]
        bar.finish()
        return self._joined(waveform, rate, added, torch.cat(finished, dim=-1))

    def _pass(self, tail: Tensor, part: Window, number: int, progress) -> Tensor:
        """The new samples (1, C, part.new) of one window, at the model's rate, starting where the tail ends."""
        rate = self.config.sample_rate
        seconds, given = seconds_of(part.samples, rate), part.context / rate
        latent, _ = mask_regions(encode_clip(self.vae, tail, seconds, 0.0, CHUNK, OVERLAP, quietly), [(given, seconds)])
        read = read_latent(latent, self.config)
        plan = runs.plan(self.config, read.lengths, steps=self.steps, sampler=self.sampler, seed=item_seed(self.seed, number))
        z = host.sample(self.model, self.positive, read, plan, self.guidance, self.negative, progress, self.live)
        audio = self.vae.decode_latents(z[..., : decode_frames(self.config, read.lengths, 0)], progress=quietly)
        audio = torch.nn.functional.pad(audio, (0, max(0, part.samples - audio.shape[-1])))[..., : part.samples]
        line = torch.nn.functional.pad(tail, (0, part.new))
        joined, _ = splice(line, audio, [(given, seconds)], rate, rate, self.crossfade)
        return joined[..., part.context :]

    def _joined(self, waveform: Tensor, rate: int, added: int, new: Tensor) -> tuple[Tensor, str]:
        """The original followed by the new part, brought to its rate and channels."""
        n = waveform.shape[-1]
        line = torch.nn.functional.pad(waveform, (0, added))
        generated = torch.nn.functional.pad(new, (round(n * self.config.sample_rate / rate), 0))
        out, report = splice(line, generated, [(n / rate, (n + added) / rate)], rate, self.config.sample_rate, self.crossfade)
        return out, str(report)

    def _key(self, waveform: Tensor, rate: int, passes: list[Window]) -> str:
        """What the finished windows depend on."""
        digest = hashlib.sha256(waveform.contiguous().cpu().numpy().tobytes())
        for conditioning in (self.positive, self.negative or []):
            for embeddings, _ in conditioning:
                digest.update(embeddings.contiguous().cpu().numpy().tobytes())
        settings = (rate, passes, self.guidance, self.seed, self.steps, self.sampler, self.crossfade, self.model.patches_uuid)
        digest.update(repr((settings, self.model.model.sa3_name)).encode())
        return digest.hexdigest()


def quietly(done: int, total: int) -> None:
    """Progress of a stage inside a window: the bar belongs to the whole job, but a stop is honoured."""
    check_interrupt()
