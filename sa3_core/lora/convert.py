"""Conversion of LoRA files between formats, and the only reader of pickles: tensors and plain values, never code."""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.tensors import PICKLES, save
from ..errors import SA3Error
from ..files import publish
from .formats import PEFT_CONFIG, PEFT_FILE, Bases, LoRA, from_tensors, read_lora

LAYOUTS = ("native", "peft", "comfyui")


def read_pickle(path: str | Path) -> LoRA:
    """A legacy .ckpt LoRA. Only tensors and plain values are read (torch's weights_only); anything else is an SA3Error."""
    content = _plain_values(Path(path))
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) and _is_dense(state[key]) for key in state):
        raise SA3Error(f"{path} is not a LoRA: expected a state_dict of tensors and a lora_config.")
    return from_tensors(Path(path), state, content.get("lora_config") or {})


def _plain_values(path: Path):
    """The contents of a pickle, read without running code."""
    if not path.is_file():
        raise SA3Error(f"{path} does not exist; expected a LoRA file.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the class depends on where torch meets a foreign object
        raise SA3Error(
            f"{path} is not read: damaged, or more than tensors and plain values ({type(error).__name__}). Obtain a .safetensors file."
        ) from error


def _is_dense(value) -> bool:
    """Whether a value is a dense, unquantised tensor on the CPU."""
    return type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def convert(source: str | Path, target: str | Path, layout: str = "native", bases: Bases | None = None) -> Path:
    """Write a LoRA, possibly a pickled one, in another format and return the new file.

    target: a .safetensors file, for peft a folder; never overwritten. bases: for -xs files without U and V, which peft and comfyui
    store as ordinary low-rank updates.
    """
    if layout not in LAYOUTS:
        raise SA3Error(f"The format '{layout}' is unknown; choose one of {', '.join(LAYOUTS)}.")
    source, target = Path(source), Path(target)
    lora = read_pickle(source) if source.suffix.lower() in PICKLES else read_lora(source)
    if any(adapter.update.kind != "lora" for adapter in lora.layers.values()):
        raise SA3Error(
            f"{lora.name} is of type {lora.kind}, which is not converted: {layout} files are written for LoRA, DoRA and BoRA types only. "
            "SA3_LoRAStack and ComfyUI's own loader read LoHa and LoKr as .safetensors files."
        )
    if lora.needs_bases and layout != "native":
        if bases is None:
            raise SA3Error(f"{lora.name} is of type {lora.kind} and contains no bases; supply those of {lora.base or 'its base'}.")
        lora = lora.with_bases(bases)
    writer = {"native": _native, "peft": _peft, "comfyui": _comfyui}[layout]
    tensors, metadata, config = writer(lora)
    file = target / PEFT_FILE if layout == "peft" else target
    if file.suffix != ".safetensors":
        raise SA3Error(f"The target is {file}; expected a name that ends in .safetensors.")
    if target.exists():
        raise SA3Error(f"{target} exists already; choose another name.")

    def write(folder: Path) -> None:
        folder.mkdir()
        save(folder / PEFT_FILE, tensors, metadata)
        (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    if layout == "peft":
        publish(target, write)
    else:
        save(target, tensors, metadata)
    return file


def native_tensors(lora: LoRA) -> dict[str, Tensor]:
    """The tensors of a native file, float16 as the trainer writes them. The scale is part of B where it differs between layers."""
    tensors, core, uniform = {}, lora.needs_bases, _is_uniform(lora)
    for layer, adapter in lora.layers.items():
        stem = f"{layer if layer.startswith('conditioners.') else f'model.{layer}'}.parametrizations.weight.0."
        up, down = adapter.update.up, adapter.update.down
        up = up if uniform else up.float() * adapter.scale
        tensors |= {f"{stem}M_xs": up} if core else {f"{stem}lora_A": down, f"{stem}lora_B": up}
        both = adapter.rows is not None and adapter.cols is not None
        for suffix, values in (("_r", adapter.rows), ("_c", adapter.cols)):
            if values is not None:
                tensors[f"{stem}magnitude{suffix if both else ''}"] = values
    return {name: tensor.half() for name, tensor in tensors.items()}


def _is_uniform(lora: LoRA) -> bool:
    """Whether all layers have one scale and one rank."""
    return len({adapter.scale for adapter in lora.layers.values()}) == 1 and len(lora.ranks) == 1


def _native(lora: LoRA):
    kinds = {adapter.kind for adapter in lora.layers.values()}
    if len(kinds) > 1:
        raise SA3Error(
            f"{lora.name} mixes adapter types ({', '.join(sorted(kinds))}); a native file has one for all its layers. "
            "Choose another format."
        )
    config = {key: lora.config[key] for key in ("include", "exclude") if lora.config.get(key)}
    config["adapter_type"] = kinds.pop() + ("-xs" if lora.needs_bases else "")
    if _is_uniform(lora):
        rank = lora.ranks[0]
        config |= {"rank": rank, "alpha": next(iter(lora.layers.values())).scale * rank}
    config |= {"base_model": lora.base} if lora.base else {}
    return native_tensors(lora), {"lora_config": json.dumps(config)}, None


def _peft(lora: LoRA):
    tensors = {}
    for layer, adapter in lora.layers.items():
        if adapter.cols is not None:
            raise SA3Error(f"{lora.name} is of type {lora.kind}; PEFT knows only lora and dora-rows. Choose the format native.")
        stem = f"base_model.model.{layer}."
        tensors[f"{stem}lora_A.weight"], tensors[f"{stem}lora_B.weight"] = adapter.update.down, adapter.update.up * adapter.scale
        if adapter.rows is not None:
            tensors[f"{stem}lora_magnitude_vector.weight"] = adapter.rows
    ranks = {layer: adapter.update.rank for layer, adapter in lora.layers.items()}
    rank = max(ranks.values())
    others = {re.escape(layer): value for layer, value in ranks.items() if value != rank}
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "use_dora": any(a.rows is not None for a in lora.layers.values()),
        "use_rslora": False, "rank_pattern": others, "alpha_pattern": others, "target_modules": sorted(ranks), "bias": "none",
        "base_model_name_or_path": lora.base, "inference_mode": True,
    }  # fmt: skip
    return tensors, {"format": "pt"}, config


def _comfyui(lora: LoRA):
    tensors = {}
    for layer, adapter in lora.layers.items():
        if adapter.rows is not None and adapter.cols is not None:
            raise SA3Error(f"{lora.name} is of type {lora.kind}; ComfyUI's format knows lora, dora-rows and dora-cols. Choose native.")
        stem = f"diffusion_model.{layer}."
        tensors[f"{stem}lora_down.weight"], tensors[f"{stem}lora_up.weight"] = adapter.update.down, adapter.update.up
        tensors[f"{stem}alpha"] = torch.tensor(float(adapter.scale * adapter.update.rank), dtype=torch.float32)
        if adapter.rows is not None:
            tensors[f"{stem}dora_scale"] = adapter.rows[:, None]
        elif adapter.cols is not None:
            tensors[f"{stem}dora_scale"] = adapter.cols[None]
    metadata = {"lora_config": json.dumps({"base_model": lora.base})} if lora.base else None
    return tensors, metadata, None


def convert_bases(source: str | Path, target: str | Path) -> Path:
    """Convert a release's svd_bases.pt to safetensors without running code; its place is next to the LoRA as svd_bases.safetensors."""
    source, target = Path(source), Path(target)
    if target.exists():
        raise SA3Error(f"{target} exists already; choose another name.")
    content = _plain_values(source)
    pairs = list(content.values()) if isinstance(content, dict) else []
    if not pairs or not all(isinstance(pair, dict) and all(_is_dense(pair.get(part)) for part in ("U", "V")) for pair in pairs):
        raise SA3Error(f"{source} has no SVD bases; expected U and V for each weight.")
    save(target, {f"{name}.{part}": pair[part] for name, pair in content.items() for part in ("U", "V")})
    return target
