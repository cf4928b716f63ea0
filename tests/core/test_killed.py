"""kill -9 in the middle of things, by a forked process itself at a chosen point: no half file under its name, and the next try is as if
nothing had been."""

import dataclasses
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from core_support import DATA, TEXT_ENCODER, lay_out, randn
from hub_server import Hub, Repository, use_hub
from lora_support import write_lora

import sa3_core
from sa3_core.audio import files as audio_files
from sa3_core.checkpoints import download, releases, tensors
from sa3_core.lora import convert as lora_convert
from sa3_core.lora import merge as lora_merge
from sa3_core.models import same, text_encoder

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that holds torch"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], object]) -> None:
    """Do the work in a process that must end by its own kill -9."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(3)  # it came to an end, or raised
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"the work ended with {status}"


def names(folder: Path) -> set[str]:
    """Files and folders that a user or ComfyUI sees."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


@pytest.mark.parametrize("kind", ["wav16", "flac"])
@pytest.mark.parametrize("point", ["half", "fsync", "link"])
def test_in_a_save(tmp_path, kind, point):
    clip, out = randn(2, 4000) * 0.1, tmp_path / "out"
    out.mkdir()

    def work():
        if point == "half":
            audio_files._write_wav = audio_files.encode = lambda file, *_: (file.write(b"RIFF half"), die())
        else:
            setattr(os, point, die)
        audio_files.write_next(out, "sa3", 1, clip, 44100, kind)

    killed(work)
    assert names(out) == set()
    path, _ = audio_files.write_next(out, "sa3", 1, clip, 44100, kind)
    audio_files.write(tmp_path / "undisturbed", clip, 44100, kind)
    assert path.name.startswith("sa3_00001_") and path.read_bytes() == (tmp_path / "undisturbed").read_bytes()


@pytest.mark.parametrize("layout", ["native", "peft"])
@pytest.mark.parametrize("point", ["half", "rename"])
def test_in_a_conversion(load_model, tmp_path, layout, point):
    source = write_lora(tmp_path / "a.safetensors", load_model("small").module)
    target = tmp_path / "out" / ("x" if layout == "peft" else "x.safetensors")

    def work():
        if point == "half":
            tensors.save_file = lambda values, file, metadata: (file.write_bytes(b"half"), die())
        else:
            os.replace = die
        lora_convert.convert(source, target, layout)

    killed(work)
    assert names(tmp_path / "out") == set()
    made = lora_convert.convert(source, target, layout)
    other = lora_convert.convert(source, tmp_path / "undisturbed" / target.name, layout)
    assert made.read_bytes() == other.read_bytes() and {path.name for path in (tmp_path / "out").iterdir()} == {target.name}


@pytest.mark.parametrize("point", ["first tensor", "last tensor", "rename"])
def test_in_a_merge(tmp_path, point):
    folder = lay_out(tmp_path / "small", "small")
    model = sa3_core.load(folder)
    model.add_lora(write_lora(tmp_path / "a.safetensors", model.module))

    def work():
        if point == "rename":
            os.replace = die
        lora_merge.merge(
            folder,
            model.loras,
            tmp_path / "models" / "merged",
            lambda done, total: done == {"first tensor": 1, "last tensor": total}.get(point) and die(),
        )

    killed(work)
    assert names(tmp_path / "models") == set()
    made = lora_merge.merge(folder, model.loras, tmp_path / "models" / "merged")
    assert made.read_bytes() == lora_merge.merge(folder, model.loras, tmp_path / "undisturbed").read_bytes()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["merged"]


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A Hub with one model: its release and its files."""
    with Hub(tokens=set()) as running:
        release = releases.RELEASES["small-music-base"]
        files = {"model.safetensors": (DATA / "small" / "model.safetensors").read_bytes(), "LICENSE.md": b"the licence"}
        files["model_config.json"] = (DATA / "small-base" / "model_config.json").read_bytes()
        files |= {f"{TEXT_ENCODER}/{path.name}": path.read_bytes() for path in (DATA / TEXT_ENCODER).iterdir()}
        running.repositories[release.repository] = Repository(files, release.revision, False)
        use_hub(running, monkeypatch, tmp_path)
        yield dataclasses.replace(release, sha256=hashlib.sha256(files["model.safetensors"]).hexdigest()), files


@pytest.mark.parametrize("point", ["a quarter", "three quarters", "replace", "rename"])
def test_in_a_download(tmp_path, published, point):
    release, files = published
    models, share = tmp_path / "models", {"a quarter": 0.25, "three quarters": 0.75}.get(point)

    def work():
        if share is None:
            setattr(os, point, die)
        download.download(release, models, progress=lambda done, total: share is not None and done >= share * total and die())

    killed(work)
    assert names(models) == set()
    arrived = sum(path.stat().st_size for path in models.rglob("*") if path.is_file())
    begun = []
    folder = download.download(release, models, progress=lambda done, total: begun.append(done))
    assert arrived > 0 and begun[0] > 0  # it went on from there
    assert names(models) == {release.folder}
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: found[name] for name in files} == files


@pytest.mark.parametrize("point", ["text", "step 1", "step 3", "decode"])
def test_in_a_run(tmp_path, load_model, point):
    """From text to a saved file; the next run gives the same bytes as an undisturbed one."""
    model = load_model("small")

    def run(folder: Path, stop=None) -> Path:
        result = model.generate("rain", 0.4, seed=3, steps=4, padding=0.0, callback=stop)
        return audio_files.write_next(folder, "sa3", 1, result.audio[0], result.sample_rate, "wav24")[0]

    def work():
        if point == "text":
            text_encoder.TextEncoder.forward = die
        if point == "decode":
            same.SAME.decode = die
        run(tmp_path / "out", lambda step, total, denoised: point == f"step {step + 1}" and die())

    for name in ("out", "undisturbed"):
        (tmp_path / name).mkdir()
    undisturbed = run(tmp_path / "undisturbed")
    killed(work)
    assert names(tmp_path / "out") == set()
    assert run(tmp_path / "out").read_bytes() == undisturbed.read_bytes()
    assert torch.get_num_threads() == 1  # what makes forking safe here
