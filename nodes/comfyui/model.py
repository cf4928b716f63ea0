"""The MODEL socket: a ModelPatcher over Stable Audio 3's transformer and conditioner."""

from collections.abc import Callable, Iterator
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
from torch import Tensor

from ...sa3_core import run_record
from ...sa3_core.backends.accelerator import Accelerator
from ...sa3_core.backends.device import backend_of
from ...sa3_core.checkpoints import checkpoint
from ...sa3_core.checkpoints.checkpoint import Checkpoint
from ...sa3_core.config import FRAME, ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.models.conditions import Conditions, LocalInput
from ...sa3_core.models.release import ConditionedDiT
from ...sa3_core.timeline.durations import Lengths, lengths
from . import run_options
from .operations import Operations
from .patchers import patcher_over

CAST = "its weights are moved or converted in every step"
RUN = "sa3_run"  # key of a conditioning entry: what our Sampler tells the model of its run
# Live activations of a layer in rows of `width` per token (the gated feed-forward holds 12, attention and residuals the rest).
ROWS_PER_TOKEN = 24


class Run:
    """One run's inputs beside the prompt: time line, and the local input that all conditions share."""

    def __init__(self, lengths: Lengths, local: Tensor | None = None):
        self.lengths, self.local = lengths, local
        self.embeddings: LocalInput | None = None  # made by the first condition that is prepared

    def local_embeddings(self, module: ConditionedDiT, frames: int, device, dtype) -> LocalInput:
        if self.embeddings is None:
            dim = module.config.dit.local_dim
            local = torch.zeros(1, dim, 1, device=device, dtype=dtype) if self.local is None else self.local.to(device, dtype)
            self.embeddings = module.dit.local_embeddings(local, frames)
        return self.embeddings


class CondInputs(comfy.conds.CONDRegular):
    """Prepared inputs of one condition; ComfyUI runs several as one batch by concatenating them, which is done once a run."""

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


class Denoiser(ConditionedDiT):
    """`ConditionedDiT` behind the call signature that ComfyUI's BaseModel uses."""

    def __init__(self, config: ModelConfig, operations, dtype: torch.dtype):
        super().__init__(config, operations, device="meta", dtype=dtype)
        self.dtype = dtype

    def forward(self, x, t, context=None, control=None, transformer_options=None, sa3_inputs: Conditions | None = None, **kwargs):
        core = transformer_options or {}
        options = run_options.read(core)
        times = options.times_of(core.get("sigmas"))
        if times is not None:
            t = times.repeat(len(x) // len(times))  # core runs all conditions as one batch, or one by one
        network = self._network(options.accelerator)
        if not options.stack.scheduled:
            return network(x, t, sa3_inputs)
        sigmas = core.get("sample_sigmas") if options.sigmas is None else options.sigmas
        return options.stack.velocity(self.dit, x, t, sa3_inputs, sigmas, read_weight, network)

    def _network(self, accelerator: Accelerator | None) -> Callable[..., Tensor]:
        """(x, t, inputs) -> velocity: the transformer, through the accelerator where its weights stay as they are."""
        if accelerator is None:
            return self.dit
        if accelerator.once(("casts", self.dit), lambda: casts(self.dit)):
            accelerator.skip(CAST)
            return self.dit
        return partial(accelerator.velocity, self.dit)


class SA3Latents(comfy.latent_formats.LatentFormat):
    latent_channels = 256
    latent_dimensions = 1
    temporal_downscale_ratio = FRAME  # as SA3_EmptyLatent says, or core stretches it


class SA3ModelConfig(comfy.supported_models_base.BASE):
    unet_config = {"disable_unet_model_creation": True}
    latent_format = SA3Latents
    sampling_settings = {"shift": 1.0, "multiplier": 1.0}


class SA3Model(comfy.model_base.BaseModel):
    """Flow model whose timestep is the noise level itself."""

    def __init__(self, config: ModelConfig, denoiser: Denoiser, compute_dtype: torch.dtype, name: str, path: Path):
        host = SA3ModelConfig(SA3ModelConfig.unet_config)
        host.latent_format.latent_channels = config.same.latent_dim
        host.latent_format.temporal_downscale_ratio = config.same.samples_per_frame
        host.set_inference_dtype(denoiser.dtype, compute_dtype if compute_dtype != denoiser.dtype else None)
        super().__init__(host, comfy.model_base.ModelType.FLOW)
        self.diffusion_model = denoiser
        self.sa3_config, self.sa3_name, self.sa3_path = config, name, path
        self.sa3_adapters: dict = {}  # LoRA files read for this model
        self.sa3_loaded: dict = {}  # sa3_core.run_record.load_record

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.manual_cast_dtype or self.get_dtype()

    @contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Runs inside compute in this type; layers convert their weights as they use them."""
        before = self.manual_cast_dtype
        self.manual_cast_dtype = None if dtype == self.get_dtype() else dtype
        try:
            yield
        finally:
            self.manual_cast_dtype = before

    def extra_conds(self, **kwargs) -> dict:
        """Called once a run and condition, weights loaded: everything the steps share is computed here."""
        noise, device, dtype = kwargs["noise"], kwargs["device"], self.compute_dtype
        run = kwargs.get(RUN) or Run(whole_latents(self.sa3_config, noise, kwargs.get("seconds_total")))
        module, line = self.diffusion_model, run.lengths
        rows, mask = prompt_rows(kwargs.get("cross_attn"), kwargs.get("attention_mask"), len(line))
        rows = rows.to(device, dtype)
        cond = module.conditioner(rows, mask, line.seconds, negative=kwargs.get("prompt_type") == "negative")
        cross_attn = cond.cross_attn
        if rows.shape[1] and not bool(rows.any()):  # ConditioningZeroOut, or no negative at all: the reference's empty context
            cross_attn = module.conditioner.unconditional(len(line), cross_attn)
        local = run.local_embeddings(module, max(line.valid), device, dtype)
        return {"sa3_inputs": CondInputs(module.dit.prepare(cross_attn, cond.global_cond, local, line.frames, line.valid))}

    def memory_required(self, input_shape, cond_shapes=None) -> float:
        """Bytes of activations for a batch of input_shape, and of the constants that extra_conds keeps."""
        dit, batch = self.sa3_config.dit, input_shape[0]
        frames = input_shape[-1]
        rows = backend_of(torch.device("cpu")).padded_rows(frames + dit.memory_tokens)  # the most of all devices
        context = self.sa3_config.conditioning.max_tokens + 1
        constants = dit.depth * (context * (3 if dit.differential else 2) + frames)
        size = comfy.model_management.dtype_size(self.compute_dtype)
        return batch * dit.width * size * (rows * ROWS_PER_TOKEN + constants)


def whole_latents(config: ModelConfig, noise: Tensor, seconds_total: float | None = None) -> Lengths:
    """The time line when only latents are known (core's samplers): all frames count, nothing is padding.

    seconds_total: what a CONDITIONING asks the model to be told, in place of the latents' own duration.
    """
    seconds = noise.shape[-1] * config.same.samples_per_frame / config.sample_rate
    line = lengths(config, [seconds] * noise.shape[0], 0.0, noise.shape[-1])
    return line if seconds_total is None else replace(line, seconds=(float(seconds_total),) * len(line))


def prompt_rows(embeddings: Tensor | None, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """CONDITIONING's rows (1 or B, n, dim) and mask for a batch of B."""
    if embeddings is None or embeddings.dim() != 3:
        raise SA3Error("The CONDITIONING holds no prompt embeddings; connect SA3_TextEncode or CLIPTextEncode with this pack's CLIP.")
    mask = torch.ones(embeddings.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    # ConditioningConcat adds tokens behind the prompt and leaves the mask as it was
    mask = torch.nn.functional.pad(mask, (0, embeddings.shape[1] - mask.shape[1]), value=True)
    if embeddings.shape[0] not in (1, batch):
        raise SA3Error(
            f"The CONDITIONING has {embeddings.shape[0]} prompts and the LATENT {batch} items; give one prompt, or one per item."
        )
    return embeddings.expand(batch, -1, -1), mask.expand(batch, -1)


def load_model(opened: Checkpoint, weight_dtype: torch.dtype | None, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Weights of the generator in the type the device computes best in, behind a ModelPatcher. None = auto."""
    watch = run_record.Stopwatch()
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    parameters = _parameters(opened)
    dtype = weight_dtype or comfy.model_management.unet_dtype(
        device, parameters, supported_dtypes=[torch.float16, torch.bfloat16, torch.float32]
    )
    cast = None
    if weight_dtype is None or not computes_in(dtype, device):
        cast = comfy.model_management.unet_manual_cast(dtype, device, [torch.float16, torch.bfloat16, torch.float32])
    operations = Operations if cast is None else comfy.ops.manual_cast
    denoiser = Denoiser(opened.config, operations, dtype)
    initial = comfy.model_management.unet_inital_load_device(parameters, dtype)
    names = ConditionedDiT(opened.config, device="meta").state_dict()  # ComfyUI's layers may have no weights yet
    checkpoint.load_into(denoiser, opened.tensors, dtype=dtype, device=initial, names=names)
    model = SA3Model(opened.config, denoiser, cast or dtype, opened.name, opened.path)
    model.sa3_loaded = run_record.load_record(opened, dtype, device, watch)
    reload = reload_model, (opened.path, opened.objective, weight_dtype)
    return patcher_over(model, device, offload, reload, disable_dynamic)


def reload_model(path: Path, objective: str, weight_dtype: torch.dtype | None, disable_dynamic: bool = False):
    """The same model from its file, for a clone with weights of its own."""
    return load_model(checkpoint.open_checkpoint(path, objective), weight_dtype, disable_dynamic)


def computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a CPU multiplies in this 16-bit type. ComfyUI takes every CPU for one that does not, and casts all weights in each step."""
    return comfy.model_management.is_device_cpu(device) and backend_of(torch.device("cpu")).multiplies(dtype)


def _parameters(opened: Checkpoint) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ConditionedDiT(opened.config).parameters())


def require(model) -> SA3Model:
    """The SA3Model inside a MODEL, or a sentence about what was connected instead."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, SA3Model):
        found = type(inner).__name__ if inner is not None else type(model).__name__
        raise SA3Error(f"The MODEL is a {found}, not Stable Audio 3; connect the MODEL of SA3_ModelLoader.")
    return inner


def same_release(clone: SA3Model, model: SA3Model) -> None:
    """A clone with weights of its own takes over what the loader said of the model: its autoencoder, and how it was loaded."""
    if clone is not model:
        clone.sa3_vae, clone.sa3_loaded = getattr(model, "sa3_vae", None), dict(model.sa3_loaded)


def casts(module: torch.nn.Module) -> bool:
    """Whether layers fetch or convert their weights when they compute: those of a model that did not fit, or is stored in another type."""
    return any(getattr(layer, "comfy_cast_weights", False) or getattr(layer, "weight_function", None) for layer in module.modules())


def read_weight(layer, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with which the layer computes on an input like this one, as float32 copies.

    They may be offloaded, with patches still to be applied.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, None, like.dtype, like.device, like.dtype, offloadable=True)
    copies = tuple(None if part is None else part.to(torch.float32, copy=True) for part in (weight, bias))
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return copies


def remarks(model) -> list[str]:
    """What the user should know of the latest run."""
    accelerator = run_options.read(model.model_options).accelerator
    return [] if accelerator is None else accelerator.remarks


def run_facts(model) -> dict:
    """A MODEL's part of sa3_core.run_record.record. cache_hit: it was loaded for an earlier run."""
    inner, options = require(model), run_options.read(model.model_options)
    loaded = dict(inner.sa3_loaded)
    inner.sa3_loaded = {**loaded, "cache_hit": True}
    return {
        "loaded": loaded,
        "loras": options.stack.record(),
        "host": {"comfyui": comfyui_version.__version__},
        **({} if options.accelerator is None else {"compiled": options.accelerator.state}),
    }
