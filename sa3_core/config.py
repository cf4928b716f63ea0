"""``model_config.json`` -> frozen dataclasses. One parser; what it does not know it refuses by name."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from .errors import SA3Error
from .files import read_json
from .sampling.schedule import build as build_schedule

# The largest whole number believed of a key: a released one and room to grow, so that a broken file cannot ask for a huge network.
LARGEST = {"sample_size": 2**31, "sample_rate": 768_000, "depth": 512, "transformer_depths": 512, "embed_dim": 2**16, "channels": 2**16}
LARGEST |= {"num_memory_tokens": 2**16}
LARGEST_FF = 64  # times the width
OBJECTIVES = ("rf_denoiser", "rectified_flow")


@dataclass(frozen=True)
class ResamplerConfig:
    """One side of SAME: a stack of transformer blocks that trades `stride` patches for one latent frame."""

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
    window: int | None  # tokens a token sees on each side, None with chunks
    sinusoidal: int  # blocks with depth - i < sinusoidal gate with a sine
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
    noise_regularize: bool


@dataclass(frozen=True)
class DiTConfig:
    io_channels: int
    width: int
    depth: int
    heads: int
    cond_dim: int
    global_dim: int
    local_dim: int
    differential: bool
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
    max_tokens: int
    padding_mode: str  # learned | zero
    text_subfolder: str
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
    """A dict of the file that must be read to the last key."""

    def __init__(self, values, where: str):
        if not isinstance(values, dict):
            raise SA3Error(f"model_config.json: '{where}' is {type(values).__name__}, expected an object with keys.")
        self.values, self.where, self.seen = values, where, set()

    def get(self, key, default=None):
        self.seen.add(key)
        return self.values.get(key, default)

    def need(self, key, kind):
        self.seen.add(key)
        if key not in self.values:
            raise SA3Error(f"model_config.json: '{self.where}.{key}' is missing; the file is not a complete Stable Audio 3 config.")
        return self._typed(key, self.values[key], kind)

    def number(self, key, default, kind=float):
        self.seen.add(key)
        return self._typed(key, self.values.get(key, default), kind)

    def section(self, key) -> "_Section":
        return _Section(self.need(key, dict), f"{self.where}.{key}")

    def expect(self, key, allowed, default=None):
        """Read a choice and refuse any other value by name."""
        value = self.get(key, default)
        if value not in allowed:
            raise self.refuse(key, value, f"supported: {', '.join(map(repr, allowed))}")
        return value

    def ignore(self, *keys):
        self.seen.update(keys)

    def close(self):
        """Keys nobody read are harmless only when they switch nothing on."""
        for key, value in self.values.items():
            if key not in self.seen and value not in (None, False, 0, "", "none", [], {}):
                raise self.refuse(key, value, "this option is unknown here; no released Stable Audio 3 model uses it")

    def refuse(self, key, value, why) -> SA3Error:
        return SA3Error(f"model_config.json: '{self.where}.{key}' is {json.dumps(value)[:80]}; {why}.")

    def _typed(self, key, value, kind):
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) if kind in (int, float) else isinstance(value, kind)
        if ok and kind is int:
            ok = 0 < value <= LARGEST.get(key, 2**20) and float(value).is_integer()
        if ok and kind is float:
            ok = abs(value) < 1e38
        if not ok:
            name = {int: "a positive whole number", float: "a finite number", dict: "an object", str: "text", list: "a list"}[kind]
            raise self.refuse(key, value, f"expected {name}")
        return kind(value) if kind in (int, float) else value


def read(path: str | Path) -> ModelConfig:
    """Parse a ``model_config.json`` file."""
    return parse(read_json(path, "the model_config.json of the release"))


def parse(data: dict) -> ModelConfig:
    """Parse the contents of a ``model_config.json``: a generative model or a standalone autoencoder.

    Raises SA3Error naming the key when something is missing, mistyped or would change the network in a way
    that this implementation does not compute.
    """
    top = _Section(data, "config")
    kind = top.expect("model_type", ("diffusion_cond_inpaint", "autoencoder"))
    rate = top.need("sample_rate", int)
    channels = top.number("audio_channels", 2, int)
    model = top.section("model")
    if kind == "autoencoder":
        same = _same(model, channels)
        return ModelConfig(rate, None, same, align=same.encoder.align)

    pretransform = model.section("pretransform")
    pretransform.expect("type", ("autoencoder",))
    pretransform.expect("scale", (1, 1.0), 1)
    pretransform.ignore("iterate_batch", "chunked", "model_half", "enable_grad")
    same = _same(pretransform.section("config"), channels)
    pretransform.close()
    conditioning = _conditioning(model.section("conditioning"))
    dit, objective, schedule = _diffusion(model.section("diffusion"), conditioning, same)
    if model.number("io_channels", dit.io_channels, int) != dit.io_channels:
        raise model.refuse("io_channels", model.get("io_channels"), f"the transformer has {dit.io_channels}")
    model.close()
    # The public pipeline aligns to chunk_size // stride of the encoder, 32 patches where the config names none.
    align = max(1, (same.encoder.chunk_size or 32) // same.encoder.stride)
    return ModelConfig(rate, top.need("sample_size", int), same, dit, conditioning, objective, schedule, align)


def _same(section: _Section, audio_channels: int) -> SAMEConfig:
    patched = section.section("pretransform")
    patched.expect("type", ("patched",))
    patch = patched.section("config")
    patch_size = patch.need("patch_size", int)
    channels = patch.number("channels", audio_channels, int)
    patch.close()
    latent_dim = section.need("latent_dim", int)
    sides = {}
    for side in ("encoder", "decoder"):
        outer = section.section(side)
        outer.expect("type", ("taae_v2", "same"))
        outer.ignore("requires_grad")
        sides[side] = _resampler(outer.section("config"), side, patch_size * channels, latent_dim)
        outer.close()
    bottleneck = section.section("bottleneck")
    bottleneck.expect("type", ("softnorm",))
    norm = bottleneck.section("config")
    norm.number("dim", latent_dim, int)
    norm.expect("noise_augment_dim", (0,), 0)
    norm.ignore("auto_scale", "freeze")
    noise_regularize = bool(norm.get("noise_regularize", False))
    norm.close()
    ratio = section.need("downsampling_ratio", int)
    expected = patch_size * sides["encoder"].stride
    if ratio != expected or sides["decoder"].stride != sides["encoder"].stride:
        raise section.refuse("downsampling_ratio", ratio, f"patch size x stride is {expected}")
    section.number("io_channels", channels, int)
    section.ignore("sample_rate")
    section.expect("soft_clip", (False, None))
    section.close()
    return SAMEConfig(sides["encoder"], sides["decoder"], channels, patch_size, latent_dim, ratio, noise_regularize)


def _resampler(s: _Section, side: str, patch_channels: int, latent_dim: int) -> ResamplerConfig:
    def single(key):
        values = s.need(key, list)
        if len(values) != 1:
            raise s.refuse(key, values, "expected a list of one whole number (a single resampling block)")
        return s._typed(key, values[0], int)

    if s.number("in_channels" if side == "encoder" else "out_channels", patch_channels, int) != patch_channels:
        raise s.refuse("in_channels", s.get("in_channels"), f"patches have {patch_channels} channels")
    if s.number("latent_dim", latent_dim, int) != latent_dim:
        raise s.refuse("latent_dim", s.get("latent_dim"), f"the autoencoder's is {latent_dim}")
    width, stride, depth = s.need("channels", int) * single("c_mults"), single("strides"), single("transformer_depths")
    if width > LARGEST["channels"]:
        raise s.refuse("c_mults", s.get("c_mults"), f"the width would be {width}, expected at most {LARGEST['channels']}")
    head_dim = s.number("dim_heads", 128, int)
    if width % head_dim:
        raise s.refuse("dim_heads", head_dim, f"the width {width} is not a multiple of it")
    s.expect("differential", (True,), True)
    s.expect("dyt", (True,), True)
    s.expect("variable_stride", (True,), False)
    s.expect("conformer", (False,), False)
    s.expect("layer_scale", (False,), False)
    window = s.get("sliding_window")
    chunk, shift = None, False
    if window is None:
        chunk = s.number("chunk_size", 128, int)
        shift = bool(s.get("chunk_midpoint_shift", False))
        if chunk % stride or (shift and (chunk // stride) % 2):
            raise s.refuse("chunk_size", chunk, f"expected a multiple of the stride {stride} (even with a midpoint shift)")
    else:
        if not isinstance(window, list) or len(window) != 2 or window[0] != window[1]:
            raise s.refuse("sliding_window", window, "expected two equal whole numbers")
        window = s._typed("sliding_window", window[0], int) * (stride + 1)
        s.ignore("chunk_size", "chunk_midpoint_shift")
    sinusoidal = s.get("sinusoidal_blocks") or [0]
    if not isinstance(sinusoidal, list) or len(sinusoidal) != 1 or not isinstance(sinusoidal[0], int):
        raise s.refuse("sinusoidal_blocks", sinusoidal, "expected a list of one whole number")
    s.ignore("conv_bias", "mapping_style", "use_flash", "use_snake", "use_dilated_conv", "enable_inner_layer_dropout", "checkpointing",
             "freeze_backbone", "requires_grad", "enable_grad", "iterate_batch", "training")  # fmt: skip
    mask_noise = s.number("mask_noise", 0.0)
    conv_mapping = bool(s.get("conv_mapping", False))
    s.close()
    return ResamplerConfig(side, patch_channels, width, latent_dim, stride, depth, head_dim, conv_mapping, chunk, shift, window,
                           sinusoidal[0], mask_noise)  # fmt: skip


def _conditioning(s: _Section) -> ConditioningConfig:
    cond_dim = s.need("cond_dim", int)
    found = {}
    for i, entry in enumerate(s.need("configs", list)):
        item = _Section(entry, f"{s.where}.configs[{i}]")
        ident = item.expect("id", ("prompt", "seconds_total"))
        item.expect("type", ("t5gemma",) if ident == "prompt" else ("number",))
        found[ident] = item.section("config")
        item.close()
    for ident in ("prompt", "seconds_total"):
        if ident not in found:
            raise SA3Error(f"model_config.json: '{s.where}.configs' has no '{ident}'; Stable Audio 3 needs prompt and seconds_total.")
    prompt, seconds = found["prompt"], found["seconds_total"]
    prompt.ignore("repo_id", "model_name", "enable_grad")
    prompt.expect("project_out", (False,), False)
    seconds.expect("fourier_features_type", ("expo",))
    result = ConditioningConfig(
        cond_dim,
        prompt.number("max_length", 128, int),
        prompt.expect("padding_mode", ("learned", "zero"), "zero"),
        prompt.need("subfolder", str) if prompt.get("subfolder") else "",
        seconds.number("min_val", 0),
        seconds.number("max_val", 1),
    )
    if not result.seconds_max > result.seconds_min:
        raise seconds.refuse("max_val", result.seconds_max, f"expected more than min_val, {result.seconds_min}")
    prompt.close()
    seconds.close()
    s.close()
    return result


def _diffusion(s: _Section, conditioning: ConditioningConfig, same: SAMEConfig) -> tuple[DiTConfig, str, dict]:
    s.expect("type", ("dit",))
    objective = s.expect("diffusion_objective", OBJECTIVES)
    s.expect("cross_attention_cond_ids", (["prompt", "seconds_total"],))
    s.expect("global_cond_ids", (["seconds_total"],))
    s.expect("local_add_cond_ids", (["inpaint_mask", "inpaint_masked_input"],))
    s.expect("use_effective_length_for_schedule", (True,), True)
    s.expect("mask_padding_attention", (True,), True)
    s.ignore("distribution_shift_options")  # of training only
    schedule = _sampling_schedule(s)
    c = s.section("config")
    width, heads = c.need("embed_dim", int), c.need("num_heads", int)
    if width % heads or width // heads < 32:
        raise c.refuse("num_heads", heads, f"the width {width} must be a multiple of it, at least 32 channels a head")
    c.expect("global_cond_type", ("adaLN",), "prepend")
    c.expect("timestep_features_type", ("expo",), "learned")
    c.expect("norm_type", ("rms_norm",), "layer_norm")
    c.expect("patch_size", (1,), 1)
    attention = _Section(c.get("attn_kwargs") or {}, f"{c.where}.attn_kwargs")
    attention.expect("qk_norm", ("rms",))
    differential = bool(attention.get("differential", False))
    attention.close()
    norm = _Section(c.get("norm_kwargs") or {}, f"{c.where}.norm_kwargs")
    norm.expect("force_fp32", (True,), True)
    norm.close()
    ff = _Section(c.get("ff_kwargs") or {}, f"{c.where}.ff_kwargs")
    mult = ff.number("mult", 4.0)
    if not 0 < mult <= LARGEST_FF or int(width * mult) < 1:
        raise ff.refuse("mult", mult, f"expected more than 0 and at most {LARGEST_FF}")
    ff.close()
    dit = DiTConfig(
        c.need("io_channels", int), width, c.need("depth", int), heads, c.need("cond_token_dim", int), c.need("global_cond_dim", int),
        c.need("local_add_cond_dim", int), differential, mult, c.need("num_memory_tokens", int),
    )  # fmt: skip
    if dit.io_channels != same.latent_dim:
        raise c.refuse("io_channels", dit.io_channels, f"the autoencoder has {same.latent_dim} latent channels")
    if dit.local_dim != dit.io_channels + 1:
        raise c.refuse("local_add_cond_dim", dit.local_dim, f"expected mask and masked latents, {dit.io_channels + 1}")
    if not dit.cond_dim == dit.global_dim == conditioning.cond_dim:
        raise c.refuse("cond_token_dim", dit.cond_dim, f"the conditioner's width is {conditioning.cond_dim}")
    c.close()
    s.close()
    return dit, objective, schedule


def _sampling_schedule(s: _Section) -> dict:
    """The checkpoint's own schedule: kind and parameters, tried once so that a broken one is refused here."""
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
