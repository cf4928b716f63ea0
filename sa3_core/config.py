"""Parse ``model_config.json`` into frozen dataclasses. An option that would change the network in an unsupported way is an error."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import SA3Error
from .files import read_json
from .sampling.schedule import build as build_schedule

RATE, FRAME = 44100, 4096  # of the released models: samples per second, samples per latent frame

# Upper limits, above every released value, so that a damaged file cannot request a huge network. Other whole numbers: 2^20.
LARGEST = {
    "sample_size": 2**31, "sample_rate": 768_000, "depth": 512, "transformer_depths": 512, "embed_dim": 2**16, "channels": 2**16,
    "num_memory_tokens": 2**16, "mult": 64,
}  # fmt: skip
OBJECTIVES = ("rf_denoiser", "rectified_flow")
KINDS = {int: "a positive whole number", float: "a finite number", dict: "an object", str: "text", list: "a list"}  # in errors


@dataclass(frozen=True)
class ResamplerConfig:
    """One side of SAME: a stack of transformer blocks that maps `stride` patches to one latent frame, or back."""

    side: str  # "encoder" | "decoder"
    patch_channels: int  # audio channels x patch size
    width: int
    latent_dim: int
    stride: int
    depth: int
    head_dim: int
    conv_mapping: bool
    chunk_size: int | None  # patches per attention chunk, None with a sliding window
    midpoint_shift: bool
    window: int | None  # tokens attended to on each side, None with chunks
    sinusoidal: int  # number of last blocks that gate with a sine
    mask_noise: float

    @property
    def align(self) -> int:
        """Latent frames per attention chunk (1 with a sliding window)."""
        return 1 if self.chunk_size is None else self.chunk_size // self.stride

    @property
    def reach(self) -> int:
        """Frames on either side that an output frame can depend on, the mapping convolution included."""
        if self.window is not None:
            return self.depth * -(-self.window // (self.stride + 1)) + 1
        return 2 * self.align + 1


@dataclass(frozen=True)
class SAMEConfig:
    encoder: ResamplerConfig
    decoder: ResamplerConfig
    audio_channels: int
    patch_size: int
    latent_dim: int
    samples_per_frame: int


@dataclass(frozen=True)
class DiTConfig:
    io_channels: int
    width: int
    depth: int
    heads: int
    cond_dim: int
    global_dim: int
    local_dim: int  # one mask channel and the masked latents
    differential: bool  # differential attention
    ff_mult: float
    memory_tokens: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        return max(self.head_dim // 2, 32)


@dataclass(frozen=True)
class ConditioningConfig:
    cond_dim: int
    max_tokens: int  # of a prompt; longer ones are cut
    text_subfolder: str  # of the release's folder, with the text encoder
    seconds_min: float
    seconds_max: float


@dataclass(frozen=True)
class ModelConfig:
    sample_rate: int
    sample_size: int | None  # the longest clip in samples; None for a standalone autoencoder
    same: SAMEConfig
    dit: DiTConfig | None = None
    conditioning: ConditioningConfig | None = None
    objective: str | None = None
    schedule: dict = field(default_factory=dict)  # kind and parameters of the default schedule
    align: int = 1  # latent frames are rounded up to a multiple of this

    @property
    def is_base(self) -> bool:
        """A base checkpoint (rectified flow) as opposed to a post-trained one (denoiser, few steps)."""
        return self.objective == "rectified_flow"

    @property
    def max_seconds(self) -> float:
        return min(self.sample_size / self.sample_rate, self.conditioning.seconds_max)

    @property
    def default_steps(self) -> int:
        return 50 if self.is_base else 8

    @property
    def default_cfg(self) -> float:
        return 7.0 if self.is_base else 1.0

    @property
    def default_sampler(self) -> str:
        return "euler" if self.is_base else "pingpong"


class _Section:
    """One object of the file. `close` refuses every key in it, or in an object inside it, that was not read and switches something on."""

    def __init__(self, values, where: str):
        if not isinstance(values, dict):
            raise SA3Error(f"model_config.json: '{where}' is {type(values).__name__}, expected an object with keys.")
        self.values, self.where, self.read, self.inner = values, where, set(), []

    def refuse(self, key: str, value, why: str) -> SA3Error:
        return SA3Error(f"model_config.json: '{self.where}.{key}' is {json.dumps(value)[:80]}; {why}.")

    def get(self, key: str, default=None):
        self.read.add(key)
        return self.values.get(key, default)

    def checked(self, key: str, value, kind: type):
        """`value` as a JSON kind: positive whole numbers up to LARGEST for int, finite numbers for float."""
        valid = isinstance(value, (int, float) if kind in (int, float) else kind) and not isinstance(value, bool)
        if valid and kind in (int, float):
            valid = abs(value) < 1e38 if kind is float else 0 < value <= LARGEST.get(key, 2**20) and float(value).is_integer()
        if not valid:
            raise self.refuse(key, value, f"expected {KINDS[kind]}")
        return kind(value)

    def value(self, key: str, kind: type, default=None):
        """The value of a key, of type `kind`. A key without a default is required."""
        if key not in self.values and default is None:
            raise SA3Error(f"model_config.json: '{self.where}.{key}' is missing; the file is not a complete Stable Audio 3 config.")
        return self.checked(key, self.get(key, default), kind)

    def integer(self, key: str, default: int | None = None) -> int:
        return self.value(key, int, default)

    def single(self, key: str) -> int:
        """The whole number in a list of one."""
        values = self.value(key, list)
        if len(values) != 1:
            raise self.refuse(key, values, "expected a list of one whole number (a single resampling block)")
        return self.checked(key, values[0], int)

    def equal(self, key: str, expected: int, source: str, required: bool = False) -> int:
        """A whole number that another part of the file implies; any other value is refused."""
        if (value := self.integer(key, None if required else expected)) != expected:
            raise self.refuse(key, value, f"expected {expected}, {source}")
        return value

    def choice(self, key: str, supported: Sequence, default=None):
        value = self.get(key, default)
        if value not in supported:
            raise self.refuse(key, value, f"supported: {', '.join(map(repr, supported))}")
        return value

    def require(self, **supported: Sequence) -> None:
        """Keys that must be present, with the values that are computed here."""
        for key, values in supported.items():
            self.choice(key, values)

    def allow(self, **supported: Sequence) -> None:
        """Keys that may be absent, with the values that are computed here."""
        for key, values in supported.items():
            self.choice(key, values, values[0])

    def ignore(self, *keys: str) -> None:
        """Keys without effect on the result."""
        self.read.update(keys)

    def add(self, values, key: str) -> "_Section":
        self.inner.append(_Section(values, f"{self.where}.{key}"))
        return self.inner[-1]

    def section(self, key: str, required: bool = True) -> "_Section":
        return self.add(self.value(key, dict) if required else self.get(key) or {}, key)

    def component(self, key: str, *types: str) -> "_Section":
        """The `config` of an object {"type": one of `types`, "config": {...}}."""
        outer = self.section(key)
        outer.require(type=types)
        outer.ignore("requires_grad", "enable_grad")
        return outer.section("config")

    def close(self) -> None:
        for key, value in self.values.items():
            if key not in self.read and value not in (None, False, 0, "", "none", [], {}):
                raise self.refuse(key, value, "this option is unknown here; no released Stable Audio 3 model uses it")
        for section in self.inner:
            section.close()


def read(path: str | Path) -> ModelConfig:
    """The parsed contents of a ``model_config.json`` file."""
    return parse(read_json(path, "the model_config.json of the release"))


def parse(data: dict) -> ModelConfig:
    """The config of a generative model or a standalone autoencoder.

    Raises SA3Error naming the key that is missing, mistyped or not supported.
    """
    top = _Section(data, "config")
    kind = top.choice("model_type", ["diffusion_cond_inpaint", "autoencoder"])
    rate, channels = top.integer("sample_rate"), top.integer("audio_channels", 2)
    model = top.section("model")
    if kind == "autoencoder":
        same = _same(model, channels)
        model.close()
        return ModelConfig(rate, None, same, align=same.encoder.align)

    pretransform = model.section("pretransform")
    pretransform.require(type=["autoencoder"])
    pretransform.allow(scale=[1])
    pretransform.ignore("iterate_batch", "chunked", "model_half", "enable_grad")
    same = _same(pretransform.section("config"), channels)
    conditioning = _conditioning(model.section("conditioning"))
    diffusion = model.section("diffusion")
    objective = diffusion.choice("diffusion_objective", OBJECTIVES)
    diffusion.require(type=["dit"], cross_attention_cond_ids=[["prompt", "seconds_total"]], global_cond_ids=[["seconds_total"]])
    diffusion.require(local_add_cond_ids=[["inpaint_mask", "inpaint_masked_input"]])
    diffusion.allow(use_effective_length_for_schedule=[True], mask_padding_attention=[True])
    diffusion.ignore("distribution_shift_options")  # used in training only
    schedule = _schedule(diffusion)
    dit = _dit(diffusion.section("config"), same.latent_dim, conditioning.cond_dim)
    model.equal("io_channels", dit.io_channels, "as in the transformer")
    model.close()
    # The public pipeline aligns to the encoder's chunk_size // stride, with 32 patches where the config names no chunk size.
    align = max(1, (same.encoder.chunk_size or 32) // same.encoder.stride)
    return ModelConfig(rate, top.integer("sample_size"), same, dit, conditioning, objective, schedule, align)


def _same(s: _Section, audio_channels: int) -> SAMEConfig:
    s.allow(soft_clip=[False, None])
    s.ignore("sample_rate")
    patches = s.component("pretransform", "patched")
    patch_size, channels, latent_dim = patches.integer("patch_size"), patches.integer("channels", audio_channels), s.integer("latent_dim")
    s.integer("io_channels", channels)
    encoder, decoder = (
        _resampler(s.component(side, "taae_v2", "same"), side, patch_size * channels, latent_dim) for side in ("encoder", "decoder")
    )
    bottleneck = s.component("bottleneck", "softnorm")
    bottleneck.integer("dim", latent_dim)
    bottleneck.allow(noise_augment_dim=[0])
    bottleneck.require(noise_regularize=[True])
    bottleneck.ignore("auto_scale", "freeze")
    ratio, expected = s.integer("downsampling_ratio"), patch_size * encoder.stride
    if ratio != expected or decoder.stride != encoder.stride:
        raise s.refuse("downsampling_ratio", ratio, f"patch size x stride is {expected}")
    return SAMEConfig(encoder, decoder, channels, patch_size, latent_dim, ratio)


def _resampler(s: _Section, side: str, patch_channels: int, latent_dim: int) -> ResamplerConfig:
    s.require(variable_stride=[True])
    s.allow(differential=[True], dyt=[True], conformer=[False], layer_scale=[False])
    s.ignore("conv_bias", "mapping_style", "use_flash", "use_snake", "use_dilated_conv", "enable_inner_layer_dropout", "checkpointing",
             "freeze_backbone", "requires_grad", "enable_grad", "iterate_batch", "training")  # fmt: skip
    s.equal("in_channels" if side == "encoder" else "out_channels", patch_channels, "the number of channels of a patch")
    s.equal("latent_dim", latent_dim, "the autoencoder's")
    width, stride, head_dim = s.integer("channels") * s.single("c_mults"), s.single("strides"), s.integer("dim_heads", 128)
    if width > LARGEST["channels"]:
        raise s.refuse("c_mults", s.get("c_mults"), f"the width would be {width}, expected at most {LARGEST['channels']}")
    if width % head_dim:
        raise s.refuse("dim_heads", head_dim, f"the width {width} is not a multiple of it")
    chunk, midpoint_shift, window = None, False, s.get("sliding_window")
    if window is None:
        chunk, midpoint_shift = s.integer("chunk_size", 128), bool(s.get("chunk_midpoint_shift"))
        if chunk % stride or (midpoint_shift and (chunk // stride) % 2):
            raise s.refuse("chunk_size", chunk, f"expected a multiple of the stride {stride} (even with a midpoint shift)")
    else:
        if not isinstance(window, list) or len(window) != 2 or window[0] != window[1]:
            raise s.refuse("sliding_window", window, "expected two equal whole numbers")
        window = s.checked("sliding_window", window[0], int) * (stride + 1)
        s.ignore("chunk_size", "chunk_midpoint_shift")
    sinusoidal = s.get("sinusoidal_blocks") or [0]
    if not isinstance(sinusoidal, list) or len(sinusoidal) != 1 or not isinstance(sinusoidal[0], int):
        raise s.refuse("sinusoidal_blocks", sinusoidal, "expected a list of one whole number")
    return ResamplerConfig(
        side=side, patch_channels=patch_channels, width=width, latent_dim=latent_dim, stride=stride, depth=s.single("transformer_depths"),
        head_dim=head_dim, conv_mapping=bool(s.get("conv_mapping")), chunk_size=chunk, midpoint_shift=midpoint_shift, window=window,
        sinusoidal=sinusoidal[0], mask_noise=s.value("mask_noise", float, 0.0),
    )  # fmt: skip


def _conditioning(s: _Section) -> ConditioningConfig:
    conditioners = {}
    for i, entry in enumerate(s.value("configs", list)):
        item = s.add(entry, f"configs[{i}]")
        name = item.choice("id", ["prompt", "seconds_total"])
        item.require(type=["t5gemma" if name == "prompt" else "number"])
        conditioners[name] = item.section("config")
    for name in ("prompt", "seconds_total"):
        if name not in conditioners:
            raise SA3Error(f"model_config.json: '{s.where}.configs' has no '{name}'; Stable Audio 3 needs prompt and seconds_total.")
    prompt, seconds = conditioners["prompt"], conditioners["seconds_total"]
    prompt.require(padding_mode=["learned"])
    prompt.allow(project_out=[False])
    prompt.ignore("repo_id", "model_name", "enable_grad")
    seconds.require(fourier_features_type=["expo"])
    low, high = seconds.value("min_val", float, 0.0), seconds.value("max_val", float, 1.0)
    if not high > low:
        raise seconds.refuse("max_val", high, f"expected more than min_val, {low}")
    return ConditioningConfig(
        cond_dim=s.integer("cond_dim"), max_tokens=prompt.integer("max_length", 128),
        text_subfolder=prompt.value("subfolder", str) if prompt.get("subfolder") else "", seconds_min=low, seconds_max=high,
    )  # fmt: skip


def _dit(s: _Section, latent_dim: int, conditioner_dim: int) -> DiTConfig:
    s.require(global_cond_type=["adaLN"], timestep_features_type=["expo"], norm_type=["rms_norm"])
    s.allow(patch_size=[1])
    attention = s.section("attn_kwargs", required=False)
    attention.require(qk_norm=["rms"])
    s.section("norm_kwargs", required=False).allow(force_fp32=[True])
    ff = s.section("ff_kwargs", required=False)
    mult = ff.value("mult", float, 4.0)
    width, heads = s.integer("embed_dim"), s.integer("num_heads")
    if width % heads or width // heads < 32:
        raise s.refuse("num_heads", heads, f"the width {width} must be a multiple of it, at least 32 channels a head")
    if not 0 < mult <= LARGEST["mult"] or int(width * mult) < 1:
        raise ff.refuse("mult", mult, f"expected more than 0 and at most {LARGEST['mult']}")
    return DiTConfig(
        io_channels=s.equal("io_channels", latent_dim, "the autoencoder's latent channels", required=True),
        width=width, depth=s.integer("depth"), heads=heads, memory_tokens=s.integer("num_memory_tokens"),
        differential=bool(attention.get("differential")), ff_mult=mult,
        cond_dim=s.equal("cond_token_dim", conditioner_dim, "the conditioner's width", required=True),
        global_dim=s.equal("global_cond_dim", conditioner_dim, "the conditioner's width", required=True),
        local_dim=s.equal("local_add_cond_dim", latent_dim + 1, "one mask channel and the masked latents", required=True),
    )  # fmt: skip


def _schedule(s: _Section) -> dict:
    """Kind and parameters of the checkpoint's own schedule. Builds it once, so that a wrong parameter is an error here."""
    key = "sampling_distribution_shift_options"
    options = s.get(key) or {"type": "logsnr"}
    if not isinstance(options, dict):
        raise s.refuse(key, options, "expected an object")
    parameters = {name: value for name, value in options.items() if name != "type"}
    kind = options.get("type", "full")
    try:
        build_schedule(kind, 2, length=1000.0, **parameters)
    except (SA3Error, TypeError) as error:
        raise s.refuse(key, options, str(error)) from error
    return {"kind": kind, **parameters}
