"""Writes a full-size checkpoint of a release in the official folder layout, every weight drawn from a seed: for timing, not for sound.

    python benchmarks/make_release.py small-music FOLDER [--dtype bf16]

Names and shapes are the release's own (tests/data/releases). Tensors are written one by one, so memory stays small.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from assets.make_demo import TEXT, draw, tokenizer  # noqa: E402
from sa3_core.text_encoder import config_from, empty_model  # noqa: E402

RELEASES = ROOT / "tests" / "data" / "releases"
SEED = 2026
TYPES = {"fp32": ("F32", torch.float32), "bf16": ("BF16", torch.bfloat16)}
LAYERS = 12
T5GEMMA = {
    **TEXT, "hidden_size": 768, "num_hidden_layers": LAYERS, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64,
    "intermediate_size": 2048, "query_pre_attn_scalar": 64, "vocab_size": 256000, "max_position_embeddings": 8192,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}  # fmt: skip


def write_random(path: Path, shapes: Sequence[tuple[str, Sequence[int]]], dtype: str) -> None:
    """A safetensors file of random tensors: the header first, then one tensor after the other."""
    label, torch_dtype = TYPES[dtype]
    header, end = {"__metadata__": {"format": "pt", "note": f"random weights from seed {SEED}"}}, 0
    for name, shape in shapes:
        start, end = end, end + math.prod(shape) * torch_dtype.itemsize
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(SEED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes:
            values = draw(name, torch.Size(shape), generator).to(torch_dtype)
            file.write(values.flatten().view(torch.uint8).numpy().data)


def make_release(release: str, folder: Path, dtype: str = "fp32") -> Path:
    """The folder of `release` with random weights; a standalone autoencoder has no text encoder."""
    config = json.loads((RELEASES / f"{release}.json").read_text(encoding="utf-8"))
    rows = (line.split("\t") for line in (RELEASES / f"{release}.tsv").read_text(encoding="utf-8").splitlines())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    write_random(folder / "model.safetensors", [(name, json.loads(shape)) for name, shape, _ in rows], dtype)
    if "conditioning" in config["model"]:
        write_text_encoder(folder / "t5gemma-b-b-ul2")
    return folder


def write_text_encoder(folder: Path) -> None:
    """T5Gemma's encoder at its real size, bf16 as released, with a tokenizer that takes bytes for tokens."""
    folder.mkdir(exist_ok=True)
    config = {"model_type": "t5gemma", "is_encoder_decoder": True, "vocab_size": 256000, "encoder": T5GEMMA, "decoder": T5GEMMA}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False), encoding="utf-8")
    shapes = [(f"model.{name}", tuple(value.shape)) for name, value in empty_model(config_from(config)).state_dict().items()]
    write_random(folder / "model.safetensors", shapes, "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", choices=sorted(file.stem for file in RELEASES.glob("*.json")))
    parser.add_argument("folder", type=Path, help="the release's folder; made when absent")
    parser.add_argument("--dtype", choices=TYPES, default="fp32", help="of the weights; the text encoder is bf16 as released")
    options = parser.parse_args()
    print(make_release(options.release, options.folder, options.dtype))


if __name__ == "__main__":
    main()
