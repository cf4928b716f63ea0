"""The whole job without ComfyUI: load a release, make audio."""

import functools
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import run_record, timeline
from .backends.accelerator import Accelerator
from .backends.compiled import Compiled
from .backends.device import backend_of
from .checkpoints import checkpoint
from .checkpoints.download import cached_text_encoder
from .config import ModelConfig
from .errors import SA3Error
from .lora.algebra import apply_stack
from .lora.fit import fit_lora, open_lora
from .lora.stack import Stack, targets
from .models.conditioning import Condition
from .models.release import StableAudio, build
from .models.same import SAME, Noise
from .models.text_encoder import Text, Tokens, encoder_dtype
from .sampling import runs
from .sampling.float32_retry import with_float32_retry
from .sampling.guidance import Guidance
from .sampling.predictor import Predictor
from .timeline.regions import check_pairs

log = logging.getLogger("sa3")
ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEMOS = {name: ASSETS / name for name in ("demo", "demo-medium")}  # the embedded models; the first is the default


@dataclass(frozen=True)
class Result:
    """audio: per item (channels, N_i) at `sample_rate`, or latents (B, D, T) when they were asked for."""

    audio: list[Tensor] | None
    latents: Tensor | None
    seconds: tuple[float, ...]
    sample_rate: int
    info: dict = field(default_factory=dict)


class Model:
    """A loaded release (or a standalone autoencoder: then only `encode` and `decode` work)."""

    def __init__(self, config: ModelConfig, module, text_encoder, name: str):
        self.config, self.module, self.text_encoder, self.name = config, module, text_encoder, name
        self.path: Path | None = None
        self.loras, self._originals = Stack(), {}
        self.loaded: dict = {}  # run_record.load_record
        self.lora_record: list[dict] = []  # how the adapters describe themselves
        self.compiled: Accelerator | None = None
        self._wait = False

    @property
    def dit(self):
        return self._generative().dit

    @property
    def autoencoder(self) -> SAME:
        return self.module if isinstance(self.module, SAME) else self.module.autoencoder

    @property
    def device(self) -> torch.device:
        return self.autoencoder.bottleneck.running_std.device

    @property
    def dtype(self) -> torch.dtype:
        return self.autoencoder.bottleneck.running_std.dtype

    def _generative(self) -> StableAudio:
        if not isinstance(self.module, StableAudio):
            raise SA3Error(f"{self.name} is a standalone autoencoder: it encodes and decodes, but cannot generate.")
        return self.module

    def add_lora(
        self, path: str | Path, strength: float = 1.0, interval: tuple[float, float] = (0, 1), skip_layers: Sequence[str] | str = (),
        seconds_strength: float | None = None, mode: str = "chain", curve: Sequence[float] | None = None, base: str | Path | None = None,
    ) -> str:  # fmt: skip
        """Put a LoRA on top of those already there; returns what is applied, one line per LoRA, then warnings.

        interval: noise levels between which it acts, both inclusive. curve: multipliers over the steps. skip_layers: parts of names
        of layers to leave alone. seconds_strength: for the seconds embedder, which runs before the steps; None = strength.
        mode: chain = act on the result so far, sum = add the change against the base. base: for -xs files, the checkpoint that it was
        trained on or its svd_bases.safetensors.
        """
        module = self._generative()
        lora = open_lora(path, module, self.name, self.path, None if base is None else Path(base))
        fitted = fit_lora(lora, module, self.name, strength, interval, skip_layers, seconds_strength, mode, curve)
        self._apply(self.loras.with_lora(fitted))
        return self.loras.describe()

    def remove_loras(self) -> None:
        """Take all LoRAs off; the weights are those of the file again, bit for bit."""
        self._apply(Stack())

    @torch.no_grad()
    def _apply(self, stack: Stack) -> None:
        layers = targets(self._generative())
        for name, original in self._originals.items():
            layers[name].weight = original
        self._originals = {}
        for name, entries in stack.patches().items():
            self._originals[name] = layers[name].weight
            layers[name].weight = torch.nn.Parameter(apply_stack(layers[name].weight, entries), requires_grad=False)
        self.loras, self.lora_record = stack, stack.record()

    def compile(self, wait: bool = False, compiled: Accelerator | None = None) -> Accelerator:
        """Make `generate` use torch.compile, or another accelerator. wait: compile before the first run, not in the background."""
        self._generative()
        self.compiled, self._wait = compiled or Compiled(), wait
        return self.compiled

    def _network(self, sigmas: Tensor | None = None):
        """The transformer with what is scheduled on it: (x, t, inputs) -> velocity."""
        network = self.dit if self.compiled is None else functools.partial(self.compiled.velocity, self.dit)
        return functools.partial(self.loras.velocity, self.dit, sigmas=sigmas, run=network) if self.loras.scheduled else network

    def encode_text(self, prompts: str | Sequence[str]) -> Text:
        """Token embeddings of the prompts, padded as the model sees them (learned padding)."""
        module = self._generative()
        if self.text_encoder is None:
            raise SA3Error(f"{self.name} has no text encoder beside it; give load() the folder t5gemma-b-b-ul2 as text_encoder.")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise SA3Error("There is no prompt to encode; an empty text is a prompt, an empty list is not.")
        tokens: Tokens = self.text_encoder.tokenize(prompts, self.config.conditioning.max_tokens)
        with torch.no_grad():
            rows = self.text_encoder(tokens).to(self.device, self.dtype)
            return Text(module.conditioner.prompt(rows, tokens.mask), tokens.mask, tokens.ids)

    @torch.no_grad()
    def condition(self, text: Text, seconds: Sequence[float], negative: bool = False) -> Condition:
        """Inputs of the transformer. A negative prompt's padded rows are zero instead of learned."""
        return self._generative().conditioner(text.embeddings, text.mask, seconds, negative)

    @torch.no_grad()
    def velocity(
        self, x: Tensor, t: Tensor, cross_attn: Tensor, global_cond: Tensor, local_add: Tensor | None = None,
        padding_mask: Tensor | None = None, cfg: float = 1.0, apg: float = 1.0, rescale: float = 0.0, norm_threshold: float = 0.0,
        cfg_interval: tuple[float, float] = (0, 1), negative_cross_attn: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """One evaluation: latents x (B, D, T) at t (B,) -> velocity (B, D, T). padding_mask (B, T), True = valid."""
        dit = self.dit
        if x.dim() != 3 or x.shape[1] != self.config.same.latent_dim or t.shape != (len(x),) or len(cross_attn) != len(x):
            raise SA3Error(
                f"velocity() got x {tuple(x.shape)} and t {tuple(t.shape)}; expected (B, {self.config.same.latent_dim}, T) and (B,)."
            )
        lengths = None if padding_mask is None else _lengths_of(padding_mask)
        guidance, t = _guidance(cfg, apg, rescale, norm_threshold, cfg_interval), t.float().cpu()
        active = bool(guidance.active(t)[0])  # as in the public code, the first item decides for the batch
        predictor = Predictor.prepare(
            dit, Condition(cross_attn, global_cond), local_add, x.shape[-1], lengths, guidance if active else Guidance(),
            negative_cross_attn, self._network(),
        )  # fmt: skip
        return guidance.combine(x, t, *predictor.pair(x, t), lengths) if active else predictor(x, t)

    @torch.no_grad()
    def encode(self, audio: Tensor, chunk_size: int | None = None, overlap: int = 32, noise: int | None = None) -> Tensor:
        """Audio (B, channels, N) at the model's rate -> latents (B, D, frames). noise: a seed, None = off."""
        return self.autoencoder.encode(audio.to(self.device, self.dtype), chunk_size, overlap, _noise(noise))

    @torch.no_grad()
    def decode(self, z: Tensor, chunk_size: int | None = None, overlap: int = 32, noise: int | None = None) -> Tensor:
        """Latents (B, D, T) -> audio (B, channels, N), not clipped. noise: a seed, None = off."""
        return self._decode(z.to(self.device, self.dtype), chunk_size, overlap, noise)

    def _decode(self, z: Tensor, chunk_size: int | None, overlap: int, noise: int | None) -> Tensor:
        same = self.autoencoder
        at_once = same.chunks_at_once(chunk_size, len(z), z.dtype, backend_of(z.device).free_memory(z.device))
        return same.decode(z, chunk_size, overlap, _noise(noise), at_once=at_once)

    @torch.no_grad()
    def generate(
        self, prompt: str | Sequence[str], duration: float | Sequence[float], negative_prompt: str | Sequence[str] | None = None,
        steps: int | None = None, cfg: float | None = None, sampler: str | None = None, schedule: dict | None = None, seed: int = 0,
        init_audio: tuple[int, Tensor] | None = None, init_noise_level: float = 1.0, regions: Sequence[tuple[float, float]] | None = None,
        source_audio: tuple[int, Tensor] | None = None, padding: float = timeline.PADDING_SECONDS, apg: float = 1.0, rescale: float = 0.0,
        norm_threshold: float = 0.0, cfg_interval: tuple[float, float] = (0, 1), eta: float | None = None, chunk_size: int | None = 128,
        overlap: int = 32, decode_noise: int | None = None, initial_noise: Tensor | None = None, step_noise=None,
        return_latents: bool = False, callback=None,
    ) -> Result:  # fmt: skip
        """Make audio from text, optionally from a sound (init_audio with init_noise_level) or inside regions of one (source_audio).

        prompt, negative_prompt and duration (seconds) may be lists, one entry per item. steps, cfg, sampler, schedule: None = the
        checkpoint's. init_audio, source_audio: (rate, waveform (C, N)). regions: (start, end) in seconds to regenerate.
        decode_noise: a seed for the decoder's regularisation noise, None = off. callback(step, total, denoised).
        """
        module, watch = self._generative(), run_record.Stopwatch()
        prompts, negatives, seconds = _broadcast(prompt, negative_prompt, duration)
        lengths = timeline.lengths(self.config, seconds, padding)
        guidance = _guidance(self.config.default_cfg if cfg is None else cfg, apg, rescale, norm_threshold, cfg_interval)
        plan = runs.plan(
            self.config, lengths, steps=steps, sampler=sampler, seed=seed, schedule_options=schedule, eta=eta,
            noise_level=init_noise_level if init_audio is not None else 1.0,
        )  # fmt: skip
        init = None if init_audio is None else self._source_latents("init_audio", init_audio, lengths, chunk_size, overlap)
        local = self._local(regions, source_audio, lengths, chunk_size, overlap)

        cond = self.condition(self.encode_text(prompts), lengths.seconds)
        negative = None if negatives is None or guidance.cfg == 1 else self._negative(negatives, lengths)
        watch.lap("encode")
        warnings: list[str] = []
        step_noise = None if step_noise is None else list(step_noise)

        def sample(dtype: torch.dtype) -> Tensor:
            condition = Condition(cond.cross_attn.to(dtype), cond.global_cond.to(dtype))
            predictor = Predictor.prepare(
                module.dit, condition, local.to(dtype), lengths.frames, lengths.valid, guidance,
                None if negative is None else negative.to(dtype), self._network(plan.sigmas),
            )  # fmt: skip
            return runs.run(
                predictor, plan, channels=self.config.same.latent_dim, device=self.device, init=init, initial_noise=initial_noise,
                step_noise=step_noise, callback=callback,
            )  # fmt: skip

        with nullcontext() if self.compiled is None else self.compiled.run(self._wait):
            latents = with_float32_retry("The latents", self.dtype, sample, warnings.append)
        watch.lap("sample")
        if return_latents:
            return Result(None, latents, lengths.seconds, self.config.sample_rate, self._record(plan, guidance, watch, warnings))
        audio = []
        for i, n in enumerate(lengths.samples):
            z = latents[i : i + 1, :, : timeline.decode_frames(self.config, lengths, i)].to(self.device)

            def decode(dtype: torch.dtype, z=z, n=n) -> Tensor:
                return self._decode(z.to(dtype), chunk_size, overlap, decode_noise)[0, :, :n].float()

            audio.append(with_float32_retry("The decoded samples", self.dtype, decode, warnings.append).clamp(-1, 1))
        watch.lap("decode")
        return Result(audio, None, lengths.seconds, self.config.sample_rate, self._record(plan, guidance, watch, warnings))

    def _record(self, plan: runs.Plan, guidance: Guidance, watch: run_record.Stopwatch, warnings: Sequence[str]) -> dict:
        said = list(dict.fromkeys(warnings))
        for sentence in said:
            log.warning(sentence)
        loaded, self.loaded = self.loaded, {**self.loaded, "cache_hit": True}
        return run_record.record(
            self.name, plan, guidance, said, loaded=loaded, loras=self.lora_record, stages=watch.stages, cfg=guidance.cfg
        )

    def _negative(self, prompts: Sequence[str], lengths: timeline.Lengths) -> Tensor:
        """The unconditional context of negative prompts."""
        return self.condition(self.encode_text(prompts), lengths.seconds, negative=True).cross_attn

    def _local(self, regions, source_audio, lengths: timeline.Lengths, chunk_size, overlap) -> Tensor:
        """Mask and masked latents (B, D + 1, T); zeros for plain text to audio."""
        if (regions is None) != (source_audio is None):
            raise SA3Error("Inpainting needs both regions and source_audio; one of them is missing.")
        if regions is None:
            return torch.zeros(len(lengths), self.config.same.latent_dim + 1, lengths.frames, device=self.device, dtype=self.dtype)
        merged = timeline.merge_regions(check_pairs(regions), max(lengths.seconds))
        mask = timeline.keep_mask(self.config, merged, lengths).to(self.device, self.dtype)
        return torch.cat((mask, mask * self._source_latents("source_audio", source_audio, lengths, chunk_size, overlap)), dim=1)

    def _source_latents(self, name: str, source: tuple[int, Tensor], lengths: timeline.Lengths, chunk_size, overlap) -> Tensor:
        """A clip, cut or zero-padded to each item's own length, as latents (B, D, T)."""
        from .audio.waveform import to_model

        waveform = to_model(name, *source, self.config.sample_rate, self.config.same.audio_channels)
        spf = self.config.same.samples_per_frame
        out = torch.zeros(len(lengths), self.config.same.latent_dim, lengths.frames, device=self.device, dtype=self.dtype)
        for own in set(lengths.own):
            n = own * spf
            clip = torch.nn.functional.pad(waveform[:, :n], (0, max(0, n - waveform.shape[1])))
            z = self.encode(clip[None], chunk_size, overlap)
            out[[i for i, other in enumerate(lengths.own) if other == own], :, :own] = z
        return out


def load(
    path: str | Path, device="cpu", dtype: torch.dtype = torch.float32, text_encoder: str | Path | None = None, objective: str = "auto",
    autoencoder: bool = False,
) -> Model:  # fmt: skip
    """Load a model in any layout: a release's folder, its weights file, a single file without a config, or one of `DEMOS`.

    text_encoder: the folder t5gemma-b-b-ul2 or the repackaged file, when it lies neither beside the weights nor in the Hub's cache.
    dtype: of the transformer and the autoencoder. The text encoder never computes in float16, which its activations leave: it takes
    bfloat16 on a GPU that has it, else float32.
    objective: "base" or "post-trained" for a file without a config whose name does not say. autoencoder: load only SAME.
    Raises SA3Error for anything that is not exactly a Stable Audio 3 model.
    """
    watch = run_record.Stopwatch()
    opened = checkpoint.open_checkpoint(DEMOS.get(str(path), path), objective, autoencoder)
    watch.lap("open")
    module = checkpoint.load_into(build(opened.config), opened.tensors, opened.prefix, dtype, device)
    watch.lap("weights")
    encoder = None
    if opened.config.conditioning is not None:
        width = opened.config.conditioning.cond_dim
        found = text_encoder or opened.text_encoder or cached_text_encoder(width)
        if found is not None:
            encoder = checkpoint.load_text_encoder(found, encoder_dtype(dtype, device), device, width)
            watch.lap("text encoder")
    model = Model(opened.config, module, encoder, opened.name)
    model.path = opened.path
    model.loaded = run_record.load_record(opened, dtype, device, watch)
    return model


def _guidance(cfg, apg, rescale, norm_threshold, interval) -> Guidance:
    if len(interval) != 2:
        raise SA3Error(f"cfg_interval is {interval}; expected two noise levels, start and end.")
    return Guidance(cfg, apg, rescale, norm_threshold, *interval)


def _noise(seed: int | None) -> Noise | None:
    return None if seed is None else Noise(int(seed))


def _lengths_of(padding_mask: Tensor) -> list[int]:
    lengths = padding_mask.bool().sum(1).tolist()
    expected = torch.arange(padding_mask.shape[1])[None] < torch.tensor(lengths)[:, None]
    if not torch.equal(padding_mask.bool().cpu(), expected) or min(lengths) < 1:
        raise SA3Error("The padding mask must be True for the first frames of each item (at least one) and False behind them.")
    return lengths


def _broadcast(prompt, negative, duration) -> tuple[list[str], list[str] | None, list[float]]:
    """Lists of one common length from single values and lists."""
    rows = {"prompt": prompt, "negative_prompt": negative, "duration": duration}
    rows = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in rows.items()}
    sizes = {name: len(value) for name, value in rows.items() if isinstance(value, list)}
    batch = max(sizes.values(), default=1)
    for name, size in sizes.items():
        if size not in (1, batch) or size == 0:
            raise SA3Error(f"{name} has {size} entries and the batch {batch}; give one for all, or one per item.")
    full = {
        name: (value if len(value) == batch else value * batch) if isinstance(value, list) else [value] * batch
        for name, value in rows.items()
    }
    return full["prompt"], None if negative is None else full["negative_prompt"], full["duration"]
