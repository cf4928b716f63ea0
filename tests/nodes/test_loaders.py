"""The loaders on every layout, wherever ComfyUI keeps its models, and what a run says of where its model came from."""

import json

import pytest
import torch
from core_support import DATA, TEXT_ENCODER, lay_out, randn
from node_support import put
from safetensors.torch import load_file, save_file

SAME = "pretransform.model."


@pytest.fixture
def models(comfy, checkpoints, monkeypatch):
    """ComfyUI's model folders, empty: checkpoints, diffusion_models, vae, text_encoders."""
    known = comfy.folder_paths.folder_names_and_paths
    for key in ("vae", "text_encoders"):
        (checkpoints.parent / key).mkdir()
        monkeypatch.setitem(known, key, ([str(checkpoints.parent / key)], known[key][1]))
    return checkpoints.parent


def options(sa3, node: str, widget: str) -> list[str]:
    (found,) = (one.options for one in sa3.classes[node].define_schema().inputs if one.id == widget)
    return found


def single(path, variant: str = "small", change=None):
    tensors = load_file(DATA / variant / "model.safetensors")
    save_file(change(tensors) if change else tensors, path)


def bare(tensors):
    return {name.removeprefix(SAME): tensor.clone() for name, tensor in tensors.items() if name.startswith(SAME)}


def text_encoder(folder):
    """A release's text encoder in ComfyUI's folder for them."""
    lay_out(folder / "release", "small")
    (folder / "release" / TEXT_ENCODER).rename(folder / TEXT_ENCODER)


def test_a_repackaged_file_with_the_text_encoder_elsewhere(sa3, models):
    single(models / "checkpoints" / "stable_audio_3_small_music.safetensors")
    text_encoder(models / "text_encoders")
    assert options(sa3, "SA3_ModelLoader", "file") == ["by name", "stable_audio_3_small_music.safetensors"]
    assert options(sa3, "SA3_ModelLoader", "text_encoder") == ["auto", TEXT_ENCODER]
    parts = sa3.load(model="small-music")
    out, info = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(0.5))
    (audio,) = sa3.decode(out, parts.vae)
    assert audio["waveform"].shape == (1, 2, 22050)
    assert (info["variant"], info["layout"], info["steps"]) == ("small-music", "single file", 8)
    by_file = sa3.load(file="stable_audio_3_small_music.safetensors", text_encoder=TEXT_ENCODER, objective="base")
    assert by_file.model.model.sa3_config.is_base


def test_the_objective_comes_last_so_that_saved_graphs_keep_their_widgets(sa3):
    assert [one.id for one in sa3.classes["SA3_ModelLoader"].define_schema().inputs] == [
        "model", "file", "dtype", "text_encoder", "objective",
    ]  # fmt: skip


def test_combos_offer_only_what_fits(sa3, models):
    put(models / "checkpoints", "small", "audio/sa3-small-music")
    single(models / "diffusion_models" / "sa3_medium_base.safetensors", "medium")
    single(models / "vae" / "same-l.safetensors", "medium", bare)
    save_file({"unet.weight": torch.ones(2)}, models / "checkpoints" / "sd15.safetensors")
    save_file({"decoder.conv_in.weight": torch.ones(2)}, models / "vae" / "ae.safetensors")
    save_file({"encoder.block.0.weight": torch.ones(2)}, models / "text_encoders" / "t5xxl.safetensors")
    (models / "checkpoints" / "half.safetensors").write_bytes((models / "vae" / "same-l.safetensors").read_bytes()[:500])
    (models / "checkpoints" / "zero.safetensors").touch()
    (models / "checkpoints" / "old.ckpt").write_bytes(b"PK")
    generative = ["audio/sa3-small-music", "sa3_medium_base.safetensors"]
    assert options(sa3, "SA3_ModelLoader", "file") == ["by name", *generative]
    assert options(sa3, "SA3_AutoencoderLoader", "file") == ["by name", *sorted([*generative, "same-l.safetensors"])]
    assert options(sa3, "SA3_ModelLoader", "text_encoder") == ["auto"]


def test_a_second_look_at_a_header_is_free(sa3, models, monkeypatch):
    single(models / "checkpoints" / "a.safetensors")
    assert len(sa3.host.folders.releases()) == 1
    monkeypatch.setattr(sa3.core.detect, "read_header", lambda path: pytest.fail("read again"))
    assert len(sa3.host.folders.releases()) == 1


@pytest.mark.parametrize(("choice", "variant", "window"), [("SAME-S", "small", None), ("SAME-L", "medium", 17)])
def test_an_autoencoder_alone_by_what_it_is(sa3, models, choice, variant, window):
    """The tensors say which SAME it is, whatever the file's name."""
    for name in ("small", "medium"):
        single(models / "vae" / f"{name} autoencoder.safetensors", name, bare)
    (vae,) = sa3.run("SA3_AutoencoderLoader", autoencoder=choice)
    assert vae.sa3_config.same.decoder.window == window and vae.sa3_name == f"{variant} autoencoder"
    audio = sa3.run("SA3_SAMEDecode", latent={"samples": randn(1, 32, 4), "type": "audio"}, vae=vae)[0][0]
    assert audio["waveform"].shape == (1, 2, 4 * 4096)


def test_an_autoencoder_out_of_a_generative_model(sa3, models):
    put(models / "checkpoints", "medium", "sa3-medium")
    (vae,) = sa3.run("SA3_AutoencoderLoader", autoencoder="SAME-L")
    z = randn(1, 32, 4)
    assert torch.equal(vae.decode(z), sa3.load(model="medium").vae.decode(z))
    with sa3.refused("SAME-S", "sa3-medium", "stabilityai/SAME-S"):
        sa3.run("SA3_AutoencoderLoader", autoencoder="SAME-S")
    assert sa3.run("SA3_AutoencoderLoader", autoencoder="demo")[0].sa3_name == "demo"


def test_core_nodes_take_the_autoencoder_alone(sa3, comfy, models):
    (vae,) = sa3.run("SA3_AutoencoderLoader", autoencoder="demo")
    audio = {"waveform": randn(1, 2, 3 * 4096) * 0.1, "sample_rate": 44100}
    with torch.inference_mode():
        latent = first(comfy.audio.VAEEncodeAudio, "encode", vae=vae, audio=audio)
        back = first(comfy.audio.VAEDecodeAudio, "decode", vae=vae, samples=latent)
    assert latent["samples"].shape[-1] * vae.sa3_config.same.samples_per_frame == back["waveform"].shape[-1] == 3 * 4096


def first(node, function: str, **inputs):
    """The first output of a core node, in its old form or the new one."""
    out = node.execute(**inputs) if hasattr(node, "execute") else getattr(node(), function)(**inputs)
    return out.args[0] if hasattr(out, "args") else out[0]


def test_what_is_missing_or_unknown_is_said(sa3, models):
    single(models / "checkpoints" / "sa3_small_sfx.safetensors")
    with sa3.refused("text encoder", TEXT_ENCODER, "t5gemma_b_b_ul2.safetensors", str(models / "text_encoders")):
        sa3.load(model="small-sfx")
    with sa3.refused("'large'", "one of auto, small-music", "medium-base, demo, demo-medium"):
        sa3.load(model="large")
    with sa3.refused("'SAME-M'", "SAME-S, SAME-L, demo, demo-medium"):
        sa3.run("SA3_AutoencoderLoader", autoencoder="SAME-M")
    with sa3.refused("'t5xxl.safetensors'", "text encoders", "none"):
        sa3.load(model="small-sfx", text_encoder="t5xxl.safetensors")


def test_a_record_says_what_was_loaded(sa3, load, comfy):
    from comfyui_version import __version__

    parts = sa3.load(file="stable-audio-3-small-music", dtype="bf16")
    positive = sa3.prompt(parts.clip, "rain")
    first, second = (sa3.sample(parts.model, positive, sa3.empty(0.5), seed=seed)[1] for seed in (1, 2))
    assert (first["cache_hit"], second["cache_hit"]) == (False, True)
    assert first["variant"] == "small-music" and first["dtype"] == "bfloat16" and first["device"] == "cpu" and first["seed"] == 1
    assert set(first["load_stages_s"]) == {"open", "text encoder", "transformer", "autoencoder"} and first["load_elapsed_s"] > 0
    assert first["stages_s"]["sample"] > 0 and first["versions"]["comfyui"] == __version__ and first["versions"]["torch"]
    assert "Community License" in first["licence"] and first["loras"] == [] and first["guidance"]["cfg"] == 1.0
    assert "/" not in first["file"].replace("stable-audio-3-small-music/", "", 1)
    json.dumps(first)
