"""Load a release and generate audio, without ComfyUI."""

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import run_record, timeline
from .audio.waveform import check_tensor, to_model
from .backends.device import backend_of
from .backends.graphs import Graphs
from .checkpoints import checkpoint
from .checkpoints.download import cached_text_encoder
from .checkpoints.tensors import DTYPES, is_finite
from .config import ModelConfig
from .errors import SA3Error
from .lora.algebra import apply_stack
from .lora.fit import fit_lora, open_lora
from .lora.stack import Stack, targets
from .models.conditioning import Condition
from .models.dit import DiT
from .models.release import StableAudio, build
from .models.same import SAME, Noise
from .models.text_encoder import Text, TextEncoder, cut_warnings, encoder_dtype
from .sampling import hints, runs
from .sampling.draws import check_seed
from .sampling.float32_retry import with_float32_retry
from .sampling.guidance import Guidance
from .sampling.predictor import Predictor
from .timeline.durations import valid_mask
from .timeline.regions import check_pairs

log = logging.getLogger("sa3")
ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEMOS = {name: ASSETS / name for name in ("demo", "demo-medium")}  # the embedded models


@dataclass(frozen=True)
class Result:
    """What `Model.generate` returns.

    audio: one (channels, N_i) tensor per item, in [-1, 1] at `sample_rate`; None with return_latents. latents (B, D, T): only with
    return_latents. seconds: duration per item. info: the record of the run, as JSON values.
    """

    audio: list[Tensor] | None
    latents: Tensor | None
    seconds: tuple[float, ...]
    sample_rate: int
    info: dict = field(default_factory=dict)


class Model:
    """A loaded release. For a standalone autoencoder (module: `SAME`) only `encode` and `decode` work; the rest raises SA3Error."""

    def __init__(
        self, config: ModelConfig, module: StableAudio | SAME, text_encoder: TextEncoder | None, name: str, path: Path | None = None,
        loaded: dict | None = None,
    ):  # fmt: skip
        self.config, self.module, self.text_encoder, self.name, self.path = config, module, text_encoder, name, path
        self.loaded = loaded or {}  # run_record.load_record
        self.loras = Stack()
        self._originals: dict[str, torch.nn.Parameter] = {}  # layer -> weight without LoRAs
        self.compiled: Graphs | None = None

    @property
    def dit(self) -> DiT:
        return self._release().dit

    @property
    def autoencoder(self) -> SAME:
        return self.module if isinstance(self.module, SAME) else self.module.autoencoder

    @property
    def device(self) -> torch.device:
        return self.autoencoder.bottleneck.running_std.device

    @property
    def dtype(self) -> torch.dtype:
        return self.autoencoder.bottleneck.running_std.dtype

    def _release(self) -> StableAudio:
        """The module of a full release. Raises SA3Error for a standalone autoencoder."""
        if not isinstance(self.module, StableAudio):
            raise SA3Error(f"{self.name} is a standalone autoencoder: it encodes and decodes, but cannot generate. Load a full model.")
        return self.module

    def add_lora(
        self, path: str | Path, strength: float = 1.0, interval: tuple[float, float] = (0, 1), skip_layers: Sequence[str] | str = (),
        seconds_strength: float | None = None, mode: str = "chain", curve: Sequence[float] | None = None, base: str | Path | None = None,
    ) -> str:  # fmt: skip
        """Apply a LoRA after those already applied. Returns a report: one line per LoRA, then warnings.

        interval: noise levels between which it is active, both inclusive. curve: multipliers of the strength over the steps. skip_layers:
        parts of names of layers without it. seconds_strength: for the seconds embedder, which runs before the steps; None = strength.
        mode: "chain" applies it to the result so far, "sum" adds its change of the base's weight. base: for -xs files, the checkpoint
        that the LoRA was trained on, or its svd_bases.safetensors.
        """
        module = self._release()
        lora = open_lora(path, module, self.name, self.path, None if base is None else Path(base))
        fitted = fit_lora(lora, module, self.name, strength, interval, skip_layers, seconds_strength, mode, curve)
        self._apply(self.loras.with_lora(fitted))
        return self.loras.describe()

    def remove_loras(self) -> None:
        """Remove all LoRAs. The weights are then bit for bit those of the file."""
        self._apply(Stack())

    @torch.no_grad()
    def _apply(self, stack: Stack) -> None:
        """Replace the LoRAs; if that fails, those before stay."""
        before = self.loras
        try:
            self._merge(stack)
        except BaseException:
            self._merge(before)
            raise
        self.loras = stack

    def _merge(self, stack: Stack) -> None:
        """Restore the weights, then merge the constant adapters of the stack."""
        layers = targets(self._release())
        for name, original in self._originals.items():
            layers[name].weight = original
        self._originals = {}
        for name, entries in stack.patches().items():
            weight = apply_stack(layers[name].weight, entries)
            if not is_finite(weight):
                raise SA3Error(f"With the LoRAs, the weight of '{name}' exceeds the range of {weight.dtype}; lower their strength.")
            self._originals[name] = layers[name].weight
            layers[name].weight = torch.nn.Parameter(weight, requires_grad=False)

    def compile(self) -> Graphs:
        """Use CUDA graphs in `generate`: the same bytes, with fewer kernel launches. `state` of the result describes the latest run."""
        self._release()
        self.compiled = Graphs()
        return self.compiled

    def _network(self, sigmas: Tensor | None = None):
        """(x, t, conditions) -> velocity: the transformer, through CUDA graphs if they are in use, and with the scheduled LoRAs.

        sigmas (B, steps + 1): the run's noise levels, over which LoRA curves extend.
        """
        network = self.dit if self.compiled is None else functools.partial(self.compiled.velocity, self.dit)
        return functools.partial(self.loras.velocity, self.dit, sigmas=sigmas, run=network) if self.loras.scheduled else network

    @torch.no_grad()
    def encode_text(self, prompts: str | Sequence[str]) -> Text:
        """Token embeddings of the prompts, with the model's learned padding: .embeddings (B, max_tokens, dim), .mask, .input_ids."""
        module = self._release()
        if self.text_encoder is None:
            raise SA3Error(f"{self.name} was loaded without a text encoder; pass the folder t5gemma-b-b-ul2 to load() as text_encoder.")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(prompts, (list, tuple)):
            raise SA3Error(f"The prompt is {type(prompts).__name__}; expected a text, or a list of them.")
        if not prompts:
            raise SA3Error("The list of prompts is empty; expected at least one prompt, which may be an empty text.")
        tokens = self.text_encoder.tokenize(prompts, self.config.conditioning.max_tokens)
        rows = self.text_encoder(tokens).to(self.device, self.dtype)
        return Text(module.conditioner.prompt(rows, tokens.mask), tokens.mask, tokens.ids)

    @torch.no_grad()
    def condition(self, text: Text, seconds: Sequence[float], negative: bool = False) -> Condition:
        """The transformer's inputs: .cross_attn (B, n + 1, dim) and .global_cond (B, dim). negative: padded rows are zero, not learned."""
        return self._release().conditioner(text.embeddings, text.mask, seconds, negative)

    @torch.no_grad()
    def velocity(
        self, x: Tensor, t: Tensor, cross_attn: Tensor, global_cond: Tensor, local_add: Tensor | None = None,
        padding_mask: Tensor | None = None, cfg: float = 1.0, apg: float = 1.0, rescale: float = 0.0, norm_threshold: float = 0.0,
        cfg_interval: tuple[float, float] = (0, 1), negative_cross_attn: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Velocity (B, D, T) at latents x (B, D, T) and t (B,), from one evaluation with guidance.

        cross_attn, global_cond: from `condition`; the network computes in the dtype of cross_attn. local_add (B, D + 1, T): mask and
        masked latents. padding_mask (B, T), True = valid.
        """
        inputs = {"x": x, "t": t, "cross_attn": cross_attn, "global_cond": global_cond}
        optional = {"local_add": local_add, "padding_mask": padding_mask, "negative_cross_attn": negative_cross_attn}
        for name, tensor in {**inputs, **{name: value for name, value in optional.items() if value is not None}}.items():
            check_tensor(f"The {name} of velocity()", tensor, integers=name in ("t", "padding_mask"))
        dim = self.config.same.latent_dim
        if x.dim() != 3 or x.shape[1] != dim or not x.shape[-1] or t.shape != x.shape[:1] or cross_attn.shape[:-2] != x.shape[:1]:
            raise SA3Error(
                f"velocity() got x {tuple(x.shape)}, t {tuple(t.shape)} and cross_attn {tuple(cross_attn.shape)}; "
                f"expected (B, {dim}, T), (B,) and (B, n, dim)."
            )
        width, (batch, _, frames) = self.config.conditioning.cond_dim, x.shape
        expected = {"cross_attn": (batch, cross_attn.shape[1], width), "global_cond": (batch, width), "padding_mask": (batch, frames)}
        expected |= {"local_add": (batch, self.config.dit.local_dim, frames), "negative_cross_attn": tuple(cross_attn.shape)}
        for name, tensor in {**inputs, **optional}.items():
            if tensor is not None and name in expected and (tuple(tensor.shape) != expected[name] or 0 in tensor.shape):
                raise SA3Error(f"The {name} of velocity() has shape {tuple(tensor.shape)}; expected {expected[name]}, not empty.")
        lengths = None if padding_mask is None else _lengths_of(padding_mask)
        guidance, t = _guidance(cfg, apg, rescale, norm_threshold, cfg_interval), t.float().cpu()
        active = bool(guidance.active(t)[0])  # as in the public code, the first item decides for the batch
        local_add, negative_cross_attn = (None if part is None else part.to(cross_attn) for part in (local_add, negative_cross_attn))
        predictor = Predictor.prepare(
            self.dit, Condition(cross_attn, global_cond.to(cross_attn)), local_add, x.shape[-1], lengths,
            guidance if active else Guidance(), negative_cross_attn, self._network(),
        )  # fmt: skip
        return guidance.combine(x, t, *predictor.pair(x, t), lengths) if active else predictor(x, t)

    @torch.no_grad()
    def encode(self, audio: Tensor, chunk_size: int | None = None, overlap: int = 32, noise: int | None = None) -> Tensor:
        """Audio (B, channels, N) at the model's rate -> latents (B, D, frames). noise: a seed, None = off."""
        check_tensor("The audio to encode", audio)
        encode = functools.partial(self.autoencoder.encode, audio.to(self.device, self.dtype), chunk_size, overlap, _noise(noise))
        return self._in_passes(encode, chunk_size, len(audio), self.dtype)

    @torch.no_grad()
    def decode(self, z: Tensor, chunk_size: int | None = None, overlap: int = 32, noise: int | None = None) -> Tensor:
        """Latents (B, D, T) -> audio (B, channels, N), not clipped. noise: a seed, None = off."""
        check_tensor("The latents to decode", z)
        return self._decode(z.to(self.device, self.dtype), chunk_size, overlap, noise)

    def _decode(self, z: Tensor, chunk_size: int | None, overlap: int, noise: int | None) -> Tensor:
        """`decode` in the dtype of z."""
        decode = functools.partial(self.autoencoder.decode, z, chunk_size, overlap, _noise(noise))
        return self._in_passes(decode, chunk_size, len(z), z.dtype)

    def _in_passes(self, run: Callable[..., Tensor], chunk: int | None, batch: int, dtype: torch.dtype) -> Tensor:
        """run(at_once=chunks per pass); one chunk per pass, which rounds differently, where the free memory is too small."""
        at_once = self.autoencoder.chunks_at_once(chunk, batch, dtype, backend_of(self.device).memory(self.device))
        if at_once > 1:
            with suppress(torch.OutOfMemoryError):
                return run(at_once=at_once)
        return run(at_once=1)

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
        """Generate audio from text, optionally from a clip (init_audio) or in regions of a clip (source_audio).

        prompt, negative_prompt, duration (seconds): one value, or a list with one entry per item. steps, cfg, sampler: None = the
        checkpoint's. schedule: dict(kind=, mode=, **parameters) for `schedule.build`, None = the checkpoint's. init_audio, source_audio:
        (rate, waveform (C, N)), resampled as needed. init_noise_level: above 0 to 1, 1 ignores init_audio. regions: (start, end) in
        seconds to regenerate. padding: seconds of headroom after each clip, cut off. eta: re-noising of the -sde samplers.
        decode_noise: seed of the decoder's regularisation noise, None = off. initial_noise (B, D, T), step_noise (list of the same):
        replace the seed's draws. callback(step, total, denoised).
        """
        try:
            step_noise = None if step_noise is None else list(step_noise)
        except TypeError as error:
            raise SA3Error(f"step_noise is {type(step_noise).__name__}; expected a list of draws.") from error
        dit, watch = self.dit, run_record.Stopwatch()
        prompts, negatives, seconds = _broadcast(prompt, negative_prompt, duration)
        lengths = timeline.lengths(self.config, seconds, padding)
        guidance = _guidance(self.config.default_cfg if cfg is None else cfg, apg, rescale, norm_threshold, cfg_interval)
        plan = runs.plan(
            self.config, lengths, steps=steps, sampler=sampler, seed=seed, schedule_options=schedule, eta=eta,
            noise_level=init_noise_level if init_audio is not None else 1.0,
        )  # fmt: skip
        init = None if init_audio is None else self._source_latents("init_audio", init_audio, lengths, chunk_size, overlap)
        local = self._local_input(regions, source_audio, lengths, chunk_size, overlap)
        text, negative = self.encode_text(prompts), None
        cond = self.condition(text, lengths.seconds)
        if negatives is not None and guidance.cfg != 1:
            negative = self.condition(self.encode_text(negatives), lengths.seconds, negative=True).cross_attn
        watch.lap("encode")
        warnings = [] if self.text_encoder is None else cut_warnings(self.text_encoder.counts(prompts), self.config.conditioning.max_tokens)
        warnings += hints.prompt_warnings(text.mask)

        def sample(dtype: torch.dtype) -> Tensor:
            condition = Condition(cond.cross_attn.to(dtype), cond.global_cond.to(dtype))
            predictor = Predictor.prepare(
                dit, condition, local.to(dtype), lengths.frames, lengths.valid, guidance,
                None if negative is None else negative.to(dtype), self._network(plan.sigmas),
            )  # fmt: skip
            return runs.run(
                predictor, plan, channels=self.config.same.latent_dim, device=self.device, init=init, initial_noise=initial_noise,
                step_noise=step_noise, callback=callback,
            )  # fmt: skip

        with nullcontext() if self.compiled is None else self.compiled.run():
            latents = with_float32_retry("The latents", self.dtype, sample, warnings.append)
        watch.lap("sample")

        def decode_item(i: int) -> Tensor:
            z = latents[i : i + 1, :, : timeline.decode_frames(self.config, lengths, i)].to(self.device)

            def decode(dtype: torch.dtype) -> Tensor:
                return self._decode(z.to(dtype), chunk_size, overlap, decode_noise)[0, :, : lengths.samples[i]].float()

            return with_float32_retry("The decoded samples", self.dtype, decode, warnings.append).clamp(-1, 1)

        audio = None
        if not return_latents:
            audio = [decode_item(i) for i in range(len(lengths))]
            watch.lap("decode")
        warnings = list(dict.fromkeys(warnings))
        for warning in warnings:
            log.warning(warning)
        record = run_record.record(
            self.name, plan, guidance, warnings, prompts=prompts, loaded=self.loaded, loras=self.loras.record(),
            stages=watch.stages, cfg=guidance.cfg)  # fmt: skip
        self.loaded = {**self.loaded, "cache_hit": True}
        return Result(audio, latents if return_latents else None, lengths.seconds, self.config.sample_rate, record)

    def _local_input(self, regions, source_audio, lengths: timeline.Lengths, chunk_size, overlap: int) -> Tensor:
        """Keep mask and masked latents (B, D + 1, T); zeros without regions."""
        if (regions is None) != (source_audio is None):
            raise SA3Error("Inpainting needs both regions and source_audio; one of them is missing.")
        if regions is None:
            return torch.zeros(len(lengths), self.config.same.latent_dim + 1, lengths.frames, device=self.device, dtype=self.dtype)
        merged = timeline.merge_regions(check_pairs(regions), max(lengths.seconds))
        mask = timeline.keep_mask(self.config, merged, lengths).to(self.device, self.dtype)
        return torch.cat((mask, mask * self._source_latents("source_audio", source_audio, lengths, chunk_size, overlap)), dim=1)

    def _source_latents(self, name: str, source: tuple[int, Tensor], lengths: timeline.Lengths, chunk_size, overlap: int) -> Tensor:
        """Latents (B, D, T) of a clip, cut or zero-padded to each item's own length."""
        if not isinstance(source, (list, tuple)) or len(source) != 2:
            raise SA3Error(f"{name} is {type(source).__name__}; expected (rate, waveform).")
        waveform = to_model(name, *source, self.config.sample_rate, self.config.same.audio_channels)
        out = torch.zeros(len(lengths), self.config.same.latent_dim, lengths.frames, device=self.device, dtype=self.dtype)
        for own in set(lengths.own):
            n = own * self.config.same.samples_per_frame
            clip = torch.nn.functional.pad(waveform[:, :n], (0, max(0, n - waveform.shape[1])))
            out[[i for i, other in enumerate(lengths.own) if other == own], :, :own] = self.encode(clip[None], chunk_size, overlap)
        return out


def load(
    path: str | Path, device="cpu", dtype: torch.dtype | str = torch.float32, text_encoder: str | Path | None = None,
    objective: str = "auto", autoencoder: bool = False,
) -> Model:  # fmt: skip
    """Load a model in any layout: a release's folder, its weights file, a single file without a config, or one of `DEMOS`.

    dtype: of the transformer and the autoencoder, also by name: fp32, fp16, bf16. The text encoder's activations exceed the range of
    float16, for which it computes in bfloat16 on a GPU that supports it, else in float32. text_encoder: the folder t5gemma-b-b-ul2 or the
    repackaged file, if it is neither next to the weights nor in the Hugging Face cache. objective: "base" or "post-trained", for a file
    without a config whose name does not contain it. autoencoder: load only SAME. Raises SA3Error for anything that is not exactly a
    Stable Audio 3 model.
    """
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise SA3Error(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}, or a floating-point torch.dtype.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise SA3Error(f"The device is {device!r}: {str(error).splitlines()[0][:80]}; expected one of torch's: cpu, cuda, mps.") from error
    if not isinstance(path, (str, Path)):
        raise SA3Error(f"The model is {path!r}; expected a path, or one of {', '.join(DEMOS)}.")
    watch = run_record.Stopwatch()
    opened = checkpoint.open_checkpoint(DEMOS.get(str(path), path), objective, autoencoder)
    watch.lap("open")
    module = checkpoint.load_into(build(opened.config), opened.tensors, opened.prefix, dtype, device)
    watch.lap("weights")
    encoder = None
    if opened.config.conditioning is not None:
        width = opened.config.conditioning.cond_dim
        encoder_path = text_encoder or opened.text_encoder or cached_text_encoder(width)
        if encoder_path is not None:
            encoder = checkpoint.load_text_encoder(encoder_path, encoder_dtype(dtype, device), device, width)
            watch.lap("text encoder")
    return Model(opened.config, module, encoder, opened.name, opened.path, run_record.load_record(opened, dtype, device, watch))


def _guidance(cfg, apg, rescale, norm_threshold, interval) -> Guidance:
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise SA3Error(f"cfg_interval is {interval}; expected two noise levels, start and end.")
    return Guidance(cfg, apg, rescale, norm_threshold, *interval)


def _noise(seed: int | None) -> Noise | None:
    if seed is not None:
        check_seed(seed)
    return None if seed is None else Noise(seed)


def _lengths_of(padding_mask: Tensor) -> list[int]:
    """Valid frames per item of a padding mask (B, T)."""
    lengths = padding_mask.bool().sum(1).tolist()
    if not torch.equal(padding_mask.bool().cpu(), valid_mask(lengths, padding_mask.shape[1])) or min(lengths) < 1:
        raise SA3Error(f"The padding mask has {lengths} True frames per item; expected them first in each row, and at least one.")
    return lengths


def _broadcast(prompt, negative, duration) -> tuple[list[str], list[str] | None, list[float]]:
    """Prompts, negative prompts and durations as lists of one entry per item."""
    rows = {"prompt": prompt, "negative_prompt": negative, "duration": duration}
    rows = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in rows.items()}
    batch = max(map(len, rows.values()))
    for name, row in rows.items():
        if len(row) not in (1, batch) or not row:
            raise SA3Error(f"{name} has {len(row)} entries and the batch {batch} items; give one for all, or one per item.")
    prompts, negatives, seconds = (row * (batch // len(row)) for row in rows.values())
    return prompts, None if negative is None else negatives, seconds
