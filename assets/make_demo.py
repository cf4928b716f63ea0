"""Writes assets/demo: a tiny checkpoint in the released layout, every weight drawn from a seed. It makes noise, not music.

    python assets/make_demo.py

Widths are small, mechanisms are those of the small family: plain transformer, chunked SAME, T5Gemma text encoder, tokenizer.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sa3_core import build  # noqa: E402
from sa3_core.text_encoder import empty_model, encoder_config  # noqa: E402

SEED = 2026
LATENTS, COND, TOKENS = 32, 64, 64
SIDE = {
    "channels": 64, "c_mults": [2], "strides": [16], "latent_dim": LATENTS, "transformer_depths": [2], "differential": True,
    "dim_heads": 64, "variable_stride": True, "dyt": True, "chunk_size": 32, "chunk_midpoint_shift": True,
}  # fmt: skip
CONFIG = {
    "model_type": "diffusion_cond_inpaint", "sample_size": 5292032, "sample_rate": 44100, "audio_channels": 2,
    "model": {
        "pretransform": {"type": "autoencoder", "config": {
            "pretransform": {"type": "patched", "config": {"patch_size": 256, "channels": 2}},
            "encoder": {"type": "taae_v2", "config": {**SIDE, "in_channels": 512, "mask_noise": 0.0}},
            "decoder": {"type": "taae_v2", "config": {**SIDE, "out_channels": 512, "conv_mapping": True, "mask_noise": 0.01}},
            "bottleneck": {"type": "softnorm", "config": {"dim": LATENTS, "noise_regularize": True, "auto_scale": True, "freeze": True}},
            "latent_dim": LATENTS, "downsampling_ratio": 4096, "io_channels": 2,
        }},
        "conditioning": {"cond_dim": COND, "configs": [
            {"id": "prompt", "type": "t5gemma", "config": {
                "max_length": TOKENS, "padding_mode": "learned", "repo_id": "demo", "subfolder": "t5gemma-b-b-ul2"}},
            {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"}},
        ]},
        "diffusion": {
            "type": "dit", "diffusion_objective": "rf_denoiser", "cross_attention_cond_ids": ["prompt", "seconds_total"],
            "global_cond_ids": ["seconds_total"], "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
            "use_effective_length_for_schedule": True, "mask_padding_attention": True,
            "config": {
                "io_channels": LATENTS, "embed_dim": 128, "depth": 2, "num_heads": 2, "cond_token_dim": COND, "global_cond_dim": COND,
                "local_add_cond_dim": LATENTS + 1, "global_cond_type": "adaLN", "timestep_features_type": "expo",
                "attn_kwargs": {"qk_norm": "rms"}, "norm_type": "rms_norm", "norm_kwargs": {"force_fp32": True},
                "ff_kwargs": {"mult": 2.0}, "num_memory_tokens": 8},
        },
        "io_channels": LATENTS,
    },
}  # fmt: skip
TEXT = {
    "hidden_size": COND, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 128, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6, "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"], "vocab_size": 260,
    "max_position_embeddings": 512, "pad_token_id": 0, "model_type": "t5_gemma_module", "dropout_rate": 0.0, "attention_dropout": 0.0,
}  # fmt: skip


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
    if leaf in ("gamma", "weight_g", "scaling_factor", "running_std", "alpha"):
        return 1 + 0.02 * noise
    if leaf in ("beta", "bias", "to_scale_shift_gate", "noise_scaling_factor") or "norm" in name:
        return 0.02 * noise
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return noise / math.sqrt(max(fan_in, 1))


def main() -> None:
    demo, text = ROOT / "assets" / "demo", ROOT / "assets" / "demo" / "t5gemma-b-b-ul2"
    text.mkdir(parents=True, exist_ok=True)
    (demo / "model_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    config = {"model_type": "t5gemma", "is_encoder_decoder": True, "vocab_size": TEXT["vocab_size"], "encoder": TEXT, "decoder": TEXT}
    (text / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (text / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False) + "\n", encoding="utf-8")
    generator = torch.Generator().manual_seed(SEED)
    weights = {name: draw(name, t.shape, generator).to(torch.bfloat16) for name, t in sorted(build(CONFIG).state_dict().items())}
    save_file(weights, demo / "model.safetensors", {"format": "pt", "note": f"random weights from seed {SEED}: makes noise"})
    encoder = {
        f"model.{name}": draw(name, t.shape, generator).to(torch.bfloat16)
        for name, t in sorted(empty_model(encoder_config(text)).state_dict().items())
    }
    save_file(encoder, text / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
