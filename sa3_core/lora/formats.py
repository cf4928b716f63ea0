"""LoRA files of the three formats in use -> adapters by layer.

native    `<layer>.parametrizations.weight.0.<tensor>`, JSON `lora_config` in the header: the official trainer
PEFT      a folder with adapter_model.safetensors and adapter_config.json; DoRA as lora_magnitude_vector
ComfyUI   `diffusion_model.<layer>.lora_up.weight` (or lora_B), lora_down, alpha, dora_scale; LoHa (hada_*) and LoKr (lokr_*);
          also the `lora_unet_` names of kohya and the `lycoris_` names of LyCORIS

Layers are named as in the transformer (`transformer.layers.0.ff.ff.2`, `to_cond_embed.0`), the seconds embedder as in the conditioner.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.tensors import PICKLES, TensorFile, is_finite
from ..errors import SA3Error
from ..files import parse_json, read_json
from .algebra import Adapter, adapter_of, magnitude_axis
from .products import NAMES, is_product, product_adapter

Bases = Callable[[str, int], tuple[Tensor, Tensor]]  # (layer, rank) -> U (out, >= rank), V (in, >= rank)

SECONDS = "conditioners.seconds_total.embedder.embedding.1"
BASES = "svd_bases.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NATIVE = re.compile(r"(?P<layer>.+)\.parametrizations\.weight\.\d+\.(?P<tensor>\w+)")
_OTHER = re.compile(
    rf"(?P<layer>.+?)\.(?P<tensor>lora_[AB]|lora_up|lora_down|lora_magnitude_vector|alpha|dora_scale|{NAMES})(\.default)?(\.weight)?"
)
_NAMES = {"lora_up": "lora_B", "lora_down": "lora_A", "lora_magnitude_vector": "magnitude", "dora_scale": "magnitude"}
_PREFIXES = ("base_model.model.", "diffusion_model.", "model.", "conditioner.", "lora_unet_", "lycoris_")
_TENSORS = {"lora_A", "lora_B", "M_xs", "U", "V", "magnitude", "magnitude_r", "magnitude_c"}
_IGNORED = {"baked_vnorm_row", "lora_dropout_mask", "lora_strength"}
_RANGE = re.compile(r"\[(\d{1,9})-(\d{1,9})\]")
MAX_NAMES = 10_000  # that one layer pattern may expand to


@dataclass(frozen=True, eq=False)
class LoRA:
    path: Path
    layout: str  # native | peft | comfyui
    kind: str  # its adapter types
    layers: dict[str, Adapter]
    base: str | None = None  # the model it was trained on, if the file names it
    config: dict = field(default_factory=dict)  # lora_config or adapter_config.json
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.parent.name if self.path.name == PEFT_FILE else self.path.name

    @property
    def ranks(self) -> list[int]:
        return sorted({adapter.update.rank for adapter in self.layers.values()})

    @property
    def needs_bases(self) -> bool:
        return any(adapter.needs_bases for adapter in self.layers.values())

    def with_bases(self, bases: Bases) -> "LoRA":
        """The LoRA with SVD bases for the layers of an -xs file that lack them."""
        layers = {
            name: adapter.with_bases(*bases(name, adapter.update.rank)) if adapter.needs_bases else adapter
            for name, adapter in self.layers.items()
        }
        return replace(self, layers=layers)

    def describe(self) -> str:
        ranks = self.ranks
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return f"{self.name}: {self.kind}, {rank}, trained on {self.base or 'an unnamed base'}"

    def details(self) -> str:
        """A report of several lines: type, ranks, layers, config, warnings."""
        parts: dict[str, int] = {}
        for layer in self.layers:
            part = re.sub(r"\d+", "*", layer)
            parts[part] = parts.get(part, 0) + 1
        scales = sorted({round(adapter.scale, 6) for adapter in self.layers.values()})
        config = {key: value for key, value in self.config.items() if isinstance(value, (str, int, float, list)) and value != []}
        return "\n".join(
            [
                self.describe(),
                f"format: {self.layout}; {len(self.layers)} layers; alpha / rank {', '.join(f'{scale:g}' for scale in scales)}",
                *(["SVD bases: not in the file"] if self.needs_bases else []),
                *(f"  {count} x {part}" for part, count in parts.items()),
                f"config: {json.dumps(config)}",
                *(f"Warning: {warning}" for warning in self.warnings),
            ]
        )


def read_lora(path: str | Path) -> LoRA:
    """Read a LoRA from a .safetensors file in any of the formats, or from a PEFT folder."""
    path = Path(path)
    path = path / PEFT_FILE if path.is_dir() else path
    if path.suffix.lower() in PICKLES:
        raise SA3Error(
            f"{path} is a pickled LoRA, which can run code when read. Convert it to .safetensors once: with SA3_LoRAConvert, or with "
            "sa3_core.lora.convert.convert(source, target), which reads tensors and plain values only."
        )
    file = TensorFile(path)
    text = file.metadata().get("lora_config")
    config = {} if text is None else parse_json(text, f"{path}: its lora_config", "a JSON object")
    return from_tensors(path, {name: file.read(name) for name in file.names if name.rpartition(".")[2] not in _IGNORED}, config)


def from_tensors(path: Path, tensors: Mapping[str, Tensor], config: dict) -> LoRA:
    """The LoRA made of a file's tensors and its `lora_config`, both checked."""
    config = _check_config(path, config)
    grouped, native = _by_layer(path, tensors)
    warnings: list[str] = []
    if native:
        layout, base = "native", config.get("base_model") or config.get("norm_base")
        grouped = {name: group for name, group in grouped.items() if selected(name, config)}
        alphas = dict.fromkeys(grouped, (config.get("alpha"), None))  # layer -> alpha, its divisor; None: the rank
    elif path.name == PEFT_FILE or any(name.startswith("base_model.") for name in tensors):
        file = path.parent / PEFT_CONFIG
        config = _check_config(file, read_json(file, "the adapter_config.json of PEFT")) if file.is_file() else {}
        if not file.is_file():
            warnings.append(f"{path.name} has no {PEFT_CONFIG} next to it; alpha is assumed to equal the rank.")
        layout, base = "peft", config.get("base_model_name_or_path")
        alphas = {name: _peft_scale(path, name, config) for name in grouped}
    else:
        layout, base = "comfyui", config.get("base_model")
        alphas = {name: (float(group["alpha"]) if "alpha" in group else None, None) for name, group in grouped.items()}
    layers, kinds = {}, set()
    for name, group in grouped.items():
        where = f"{path}, layer '{name}'"
        if is_product(group):
            if layout != "comfyui":
                raise SA3Error(f"{where}: LoHa and LoKr are read from files of ComfyUI or LyCORIS; this file is of the format {layout}.")
            layers[name] = product_adapter(group, alphas[name][0], where)
            kinds.add(layers[name].kind)
            continue
        kind = config.get("adapter_type") if native else None
        kind = _infer_type(group, where) if kind is None else kind
        layers[name] = adapter_of(kind, group, *alphas[name], where=where)
        kinds.add(layers[name].kind if kind == "dora" else kind)
    if not layers:
        raise SA3Error(f"{path} holds no adapter: {len(tensors)} tensors, none for a layer that its include and exclude lists select.")
    return LoRA(path, layout, ", ".join(sorted(kinds)), layers, base if isinstance(base, str) else None, config, tuple(warnings))


def _by_layer(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], bool]:
    """Layer -> native tensor name -> tensor, checked; and whether the file is in the native format."""
    grouped: dict[str, dict[str, Tensor]] = {}
    native = any(_NATIVE.fullmatch(name) for name in tensors)
    for key in sorted(tensors):
        found = (_NATIVE if native else _OTHER).fullmatch(key)
        tensor = None if found is None else _NAMES.get(found["tensor"], found["tensor"])
        if tensor in _IGNORED:
            continue
        if found is None or (native and tensor not in _TENSORS):
            raise SA3Error(
                f"{path}: the tensor '{key}' belongs to no supported kind of LoRA; expected a file of the official trainer (lora, dora, "
                "bora and -xs types), PEFT (LoRA and DoRA), or ComfyUI (LoRA, DoRA, LoHa and LoKr). Other families are not supported."
            )
        value = tensors[key]
        if not value.is_floating_point() and (value.numel() != 1 or value.is_complex()):
            raise SA3Error(f"{path}: the tensor '{key}' holds {value.dtype}; expected floating-point numbers.")
        value = value.float() if value.dtype == torch.float64 or not value.is_floating_point() else value
        if not is_finite(value):
            raise SA3Error(
                f"{path}: the tensor '{key}' has values that are NaN or beyond float32; the file is damaged or its training diverged."
            )
        group = grouped.setdefault(layer_name(found["layer"]), {})
        if tensor in group:
            raise SA3Error(f"{path}: the tensor '{key}' occurs twice, under two spellings of its layer.")
        if tensor == "alpha" and value.numel() != 1:
            raise SA3Error(f"{path}: the tensor '{key}': alpha has shape {list(value.shape)}; expected a single number.")
        group[tensor] = value
    return grouped, native


def layer_name(key: str) -> str:
    """A layer's name without the prefixes that writers add."""
    while prefix := next((p for p in _PREFIXES if key.startswith(p)), ""):
        key = key.removeprefix(prefix)
    return key


def _infer_type(group: Mapping[str, Tensor], where: str) -> str:
    """The adapter type of a layer, from its tensors' names and shapes."""
    suffix = "-xs" if "M_xs" in group else ""
    if "magnitude_r" in group or "magnitude_c" in group:
        return f"bora{suffix}"
    if "magnitude" not in group:
        return f"lora{suffix}"
    magnitude, inner, out = group["magnitude"], group.get("lora_A"), group.get("lora_B")
    if suffix or inner is None or out is None:
        return f"dora-rows{suffix}"
    return "dora-cols" if magnitude_axis(magnitude, out.shape[0], inner.flatten(1).shape[1], where) == "c" else "dora-rows"


def _check_config(path: Path, config) -> dict:
    """A `lora_config` or adapter_config.json, the types and ranges of its values checked."""
    if not isinstance(config, dict):
        raise SA3Error(f"{path}: its lora_config is {type(config).__name__}; expected a JSON object.")
    numbers = {key: config.get(key) for key in ("rank", "alpha", "r", "lora_alpha")}
    for pattern in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(pattern) or {}, dict):
            raise SA3Error(f"{path}: '{pattern}' is {type(config[pattern]).__name__}; expected layers with their numbers.")
        numbers |= {f"{pattern}.{layer}": value for layer, value in (config.get(pattern) or {}).items()}
    for key, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9):
            raise SA3Error(f"{path}: '{key[:80]}' in its lora_config is {str(value)[:80]}; expected a number.")
        if value is not None and key.startswith("r") and value <= 0:
            raise SA3Error(f"{path}: '{key[:80]}' in its lora_config is {value}; expected more than 0.")
    for key in ("include", "exclude"):
        value = config.get(key)
        if value is not None and not all(isinstance(one, str) for one in (value if isinstance(value, list) else [value])):
            raise SA3Error(f"{path}: '{key}' in its lora_config is {str(value)[:80]}; expected parts of layer names.")
    if not isinstance(config.get("adapter_type", ""), str):
        raise SA3Error(f"{path}: 'adapter_type' in its lora_config is {str(config['adapter_type'])[:80]}; expected a name.")
    return config


def _peft_scale(path: Path, name: str, config: dict) -> tuple[float | None, float | None]:
    """alpha of a PEFT layer and its divisor: None for the rank, its square root with rank-stabilised scaling."""

    def of(pattern: str, default: str):
        for key, value in (config.get(pattern) or {}).items():
            # PEFT allows regular expressions; an untrusted one could run forever, so only names are accepted.
            layer = re.sub(r"\\(.)", r"\1", key.removesuffix("$"))
            if re.search(r"[*+?{}()|\[\]]", layer):
                raise SA3Error(f"{path}: '{pattern}' names layers by the expression '{key[:80]}'; expected a layer's name.")
            if name == layer.removeprefix("^") or (not layer.startswith("^") and name.endswith(f".{layer}")):
                return value
        return config.get(default)

    alpha, rank = of("alpha_pattern", "lora_alpha"), of("rank_pattern", "r")
    if config.get("use_rslora") and alpha is not None and rank is not None:
        return float(alpha), math.sqrt(rank)
    return (None if alpha is None else float(alpha)), None


def expand(pattern: str) -> list[str]:
    """'layers.[0-2].ff' -> three names."""
    parts = _RANGE.split(pattern)
    ends = [(int(low), int(high)) for low, high in zip(parts[1::3], parts[2::3], strict=True)]
    ranges = [range(a, b + 1) if a <= b else range(a, b - 1, -1) for a, b in ends]
    if math.prod(map(len, ranges)) > MAX_NAMES:
        raise SA3Error(f"The layers '{pattern[:80]}' stand for more than {MAX_NAMES} names; use smaller ranges.")
    return [
        "".join(itertools.chain.from_iterable(zip(parts[0::3], (*map(str, pick), ""), strict=True))) for pick in itertools.product(*ranges)
    ]


def matches(layer: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name contains any of the patterns, [a-b] ranges expanded."""
    name = layer if layer.startswith("conditioners.") else f"model.{layer}"
    return any(text in name for pattern in patterns if pattern.strip() for text in expand(pattern.strip()))


def selected(layer: str, config: Mapping) -> bool:
    """Whether the include and exclude lists of a `lora_config` select a layer."""
    include, exclude = config.get("include"), config.get("exclude")
    include, exclude = ([one] if isinstance(one, str) else one for one in (include, exclude))
    return (include is None or matches(layer, include)) and not (exclude and matches(layer, exclude))


def read_bases(path: str | Path) -> Bases:
    """SVD bases of -xs adapters from a safetensors conversion of a release's svd_bases.pt."""
    file = TensorFile(path)
    names = {}
    for key in file.names:
        stem, _, part = key.rpartition(".")
        if part not in ("U", "V"):
            raise SA3Error(f"{path}: the tensor '{key}' is not an SVD basis; expected names ending in .U and .V.")
        names[layer_name(stem.removesuffix(".weight")), part] = key

    def bases(layer: str, rank: int) -> tuple[Tensor, Tensor]:
        if (layer, "U") not in names or (layer, "V") not in names:
            raise SA3Error(f"{path} has no SVD basis for the layer '{layer}'; use the file of the base that the LoRA was trained on.")
        return file.read(names[layer, "U"]), file.read(names[layer, "V"])

    return bases
