"""Releases and text encoders on disk: accepted files, and refused ones with the reason."""

import io
import json
import pickle
import re
import struct
import zipfile

import pytest
import torch
from core_support import TEXT_ENCODER, lay_out, randn, recorded, refused, rel_error
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core.checkpoints.tensors import TensorFile
from sa3_core.models.t5gemma import empty_model, encoder_config

GAMMA = "model.model.transformer.layers.0.pre_norm.gamma"
MEMORY = "model.model.transformer.memory_tokens"


def tamper(path, change) -> None:
    """Rewrite a safetensors file after change(tensors)."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def tampered(release, change, variant="small"):
    folder = release(variant)
    tamper(folder / "model.safetensors", change)
    return folder


def velocity(model):
    golden = recorded("small/golden")
    return model.velocity(*(golden[f"dit.{name}"] for name in ("x", "t", "cross_attn", "global", "local_add")))


# Accepted files


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_load_a_folder_or_its_weights_file(release, file):
    folder = release("small")
    model = sa3_core.load(folder / file)
    assert rel_error(velocity(model), recorded("small/golden")["dit.v"]) < 1e-5
    assert model.text_encoder is not None and model.name == "small"


def test_a_path_may_be_a_string(release):
    assert sa3_core.load(str(release("small"))).config.dit


def test_weights_stored_in_16_bit_are_float32_in_memory(release):
    folder = release("small")
    stored = load_file(folder / "model.safetensors")
    assert stored[GAMMA].dtype == stored[MEMORY].dtype == torch.bfloat16
    model = sa3_core.load(folder)
    for name, tensor in model.module.state_dict().items():
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu", name
        assert torch.equal(tensor, stored[name].float()), name
    assert {parameter.dtype for parameter in model.text_encoder.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in [*model.module.parameters(), *model.text_encoder.parameters()])
    assert not model.module.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_requested_dtype(release, dtype):
    model = sa3_core.load(release("small"), dtype=dtype)
    assert model.dtype == dtype
    assert {tensor.dtype for tensor in model.module.state_dict().values()} == {dtype}


@pytest.mark.parametrize("name", ["model.model.transformer.rotary_pos_emb.inv_freq", "pretransform.model.encoder.layers.0.rope.inv_freq"])
def test_rotary_tables_are_optional(release, name):
    """They are recomputed; a table in the file is ignored, even a rounded one."""
    without = tampered(release, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.endswith("inv_freq")])
    plain = velocity(sa3_core.load(without))
    tamper(without / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(16, dtype=torch.bfloat16)}))
    assert torch.equal(velocity(sa3_core.load(without)), plain)


def test_empty_tensors_are_accepted(release):
    folder = release("small")
    assert load_file(folder / "model.safetensors")["pretransform.model.bottleneck.noise_scaling_factor"].shape == (1, 0, 1)
    assert sa3_core.load(folder).autoencoder.bottleneck.noise_scaling_factor.shape == (1, 0, 1)


def test_a_loaded_model_does_not_depend_on_its_file(release):
    folder = release("small")
    tamper(folder / "model.safetensors", lambda tensors: tensors.update({name: tensor.float() for name, tensor in tensors.items()}))
    model = sa3_core.load(folder)
    before = velocity(model)
    for path in (folder / "model.safetensors", folder / TEXT_ENCODER / "model.safetensors"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(velocity(model), before)
    assert bool(torch.isfinite(model.encode_text("rain").embeddings).all())


def test_header_lengths_that_look_like_magic_numbers(tmp_path):
    """A safetensors file begins with its header's length, which may equal the first bytes of a pickle or a zip."""
    for length in (0x0280, 0x0480, 0x4B50):
        path = tmp_path / f"{length}.safetensors"
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
        path.write_bytes(struct.pack("<Q", length) + header + struct.pack("<f", 2.5))
        assert TensorFile(path).read("w").item() == 2.5


# Refused files


def test_a_missing_tensor_is_named(release):
    with refused(GAMMA, "missing"):
        sa3_core.load(tampered(release, lambda tensors: tensors.pop(GAMMA)))


def test_several_missing_tensors_are_counted(release):
    with refused(GAMMA, "missing", "1 more"):
        sa3_core.load(tampered(release, lambda tensors: [tensors.pop(name) for name in (GAMMA, MEMORY)]))


def test_an_extra_tensor_is_named(release):
    with refused("model.model.extra.weight", "unexpected"):
        sa3_core.load(tampered(release, lambda tensors: tensors.update({"model.model.extra.weight": torch.ones(2)})))


@pytest.mark.parametrize("name", [GAMMA, MEMORY, "pretransform.model.bottleneck.running_std"])
def test_a_misshapen_tensor_is_named_with_both_shapes(release, name):
    found, wanted = [], []

    def change(tensors):
        wanted.extend(tensors[name].shape)
        tensors[name] = torch.cat((tensors[name], tensors[name]))
        found.extend(tensors[name].shape)

    with refused(name, found, wanted, "shape"):
        sa3_core.load(tampered(release, change))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", [MEMORY, "pretransform.model.decoder.layers.1.weight", "conditioner.conditioners.prompt.padding_embedding"]
)
def test_weights_that_are_not_finite_are_named(release, name, value):
    def change(tensors):
        tensors[name].view(-1)[-1] = value

    with refused(name, "nan", "infinite"):
        sa3_core.load(tampered(release, change))


def test_opposite_infinities_are_refused_and_large_finite_weights_accepted(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"opposed": torch.tensor([torch.inf, -torch.inf]), "large": torch.full((4,), 3e38)}, path)
    file = TensorFile(path)
    assert file.read("large").tolist() == [float(torch.tensor(3e38))] * 4
    with refused("opposed", "infinite"):
        file.read("opposed")


@pytest.mark.parametrize(("weights", "config"), [("medium", "small"), ("small", "medium")])
def test_weights_of_the_other_family_are_refused(tmp_path, release, weights, config):
    folder, other = lay_out(tmp_path / "a", config), lay_out(tmp_path / "b", weights)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    with refused("model.safetensors", "shape", "expected"):
        sa3_core.load(folder)


def test_another_model_is_refused(release):
    folder = release("small")
    save_file({f"unet.down.{i}.weight": torch.ones(2) for i in range(5)}, folder / "model.safetensors")
    with refused("not the stable audio 3 checkpoint", "unet.down.0.weight"):
        sa3_core.load(folder)


def cut_points(data: bytes) -> dict[str, int]:
    header = struct.unpack("<Q", data[:8])[0]
    return {
        "three bytes": 3,
        "the length": 8,
        "half the header": header // 2,
        "the header": 8 + header,
        "half": len(data) // 2,
        "all but one": len(data) - 1,
    }


@pytest.mark.parametrize("kept", ["three bytes", "the length", "half the header", "the header", "half", "all but one"])
@pytest.mark.parametrize("file", ["model.safetensors", f"{TEXT_ENCODER}/model.safetensors"])
def test_a_truncated_file_is_refused(release, file, kept):
    path = release("small") / file
    data = path.read_bytes()
    path.write_bytes(data[: cut_points(data)[kept]])
    with refused(path, "truncated"):
        sa3_core.load(path.parents[len(file.split("/")) - 1])


@pytest.mark.parametrize("file", ["model.safetensors", f"{TEXT_ENCODER}/model.safetensors"])
def test_an_empty_file_is_refused(release, file):
    folder = release("small")
    (folder / file).write_bytes(b"")
    with refused(folder / file, "empty"):
        sa3_core.load(folder)


class Bomb:
    def __reduce__(self):
        return print, ("this ran",)


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    return buffer.getvalue()


def zip_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme", "text")
    return buffer.getvalue()


PICKLES = {f"protocol {protocol}": pickle.dumps(Bomb(), protocol) for protocol in (2, 3, 4, 5)} | {
    "torch": torch_zip(),
    "zip": zip_archive(),
}


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_are_refused_without_running_code(tmp_path, capsys, kind, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(PICKLES[kind])
    with refused(path, "pickle", "can run code", ".safetensors"):
        sa3_core.load(path)
    assert "this ran" not in capsys.readouterr().out


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("some text that is long enough")
    with refused(path, "not a .safetensors"):
        sa3_core.load(path)
    path = path.rename(tmp_path / "notes.safetensors")
    with refused(path, "not a complete safetensors file"):
        sa3_core.load(path)


def test_paths_without_a_release_are_refused(tmp_path, release):
    with refused(tmp_path / "nowhere", "does not exist"):
        sa3_core.load(tmp_path / "nowhere")
    with refused(tmp_path, "no model.safetensors"):
        sa3_core.load(tmp_path)
    folder = release("small")
    (folder / "model_config.json").write_text("{")
    with refused("model_config.json", "json"):
        sa3_core.load(folder)


def test_a_folder_named_like_the_weights_is_refused(release):
    folder = release("small")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with refused("model.safetensors"):
        sa3_core.load(folder)


# The text encoder's folder


def rename_tree(folder, name):
    for path in folder.iterdir():
        if path.is_dir():
            path.rename(folder / name)


def test_without_a_text_encoder_everything_but_text_works(release):
    folder = release("small")
    rename_tree(folder, "elsewhere")
    model = sa3_core.load(folder)
    assert rel_error(velocity(model), recorded("small/golden")["dit.v"]) < 1e-5
    assert model.decode(randn(1, 32, 2)).shape == (1, 2, 8192)
    for use in (lambda: model.encode_text("rain"), lambda: model.generate("rain", 1.0)):
        with refused("without a text encoder", TEXT_ENCODER):
            use()


def test_a_text_encoder_in_another_folder(release, load_model):
    folder = release("small")
    rename_tree(folder, "elsewhere")
    model = sa3_core.load(folder, text_encoder=folder / "elsewhere")
    assert torch.equal(model.encode_text("rain").embeddings, load_model("small").encode_text("rain").embeddings)


@pytest.mark.parametrize("prefix", ["encoder.", "model.encoder."])
def test_both_prefixes_of_the_text_encoder(release, prefix, load_model):
    folder = release("small")

    def change(tensors):
        renamed = {
            re.sub(r"^(model\.)?encoder\.", prefix, name): tensor.clone() for name, tensor in tensors.items() if "decoder" not in name
        }
        tensors.clear()
        tensors.update(renamed)

    tamper(folder / TEXT_ENCODER / "model.safetensors", change)
    wanted = load_model("small").encode_text("rain").embeddings
    assert rel_error(sa3_core.load(folder).encode_text("rain").embeddings, wanted) < 1e-6


def test_a_sharded_text_encoder_is_refused(release):
    folder = release("small")
    (folder / TEXT_ENCODER / "model.safetensors").rename(folder / TEXT_ENCODER / "model-00001-of-00002.safetensors")
    with refused(TEXT_ENCODER, "model-00001-of-00002.safetensors", "expected model.safetensors"):
        sa3_core.load(folder)


def encoder_tensor(tensors, end: str) -> str:
    return next(name for name in tensors if "encoder." in name and "decoder." not in name and name.endswith(end))


def test_a_text_encoder_that_lacks_a_tensor_is_refused(release):
    folder = release("small")
    name = []

    def change(tensors):
        name.append(encoder_tensor(tensors, "q_proj.weight"))
        del tensors[name[0]]

    tamper(folder / TEXT_ENCODER / "model.safetensors", change)
    with refused("text encoder", "q_proj.weight", TEXT_ENCODER):
        sa3_core.load(folder)


def test_a_text_encoder_with_an_unexpected_tensor_is_refused(release):
    folder = release("small")
    tamper(folder / TEXT_ENCODER / "model.safetensors", lambda tensors: tensors.update({"vision.weight": torch.ones(1)}))
    with refused("vision.weight", "unexpected"):
        sa3_core.load(folder)


def test_a_text_encoder_with_damaged_weights_is_refused(release):
    folder = release("small")

    def change(tensors):
        tensors[encoder_tensor(tensors, "q_proj.weight")][0, 0] = torch.nan

    tamper(folder / TEXT_ENCODER / "model.safetensors", change)
    with refused("q_proj.weight", "nan"):
        sa3_core.load(folder)


def edit_encoder_config(folder, **changes):
    path = folder / TEXT_ENCODER / "config.json"
    values = json.loads(path.read_text())
    values["encoder"].update(changes)
    path.write_text(json.dumps(values))


def test_a_text_encoder_whose_config_has_another_size_is_refused(release):
    folder = release("small")
    edit_encoder_config(folder, intermediate_size=96)
    with refused(TEXT_ENCODER, "shape", 96):
        sa3_core.load(folder)


def test_a_text_encoder_of_another_width_is_refused(release):
    """A complete, consistent T5Gemma of another model."""
    folder = release("small")
    edit_encoder_config(folder, hidden_size=48)
    shapes = empty_model(encoder_config(folder / TEXT_ENCODER)).state_dict()
    save_file({f"model.{name}": torch.zeros(tensor.shape) for name, tensor in shapes.items()}, folder / TEXT_ENCODER / "model.safetensors")
    with refused(48, 64, "text encoder"):
        sa3_core.load(folder).encode_text("rain")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"{", ["config.json", "read"]),
        ("config.json", b'{"model_type": "bert"}', ["bert", "t5gemma"]),
        ("tokenizer.json", b"{}", ["tokenizer.json"]),
        ("tokenizer.json", None, ["no tokenizer.json", TEXT_ENCODER]),
        ("model.safetensors", None, ["model.safetensors", "does not exist"]),
    ],
)
def test_damaged_text_encoder_files_are_named(release, file, content, words):
    folder = release("small")
    path = folder / TEXT_ENCODER / file
    path.unlink() if content is None else path.write_bytes(content)
    with refused(*words):
        sa3_core.load(folder)


def test_a_text_encoder_config_that_is_a_list_is_named(release):
    folder = release("small")
    (folder / TEXT_ENCODER / "config.json").write_text("[]")
    with refused("config.json", "t5gemma"):
        sa3_core.load(folder)


def test_a_missing_text_encoder_folder_is_named(release):
    folder = release("small")
    with refused(folder / "nowhere"):
        sa3_core.load(folder, text_encoder=folder / "nowhere")
