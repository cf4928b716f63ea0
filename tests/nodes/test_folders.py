"""Which files SA3_ModelLoader offers and finds, when it loads them anew, and what it says of bad ones."""

import json
import os
import shutil

import pytest
import torch
from core_support import DATA, TEXT_ENCODER
from node_support import put
from safetensors.torch import load_file, save_file

VARIANTS = ["small-music", "small-sfx", "medium", "small-music-base", "small-sfx-base", "medium-base"]


def choices(sa3, widget: str) -> list[str]:
    (found,) = (one.options for one in sa3.classes["SA3_ModelLoader"].define_schema().inputs if one.id == widget)
    return found


def found(sa3, model: str = "auto", file: str = "by name") -> str:
    return sa3.host.folders.find_release(model, file).name


def state(sa3, **widgets) -> str:
    return sa3.classes["SA3_ModelLoader"].fingerprint_inputs(
        **{"model": "auto", "file": "by name", "dtype": "auto", "text_encoder": "auto", **widgets}
    )


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("stable-audio-3-small-music", "small-music"),
        ("stable_audio_3_small_music", "small-music"),
        ("Stable-Audio-3-Small-Music-Base", "small-music-base"),
        ("SA3_medium_base/files", "medium-base"),
        ("music/sa3-small_sfx", "small-sfx"),
        ("stable-audio-3-medium", "medium"),
        ("stable-audio-3", None),
        ("smallmusic", None),
    ],
)
def test_the_variant_of_a_name(sa3, name, variant):
    assert sa3.host.folders.variant_of(name) == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_found_by_its_name_among_all(sa3, checkpoints, variant):
    for i, one in enumerate(VARIANTS):
        put(checkpoints, "small", f"sa3-{one}" if i % 2 else f"SA3_{one.replace('-', '_')}")
    assert found(sa3, variant).lower().replace("_", "-") == f"sa3-{variant}"


def test_auto_prefers_what_needs_no_guidance(sa3, checkpoints):
    assert found(sa3) == "demo"
    for name in ("odd-name", "sa3-medium-base", "sa3-small-music-base", "sa3-medium", "sa3-small-music"):
        put(checkpoints, "small", name)
        assert found(sa3) == name


def test_only_generative_releases_are_offered(sa3, checkpoints):
    put(checkpoints, "small", "audio/stable-audio-3-small-music")
    (checkpoints / "sd15.safetensors").write_bytes(b"\0" * 64)
    (checkpoints / "other").mkdir()
    (checkpoints / "other" / "model.safetensors").write_bytes(b"\0" * 64)
    for name, config in (("same", {"model_type": "autoencoder"}), ("open", {"model_type": "diffusion_cond"}), ("list", [])):
        (checkpoints / name).mkdir()
        (checkpoints / name / "model.safetensors").write_bytes(b"\0" * 64)
        (checkpoints / name / "model_config.json").write_text(json.dumps(config))
    assert choices(sa3, "file") == ["by name", "audio/stable-audio-3-small-music"]
    assert choices(sa3, "model") == ["auto", *VARIANTS, "demo", "demo-medium"]
    assert found(sa3) == "stable-audio-3-small-music"


def test_a_chosen_file_wins_over_the_name(sa3, checkpoints):
    put(checkpoints, "small", "sa3-small-music")
    put(checkpoints, "medium", "sa3-medium")
    assert found(sa3, "small-music", "sa3-medium") == "sa3-medium"
    with sa3.refused("gone", "sa3-medium", "sa3-small-music", "choose 'by name'"):
        sa3.load(file="gone")


def test_diffusion_models_is_searched_too(sa3, checkpoints):
    put(checkpoints.parent / "diffusion_models", "medium", "sa3-medium")
    assert found(sa3) == found(sa3, "medium") == "sa3-medium"


def test_a_named_variant_that_is_not_there(sa3, checkpoints):
    with sa3.refused("'medium'", "none", "model.safetensors", str(checkpoints), "demo"):
        sa3.load(model="medium")
    put(checkpoints, "small", "sa3-small-music")
    with sa3.refused("'small-music-base'", "sa3-small-music"):
        sa3.load(model="small-music-base")


def test_without_files_the_embedded_demos_make_a_sound(sa3, checkpoints):
    for model in ("auto", "demo", "demo-medium"):
        parts = sa3.load(model=model)
        out, info = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(0.5), steps=8)
        (audio,) = sa3.decode(out, parts.vae)
        assert info["model"] == ("demo" if model == "auto" else model) and audio["waveform"].shape == (1, 2, 22050)
        assert float(audio["waveform"].std()) > 1e-3


PARTS = ["model.safetensors", "model_config.json", f"{TEXT_ENCODER}/model.safetensors", f"{TEXT_ENCODER}/tokenizer.json"]


@pytest.mark.parametrize("part", PARTS)
def test_a_replaced_file_is_noticed(sa3, checkpoints, part):
    file = put(checkpoints, "small", "sa3-small-music") / part
    before = state(sa3)
    assert state(sa3) == before
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    touched = state(sa3)
    shutil.copyfile(file, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)
    assert len({before, touched, state(sa3)}) == 3


def test_a_better_match_is_noticed(sa3, checkpoints):
    demo = state(sa3)
    put(checkpoints, "medium", "sa3-medium")
    medium = state(sa3)
    put(checkpoints, "small", "sa3-small-music")
    assert len({demo, medium, state(sa3)}) == 3
    assert state(sa3, model="medium") == medium


def damaged(checkpoints, damage) -> None:
    folder = put(checkpoints, "small", "sa3-small-music")
    damage(folder, folder / "model.safetensors")


def rewrite(change):
    """A damage that changes the tensors of the file."""

    def damage(folder, file):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return damage


def nan_in(name_part: str):
    def change(tensors):
        name = next(name for name in sorted(tensors) if name_part in name and name.endswith("weight"))
        tensors[name].view(-1)[-1] = float("nan")

    return rewrite(change)


def nan_in_text_encoder(folder, file):
    encoder = folder / TEXT_ENCODER / "model.safetensors"
    tensors = load_file(encoder)
    tensors[next(name for name in tensors if "encoder.layers" in name)].view(-1)[0] = float("inf")
    save_file(tensors, encoder)


def unknown_option(folder, file):
    config = json.loads((folder / "model_config.json").read_text())
    config["model"]["diffusion"]["config"]["turbo"] = True
    (folder / "model_config.json").write_text(json.dumps(config))


def without(name: str):
    """A damage that takes a file of the text encoder away."""
    return lambda folder, file: (folder / TEXT_ENCODER / name).unlink()


def instead(name: str, text: str):
    """A damage that puts other words into a file of the text encoder."""
    return lambda folder, file: (folder / TEXT_ENCODER / name).write_text(text)


def another_model(tensors):
    tensors.clear()
    tensors["unet.weight"] = torch.ones(2)


BAD_FILES = {
    "text": (lambda folder, file: file.write_text("not found"), ["model.safetensors", "not a complete safetensors"]),
    "empty": (lambda folder, file: file.write_bytes(b""), ["empty", "download"]),
    "a pickle": (lambda folder, file: torch.save({"a": torch.ones(1)}, file), ["pickled", "safetensors"]),
    "truncated": (lambda folder, file: os.truncate(file, file.stat().st_size - 1000), ["not a complete safetensors", "truncated"]),
    "truncated header": (lambda folder, file: os.truncate(file, 100), ["not a complete safetensors", "truncated"]),
    "another family": (lambda folder, file: shutil.copyfile(DATA / "medium" / "model.safetensors", file), ["tensor", "model.safetensors"]),
    "another model": (rewrite(another_model), ["not the Stable Audio 3", "unet.weight"]),
    "a tensor less": (rewrite(lambda tensors: tensors.pop("model.model.to_cond_embed.0.weight")), ["to_cond_embed.0.weight", "missing"]),
    "a tensor more": (rewrite(lambda tensors: tensors.update({"lora.up": torch.ones(2)})), ["lora.up", "unexpected"]),
    "NaN in the transformer": (nan_in("transformer.layers"), ["transformer.layers", "NaN"]),
    "NaN in the conditioner": (nan_in("conditioner"), ["conditioner", "NaN"]),
    "NaN in the autoencoder": (nan_in("pretransform"), ["pretransform", "NaN"]),
    "NaN in the text encoder": (nan_in_text_encoder, ["encoder.layers", "NaN"]),
    "no text encoder": (lambda folder, file: shutil.rmtree(folder / TEXT_ENCODER), ["no text encoder", TEXT_ENCODER]),
    "a text encoder without weights": (without("model.safetensors"), [TEXT_ENCODER, "does not exist"]),
    "a text encoder without tokenizer": (without("tokenizer.json"), [TEXT_ENCODER, "tokenizer.json"]),
    "a broken tokenizer": (instead("tokenizer.json", "{}"), ["tokenizer.json", "not a tokenizer"]),
    "another text encoder": (instead("config.json", '{"model_type": "t5"}'), ["'t5'", "t5gemma"]),
    "an unknown option": (unknown_option, ["model_config.json", "turbo"]),
}


@pytest.mark.usefixtures("at_rest")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(sa3, checkpoints, case):
    damage, words = BAD_FILES[case]
    damaged(checkpoints, damage)
    with sa3.refused(*words):
        sa3.load(file="sa3-small-music")


def test_a_file_that_vanished_since_the_menu_was_drawn(sa3, checkpoints):
    folder = put(checkpoints, "small", "sa3-small-music")
    assert "sa3-small-music" in choices(sa3, "file")
    shutil.rmtree(folder)
    with sa3.refused("sa3-small-music", "none"):
        sa3.load(file="sa3-small-music")
