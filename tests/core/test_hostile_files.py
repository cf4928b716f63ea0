"""Damaged files found by tests/fuzz: each is refused with an SA3Error, fast and in little memory."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from core_support import TEXT_ENCODER, randn, refused, rel_error, release_dict
from lora_support import write_lora
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core import run_record
from sa3_core.audio import checks, waveform
from sa3_core.audio import files as audio_files
from sa3_core.checkpoints import checkpoint, detect, download
from sa3_core.lora import convert as lora_convert
from sa3_core.lora import formats as lora_files
from sa3_core.sampling import prompting

DEEP = "[" * 100_000


def rewritten(path, change):
    """Replace the header of a safetensors file and keep its data."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return path


# JSON


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 100_000, '{"model_type": NaN}', "\0", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")]
)
@pytest.mark.parametrize("name", ["model_config.json", f"{TEXT_ENCODER}/config.json"])
def test_invalid_json(release, name, text):
    folder = release("small")
    (folder / name).write_text(text)
    with refused("cannot be read as JSON"):
        sa3_core.load(folder)


def test_an_invalid_download_record_is_ignored(release):
    (release("small") / run_record.DOWNLOADED).write_text(DEEP)
    assert "repository" not in sa3_core.load(release("medium").parent / "small").loaded


@pytest.mark.parametrize(
    "text", [DEEP, "NaN", "[1]", '{"alpha": "4"}', '{"include": 5}', '{"adapter_type": []}', '{"rank": 0}', '{"rank": -2}']
)
def test_an_invalid_lora_config(load_model, tmp_path, text):
    path = write_lora(tmp_path / "a.safetensors", load_model("small").module)
    rewritten(path, lambda header: header["__metadata__"].update(lora_config=text))
    with refused("lora_config"):
        lora_files.read_lora(path)


# Values


def with_tensor(folder, name, change, dtype=None):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name] if dtype is None else tensors[name].to(dtype))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("dtype", "value", "loaded", "words"),
    [
        (torch.float64, 1e300, torch.float32, ["1e+300", "too large for torch.float32"]),
        (torch.float32, 1e5, torch.float16, ["1e+05", "too large for torch.float16"]),
        (torch.float32, math.inf, torch.float32, ["NaN or infinite"]),
    ],
)
def test_a_weight_beyond_the_range_of_the_type_it_is_loaded_as(release, dtype, value, loaded, words):
    name = "model.model.transformer.layers.0.self_attn.to_out.weight"
    folder = with_tensor(release("small"), name, lambda tensor: tensor.fill_(value), dtype)
    with refused(name, *words):
        sa3_core.load(folder, dtype=loaded)


def test_a_weight_whose_norm_is_zero(release):
    folder = release("small")
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("weight_v"))
    with refused(name, "whose norm", "is 0"):
        sa3_core.load(with_tensor(folder, name, torch.zeros_like))


# Sizes


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (("model", "diffusion", "config", "depth"), 10**9, "depth"),
        (("model", "diffusion", "config", "num_memory_tokens"), 10**6, "num_memory_tokens"),
        (("model", "diffusion", "config", "ff_kwargs"), {"mult": 1e30}, "mult"),
        (("model", "diffusion", "config", "ff_kwargs"), {"mult": -1}, "mult"),
        (("model", "pretransform", "config", "decoder", "config", "c_mults"), [2**20], "c_mults"),
        (("model", "pretransform", "config", "decoder", "config", "sliding_window"), [-1, -1], "sliding_window"),
        (("model", "pretransform", "config", "decoder", "config", "sliding_window"), [2**60, 2**60], "sliding_window"),
    ],
)
def test_a_config_with_excessive_sizes(place, value, word):
    values = release_dict("medium")
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    start = time.process_time()
    with refused(word):
        sa3_core.build(values)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9), ("vocab_size", 2**40), ("head_dim", 10**12), ("num_attention_heads", 0), ("num_key_value_heads", 3),
        ("layer_types", ["sliding_attention", []]), ("sliding_window", 2**64), ("hidden_size", "64"), ("query_pre_attn_scalar", 0),
        ("hidden_activation", "no such"), ("rms_norm_eps", "x"),
    ],
)  # fmt: skip
def test_a_text_encoder_config_with_invalid_sizes(release, key, value):
    folder = release("small") / TEXT_ENCODER
    values = json.loads((folder / "config.json").read_text())
    values["encoder"][key] = value
    (folder / "config.json").write_text(json.dumps(values))
    with refused("config.json"):
        checkpoint.load_text_encoder(folder)


def test_a_config_cannot_name_code(release):
    """transformers downloads kernels and classes that a config names; the pack reads none of those keys."""
    folder = release("small") / TEXT_ENCODER
    values = json.loads((folder / "config.json").read_text())
    foreign = {
        "auto_map": {"AutoModel": "evil/code--m.M"},
        "attn_implementation": "evil/kernels",
        "quantization_config": {"quant_method": "x"},
    }
    values["encoder"] |= foreign
    (folder / "config.json").write_text(json.dumps({**values, **foreign}))
    loaded = checkpoint.load_text_encoder(folder)
    assert loaded.config._attn_implementation == "eager" and not hasattr(loaded.config, "auto_map")


def test_an_excessive_header_length(release):
    path = release("small") / "model.safetensors"
    for length in (2**64 - 1, 2**40, 99_999_999):
        path.write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 100)
        with refused("not a complete safetensors file"):
            sa3_core.load(path)
        assert detect.read_header(path) == detect.Header()


def test_an_excessive_tensor_name(release):
    path = release("small") / "model.safetensors"
    rewritten(path, lambda header: header.update({"model." * 10**5: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}))
    with refused("not a complete safetensors file", "characters"):
        sa3_core.load(path)


def test_an_excessive_number_of_layers(release):
    path = release("small") / "model.safetensors"
    names = (f"model.model.transformer.layers.{i}.x" for i in range(20_000))
    rewritten(path, lambda header: header.update({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}))
    (path.parent / "model_config.json").unlink()
    with refused("layers", "at most 512"):
        checkpoint.open_checkpoint(path)


# Types


@pytest.mark.parametrize("name", ["model.safetensors", f"{TEXT_ENCODER}/model.safetensors"])
def test_integer_weights_are_refused(release, name):
    folder = release("small")

    def change(header):
        entry = next(
            entry
            for key, entry in header.items()
            if key.endswith("weight") and "decoder" not in key and entry["dtype"] in ("F32", "BF16", "F16")
        )
        entry["dtype"] = {"F32": "I32", "BF16": "I16", "F16": "I16"}[entry["dtype"]]

    rewritten(folder / name, change)
    with refused("stored as I"):
        sa3_core.load(folder)


@pytest.mark.parametrize("shape", [[], ["3"], [None], {}, "x", [[3]], [2**70]])
def test_read_header_never_raises(tmp_path, shape):
    """Every list of files reads headers: an error would remove all nodes from the menu."""
    path = tmp_path / "x.safetensors"
    names = [
        detect.MAPPING,
        "bottleneck.running_std",
        "decoder.layers.3.new_tokens",
        "encoder.embed_tokens.weight",
        "encoder.layers.0.pre_feedforward_layernorm.weight",
    ]
    text = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name in names}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert detect.read_header(path).autoencoder is None
    path.write_bytes((50_000).to_bytes(8, "little") + b"[" * 50_000)
    assert detect.read_header(path) == detect.Header()


@pytest.mark.parametrize(
    "value", [torch.ones(2, 8, dtype=torch.int32), torch.ones(2, 8, dtype=torch.complex64), torch.ones(2, 8, dtype=torch.float8_e4m3fn)]
)
def test_a_lora_of_an_unsupported_dtype(load_model, tmp_path, value):
    path = write_lora(tmp_path / "a.safetensors", load_model("small").module)
    tensors = load_file(path)
    save_file({**tensors, min(tensors): value}, path)
    with refused(min(tensors)):
        lora_files.read_lora(path)


def test_a_lora_of_rank_0_or_with_an_invalid_alpha(load_model, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", load_model("small").module)
    tensors = {name: tensor[:0] if "lora_A" in name else tensor[:, :0] for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"lora_config": '{"alpha": 4}'})
    with refused("empty", "rank 1"):
        lora_files.read_lora(path)
    comfy = lora_convert.convert(write_lora(tmp_path / "b.safetensors", load_model("small").module), tmp_path / "c.safetensors", "comfyui")
    tensors = load_file(comfy)
    save_file({name: torch.ones(3) if name.endswith("alpha") else tensor for name, tensor in tensors.items()}, comfy)
    with refused("alpha has shape [3]"):
        lora_files.read_lora(comfy)


@pytest.mark.parametrize("content", [{"state_dict": {"a": 1}}, {"a": torch.ones(2).to_sparse()}, {1: torch.ones(2)}, [torch.ones(2)], {}])
def test_a_pickle_without_a_lora(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    with refused("not a LoRA"):
        lora_convert.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


# Text


@pytest.mark.parametrize("pattern", ["layers.[0-999999999]", "[0-99][0-99][0-99][0-99]", "[0-999999999]" * 50])
def test_a_pattern_for_billions_of_layers(pattern):
    start = time.process_time()
    with refused("stand for more than"):
        lora_files.matches("transformer.layers.0.ff", [pattern])
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("text", ["9" * 5000, "1-" + "9" * 5000, "9" * 5000 + "-1"])
def test_an_item_number_of_five_thousand_digits(text):
    with refused("keep has"):
        checks.parse_items(text, 8)


@pytest.mark.parametrize("text", [DEEP, '{"seed": Infinity, "batch_index": [0]}', '{"seed": 1e999, "batch_index": [0]}', "[]", "\ud800"])
def test_an_invalid_record_has_no_items(text):
    assert run_record.item_records([text]) == []


def test_a_range_of_five_thousand_digits_is_plain_text():
    assert lora_files.expand(f"a[{'9' * 5000}-1]") == [f"a[{'9' * 5000}-1]"]


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*.*.*.*.*.*x", "[", "transformer.(layers|x)"])
def test_a_regular_expression_in_a_peft_config(load_model, tmp_path, pattern):
    """Some expressions never finish."""
    folder = lora_convert.convert(write_lora(tmp_path / "a.safetensors", load_model("small").module), tmp_path / "peft", "peft").parent
    values = json.loads((folder / lora_files.PEFT_CONFIG).read_text())
    (folder / lora_files.PEFT_CONFIG).write_text(json.dumps({**values, "alpha_pattern": {pattern: 4}}))
    with refused("alpha_pattern", pattern, "layer's name"):
        lora_files.read_lora(folder)


def test_layer_names_in_a_peft_config(load_model, tmp_path):
    folder = lora_convert.convert(
        write_lora(tmp_path / "a.safetensors", load_model("small").module, rank=2), tmp_path / "peft", "peft"
    ).parent
    values = json.loads((folder / lora_files.PEFT_CONFIG).read_text())
    patterns = {r"transformer\.layers\.0\.ff\.ff\.2": 8, "^to_cond_embed.0": 6, "^embed.0": 4, "layers.1.ff.ff.2$": 10}
    (folder / lora_files.PEFT_CONFIG).write_text(json.dumps({**values, "alpha_pattern": patterns}))
    layers = lora_files.read_lora(folder).layers
    assert layers["transformer.layers.0.ff.ff.2"].scale == 4 and layers["to_cond_embed.0"].scale == 3
    assert layers["transformer.layers.1.ff.ff.2"].scale == 5 and layers["to_cond_embed.2"].scale == 1


def test_half_a_surrogate_pair_in_a_prompt(load_model):
    with refused("invalid character at position 5"):
        load_model("small").encode_text("rain \ud800")


def test_token_ids_beyond_the_vocabulary(release):
    encoder = checkpoint.load_text_encoder(release("small") / TEXT_ENCODER)
    encoder.tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: SimpleNamespace(ids=[1, encoder.config.vocab_size]))
    with refused("different models"):
        encoder.tokenize(["rain"], 8)


@pytest.mark.parametrize(
    "text", ["<think>" * 100_000, "\n" * 1_000_000, " \n" * 500_000, "Prompt:" * 100_000, '"' * 100_000, "```\n" * 100_000]
)
def test_a_very_long_answer(text):
    start = time.process_time()
    prompting.clean(text)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE\0",
        "LICENSE:stream",
        "NOTICE\n",
        f"{TEXT_ENCODER}/a:b",
        f"{TEXT_ENCODER}/..",
        f"{TEXT_ENCODER}/.x",
        f"{TEXT_ENCODER}/\u202e",
    ],
)
def test_unsafe_names_in_a_repository(name):
    assert not download._is_licence(name) and not download._is_model_file(name)


# Audio


@pytest.mark.parametrize("kind", ["wav16", "flac"])
def test_half_a_surrogate_pair_in_the_metadata(tmp_path, kind):
    audio_files.write(tmp_path / "x", torch.zeros(2, 500), 44100, kind, {"sa3": "\ud800", "prompt": '{"a": "\ud800"}'})
    assert (tmp_path / "x").stat().st_size > 100


@pytest.mark.parametrize(("rate", "target"), [(48000, 44100), (44100, 48000), (96000, 44100), (22050, 44100), (44100, 8000)])
def test_resampling_without_a_table_is_the_same(rate, target):
    pytest.importorskip("torchaudio")
    clip = randn(1, 2, 9000)
    # torchaudio makes its table in float32
    assert rel_error(waveform._resample_directly(clip, rate, target), waveform.resample(clip, rate, target)) < 2e-5


@pytest.mark.parametrize("rate", [44101, 767_999])
def test_rates_without_a_common_divisor(rate):
    """A resampling table for these rates would take gigabytes."""
    n = rate // 10
    tone = (torch.arange(n).double() * (2 * math.pi * 440 / rate)).sin().float()[None]
    out = waveform.resample(tone, rate, 44100)
    wanted = (torch.arange(out.shape[-1]).double() * (2 * math.pi * 440 / 44100)).sin().float()[None]
    assert rel_error(out[:, 200:-200], wanted[:, 200:-200]) < 1e-3  # of a kernel with six zero crossings


@pytest.mark.parametrize("rate", [1, 7, 999, 768_001, 2**31, 2**40])
def test_impossible_sample_rates(rate):
    with refused("sample rate", str(rate)):
        waveform.check_clip("The AUDIO", torch.zeros(1, 2, 4000), rate)
