"""Every published layout of a model: configs inferred from tensors, and files refused with a reason."""

import json

import pytest
import torch
from core_support import DATA, FAMILIES, RELEASES, TEXT_ENCODER, lay_out, randn, recorded, refused, rel_error
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core import config
from sa3_core.checkpoints import checkpoint, detect, download, releases
from sa3_core.checkpoints.tensors import TensorFile, sha256

SAME = "pretransform.model."


def table(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a real release's file."""
    rows = (line.split("\t") for line in (DATA / "releases" / f"{name}.tsv").read_text().splitlines())
    return {row[0]: tuple(json.loads(row[1])) for row in rows}


def single(tmp_path, variant: str, name: str, change=None):
    """A tiny release's weights as one file without a config."""
    tensors = load_file(DATA / variant / "model.safetensors")
    path = tmp_path / f"{name}.safetensors"
    save_file(tensors if change is None else change(tensors), path)
    return path


def velocity(model, variant: str):
    golden = recorded(f"{variant}/golden")
    return model.velocity(*(golden[f"dit.{name}"] for name in ("x", "t", "cross_attn", "global", "local_add")))


# Inference


@pytest.mark.parametrize("name", RELEASES)
def test_the_config_of_a_real_release_is_inferred(name):
    shapes = table(name)
    if name.startswith("SAME"):
        assert detect.kind_of(shapes) == "autoencoder"
        found = detect.autoencoder_config(shapes, "")
    else:
        assert detect.kind_of(shapes) == "generative"
        found = detect.model_config(shapes, detect.is_base_name(name))
    assert found == config.read(DATA / "releases" / f"{name}.json")


@pytest.mark.parametrize("name", ["small-music", "medium"])
def test_the_config_of_same_in_a_real_generative_file(name):
    shapes = table(name)
    found = detect.autoencoder_config(shapes, SAME)
    assert found.same == config.read(DATA / "releases" / f"{'SAME-L' if name == 'medium' else 'SAME-S'}.json").same
    assert found.dit is None


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("stable_audio_3_medium_base", True), ("stable-audio-3-small-music-base", True), ("SA3.Base.v2", True), ("small-base-fp16", True),
        ("stable_audio_3_medium", False), ("bass_and_database", False), ("basement", False), ("my_bases", False),
    ],
)  # fmt: skip
def test_base_must_be_a_separate_word(name, base):
    assert detect.is_base_name(name) is base


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("stable_audio_3_medium_base", "medium-base"), ("stable-audio-3-small-music", "small-music"),
        ("mirrors/small_sfx_base", "small-sfx-base"),
        ("same-s", "SAME-S"), ("SAME_L_fp16", "SAME-L"), ("my model", None),
    ],
)  # fmt: skip
def test_variant_of_a_name(name, variant):
    assert releases.variant_of(name) == variant


# Layouts


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_single_file_without_a_config(tmp_path, variant):
    model = sa3_core.load(single(tmp_path, variant, f"stable_audio_3_{variant}"))
    assert rel_error(velocity(model, variant), recorded(f"{variant}/golden")["dit.v"]) < 1e-5
    assert not model.config.is_base and model.loaded["layout"] == "single file"
    assert model.text_encoder is None or model.text_encoder.config.hidden_size == 64


@pytest.mark.parametrize(("name", "objective", "base"), [("a_base", "auto", True), ("a", "base", True), ("a_base", "post-trained", False)])
def test_the_objective_comes_from_the_name_or_the_user(tmp_path, name, objective, base):
    path = single(tmp_path, "small", name)
    assert checkpoint.open_checkpoint(path, objective).config.is_base is base


def test_an_objective_that_contradicts_the_config_is_refused(release):
    with refused("model_config.json", "rf_denoiser", "base"):
        checkpoint.open_checkpoint(release("small"), "base")
    assert checkpoint.open_checkpoint(release("small-base"), "base").config.is_base
    with refused("objective", "'fast'", "post-trained"):
        checkpoint.open_checkpoint(release("medium"), "fast")


def test_a_base_folder_without_a_config_is_detected_by_its_name(tmp_path):
    folder = lay_out(tmp_path / "stable-audio-3-small-music-base", "small-base")
    (folder / "model_config.json").unlink()
    opened = checkpoint.open_checkpoint(folder)
    assert opened.config.is_base and opened.config.sample_size == 5_324_800 and opened.name == "stable-audio-3-small-music-base"


def test_a_mirror_copy(release):
    """bf16 throughout, no rotary tables."""
    folder = release("small")
    kept = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items() if not n.endswith("inv_freq")}
    save_file(kept, folder / "model.safetensors")
    model = sa3_core.load(folder)
    assert model.loaded["layout"] == "mirror"
    assert rel_error(velocity(model, "small"), recorded("small/golden")["dit.v"]) < 1e-5


def bare(tensors):
    return {name.removeprefix(SAME): tensor.clone() for name, tensor in tensors.items() if name.startswith(SAME)}


def below_prefix(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(SAME)}


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("change", [bare, below_prefix])
def test_a_standalone_autoencoder(tmp_path, variant, change):
    model = sa3_core.load(single(tmp_path, variant, "SAME", change))
    audio = randn(1, 2, 3 * 4096) * 0.1
    whole = sa3_core.load(lay_out(tmp_path / "whole", variant))
    assert torch.equal(model.encode(audio), whole.encode(audio))
    z = randn(1, 32, 4)
    assert torch.equal(model.decode(z, noise=3), whole.decode(z, noise=3))
    for use in (lambda: model.generate("rain", 1.0), lambda: model.dit, lambda: model.encode_text("rain")):
        with refused("standalone autoencoder"):
            use()


@pytest.mark.parametrize("with_config", [True, False])
def test_the_autoencoder_of_a_generative_release(tmp_path, with_config):
    folder = lay_out(tmp_path / "medium", "medium")
    if not with_config:
        (folder / "model_config.json").unlink()
    model = sa3_core.load(folder, autoencoder=True)
    z = randn(1, 32, 4)
    assert torch.equal(model.decode(z), sa3_core.load(folder).decode(z))
    assert model.loaded["layout"] == "autoencoder in a generative file"
    with refused("standalone autoencoder"):
        model.generate("rain", 1.0)


def test_single_files_share_a_folder_with_a_release_of_another_kind(tmp_path):
    folder = lay_out(tmp_path / "small", "small")
    tensors = load_file(DATA / "medium" / "model.safetensors")
    save_file(bare(tensors), folder / "same-l.safetensors")
    opened = checkpoint.open_checkpoint(folder / "same-l.safetensors")
    assert opened.config.dit is None and opened.config.same.decoder.window == 17


def test_the_record_of_a_load(release):
    loaded = sa3_core.load(release("small")).loaded
    assert loaded["variant"] == "small" and loaded["file"] == "small/model.safetensors" and loaded["dtype"] == "float32"
    assert loaded["load_elapsed_s"] >= 0 and set(loaded["load_stages_s"]) == {"open", "weights", "text encoder"}
    again = sa3_core.load(DATA / "small").loaded
    assert again["fingerprint"] == loaded["fingerprint"] != sa3_core.load(DATA / "medium").loaded["fingerprint"]


def test_sha256_detects_a_wrong_byte(release):
    path = release("small") / "model.safetensors"
    file = TensorFile(path)
    before, print_before = sha256(path), file.fingerprint()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert sha256(path) != before and TensorFile(path).fingerprint() == print_before


# Refused files


@pytest.mark.parametrize(
    ("suffix", "engine"), [(".onnx", "ONNX"), (".engine", "TensorRT"), (".plan", "TensorRT"), (".tflite", "TFLite"), (".npz", "MLX")]
)
def test_an_optimized_file_is_refused_with_the_reason(tmp_path, suffix, engine):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"12345678 and more")
    for place in (path, tmp_path):
        with refused(path, engine, "optimized", "model.safetensors"):
            sa3_core.load(place)


def test_an_optimized_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "dit.safetensors"
    save_file({"blocks.0.weight": torch.ones(2)}, path, metadata={"format": "mlx"})
    with refused("MLX", "optimized"):
        sa3_core.load(path)


def test_a_quantised_copy_is_refused(release):
    folder = release("small")
    name = "model.model.transformer.layers.0.ff.ff.2.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with refused(name, "F8_E4M3", "quantised"):
        sa3_core.load(folder)


def test_a_text_encoder_alone_is_refused(tmp_path):
    path = tmp_path / "t5.safetensors"
    path.write_bytes((DATA / TEXT_ENCODER / "model.safetensors").read_bytes())
    with refused(path, "text encoder", "not a Stable Audio 3 model"):
        sa3_core.load(path)


def test_another_model_or_an_incomplete_one_is_refused(tmp_path):
    save_file({"unet.down.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with refused("other.safetensors", "another model", "unet.down.weight"):
        sa3_core.load(tmp_path / "other.safetensors")
    gone = "model.model.transformer.layers.1.ff_norm.gamma"
    path = single(tmp_path, "small", "part", lambda tensors: {n: t for n, t in tensors.items() if n != gone})
    with refused(path, gone, "missing"):
        sa3_core.load(path)


def test_a_folder_of_releases_lists_them(tmp_path):
    for name in ("small-music", "medium"):
        lay_out(tmp_path / "mirror" / name, name.split("-")[0])
    with refused("sub-folders", "medium", "small-music"):
        sa3_core.load(tmp_path / "mirror")


def test_an_unfinished_download_is_named(tmp_path):
    (tmp_path / "model.safetensors.part").write_bytes(b"half")
    with refused("model.safetensors.part", "unfinished"):
        sa3_core.load(tmp_path)


# The text encoder as a single file, and in the Hub's cache


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A small SentencePiece model with Gemma's settings: BPE with byte fallback, no normalisation."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    folder = tmp_path_factory.mktemp("spiece")
    words = ["rain on a tin roof", "warm Rhodes and brushed drums", "a distant train", "deep house, 120 BPM", "heavy rain, thunder"]
    (folder / "text.txt").write_text("\n".join(f"{a} {b} {i}" for i in range(40) for a in words for b in words))
    trainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=400, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=["\n\n"], minloglevel=2, split_digits=True,
        hard_vocab_limit=False,
    )  # fmt: skip
    return (folder / "m.model").read_bytes()


def twin(model: bytes):
    """The same tokenizer in the `tokenizers` package."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    processor = SentencePieceProcessor(model_proto=model)
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    halves = [(i, piece[:k], piece[k:]) for piece, i in pieces.items() for k in range(1, len(piece)) if piece != "\n\n"]
    pairs = [half for half in halves if half[1] in pieces and half[2] in pieces]
    pairs.sort(key=lambda pair: (-processor.get_score(pair[0]), pair[0], pieces[pair[1]], pieces[pair[2]]))
    special = [p for p, i in pieces.items() if processor.is_control(i) or processor.is_unknown(i)]
    merges = [(left, right) for _, left, right in pairs]
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in special])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    return tokenizer


PROMPTS = [
    "", " ", "rain on a tin roof", "  rain,  heavy ", "Warm RHODES 85 BPM", "ciel étoilé — 雨の音 🎹", "tab\tand\nline", "two\n\nlines",
    "the word <bos> in a text", "<pad><eos>", "rain<unk>train", "a" * 300, "½ of ≈3\u00a0s",
]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_both_tokenizers_agree(spiece, prompt):
    from sa3_core.checkpoints.sentencepiece import SentencePieceTokenizer

    assert SentencePieceTokenizer(spiece, "x").encode(prompt).ids == twin(spiece).encode(prompt, add_special_tokens=False).ids


@pytest.fixture
def text_file(tmp_path, spiece):
    """A tiny T5Gemma with heads of 64 as a repackaged file, next to the folder with the same weights."""
    from sa3_core.models.t5gemma import config_from, empty_model

    part = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }  # fmt: skip
    values = {"model_type": "t5gemma", "encoder": part, "decoder": part, "is_encoder_decoder": True}
    shapes = empty_model(config_from(values)).state_dict()
    tensors = {f"model.{n}": randn(*t.shape, seed=i).mul(0.2).bfloat16() for i, (n, t) in enumerate(shapes.items())}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    twin(spiece).save(str(folder / "tokenizer.json"))
    save_file(tensors, folder / "model.safetensors")
    path = tmp_path / "t5gemma_b_b_ul2.safetensors"
    save_file({**tensors, "spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}, path)
    return path


def test_the_repackaged_text_encoder_equals_its_folder(text_file):
    one, other = checkpoint.load_text_encoder(text_file), checkpoint.load_text_encoder(text_file.parent / "folder")
    tokens = one.tokenize(PROMPTS, 32)
    assert torch.equal(tokens.ids, other.tokenize(PROMPTS, 32).ids)
    assert rel_error(one(tokens), other(tokens)) < 1e-6


def test_a_release_with_the_repackaged_text_encoder(release, text_file):
    model = sa3_core.load(release("small"), text_encoder=text_file)
    assert model.encode_text("rain").embeddings.shape == (1, 32, 64)


def test_another_text_encoder_is_refused(tmp_path, release, text_file):
    path = tmp_path / "t5xxl.safetensors"
    save_file({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}, path)
    with refused(path, "another model", "T5Gemma"):
        sa3_core.load(release("small"), text_encoder=path)
    tensors = load_file(text_file)
    del tensors["spiece_model"]
    save_file(tensors, path)
    with refused(path, "spiece_model", "tokenizer"):
        sa3_core.load(release("medium"), text_encoder=path)
    save_file({**tensors, "spiece_model": torch.arange(90, dtype=torch.uint8)}, path)
    with refused(path, "spiece_model", "SentencePiece"):
        checkpoint.load_text_encoder(path)


def test_the_width_of_a_text_encoder_is_checked_before_it_is_read(text_file):
    with refused(text_file, 64, 768, "another model"):
        checkpoint.load_text_encoder(text_file, width=768)


def test_a_text_encoder_in_the_hub_cache_is_used(tmp_path, monkeypatch, release):
    import huggingface_hub.constants
    import huggingface_hub.file_download

    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    repository = tmp_path / "hub" / "models--stabilityai--stable-audio-3-medium"
    folder = release("small")
    target = repository / "snapshots" / releases.RELEASES["medium"].revision / TEXT_ENCODER
    target.parent.mkdir(parents=True)
    (folder / TEXT_ENCODER).rename(target)
    assert download.cached_text_encoder(64) == target and download.cached_text_encoder(768) is None
    assert sa3_core.load(folder).encode_text("rain").embeddings.shape == (1, 32, 64)
