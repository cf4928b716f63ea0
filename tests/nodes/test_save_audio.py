"""SA3_SaveAudio: files, names, what is inside them, and what is said."""

import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from core_support import randn

PROMPT = {"1": {"class_type": "SA3_Sampler", "inputs": {"seed": 3}}}
WORKFLOW = {"nodes": [{"id": 1, "type": "SA3_Sampler"}], "version": 0.4}


@pytest.fixture
def output(comfy, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(comfy.folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def save(sa3, output, monkeypatch):
    """save(waveform, **widgets) -> the files, as the browser is told of them; .said: the node's messages."""
    module = importlib.import_module("sa3_pack.nodes.output")
    said = []
    monkeypatch.setattr(module, "warn", lambda *messages: said.extend(messages))

    def run(waveform, rate=44100, **widgets):
        cls = sa3.classes["SA3_SaveAudio"]
        values = {"filename_prefix": "audio/sa3", "format": "flac", **widgets}
        bound = type("Bound", (cls,), {"hidden": SimpleNamespace(prompt=PROMPT, extra_pnginfo={"workflow": WORKFLOW}, unique_id="9")})
        out = bound.execute.__func__(bound, {"waveform": waveform, "sample_rate": rate}, **values)
        assert out.args[0]["waveform"] is waveform
        return [output / one["subfolder"] / one["filename"] for one in out.ui["audio"] if one["type"] == "output"]

    run.said = said
    return run


def read(path: Path) -> tuple[dict, np.ndarray]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return dict(container.metadata), np.concatenate(frames, axis=1)


def test_a_flac_restores_its_graph(save):
    (path,) = save(randn(1, 2, 5000) * 0.1, run_info='{"seed": 3}')
    found, _ = read(path)
    assert path.name == "sa3_00001_.flac" and path.parent.name == "audio"
    assert json.loads(found["prompt"]) == PROMPT and json.loads(found["workflow"]) == WORKFLOW and json.loads(found["sa3"]) == {"seed": 3}


def test_a_batch_is_a_file_each_and_nothing_is_overwritten(save, output):
    names = [path.name for _ in range(2) for path in save(randn(3, 2, 500) * 0.1, format="wav16", filename_prefix="x%batch_num%")]
    assert names == ["x0_00001_.wav", "x1_00001_.wav", "x2_00001_.wav", "x0_00002_.wav", "x1_00002_.wav", "x2_00002_.wav"]
    assert len(list(output.iterdir())) == 6


def test_six_channels_stay_six(save):
    waveform = randn(1, 6, 500)
    (path,) = save(waveform, format="wav32f", rate=96000)
    _, samples = read(path)
    assert np.array_equal(samples.reshape(-1, 6).T, waveform[0].numpy()) and save.said == []


def test_clipping_is_said_on_the_node(save):
    save(torch.full((1, 2, 400), 1.5), format="wav16")
    assert len(save.said) == 1 and "sa3_00001_.wav" in save.said[0] and "800 samples" in save.said[0]


def test_disable_metadata(save, monkeypatch):
    import comfy.cli_args

    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    for kind in ("flac", "wav16"):
        (path,) = save(randn(1, 2, 500) * 0.1, format=kind, run_info='{"seed": 31415}')
        assert not {"prompt", "workflow", "sa3", "comment"} & set(read(path)[0]) and b"31415" not in path.read_bytes()


@pytest.mark.parametrize("prefix", ["../out", "a/../../out", "/tmp/out", "..\\out", "a/..", "\\\\server\\share"])
def test_no_way_out_of_the_output_folder(sa3, save, output, prefix):
    with sa3.refused("filename_prefix", "output folder"):
        save(randn(1, 2, 500), filename_prefix=prefix)
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("a:b?c*", "a_b_c__00001_.flac"), ("", "sa3_00001_.flac"), ("deep/er\\name", "deep/er/name_00001_.flac"),
        ("nul\0l", "nul_l_00001_.flac"),
        ("dots. /x", "dots/x_00001_.flac"), ("é" * 300, "é" * 90 + "_00001_.flac"),
    ],
)  # fmt: skip
def test_names_that_every_system_takes(save, output, prefix, path):
    (found,) = save(randn(1, 2, 500) * 0.1, filename_prefix=prefix)
    assert found == output / path and found.is_file()


def test_what_is_not_audio_is_refused(sa3, output):
    for audio, words in ((None, "no sound"), ({"samples": torch.zeros(1, 2, 500)}, "no 'waveform'"), ("a file", "not audio")):
        with sa3.refused(words):
            sa3.run("SA3_SaveAudio", audio=audio)
    with sa3.refused("NaN"):
        sa3.run("SA3_SaveAudio", audio={"waveform": torch.full((1, 2, 500), torch.nan), "sample_rate": 44100})
    assert [name for _, _, files in os.walk(output) for name in files] == []
