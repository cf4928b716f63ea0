"""What the templates need is found without copying by hand, and nothing of the user's is replaced."""

from __future__ import annotations

import asyncio
import importlib
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"
RECORDING, FOLDER, LORA = "sa3_example.wav", "sa3_example_training", "sa3_example_high.safetensors"


@pytest.fixture
def start(pack, base_directory):
    """Has ComfyUI ask for the nodes as when it starts; afterwards the recording is gone."""
    target = base_directory / "input" / RECORDING
    target.unlink(missing_ok=True)
    yield lambda: asyncio.run(importlib.import_module(f"{pack.__name__}.nodes").Extension().get_node_list())
    target.unlink(missing_ok=True)


def test_the_recording_is_in_the_input_folder_after_a_start(start, base_directory):
    start()
    assert (base_directory / "input" / RECORDING).read_bytes() == (EXAMPLES / RECORDING).read_bytes()


def test_a_recording_of_the_user_is_never_replaced(start, base_directory):
    target = base_directory / "input" / RECORDING
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"mine")
    start()
    assert target.read_bytes() == b"mine"
    target.unlink()
    target.symlink_to("nowhere.wav")
    start()
    assert target.is_symlink() and not target.exists()


def test_an_input_folder_that_cannot_be_written_is_one_line_in_the_log(start, pack, base_directory, monkeypatch, caplog):
    def refuse(target, write):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(importlib.import_module(f"{pack.__name__}.nodes.comfyui.input_files"), "create", refuse)
    with caplog.at_level("INFO"):
        assert start()
    assert [RECORDING in record.getMessage() for record in caplog.records] == [True]


def test_example_loras_are_listed_after_the_users_and_only_in_our_nodes(sa3, pack, base_directory):
    import folder_paths

    names = importlib.import_module(f"{pack.__name__}.nodes.comfyui.lora").lora_names()
    assert [name for name in names if name.startswith("sa3_example")] == sorted(path.name for path in EXAMPLES.glob("*.safetensors"))
    assert LORA not in folder_paths.get_filename_list("loras")
    assert "rank 2" in sa3.run("SA3_LoRAInfo", lora=LORA)[0]


def test_a_lora_of_the_user_with_the_same_name_wins(sa3, base_directory):
    own = base_directory / "models" / "loras" / LORA
    own.parent.mkdir(parents=True, exist_ok=True)
    before = sa3.run("SA3_LoRAInfo", lora=LORA)[0]
    shutil.copyfile(EXAMPLES / "sa3_example_decay.safetensors", own)
    try:
        assert str(own) in sa3.classes["SA3_LoRAInfo"].fingerprint_inputs(lora=LORA)
    finally:
        own.unlink()
    assert sa3.run("SA3_LoRAInfo", lora=LORA)[0] == before


def test_the_example_folder_trains_and_nothing_is_written_into_the_pack(sa3, base_directory):
    before = sorted(EXAMPLES.rglob("*"))
    model, clip, vae = sa3.run("SA3_ModelLoader", model="demo", file="by name", dtype="auto", text_encoder="auto")[:3]
    settings = dict(
        kind="lora", rank=1, alpha=0.0, steps=1, learning_rate=1e-4, batch_size=1, seconds=0.5, training_seed=1, dtype="auto",
        validation=0.0, include="to_out", exclude="", save_every=0, prompt="", preview_every=0, preview_seconds=0.5,
    )  # fmt: skip
    out = sa3.run("SA3_TrainLoRA", model=model, clip=clip, vae=vae, folder=FOLDER, name="of_examples", **settings)
    assert out[1] == "of_examples.safetensors" and "6 clips" in out[4]
    assert sorted(EXAMPLES.rglob("*")) == before
    own = base_directory / "input" / FOLDER
    own.mkdir(parents=True)
    with sa3.refused("contains no audio files"):  # a folder of the user wins
        sa3.run("SA3_TrainLoRA", model=model, clip=clip, vae=vae, folder=FOLDER, name="of_user", **settings)
    own.rmdir()
