"""The MODEL socket: a ModelPatcher over the transformer and conditioner of Stable Audio 3."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import comfyui_version
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...sa3_core import run_record
from ...sa3_core.audio.waveform import check_tensor, repeated
from ...sa3_core.backends.device import backend_of
from ...sa3_core.checkpoints import checkpoint
from ...sa3_core.checkpoints.checkpoint import Checkpoint
from ...sa3_core.checkpoints.detect import PRETRANSFORM
from ...sa3_core.config import FRAME, ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.models.conditioning import Conditioner
from ...sa3_core.models.conditions import Conditions, LocalInput
from ...sa3_core.models.dit import DiT
from ...sa3_core.timeline.durations import Lengths, lengths, seconds_of
from . import run_options
from .operations import Operations
from .patchers import foreign_patches, patcher_over
from .progress import warn

RUN_INPUTS = "sa3_run"  # key of a conditioning entry with the RunInputs of our sampler
DIT_PREFIX, CONDITIONER_PREFIX = "model.model.", "conditioner."  # of a release's tensors
NO_PATCHES = "Another node patches attention or blocks of this MODEL, which Stable Audio 3 does not support; its patches have no effect."
ROWS_PER_TOKEN = 24  # live activations of a layer per token, in rows of `width`: feed-forward 12, attention and residuals the rest


class RunInputs:
    """The inputs of a run that all its conditions share: lengths, and the local input (B, D + 1, T), None = zeros."""

    def __init__(self, lengths: Lengths, local: Tensor | None = None):
        self.lengths, self.local = lengths, local
        self.embeddings: LocalInput | None = None

    def local_embeddings(self, dit: DiT, frames: int, device, dtype) -> LocalInput:
        """The embedded local input, computed for the first condition that needs it."""
        if self.embeddings is None:
            dim = dit.config.local_dim
            local = torch.zeros(1, dim, 1, device=device, dtype=dtype) if self.local is None else self.local.to(device, dtype)
            self.embeddings = dit.local_embeddings(local, frames)
        return self.embeddings


class CondInputs(comfy.conds.CONDRegular):
    """The prepared conditions of one CONDITIONING entry. ComfyUI concatenates several to run them as one batch; cached for the run."""

    def __init__(self, inputs: Conditions):
        super().__init__(inputs)
        self.joined: dict[tuple[int, ...], Conditions] = {}

    def process_cond(self, batch_size, **kwargs):
        return self

    def can_concat(self, other) -> bool:
        return isinstance(other, CondInputs) and other.cond.frames == self.cond.frames

    def concat(self, others) -> Conditions:
        key = tuple(map(id, others))
        if key not in self.joined:
            self.joined[key] = Conditions.join([self.cond, *(other.cond for other in others)])
        return self.joined[key]

    def size(self) -> list[int]:
        return [self.cond.batch, self.cond.frames]


class Denoiser(DiT):
    """The transformer with the call signature that ComfyUI's BaseModel uses, and the layer names of core's Stable Audio 3, which LoRA
    files for ComfyUI contain."""

    def __init__(self, config: ModelConfig, operations, dtype: torch.dtype):
        super().__init__(config.dit, operations, "meta", dtype)
        self.dtype = dtype
        self.ignored_patches = False  # whether the latest run had patches of attention or blocks

    def forward(self, x, t, context=None, control=None, transformer_options=None, **kwargs):
        if isinstance(context, Conditions):  # CUDA graphs and scheduled LoRAs call the network itself
            return super().forward(x, t, context)
        core = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, core)  # of other nodes, such as EasyCache
        return WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(x, t, context, control, core, **kwargs)

    def _forward(self, x, t, context, control, core: dict, sa3_inputs: Conditions | None = None, **kwargs):
        options = run_options.read(core)
        times = options.times_of(core.get("sigmas"))
        if times is not None:
            t = times.repeat(len(x) // len(times))  # core runs all conditions as one batch, or one by one
        if has_patches(core):
            self.ignored_patches = True
        network = super().forward if options.graphs is None else partial(options.graphs.velocity, self)
        if not options.stack.scheduled:
            return network(x, t, sa3_inputs)
        sigmas = core.get("sample_sigmas") if options.sigmas is None else options.sigmas
        return options.stack.velocity(self, x, t, sa3_inputs, sigmas, read_weight, network)


class SA3Latents(comfy.latent_formats.LatentFormat):
    latent_channels = 256
    latent_dimensions = 1
    temporal_downscale_ratio = FRAME  # as in SA3_EmptyLatent's LATENT, else core stretches it


class SA3ModelConfig(comfy.supported_models_base.BASE):
    unet_config = {"disable_unet_model_creation": True}
    latent_format = SA3Latents
    sampling_settings = {"shift": 1.0, "multiplier": 1.0}

    # of core's CheckpointSave: a release's names, whose text encoder is a file of its own
    def process_unet_state_dict_for_saving(self, state_dict):
        return {DIT_PREFIX + name: tensor for name, tensor in state_dict.items()}

    def process_vae_state_dict_for_saving(self, state_dict):
        return {PRETRANSFORM + name: tensor for name, tensor in state_dict.items()}

    def process_clip_state_dict_for_saving(self, state_dict):
        return {}


class SA3Model(comfy.model_base.BaseModel):
    """A flow model whose timestep is the noise level."""

    def __init__(
        self, config: ModelConfig, denoiser: Denoiser, conditioner: Conditioner, compute_dtype: torch.dtype, name: str, path: Path
    ):  # fmt: skip
        host = SA3ModelConfig(SA3ModelConfig.unet_config)
        host.latent_format.latent_channels = config.same.latent_dim
        host.latent_format.temporal_downscale_ratio = config.same.samples_per_frame
        host.set_inference_dtype(denoiser.dtype, compute_dtype if compute_dtype != denoiser.dtype else None)
        super().__init__(host, comfy.model_base.ModelType.FLOW)
        self.diffusion_model, self.conditioner = denoiser, conditioner
        self.sa3_config, self.sa3_name, self.sa3_path = config, name, path
        self.sa3_adapters: dict = {}  # LoRA files fitted to this model
        self.sa3_loaded: dict = {}  # run_record.load_record

    @property
    def dit(self) -> Denoiser:
        """With `conditioner`, what `sa3_core.lora` asks of a model."""
        return self.diffusion_model

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.manual_cast_dtype or self.get_dtype()

    @contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Runs inside compute in this dtype: layers cast their weights at each use."""
        previous = self.manual_cast_dtype
        self.manual_cast_dtype = None if dtype == self.get_dtype() else dtype
        try:
            yield
        finally:
            self.manual_cast_dtype = previous

    def process_timestep(self, timestep, **kwargs):
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)  # ModelSamplingSD3 sets that of other models

    def state_dict_for_saving(self, *states, **named_states):
        saved = super().state_dict_for_saving(*states, **named_states)
        if not any(name.startswith(PRETRANSFORM) for name in saved):
            raise SA3Error("A Stable Audio 3 file also holds the autoencoder; save it with CheckpointSave and the VAE.")
        return saved | {CONDITIONER_PREFIX + name: tensor for name, tensor in self.conditioner.state_dict().items()}

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        core = transformer_options or {}
        if run_options.KEY not in core and self.current_patcher is not None:  # another node has replaced transformer_options
            core = {**core, run_options.KEY: run_options.read(self.current_patcher.model_options)}
        return super()._apply_model(x, t, c_concat, c_crossattn, control, core, **kwargs)

    def extra_conds(self, **kwargs) -> dict:
        """What all steps of a run share, for one condition. Core calls this once per run, after the weights are loaded."""
        noise, device, dtype = kwargs["noise"], kwargs["device"], self.compute_dtype
        self.diffusion_model.ignored_patches = False
        self._apply_hooks(kwargs.get("hooks"))
        run = kwargs.get(RUN_INPUTS) or RunInputs(unpadded_lengths(self.sa3_config, noise, kwargs.get("seconds_total")))
        dit, lengths = self.diffusion_model, run.lengths
        rows, mask = prompt_rows(kwargs.get("cross_attn"), kwargs.get("attention_mask"), len(lengths))
        rows = rows.to(device, dtype)
        cond = self.conditioner(rows, mask, lengths.seconds, negative=kwargs.get("prompt_type") == "negative")
        cross_attn = cond.cross_attn
        if rows.shape[1] and not bool(rows.any()):  # ConditioningZeroOut, or no negative: the reference's empty context
            cross_attn = torch.zeros_like(cross_attn)
        local = run.local_embeddings(dit, max(lengths.valid), device, dtype)
        return {"sa3_inputs": CondInputs(dit.prepare(cross_attn, cond.global_cond, local, lengths.frames, lengths.valid))}

    def _apply_hooks(self, hooks) -> None:
        """Apply the LoRA hooks of a condition, which core does from the first step on: the layers of `prepare` run before."""
        if self.current_patcher is None:
            return
        self.current_patcher.apply_hooks(hooks)
        if hooks is not None and any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks.hooks):
            warn("Keyframes of a LoRA hook do not change the layers that read the prompt; schedule the LoRA with SA3 LoRA Stack.")

    def memory_required(self, input_shape, cond_shapes=None) -> float:
        """Bytes of activations for latents of input_shape, and of the constants that extra_conds computes."""
        dit, batch, frames = self.sa3_config.dit, input_shape[0], input_shape[-1]
        rows = backend_of(torch.device("cpu")).padded_rows(frames + dit.memory_tokens)  # the CPU pads most
        context = self.sa3_config.conditioning.max_tokens + 1
        constants = dit.depth * (context * (3 if dit.differential else 2) + frames)
        size = comfy.model_management.dtype_size(self.compute_dtype)
        return batch * dit.width * size * (rows * ROWS_PER_TOKEN + constants)


def unpadded_lengths(config: ModelConfig, latents: Tensor, seconds_total: float | None = None) -> Lengths:
    """The lengths of latents (B, D, T) from core, without a duration of their own: all frames are valid.

    seconds_total: a CONDITIONING's duration, on which the model is conditioned in place of that of the latents.
    """
    seconds = seconds_of(latents.shape[-1] * config.same.samples_per_frame, config.sample_rate)
    whole = lengths(config, [seconds] * len(latents), 0.0, latents.shape[-1])
    return whole if seconds_total is None else replace(whole, seconds=(float(seconds_total),) * len(whole))


def prompt_rows(embeddings: Tensor | None, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """A CONDITIONING's rows and mask, of 1 or B prompts, or of a divisor of B that repeat in turn, as (B, n, dim) and (B, n)."""
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 3 or not len(embeddings):
        raise SA3Error("The CONDITIONING holds no prompt embeddings; connect SA3_TextEncode or CLIPTextEncode with this pack's CLIP.")
    check_tensor("The CONDITIONING", embeddings)
    if not bool(torch.isfinite(embeddings.float()).all()):
        raise SA3Error("The CONDITIONING contains NaN or infinite values; check the CLIP and the nodes after it.")
    if mask is not None:
        check_tensor("The CONDITIONING's attention_mask", mask, integers=True)
        if mask.dim() != 2 or mask.shape[0] not in (1, embeddings.shape[0], batch):
            raise SA3Error(f"The CONDITIONING's attention_mask has shape {tuple(mask.shape)}; expected {tuple(embeddings.shape[:2])}.")
    mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device) if mask is None else mask.bool()
    # ConditioningConcat appends tokens to the prompt without extending the mask
    mask = torch.nn.functional.pad(mask, (0, embeddings.shape[1] - mask.shape[1]), value=True)
    if batch % embeddings.shape[0]:
        raise SA3Error(
            f"The CONDITIONING has {embeddings.shape[0]} prompts and the LATENT {batch} items; expected one prompt, or one per item."
        )
    return repeated(embeddings, batch), repeated(mask, batch)


def load_model(opened: Checkpoint, weight_dtype: torch.dtype | None, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A ModelPatcher over the transformer and conditioner of a checkpoint. weight_dtype: None = the one that ComfyUI prefers."""
    watch = run_record.Stopwatch()
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    config = opened.config
    parts = DiT(config.dit, device="meta"), Conditioner(config.conditioning, device="meta")
    dit_names, conditioner_names = (part.state_dict() for part in parts)  # with dynamic VRAM, ComfyUI's layers have no weights yet
    parameters = sum(p.numel() for part in parts for p in part.parameters())
    dtype = weight_dtype or comfy.model_management.unet_dtype(device, parameters)
    cast = None
    if weight_dtype is None or not computes_in(dtype, device):
        cast = comfy.model_management.unet_manual_cast(dtype, device)
    operations = Operations if cast is None else comfy.ops.manual_cast
    denoiser, conditioner = Denoiser(config, operations, dtype), Conditioner(config.conditioning, operations, "meta", dtype)
    initial = comfy.model_management.unet_inital_load_device(parameters, dtype)
    checkpoint.load_into(denoiser, opened.tensors, DIT_PREFIX, dtype, initial, dit_names)
    checkpoint.load_into(conditioner, opened.tensors, CONDITIONER_PREFIX, dtype, initial, conditioner_names)
    model = SA3Model(config, denoiser, conditioner, cast or dtype, opened.name, opened.path)
    model.sa3_loaded = run_record.load_record(opened, dtype, device, watch)
    reload = reload_model, (opened.path, opened.objective, weight_dtype)
    return patcher_over(model, device, offload, reload, disable_dynamic)


def reload_model(path: Path, objective: str, weight_dtype: torch.dtype | None, disable_dynamic: bool = False):
    """`load_model` from the file, for a clone with its own weights."""
    return load_model(checkpoint.open_checkpoint(path, objective), weight_dtype, disable_dynamic)


def computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device is a CPU that multiplies in this 16-bit dtype. ComfyUI assumes that none does, and casts weights in each step."""
    return comfy.model_management.is_device_cpu(device) and backend_of(torch.device("cpu")).multiplies(dtype)


def sa3_model(model) -> SA3Model:
    """The SA3Model inside a MODEL. Raises SA3Error for other models."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, SA3Model):
        found = type(inner).__name__ if inner is not None else type(model).__name__
        raise SA3Error(f"The MODEL is a {found}, not Stable Audio 3; connect the MODEL of SA3_ModelLoader.")
    return inner


def read_weight(layer, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer as float32 copies on the device of `like`. They may be offloaded, with patches not yet applied."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, None, like.dtype, like.device, like.dtype, offloadable=True)
    copies = tuple(None if tensor is None else tensor.to(torch.float32, copy=True) for tensor in (weight, bias))
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return copies


def has_patches(transformer_options: dict) -> bool:
    """Whether nodes have set patches of attention or blocks, which have no effect here."""
    return any(transformer_options.get(key) for key in ("patches", "patches_replace"))


def result_warnings(model) -> list[str]:
    """Sentences about the latest run of a MODEL: why it went without its CUDA graphs, and what had no effect."""
    graphs = run_options.read(model.model_options).graphs
    sentences = [f"This run went without CUDA graphs: {graphs.reason}."] if graphs is not None and graphs.reason else []
    return sentences + [NO_PATCHES] * sa3_model(model).diffusion_model.ignored_patches


def record_fields(model) -> dict:
    """The arguments of `run_record.record` that describe a MODEL. After the first call its cache_hit is True."""
    inner, options = sa3_model(model), run_options.read(model.model_options)
    loaded = inner.sa3_loaded
    inner.sa3_loaded = {**loaded, "cache_hit": True}
    foreign = len(foreign_patches(model))
    return {
        "loaded": loaded,
        "loras": options.stack.record(),
        "host": {"comfyui": comfyui_version.__version__},
        **({"weights_patched_by_other_nodes": foreign} if foreign else {}),
        **({} if options.graphs is None else {"compiled": options.graphs.state}),
    }
