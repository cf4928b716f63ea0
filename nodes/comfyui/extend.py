"""Continuation beyond the model's longest clip, in windows that each see the end of the audio so far."""

import dataclasses
import hashlib
import itertools
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.weight_adapter import WeightAdapterBase
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import pad

from ...sa3_core import run_record
from ...sa3_core.audio.waveform import resampled_length, to_model
from ...sa3_core.checkpoints.tensors import TensorFile, save
from ...sa3_core.errors import SA3Error
from ...sa3_core.sampling import runs
from ...sa3_core.sampling.draws import item_seed
from ...sa3_core.sampling.guidance import Guidance
from ...sa3_core.timeline.durations import decode_frames, lengths, seconds_of
from ...sa3_core.timeline.extend import Window, report, windows
from ...sa3_core.timeline.splicing import splice
from . import folders, run_options
from . import model as host_model
from . import sampling as host
from .clip import prompts_of
from .latent import encode_clip, mask_regions, read_latent
from .live_preview import LivePreview
from .patchers import REMARKS, foreign_patches
from .progress import Progress, check_interrupt, warn
from .vae import CHUNK, OVERLAP, SA3VAE

FOLDER = "sa3_extend"  # below ComfyUI's user directory
KEPT_SECONDS = 7 * 86400
SESSION = uuid.uuid4().hex


@dataclass
class ExtendJob:
    """A continuation in windows. Finished windows survive an interruption, other jobs and a restart: the same job resumes after them.

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

    def run(self, waveform: Tensor, rate: int, added: int, context: float, window: float) -> tuple[Tensor, str, dict]:
        """Append `added` samples to a waveform (1, C, N): the longer one at the same rate and channels, a report, and a run record.

        context: seconds of existing audio that each window sees. window: its longest duration in seconds, 0 = the model's.
        """
        config = self.model.model.sa3_config
        model_rate, tail_samples = config.sample_rate, int(context * config.sample_rate)
        tail = to_model("The AUDIO", rate, waveform[..., -int(context * rate) - rate :], model_rate, config.same.audio_channels)
        tail = recording = tail[..., -tail_samples:]
        spare = rate != model_rate  # so that resampling back never falls short
        new_samples = resampled_length(added, rate, model_rate) + spare
        parts = windows(config, tail.shape[-1], new_samples, context, window)
        watch, first = run_record.Stopwatch(), self._plan(parts[0], 0)
        warnings = host.run_warnings(self.model, self.positive, first, self.guidance, self.negative)
        warn(*warnings)

        def remark(sentence: str) -> None:
            if sentence not in warnings:
                warnings.append(sentence)
                warn(*warnings)

        store = WindowStore(self._fingerprint(waveform, rate, parts))
        finished = [window.to(tail.device) for window in store.load([(1, config.same.audio_channels, part.new) for part in parts])]
        resumed = len(finished)
        if finished:
            remark(f"Resumed after window {resumed} of {len(parts)}: an earlier run finished those before.")
        bar = Progress(1, resumes=True)
        with run_options.read(self.model.model_options).run():
            for i, part in enumerate(parts):
                if i == len(finished):
                    finished.append(self._generate(tail[..., -part.context :], part, i, bar.part(i, len(parts), "window"), remark))
                    store.add(i, finished[i], remark)
                tail = torch.cat((tail, finished[i]), dim=-1)[..., -tail_samples:]
        bar.finish()
        watch.lap("windows")
        for sentence in host_model.result_warnings(self.model):
            remark(sentence)
        n = waveform.shape[-1]
        before = pad(recording, (round(n * model_rate / rate) - recording.shape[-1], 0))  # the first window already joins its last sample
        generated = torch.cat((before, *finished), dim=-1)
        region = (n / rate, (n + added) / rate)
        out, _ = splice(pad(waveform, (0, added)), generated, [region], rate, model_rate, self.crossfade)
        store.discard()
        ends = itertools.accumulate((part.new for part in parts[:-1]), initial=0)
        edges = [*(n + end * rate // model_rate for end in ends), n + added]
        record = run_record.record(
            self.model.model.sa3_name, first, self.guidance, warnings, prompts=prompts_of(self.positive), stages=watch.stages,
            **host_model.record_fields(self.model),
            seconds=[(n + added) / rate], crossfade=self.crossfade, resumed_windows=resumed, windows=[
                {"seed": item_seed(self.seed, i), "context": part.context / model_rate, "seconds": part.new / model_rate}
                for i, part in enumerate(parts)
            ],
        )  # fmt: skip
        return out, report(out[0], edges, rate), record

    def _plan(self, part: Window, number: int) -> runs.Plan:
        config = self.model.model.sa3_config  # that of a VAE of SA3_AutoencoderLoader has no schedule
        read = lengths(config, [seconds_of(part.samples, config.sample_rate)], 0.0)
        return runs.plan(config, read, steps=self.steps, sampler=self.sampler, seed=item_seed(self.seed, number))

    def _generate(self, tail: Tensor, part: Window, number: int, progress, remark: Callable[[str], None]) -> Tensor:
        """The new samples (1, C, part.new) of a window at the model's rate, after a tail (1, C, part.context)."""
        config = self.model.model.sa3_config
        rate, seconds = config.sample_rate, seconds_of(part.samples, config.sample_rate)
        region = (part.context / rate, seconds)
        latent, _ = mask_regions(encode_clip(self.vae, tail, seconds, 0.0, CHUNK, OVERLAP, check_interrupt), [region])
        read = read_latent(latent, config)
        plan = self._plan(part, number)
        z = host.sample(self.model, self.positive, read, plan, self.guidance, self.negative, progress, self.live, remark)
        z = z[..., : decode_frames(config, read.lengths, 0)]
        audio = self.vae.decode_latents(z, progress=check_interrupt, warn=remark)
        audio = pad(audio, (0, max(0, part.samples - audio.shape[-1])))[..., : part.samples]
        spliced, _ = splice(pad(tail, (0, part.new)), audio, [region], rate, rate, self.crossfade)
        return spliced[..., part.context :]

    def _fingerprint(self, waveform: Tensor, rate: int, parts: list[Window]) -> str:
        """A hash of everything that the windows' samples depend on. Functions and objects that other nodes attached to the MODEL
        cannot be compared between sessions, so windows with them are used in this session only."""
        inner, options = self.model.model, run_options.read(self.model.model_options)
        others = {name: value for name, value in self.model.model_options.items() if name not in (run_options.KEY, REMARKS)}
        others["transformer_options"] = {
            name: value for name, value in others.get("transformer_options", {}).items() if name != run_options.KEY and value
        }
        loras = [(lora.record(), sorted(lora.layers), folders.fingerprint(lora.lora.path)) for lora in options.stack.loras]
        foreign = foreign_patches(self.model)
        digest = hashlib.sha256()
        for value in (
            waveform, rate, [(part.context, part.new) for part in parts], dataclasses.asdict(self.guidance), self.seed, self.steps,
            self.sampler, self.crossfade,
            self.positive, self.negative, loras, foreign, others, self.model.object_patches, inner.sa3_name, str(inner.compute_dtype),
            folders.fingerprint(inner.sa3_path), str(self.vae.vae_dtype), folders.fingerprint(self.vae.sa3_path),
        ):  # fmt: skip
            add_to(digest, value)
        return digest.hexdigest()


def add_to(digest, value) -> None:
    """Add a value to a hash, unambiguously. Objects without a value of their own differ in each session."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_nested:
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (dict, list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)}:".encode())
        for part in sorted(value.items(), key=lambda item: repr(item[0])) if isinstance(value, dict) else value:
            add_to(digest, part)
    elif isinstance(value, WeightAdapterBase):  # of core's LoRA loaders
        add_to(digest, [type(value).__name__, value.weights])
    elif value is None or isinstance(value, (str, bool, int, float)):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        digest.update(f"object {SESSION} {id(value)};".encode())


class WindowStore:
    """The finished windows of a job as files, until its result exists. Those of abandoned jobs are deleted after a week."""

    def __init__(self, key: str):
        root = Path(folder_paths.get_user_directory()) / FOLDER
        self.folder = root / key
        with suppress(OSError):
            for other in list(root.iterdir()):
                with suppress(OSError):  # a broken link, or another process that deletes it
                    if time.time() - other.stat().st_mtime > KEPT_SECONDS:
                        shutil.rmtree(other, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05}.safetensors"

    def load(self, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
        """The windows that exist, up to the first that is missing, damaged or of another shape."""
        found: list[Tensor] = []
        for number, shape in enumerate(shapes):
            try:
                window = TensorFile(self._file(number)).read("audio")
            except (SA3Error, SafetensorError, OSError):
                break
            if tuple(window.shape) != shape or window.dtype != torch.float32:
                break
            found.append(window)
        return found

    def add(self, number: int, window: Tensor, remark: Callable[[str], None]) -> None:
        try:
            save(self._file(number), {"audio": window})
        except (OSError, SA3Error) as error:
            remark(f"Window {number + 1} is not kept, and an interrupted run would compute it again: {error}")

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
