"""Write a real-size checkpoint of a release with random weights, in any layout.

    python benchmarks/make_release.py small-music FOLDER [--dtype bf16] [--layout single]

Layouts: release (the official folder), mirror (16-bit, without rotary tables), single (one file as repackaged for ComfyUI, the text
encoder beside it as another), same (the autoencoder of a release as a file of its own).

Names and shapes are the release's own (tests/data/releases). Tensors are written one by one, so memory stays small.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sa3_core.models.t5gemma import config_from, empty_model
from tools.demo.demo_config import ENCODER

RELEASES = ROOT / "tests" / "data" / "releases"
SEED = 2026
TYPES = {"fp32": ("F32", torch.float32), "bf16": ("BF16", torch.bfloat16)}
LAYERS = 12
T5GEMMA = {
    **ENCODER, "hidden_size": 768, "num_hidden_layers": LAYERS, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64,
    "intermediate_size": 2048, "query_pre_attn_scalar": 64, "vocab_size": 256000, "max_position_embeddings": 8192,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}  # fmt: skip


LAYOUTS = ("release", "mirror", "single", "same")
PRETRANSFORM = "pretransform.model."


def tokenizer() -> dict:
    """Bytes as tokens: <pad> and three unused specials, then the 256 byte values of UTF-8."""
    alphabet = _byte_alphabet()
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3} | {char: 4 + i for i, char in enumerate(alphabet)}
    special = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for name, i in list(vocab.items())[:4]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level, "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []},
    }  # fmt: skip


def _byte_alphabet() -> list[str]:
    """The printable stand-ins that byte-level tokenizers use for the 256 byte values."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A value for every kind of parameter that keeps activations near unit scale."""
    leaf = name.rsplit(".", 1)[-1]
    noise = torch.randn(shape, generator=generator)
    if leaf == "inv_freq":  # the public code reads its rotary tables from the file
        return 1.0 / 10000.0 ** (torch.arange(len(noise)) / len(noise))
    if leaf in ("gamma", "weight_g", "scaling_factor", "running_std", "alpha"):
        return 1 + 0.02 * noise
    if leaf in ("beta", "bias", "to_scale_shift_gate", "noise_scaling_factor") or "norm" in name:
        return 0.02 * noise
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return noise / math.sqrt(max(fan_in, 1))


def write_random(path: Path, shapes: Sequence[tuple[str, Sequence[int]]], dtype: str, extra: dict[str, bytes] | None = None) -> None:
    """A safetensors file of random tensors: the header first, then one tensor after the other. extra: bytes as uint8 tensors."""
    label, torch_dtype = TYPES[dtype]
    header, end = {"__metadata__": {"format": "pt", "note": f"random weights from seed {SEED}"}}, 0
    for name, shape in shapes:
        start, end = end, end + math.prod(shape) * torch_dtype.itemsize
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [start, end]}
    for name, content in (extra or {}).items():
        start, end = end, end + len(content)
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(SEED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes:
            values = draw(name, torch.Size(shape), generator).to(torch_dtype)
            file.write(values.flatten().view(torch.uint8).numpy().data)
        for content in (extra or {}).values():
            file.write(content)


def shapes_of(release: str) -> list[tuple[str, list[int]]]:
    """Names and shapes of a release's file."""
    rows = (line.split("\t") for line in (RELEASES / f"{release}.tsv").read_text(encoding="utf-8").splitlines())
    return [(name, json.loads(shape)) for name, shape, _ in rows]


def make_release(release: str, folder: Path, dtype: str = "fp32", layout: str = "release") -> Path:
    """`release` with random weights below `folder`: the path to load. A standalone autoencoder has no text encoder."""
    config = json.loads((RELEASES / f"{release}.json").read_text(encoding="utf-8"))
    shapes, generative = shapes_of(release), "conditioning" in config["model"]
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "same":
        prefix = PRETRANSFORM if generative else ""
        path = folder / f"{release.replace('-', '_').lower()}_same.safetensors"
        write_random(path, [(name.removeprefix(prefix), shape) for name, shape in shapes if name.startswith(prefix)], dtype)
        return path
    if layout == "single":
        path = folder / f"stable_audio_3_{release.replace('-', '_').lower()}.safetensors"
        write_random(path, shapes, dtype)
        if generative:
            write_text_encoder_file(folder / "t5gemma_b_b_ul2.safetensors")
        return path
    (folder / "model_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if layout == "mirror":
        shapes, dtype = [(name, shape) for name, shape in shapes if not name.endswith("inv_freq")], "bf16"
    write_random(folder / "model.safetensors", shapes, dtype)
    if generative:
        write_text_encoder(folder / "t5gemma-b-b-ul2")
    return folder


def text_encoder_shapes() -> tuple[dict, list[tuple[str, tuple[int, ...]]]]:
    """T5Gemma's config and the encoder's tensors at their real size."""
    config = {"model_type": "t5gemma", "is_encoder_decoder": True, "vocab_size": 256000, "encoder": T5GEMMA, "decoder": T5GEMMA}
    return config, [(f"model.{name}", tuple(value.shape)) for name, value in empty_model(config_from(config)).state_dict().items()]


def write_text_encoder_file(path: Path) -> None:
    """The text encoder as the one file repackaged for ComfyUI, with a small SentencePiece model inside."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "text.txt"
        corpus.write_text("\n".join(f"warm pads, rain and drums {i}" for i in range(300)), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(corpus.with_suffix("")), vocab_size=320, model_type="bpe", byte_fallback=True, pad_id=0,
            eos_id=1, bos_id=2, unk_id=3, hard_vocab_limit=False, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip
        write_random(path, text_encoder_shapes()[1], "bf16", {"spiece_model": corpus.with_suffix(".model").read_bytes()})


def write_text_encoder(folder: Path) -> None:
    """T5Gemma's encoder at its real size, bf16 as released, with a tokenizer that takes bytes for tokens."""
    folder.mkdir(exist_ok=True)
    config, shapes = text_encoder_shapes()
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False), encoding="utf-8")
    how = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "padding_side": "right"}  # for the public code
    (folder / "tokenizer_config.json").write_text(json.dumps(how), encoding="utf-8")
    write_random(folder / "model.safetensors", shapes, "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", choices=sorted(file.stem for file in RELEASES.glob("*.json")))
    parser.add_argument("folder", type=Path, help="the release's folder; made when absent")
    parser.add_argument("--dtype", choices=TYPES, default="fp32", help="of the weights; the text encoder is bf16 as released")
    parser.add_argument("--layout", choices=LAYOUTS, default="release")
    options = parser.parse_args()
    print(make_release(options.release, options.folder, options.dtype, options.layout))


if __name__ == "__main__":
    main()
