"""Merging a stack into a checkpoint file tensor by tensor, without loading the model as a whole."""

import json
import os
import shutil
from pathlib import Path

import torch

from ..checkpoints.checkpoint import CONFIG, WEIGHTS, open_checkpoint
from ..checkpoints.tensors import STORED, is_finite
from ..errors import SA3Error
from ..files import publish
from ..models.release import build
from .algebra import apply_stack
from .stack import Stack, weight_name


def merge(checkpoint: str | Path, stack: Stack, target: str | Path, progress=None) -> Path:
    """Write a checkpoint with a stack merged into its weights as a new release folder and return the new weights file.

    Names and types stay those of the checkpoint; its text encoder is linked or copied. The folder is written atomically and never
    overwrites another. progress(tensors done, tensors in total).
    """
    target, patches = Path(target), stack.patches()
    if not patches:
        raise SA3Error("There is no LoRA on this model to merge; add one, with SA3_LoRAStack.")
    if stack.scheduled:
        names = ", ".join(stacked.lora.name for stacked in stack.loras if stacked.scheduled)
        raise SA3Error(f"{names} depends on noise levels or a curve and cannot be merged; use the interval 0 to 1 and no curve.")
    if target.exists():
        raise SA3Error(f"{target} exists already; choose another name.")
    opened = open_checkpoint(checkpoint)
    stacks = {weight_name(layer): adapters for layer, adapters in patches.items()}
    header, end = {"__metadata__": {"format": "pt", "sa3_loras": json.dumps(stack.record())}}, 0
    for name, tensor in build(opened.config).state_dict().items():
        dtype = opened.tensors.dtype(opened.prefix + name)
        size = tensor.numel() * STORED[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)

    def write(folder: Path) -> None:
        folder.mkdir()
        names = list(header)[1:]
        with open(folder / WEIGHTS, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for done, name in enumerate(names, 1):
                tensor = apply_stack(opened.tensors.read(opened.prefix + name), stacks.get(name, []))
                if not is_finite(tensor):
                    raise SA3Error(f"The merged tensor '{name}' exceeds the range of {tensor.dtype}; lower the strength of the LoRA.")
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
                if progress is not None:
                    progress(done, len(names))
        if (config := opened.tensors.path.parent / CONFIG).is_file():
            shutil.copyfile(config, folder / CONFIG)
        if opened.text_encoder is not None and opened.text_encoder.is_dir():
            shutil.copytree(opened.text_encoder, folder / opened.text_encoder.name, copy_function=_link)

    publish(target, write)
    return target / WEIGHTS


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)
