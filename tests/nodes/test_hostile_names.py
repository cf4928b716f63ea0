"""Names that lead out of a folder, tried on every input of every node that names a file; and the sockets are shut meanwhile."""

import contextlib
import socket
from pathlib import Path

import pytest
import torch
from core_support import randn
from lora_support import write_lora

from sa3_core.audio.files import write as write_audio

HOSTILE = [
    "../escape", "../../escape", "/etc/passwd", "..\\..\\escape", "C:\\escape", "a/../../escape", "....//escape", "~/escape", "a\0b",
    "..", ".", "file:///etc/passwd", "//host/share/x", "..%2f..%2fescape", "\u202eescape",
]  # fmt: skip
READ = {  # inputs that name a file to read
    ("SA3_ModelLoader", "file"), ("SA3_ModelLoader", "text_encoder"), ("SA3_ModelLoader", "model"), ("SA3_AutoencoderLoader", "file"),
    ("SA3_AutoencoderLoader", "autoencoder"), ("SA3_LoRAStack", "lora"), ("SA3_LoRAInfo", "lora"), ("SA3_LoRAConvert", "lora"),
    ("SA3_Download", "model"), ("SA3_Download", "source"), ("SA3_TrainLoRA", "folder"), ("SA3_LoadLatent", "file"),
}  # fmt: skip
WRITTEN = {  # inputs that name a file to write
    ("SA3_LoRAConvert", "name"), ("SA3_LoRAMerge", "name"), ("SA3_SaveAudio", "filename_prefix"), ("SA3_TrainLoRA", "name"),
    ("SA3_SaveLatent", "filename_prefix"),
}  # fmt: skip
# Choices and texts that never come near a file system.
WORDS = {
    "dtype", "objective", "skip_layers", "mode", "format", "text", "track_type", "genre", "instruments", "mood", "key", "extra",
    "rewritten", "answer", "normalize", "limit", "scale", "preview", "seconds_per_item", "more_channels", "noise", "regions", "side",
    "kind", "sampler", "run_info", "keep", "include", "exclude", "prompt", "when", "how", "quality", "length", "rows",
    "sample_rate",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may connect anywhere."""

    def refuse(*arguments, **more):
        pytest.fail(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def texts(node_classes) -> set[tuple[str, str]]:
    """Every input of every node that takes text or a choice."""
    return {
        (name, one.id) for name, cls in node_classes.items() for one in cls.define_schema().inputs if one.io_type in ("STRING", "COMBO")
    }


def test_every_text_input_is_known_to_name_a_file_or_not_to(node_classes):
    unknown = {pair for pair in texts(node_classes) - READ - WRITTEN if pair[1] not in WORDS}
    assert not unknown, f"decide whether these name files, and list them here: {unknown}"
    assert texts(node_classes) >= READ | WRITTEN


@pytest.mark.parametrize("name", HOSTILE)
def test_reading(sa3, load, comfy, base_directory, name):
    one = load("small")
    write_lora(base_directory / "escape.safetensors", one.model.model)  # what a traversal would reach
    for suffix in ("", ".safetensors", " [output]", ".safetensors [output]"):
        for node, key in sorted(READ):
            whole = {"model": one.model, "clip": one.clip, "vae": one.vae}
            inputs = {"SA3_LoRAStack": {"model": one.model}, "SA3_Download": {"confirm": True}, "SA3_TrainLoRA": whole}.get(node, {})
            with pytest.raises(sa3.SA3Error):
                sa3.run(node, **inputs, **{key: name + suffix})


@pytest.mark.parametrize("name", [*HOSTILE, "con:x", "a|b", "a*b"])
def test_writing(sa3, load, comfy, base_directory, name):
    one = load("small")
    lora = "of-names.safetensors"
    write_lora(base_directory / "models" / "loras" / lora, one.model.model)
    comfy.folder_paths.filename_list_cache.clear()
    stacked = sa3.run("SA3_LoRAStack", model=one.model, lora=lora)[0]
    audio = {"waveform": randn(1, 2, 500) * 0.1, "sample_rate": 44100}
    inside = [Path(folder) for folder in (comfy.folder_paths.get_output_directory(), *comfy.folder_paths.get_folder_paths("loras"))]
    inside += [Path(folder) for folder in comfy.folder_paths.get_folder_paths("checkpoints")]
    training = base_directory / "input" / "training"
    training.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        write_audio(training / "a.wav", randn(2, 20_000).clamp(-1, 1), 44100, "wav16")
    (training / "a.txt").write_text("a sound")
    inside.append(training)
    base = load("small-base")
    trained = {"model": base.model, "clip": base.clip, "vae": base.vae, "steps": 1, "rank": 1, "preview_seconds": 0.5, "include": "ff.ff.2"}
    before = files(base_directory)
    attempts = [
        ("SA3_LoRAConvert", {"lora": lora, "name": name}),
        ("SA3_LoRAMerge", {"model": stacked, "name": name}),
        ("SA3_TrainLoRA", {**trained, "name": name}),
        ("SA3_SaveAudio", {"audio": audio, "filename_prefix": name}),
        ("SA3_SaveAudio", {"audio": audio, "filename_prefix": f"x/{name}/y"}),
        ("SA3_SaveLatent", {"latent": sa3.empty(), "filename_prefix": name}),
        ("SA3_SaveLatent", {"latent": sa3.empty(), "filename_prefix": f"x/{name}/y", "format": "npy"}),
    ]
    for node, inputs in attempts:
        with contextlib.suppress(sa3.SA3Error):
            sa3.run(node, **inputs)
    made = files(base_directory) - before
    assert all(any(path.is_relative_to(folder) for folder in inside) for path in made), made
    assert not (base_directory.parent / "escape").exists() and not any("\0" in str(path) for path in made)
    for path in made:
        path.unlink()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_whole_graph_without_a_network(sa3, load, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ThisTokenMustNotBeSeenAnywhere")
    parts = sa3.load(model="demo")
    out, info = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(0.5), steps=1)
    (audio,) = sa3.decode(out, parts.vae)
    sa3.run("SA3_SaveAudio", audio=audio, run_info=str(info))
    assert torch.isfinite(audio["waveform"]).all() and "hf_This" not in str(info)


UNWRITABLE = ["\ud800", "x" * 255, "\u00e9" * 200, "a/" * 2000 + "b", "/".join(["y" * 170] * 30), "Aux"]


@pytest.mark.parametrize("name", UNWRITABLE, ids=["surrogate", "255", "400 bytes", "deep", "5100 bytes", "a device of Windows"])
def test_names_that_no_file_system_takes(sa3, load, tmp_path, comfy, monkeypatch, name):
    audio = {"waveform": 0.1 * randn(1, 2, 4410), "sample_rate": 44100}
    monkeypatch.setattr(comfy.folder_paths, "get_output_directory", lambda: str(tmp_path))
    with contextlib.suppress(sa3.SA3Error):  # a sentence, or a file inside the folder under a name that is as near as can be
        sa3.run("SA3_SaveAudio", audio=audio, filename_prefix=name)
        assert len(list(tmp_path.rglob("*.flac"))) == 1
    with sa3.refused("is not a plain file name"):
        sa3.run("SA3_LoRAConvert", lora="x.safetensors", name=name)
