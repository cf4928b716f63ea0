"""SA3_PreviewBatch, SA3_AudioImage, SA3_Levels: what is shown, what is passed on, and that nothing changes unasked."""

import importlib
import json
import math
import wave
from pathlib import Path

import pytest
import torch
from core_support import randn
from PIL import Image

RATE = 44100


@pytest.fixture
def temp(comfy, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(comfy.folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def look(sa3, temp):
    """look(audios, keep, ...) -> (kept AUDIOs, report, pictures, run_infos, the ui result)."""

    def run(audios, keep="all", **inputs):
        with torch.inference_mode():
            out = sa3.classes["SA3_PreviewBatch"].execute(audios, [keep], **inputs)
        return *out.args, out.ui

    return run


def clips(*lengths: int, channels: int = 2, rate: int = RATE) -> list[dict]:
    return [{"waveform": 0.1 * randn(1, channels, n, seed=n), "sample_rate": rate} for n in lengths]


def batch(count: int = 4, length: int = 9000) -> dict:
    return {"waveform": 0.1 * randn(count, 2, length), "sample_rate": RATE}


def test_all_of_a_batch_is_the_same_object(look):
    audio = batch()
    kept, report, pictures, _, _ = look([audio])
    assert kept == [audio] and kept[0] is audio
    assert len(report.splitlines()) == 4 and "(kept)" in report.splitlines()[3]
    assert pictures.shape == (4, 512, 1024, 3)


@pytest.mark.parametrize(("keep", "rows"), [("2", [1]), ("1, 3-4", [0, 2, 3])])
def test_some_of_a_batch_leave_as_a_batch(look, keep, rows):
    audio = batch()
    kept, report, pictures, _, _ = look([audio], keep)
    assert len(kept) == 1 and torch.equal(kept[0]["waveform"], audio["waveform"][rows]) and kept[0]["sample_rate"] == RATE
    assert ["(kept)" in line for line in report.splitlines()] == [i in rows for i in range(4)]
    assert len(pictures) == 4  # of all items, whatever is kept


def test_a_list_leaves_as_a_list_or_as_a_batch_when_lengths_are_equal(look):
    audios = clips(3000, 4000, 3000)
    kept = look(audios)[0]
    assert [one["waveform"].shape[-1] for one in kept] == [3000, 4000, 3000]
    (one,) = look(audios, "1,3")[0]
    assert one["waveform"].shape == (2, 2, 3000)
    assert [one["sample_rate"] for one in look(clips(3000) + clips(3000, rate=8000))[0]] == [RATE, 8000]


def test_keeping_none_stops_what_follows_without_an_error(look):
    from comfy_execution.graph_utils import ExecutionBlocker

    (nothing,), report, pictures, (no_info,), shown = look([batch(2)], "none")
    assert isinstance(nothing, ExecutionBlocker) and nothing.message is None and no_info is nothing
    assert "kept" not in report and len(pictures) == len(shown["sa3_items"]) == 2


def test_an_item_that_does_not_exist(sa3, look):
    with sa3.refused("keep names item 5", "has 4", "counted from 1"):
        look([batch()], "5")


def test_what_the_browser_plays_is_what_there_is(look, temp):
    audios = clips(3000, 4000)
    *_, shown = look(audios)
    assert json.dumps(shown, allow_nan=False)
    for audio, item, file in zip(audios, shown["sa3_items"], shown["audio"], strict=True):
        assert file == item["audio"] and file["type"] == "temp"
        with wave.open(str(temp / file["filename"])) as sound:
            played = torch.frombuffer(bytearray(sound.readframes(10**6)), dtype=torch.int16).reshape(-1, 2).T / 32768
        assert float((played - audio["waveform"][0]).abs().max()) <= 0.5001 / 32768
        with Image.open(temp / item["picture"]["filename"]) as picture:
            assert picture.size == (640, 160)
    before = {file: file.stat().st_mtime_ns for file in temp.iterdir()}
    look(audios, "1")
    assert {file: file.stat().st_mtime_ns for file in temp.iterdir()} == before  # another choice writes nothing


def test_facts_of_each_item(look):
    audio = batch(3)
    audio["waveform"][1] = 0
    audio["waveform"][2] *= 40
    *_, shown = look([audio])
    assert [item["verdict"] for item in shown["sa3_items"]] == ["ok", "silent", "clipped"]
    assert shown["sa3_items"][0]["seconds"] == pytest.approx(9000 / RATE) and shown["sa3_items"][1]["integrated"] is None


def test_an_empty_run_info_is_none(look):
    kept, _, _, infos, shown = look([batch(2)], run_info=[None])
    assert len(kept) == 1 and infos == [""] and all(item.get("seed") is None for item in shown["sa3_items"])


def test_a_broken_item_hides_no_other(look):
    audio = batch(2)
    audio["waveform"][0, 0, 5] = math.nan
    kept, report, pictures, _, shown = look([audio], "2")
    assert [item["verdict"] for item in shown["sa3_items"]] == ["broken", "ok"] and "broken" in report
    assert torch.isfinite(pictures).all() and torch.equal(kept[0]["waveform"], audio["waveform"][1:])


def test_seeds_make_the_same_items_again(sa3, load, look):
    """The seed that an item shows makes that item alone."""
    parts = load("small")
    text = sa3.prompt(parts.clip, "rain")
    latent, info = sa3.sample(parts.model, text, sa3.empty(batch_size=3), seed=11)
    *_, shown = look(sa3.decode(latent, parts.vae), run_info=[json.dumps(info)])
    seeds = [int(item["seed"]) for item in shown["sa3_items"]]
    assert seeds[0] == 11 and len(set(seeds)) == 3
    again, _ = sa3.sample(parts.model, text, sa3.empty(), seed=seeds[2])
    assert torch.allclose(again["samples"][0], latent["samples"][2], atol=1e-4)


def test_the_run_info_of_the_kept_items_leaves_with_them(look):
    first = json.dumps({"seed": 7, "batch_index": [0, 1], "seconds": [1, 2], "prompt": ["a", "b"]})
    second = json.dumps({"seed": 9, "batch_index": [0], "seconds": [3], "prompt": ["c"]})

    def prompts(audios, keep, run_info=(first, second)):
        kept, *_, infos, _ = look(audios, keep, run_info=list(run_info))
        assert len(infos) == len(kept)
        found = [json.loads(text) for text in infos]
        return [[one["prompt"] for one in item] if isinstance(item, list) else item["prompt"] for item in found]

    equal = [batch(2), batch(1)]
    assert prompts(equal, "all") == [[["a"], ["b"], ["c"]]] and prompts(equal, "2-3") == [[["b"], ["c"]]] and prompts(equal, "3") == [["c"]]
    assert prompts(clips(3000, 4000, 5000), "1,3") == [["a"], ["c"]]
    *_, infos, _ = look(equal, "2", run_info=[first])  # of other items: passed on unchanged
    assert infos == [first]
    assert look(equal, "2")[3] == [""]


def test_the_original_is_beside_each_item(sa3, look):
    one, several = clips(5000), clips(3000, 4000)
    for original in (one, several):
        *_, shown = look(clips(3000, 3000), original=original)
        assert [item["original"]["filename"].endswith(".wav") for item in shown["sa3_items"]] == [True, True]
    with sa3.refused("original has 3 items for 2"):
        look(clips(3000, 3000), original=[batch(3)])


def test_what_is_no_audio_is_refused(sa3, look):
    for wrong in (None, {"samples": torch.zeros(1)}, {"waveform": torch.zeros(1, 1, 2, 500), "sample_rate": RATE}):
        with sa3.refused("The AUDIO"):
            look([wrong])


# -- pictures -----------------------------------------------------------------------------------------------------------


def test_a_picture_per_item(sa3):
    (made,) = sa3.run("SA3_AudioImage", audio=batch(2), width=320, height=96, kind="spectrogram", scale="log")
    assert made.shape == (2, 96, 320, 3) and made.dtype == torch.float32
    with sa3.refused("loud one must be higher"):
        sa3.run("SA3_AudioImage", audio=batch(1), quiet=0, loud=-10)


# -- levels -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def levels(sa3, monkeypatch):
    module = importlib.import_module("sa3_pack.nodes.preview")
    said = []
    monkeypatch.setattr(module, "warn", lambda *messages: said.extend(messages))

    def run(audio, **widgets):
        return sa3.run("SA3_Levels", audio=audio, **widgets)

    run.said = said
    return run


def test_nothing_changes_unless_asked(levels):
    audio = batch(2)
    before = audio["waveform"].clone()
    out, report = levels(audio)
    assert out is audio and torch.equal(audio["waveform"], before)
    assert len(report.splitlines()) == 2 and report.startswith("1: ") and "LUFS integrated" in report and "crest" in report


def test_a_limiter_that_has_nothing_to_do_changes_nothing(levels):
    audio = batch(1)
    assert levels(audio, limit="true peak", ceiling=-1.0)[0] is audio


def test_loudness_and_ceiling_on_request(sa3, levels):
    audio = {"waveform": 0.2 * randn(2, 2, 2 * RATE), "sample_rate": RATE}
    audio["waveform"][1] *= 0.1
    before = audio["waveform"].clone()
    out, report = levels(audio, normalize="loudness", target=-14.0, limit="true peak", ceiling=-3.0)
    after, _ = levels(out)
    assert torch.equal(audio["waveform"], before) and after is out
    lines = report.splitlines()
    assert len(lines) == 4 and "after a gain of" in lines[1] and "limiter" in lines[3]
    assert float(out["waveform"].abs().max()) <= 10 ** (-3 / 20)
    assert levels.said == []


def test_going_beyond_full_scale_is_said(levels):
    audio = {"waveform": 0.1 * randn(1, 2, RATE), "sample_rate": RATE}
    levels(audio, normalize="loudness", target=0.0)
    assert len(levels.said) == 1 and "limit" in levels.said[0]


def test_a_loudness_that_the_limiter_prevents_is_said(levels):
    audio = {"waveform": 0.001 * randn(1, 2, RATE), "sample_rate": RATE}
    audio["waveform"][..., 1000] = 1.0
    levels(audio, normalize="loudness", target=-14.0, limit="true peak", ceiling=-30.0)
    assert len(levels.said) == 1 and "LUFS, not -14" in levels.said[0] and "limiter" in levels.said[0]


def test_levels_refuse_what_they_do_not_know(sa3, levels):
    with sa3.refused("normalize is 'rms'"):
        levels(batch(1), normalize="rms")
    with sa3.refused("limit is 'brick'"):
        levels(batch(1), limit="brick")
