"""SA3_TrainLoRA inside ComfyUI: the MODEL stays untouched, an interruption saves, the result goes on."""

import json

import pytest
import torch
from core_support import randn, rel_error
from node_support import same_weights, weights

from sa3_core.audio import files as audio_files

QUICK = {"steps": 4, "rank": 2, "seconds": 1.0, "learning_rate": 0.02, "preview_every": 0, "save_every": 0, "preview_seconds": 0.5}


@pytest.fixture
def folder(base_directory, request):
    """A training folder of two captioned clips, named after the test."""
    path = base_directory / "input" / "sets" / request.node.name.replace("[", "_").replace("]", "")
    path.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        audio_files.write(path / f"{i}.wav", (randn(2, 30_000, seed=i) * 0.2).clamp(-1, 1), 44100, "wav16")
        (path / f"{i}.txt").write_text("a new sound", encoding="utf-8")
    return path


@pytest.fixture
def train(sa3, load, folder):
    def run(name, variant="small-base", **more):
        parts = load(variant)
        inputs = {"model": parts.model, "clip": parts.clip, "vae": parts.vae, "folder": f"sets/{folder.name}", "name": name}
        return sa3.run("SA3_TrainLoRA", **{**inputs, **QUICK, **more})

    return run


def test_a_folder_becomes_a_lora_and_the_model_stays_as_it_was(sa3, load, train, comfy, base_directory):
    comfy.management.unload_all_models()  # takes back the patches that another test's run has applied to the shared weights
    parts = load("small-base")
    before = weights(parts.model.model)
    plain, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "a new sound"), sa3.empty(0.5, padding=0.5), steps=2, cfg=1.0)
    model, name, audio, curves, report = train("trained")
    assert name == "trained.safetensors" and (base_directory / "models" / "loras" / name).is_file()
    assert same_weights(parts.model.model, before) and not parts.model.patches
    assert audio["waveform"].shape == (1, 2, 22_050) and audio["sample_rate"] == 44100
    assert curves.shape == (1, 400, 800, 3) and 0 <= float(curves.min()) < float(curves.max()) <= 1
    assert "4 steps of batch 1" in report and "trained on stable-audio-3-small-music-base" in report
    other, info = sa3.sample(model, sa3.prompt(parts.clip, "a new sound"), sa3.empty(0.5, padding=0.5), steps=2, cfg=1.0)
    assert rel_error(other["samples"], plain["samples"]) > 1e-3 and info["loras"][0]["file"] == name
    listed = sa3.run("SA3_LoRAStack", model=parts.model, lora=name)[1]
    assert "dora-rows, rank 2" in listed and "Warning" not in listed
    assert '"step": 4' in sa3.run("SA3_LoRAInfo", lora=name)[0]
    post = load("small").model  # the sibling that it is meant to be used on
    assert "Warning" not in sa3.run("SA3_LoRAStack", model=post, lora=name)[1]
    again, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "a new sound"), sa3.empty(0.5, padding=0.5), steps=2, cfg=1.0)
    assert torch.equal(again["samples"], plain["samples"])


def test_an_interruption_saves_and_the_next_queue_goes_on(train, comfy, base_directory, monkeypatch):
    whole = train("whole")
    bar, stopped = comfy.utils.ProgressBar.update_absolute, []

    def update(self, value, total=None, preview=None):
        if total == QUICK["steps"] and value == 2 and not stopped:
            stopped.append(value)
            comfy.management.interrupt_current_processing()
        bar(self, value, total, preview)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    with pytest.raises(comfy.management.InterruptProcessingException):
        train("halves")
    loras = base_directory / "models" / "loras"
    assert (loras / "halves_step000002.safetensors").is_file() and not (loras / "halves.safetensors").exists()
    assert "2 of them before" in train("halves")[4]
    assert (loras / "halves.safetensors").read_bytes() == (loras / whole[1]).read_bytes()


def test_curves_and_samples_are_shown_while_it_runs(train, comfy, monkeypatch):
    shown = []
    bar = comfy.utils.ProgressBar.update_absolute

    def update(self, value, total=None, preview=None):
        shown.append(preview)
        bar(self, value, total)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    train("shown", steps=45, preview_every=30, learning_rate=1e-4)
    pictures = [one for one in shown if one is not None]
    assert all(kind == "JPEG" for kind, *_ in pictures)
    assert [picture.size for _, picture, _ in pictures] == [(400, 200), (400, 320), (400, 320)]


def test_what_is_wrong_is_said_before_any_work(sa3, load, train, at_rest, base_directory, folder):
    with sa3.refused("no folder 'nowhere'", "sets"):
        train("x", folder="nowhere")
    with sa3.refused("below ComfyUI's input folder"):
        train("x", folder="../models")
    with sa3.refused("not a plain file name"):
        train("a/b")
    with sa3.refused("post-trained", "-base"):
        train("x", variant="small")
    with sa3.refused("kind", "loha"):
        train("x", kind="loha")
    with sa3.refused("steps", "-1"):
        train("x", steps=-1)
    for file in folder.glob("*.txt"):
        file.unlink()
    with sa3.refused("0.txt next to 0.wav"):
        train("x")


def test_a_stack_on_the_model_takes_no_part(sa3, load, train, folder):
    parts = load("small-base")
    _, name, *_ = train("below")
    stacked = sa3.run("SA3_LoRAStack", model=parts.model, lora=name)[0]
    alone, above = (train(n, model=m)[1] for n, m in (("alone", parts.model), ("above", stacked)))
    loras = [sa3.run("SA3_LoRAInfo", lora=one)[0].partition("\n")[2] for one in (alone, above)]
    assert loras[0] == loras[1]


def test_the_node_runs_again_only_when_something_has_changed(sa3, train, folder, base_directory):
    cls = sa3.classes["SA3_TrainLoRA"]

    def state():
        return cls.fingerprint_inputs(folder=f"sets/{folder.name}", name="again")

    before = state()
    train("again")
    after = state()
    assert after != before and after == state()  # the file is there now; what was encoded does not count
    (folder / "0.txt").write_text("another caption", encoding="utf-8")
    assert state() != after
    assert json.loads((base_directory / "output" / "sa3_training" / "again" / "run.json").read_text())["rank"] == 2
