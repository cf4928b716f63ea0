"""A stack merged into a checkpoint file, tensor by tensor: neither the model nor the file is ever in memory as a whole."""

import json
import os
import shutil
from pathlib import Path

import torch

from ..checkpoints.checkpoint import CONFIG, WEIGHTS, open_checkpoint
from ..errors import SA3Error
from ..files import publish
from ..models.release import build
from .algebra import apply_stack
from .stack import Stack, weight_name

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def merge(checkpoint: str | Path, stack: Stack, target: str | Path, progress=None) -> Path:
    """Write a checkpoint with a stack in its weights as a new release folder, under the release's own names and in its types.

    The text encoder, where it lies beside the checkpoint, is linked or copied. Nothing is overwritten; the folder appears only when
    complete. progress(tensors done, tensors in all). Returns the new weights file.
    """
    target, patches = Path(target), stack.patches()
    if not patches:
        raise SA3Error("There is no LoRA on this model to merge.")
    if stack.scheduled:
        names = ", ".join(row.lora.name for row in stack.rows if row.scheduled)
        raise SA3Error(f"{names} acts at some noise levels only, or along a curve: that cannot be merged into a file.")
    if target.exists():
        raise SA3Error(f"{target} exists already; choose another name.")
    opened = open_checkpoint(checkpoint)
    entries = {weight_name(layer): adapters for layer, adapters in patches.items()}
    header, end = {"__metadata__": {"format": "pt", "sa3_loras": json.dumps(stack.record())}}, 0
    for name, tensor in build(opened.config).state_dict().items():
        kind = opened.tensors.dtype(opened.prefix + name)
        size = tensor.numel() * TYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)

    def write(folder: Path) -> None:
        folder.mkdir()
        names = list(header)[1:]
        with open(folder / WEIGHTS, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for done, name in enumerate(names, 1):
                tensor = apply_stack(opened.tensors.read(opened.prefix + name), entries.get(name, []))
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
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
