"""The text encoder as one file, repackaged for ComfyUI: its config from shapes, its tokenizer from the SentencePiece model inside."""

import re
from collections.abc import Callable, Collection
from types import SimpleNamespace

import torch
from torch import Tensor

from ..errors import SA3Error

SPIECE = "spiece_model"  # uint8 tensor: the bytes of a SentencePiece model
PREFIXES = ("model.encoder.", "encoder.")
HEAD_DIM = 64  # of every T5Gemma that a Stable Audio 3 was trained on; not in the weights


class SentencePieceTokenizer:
    """A SentencePiece model behind the one method of `tokenizers.Tokenizer` that the text encoder calls."""

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
        # SentencePiece never finds control pieces in a text, the release's tokenizer.json does.
        ids = range(self.processor.get_piece_size())
        control = [self.processor.id_to_piece(i) for i in ids if self.processor.is_control(i) or self.processor.is_unknown(i)]
        self.control = re.compile("(" + "|".join(map(re.escape, sorted(control, key=len, reverse=True))) + ")") if control else None

    def encode(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        """`.ids` of a text as it is: no BOS, no EOS; bytes where the vocabulary has no piece."""
        ids = []
        for i, part in enumerate(self.control.split(text) if self.control else [text]):
            if i % 2:
                ids.append(self.processor.piece_to_id(part))
            elif part:
                ids.extend(self.processor.encode(part, out_type=int, add_bos=False, add_eos=False))
        return SimpleNamespace(ids=ids)


def read_spiece(read: Callable[[str], Tensor], names: Collection[str], where: str) -> SentencePieceTokenizer:
    if SPIECE not in names:
        raise SA3Error(
            f"{where} has no tensor '{SPIECE}', so its tokenizer is missing; expected the repackaged t5gemma_b_b_ul2.safetensors, "
            "or the release's t5gemma-b-b-ul2 folder."
        )
    model = read(SPIECE)
    if model.dtype != torch.uint8:
        raise SA3Error(f"{where}: the tensor '{SPIECE}' holds {model.dtype}; expected the bytes of a SentencePiece model.")
    return SentencePieceTokenizer(model.numpy().tobytes(), where)


def config_values(names: Collection[str], shape: Callable[[str], tuple[int, ...]], where: str) -> dict:
    """The values of a T5Gemma config.json that the encoder's tensors imply."""
    prefix = next((p for p in PREFIXES if p + "embed_tokens.weight" in names), None)
    if prefix is None or f"{prefix}layers.0.pre_feedforward_layernorm.weight" not in names:
        example = min(names, default="nothing")
        raise SA3Error(f"{where} is the text encoder of another model (it holds '{example}'); expected T5Gemma, t5gemma_b_b_ul2.")
    layer = prefix + "layers.0."
    matrices = [
        prefix + "embed_tokens.weight",
        *(f"{layer}{name}.weight" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")),
    ]
    for name in matrices:
        if name not in names or len(shape(name)) != 2:
            raise SA3Error(f"{where}: the matrix '{name}' is missing or has another form; expected T5Gemma, t5gemma_b_b_ul2.")
    (vocabulary, width), (queries, _), (keys, _), (inner, _) = map(shape, matrices)
    depth = len({name[len(prefix) + 7 :].split(".")[0] for name in names if name.startswith(prefix + "layers.")})
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
