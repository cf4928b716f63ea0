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
        return {**container.metadata, **container.streams.audio[0].metadata}, np.concatenate(frames, axis=1)


@pytest.mark.parametrize("kind", ["flac", "mp3", "opus", "m4a"])
def test_a_file_restores_its_graph(save, kind):
    (path,) = save(randn(1, 2, 5000) * 0.1, rate=48000, run_info='{"seed": 3}', format=kind)
    found, _ = read(path)
    assert path.name == f"sa3_00001_.{kind}" and path.parent.name == "audio"
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


def run_of(*indices: int, seed: int = 7, **more) -> str:
    """The run_info of a batch; its prompts and durations follow the items."""
    texts, seconds = [f"tone {i}" for i in indices], [1.5 + i for i in indices]
    return json.dumps({"model": "small-music", "seed": seed, "batch_index": indices, "prompt": texts, "seconds": seconds, **more})


def records(paths: list[Path]) -> list[dict]:
    return [json.loads(read(path)[0]["sa3"]) for path in paths]


def test_each_file_of_a_batch_has_the_record_and_the_name_of_its_item(save):
    paths = save(randn(2, 2, 500) * 0.1, run_info=run_of(0, 1), filename_prefix="%model%/%prompt% %seed% %duration%")
    first, second = records(paths)
    assert (first["seed"], first["prompt"], first["seconds"]) == (7, ["tone 0"], [1.5])
    assert second["prompt"] == ["tone 1"] and second["batch"] == {"seed": 7, "index": 1, "items": 2} and second["seed"] != 7
    assert [path.name for path in paths] == ["tone 0 7 1.5s_00001_.flac", f"tone 1 {second['seed']} 2.5s_00001_.flac"]
    assert paths[0].parent.name == "small-music" and save.said == []


def test_a_record_of_other_items_is_saved_whole_and_names_nobody(save):
    (path,) = save(randn(1, 2, 500) * 0.1, run_info=run_of(0, 1), filename_prefix="%prompt% %seed%")
    assert records([path]) == [json.loads(run_of(0, 1))] and path.name == "prompt seed_00001_.flac"
    assert len(save.said) == 1 and "%prompt%, %seed%" in save.said[0] and "run_info" in save.said[0]


def test_a_clip_of_a_decoded_list_finds_its_record(sa3, output):
    audio = {"waveform": randn(1, 2, 500) * 0.1, "sample_rate": 44100, "sa3_item": 3}
    sa3.run("SA3_SaveAudio", audio=audio, run_info=run_of(2, 3), filename_prefix="%prompt%")
    assert [path.name for path in output.iterdir()] == ["tone 3_00001_.flac"]
    sa3.run("SA3_SaveAudio", audio=audio, run_info=run_of(4, 5), filename_prefix="%prompt%")
    assert sorted(path.name for path in output.iterdir())[0] == "prompt_00001_.flac"


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("%date:yyyy-MM-dd%", "2026-03-04"), ("%date:yy.M.d hh:mm:ss%", "26.3.4 05_06_07"), ("%date%", "2026-03-04"),
        ("%SA3_Sampler.seed%", "3"), ("%My Sampler.cfg%", "1.5"), ("%My Sampler.model%", "%My Sampler.model%"),
        ("%Nobody.x%", "%Nobody.x%"), ("%batch_num%%", "0%"), ("100% of %date:yyyy%", "100% of 2026"),
        ("%SA3_Sampler.sampler%", "_.._euler"),
    ],
)  # fmt: skip
def test_placeholders(sa3, prefix, name):
    module = importlib.import_module("sa3_pack.nodes.comfyui.output_files")
    inputs = {"seed": 3, "cfg": 1.5, "model": ["1", 0], "sampler": "../../euler"}
    graph = {
        "1": {"class_type": "SA3_Sampler", "_meta": {"title": "My Sampler"}, "inputs": inputs},
        "2": {"class_type": "A", "_meta": None},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "localtime", lambda: module.time.struct_time((2026, 3, 4, 5, 6, 7, 0, 0, 0)))
        expanded, unknown = module.expand(prefix, None, graph)
    assert unknown == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.folder_paths, "get_save_image_path", lambda name, output: (output, name, 1, "", ""))
        assert module.next_output(expanded, 0)[1] == name.replace("%batch_num%", "0")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a low tone, then\n a kick", "a low tone, then a kick"), ("雨の音" * 40, "雨の音" * 11), ("../../etc/passwd", "_.._etc_passwd"),
        ("", "empty"), ("...", "empty"), ("50% %year% C:\\x", "50_ _year_ C__x"), ("a\u202eb\ud800\0c", "a b c"), ("🎹" * 3, "🎹" * 3),
    ],
)  # fmt: skip
def test_a_prompt_as_a_name_is_safe_and_short(save, output, prompt, name):
    (path,) = save(randn(1, 2, 500) * 0.1, run_info=run_of(0, prompt=[prompt]), filename_prefix="x/%prompt%")
    assert path == output / "x" / f"{name}_00001_.flac" and path.is_file() and save.said == []


def test_channels_that_a_format_cannot_hold_are_refused_before_a_file_exists(sa3, save, output):
    for kind, quality, words in (("mp3", "high", ("6 channels", "flac")), ("flac", "V0", ("quality is 'V0'",))):
        with sa3.refused(*words):
            save(randn(2, 6, 500), format=kind, quality=quality)
    assert list(output.iterdir()) == []


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
