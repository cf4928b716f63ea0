"""The text encoder as a single file repackaged for ComfyUI: config from its shapes, tokenizer from the SentencePiece model in it."""

import re
from types import SimpleNamespace

import torch

from ..errors import SA3Error
from .tensors import TensorFile

SPIECE = "spiece_model"  # uint8 tensor: the bytes of a SentencePiece model
PREFIXES = ("model.encoder.", "encoder.")
HEAD_DIM = 64  # of the T5Gemma of every Stable Audio 3 model; not in the weights


class SentencePieceTokenizer:
    """A SentencePiece model with the one method of `tokenizers.Tokenizer` that the text encoder calls."""

    def __init__(self, model: bytes, where: str):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise SA3Error(
                f"{where} holds a SentencePiece tokenizer, and the package 'sentencepiece' is not installed. Install it (ComfyUI ships "
                "with it), or use the release's t5gemma-b-b-ul2 folder."
            ) from error
        try:
            self.processor = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise SA3Error(f"{where}: the tensor '{SPIECE}' is not a SentencePiece model ({error}). Download the file again.") from error
        # SentencePiece never matches control pieces in a text, the release's tokenizer.json does.
        ids = range(self.processor.get_piece_size())
        control = [self.processor.id_to_piece(i) for i in ids if self.processor.is_control(i) or self.processor.is_unknown(i)]
        self.control = re.compile("(" + "|".join(map(re.escape, sorted(control, key=len, reverse=True))) + ")") if control else None

    def encode(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        """`.ids` of an unnormalised text, without BOS and EOS; bytes where the vocabulary has no piece."""
        ids = []
        for i, part in enumerate(self.control.split(text) if self.control else [text]):
            if i % 2:
                ids.append(self.processor.piece_to_id(part))
            elif part:
                ids.extend(self.processor.encode(part, out_type=int, add_bos=False, add_eos=False))
        return SimpleNamespace(ids=ids)


def read_tokenizer(file: TensorFile) -> SentencePieceTokenizer:
    """The tokenizer stored in a repackaged file."""
    if SPIECE not in file.names:
        raise SA3Error(
            f"{file.path} has no tensor '{SPIECE}', so its tokenizer is missing; expected the repackaged t5gemma_b_b_ul2.safetensors, "
            "or the release's t5gemma-b-b-ul2 folder."
        )
    model = file.read(SPIECE)
    if model.dtype != torch.uint8:
        raise SA3Error(f"{file.path}: the tensor '{SPIECE}' holds {model.dtype}; expected the bytes of a SentencePiece model.")
    return SentencePieceTokenizer(model.numpy().tobytes(), str(file.path))


def config_values(file: TensorFile) -> dict:
    """The values of a T5Gemma config.json that the shapes of the encoder's tensors imply."""
    prefix = next((p for p in PREFIXES if p + "embed_tokens.weight" in file.names), None)
    if prefix is None or f"{prefix}layers.0.pre_feedforward_layernorm.weight" not in file.names:
        example = min(file.names, default="nothing")
        raise SA3Error(f"{file.path} is the text encoder of another model (it holds '{example}'); expected T5Gemma, t5gemma_b_b_ul2.")
    shapes = []
    for name in ("embed_tokens", "layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", "layers.0.mlp.gate_proj"):
        name = f"{prefix}{name}.weight"
        if name not in file.names or len(file.shape(name)) != 2:
            raise SA3Error(f"{file.path}: the matrix '{name}' is missing or not two-dimensional; expected T5Gemma, t5gemma_b_b_ul2.")
        shapes.append(file.shape(name))
    (vocabulary, width), (queries, _), (keys, _), (inner, _) = shapes
    depth = len({name[len(prefix) + 7 :].split(".")[0] for name in file.names if name.startswith(prefix + "layers.")})
    part = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": depth,
        "num_attention_heads": queries // HEAD_DIM,
        "num_key_value_heads": keys // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(depth)],
    }
    return {"model_type": "t5gemma", "encoder": dict(part), "decoder": dict(part), "vocab_size": vocabulary}
