"""Configs of the demo models, their text encoder and their tokenizer."""

from tools.demo import corpus

LATENTS, WIDTH, PATCH, STRIDE = 128, 192, 1024, 2
FRAME = PATCH * STRIDE
COND, TOKENS = 64, 32
SIDE = {
    "channels": WIDTH, "c_mults": [1], "strides": [STRIDE], "latent_dim": LATENTS, "transformer_depths": [1], "differential": True,
    "dim_heads": LATENTS // STRIDE, "variable_stride": True,
}  # fmt: skip
CHUNKS = {"dyt": True, "chunk_size": 32, "chunk_midpoint_shift": True}
# Options of each family for both sides of SAME, for the encoder and for the decoder.
SIDES = {
    "small": (CHUNKS, {"mask_noise": 0.0}, {"conv_mapping": True, "mask_noise": 0.01}),
    "medium": ({"sliding_window": [1, 1]}, {"mask_noise": 0.001}, {"sinusoidal_blocks": [2], "mask_noise": 0.1}),
}
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]
VOCABULARY = [*SPECIALS, *corpus.vocabulary()]
ENCODER = {
    "hidden_size": COND, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 128, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6, "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size": len(VOCABULARY), "max_position_embeddings": 512, "pad_token_id": 0, "model_type": "t5_gemma_module",
    "dropout_rate": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
TEXT = {"model_type": "t5gemma", "is_encoder_decoder": True, "vocab_size": len(VOCABULARY), "encoder": ENCODER, "decoder": ENCODER}


def model(family: str, objective: str) -> dict:
    """model_config.json. family: small or medium; objective: rectified_flow (a base) or rf_denoiser (post-trained)."""
    return {
        "model_type": "diffusion_cond_inpaint", "sample_size": 5292032, "sample_rate": 44100, "audio_channels": 2,
        "model": {
            "pretransform": {"type": "autoencoder", "config": _same(family)},
            "conditioning": {"cond_dim": COND, "configs": [
                {"id": "prompt", "type": "t5gemma", "config": {
                    "max_length": TOKENS, "padding_mode": "learned", "repo_id": "demo", "subfolder": "t5gemma-b-b-ul2"}},
                {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"}},
            ]},
            "diffusion": {
                "type": "dit", "diffusion_objective": objective, "cross_attention_cond_ids": ["prompt", "seconds_total"],
                "global_cond_ids": ["seconds_total"], "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
                "use_effective_length_for_schedule": True, "mask_padding_attention": True,
                "config": {
                    "io_channels": LATENTS, "embed_dim": WIDTH, "depth": 6, "num_heads": 6, "cond_token_dim": COND,
                    "global_cond_dim": COND, "local_add_cond_dim": LATENTS + 1, "global_cond_type": "adaLN",
                    "timestep_features_type": "expo",
                    "attn_kwargs": {"qk_norm": "rms"} | ({"differential": True} if family == "medium" else {}),
                    "norm_type": "rms_norm", "norm_kwargs": {"force_fp32": True}, "ff_kwargs": {"mult": 2.0}, "num_memory_tokens": 8},
            },
            "io_channels": LATENTS,
        },
    }  # fmt: skip


def autoencoder(family: str) -> dict:
    """Config of the standalone autoencoder."""
    return {"model_type": "autoencoder", "sample_rate": 44100, "audio_channels": 2, "model": _same(family)}


def _same(family: str) -> dict:
    both, encoder, decoder = SIDES[family]
    return {
        "pretransform": {"type": "patched", "config": {"patch_size": PATCH, "channels": 2}},
        "encoder": {"type": "taae_v2", "config": {**SIDE, **both, "in_channels": 2 * PATCH, **encoder}},
        "decoder": {"type": "taae_v2", "config": {**SIDE, **both, "transformer_depths": [2], "out_channels": 2 * PATCH, **decoder}},
        "bottleneck": {"type": "softnorm", "config": {"dim": LATENTS, "noise_regularize": True, "auto_scale": True, "freeze": True}},
        "latent_dim": LATENTS, "downsampling_ratio": FRAME, "io_channels": 2,
    }  # fmt: skip


def tokenizer() -> dict:
    """tokenizer.json: one token per lower-case word; a comma is a word."""
    special = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, name in enumerate(SPECIALS)
    ]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(VOCABULARY)}, "unk_token": "<unk>"},
    }  # fmt: skip
