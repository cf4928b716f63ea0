"""Working on a recording through the nodes: audio to audio, inpaint, continue, loop, splice, extend."""

import importlib
import json
import math
import os
import shutil
import time
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_support import write_lora
from node_support import FOLDERS
from safetensors.torch import load_file, save_file

RATE = 44100


def clip(seconds: float = 3.0, rate: int = RATE, channels: int = 2, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(round(seconds * rate)) / rate
    wave = torch.stack([0.3 * torch.sin(2 * math.pi * (200 + 60 * c) * t) for c in range(channels)])
    return {"waveform": (wave + 0.02 * torch.randn(wave.shape, generator=generator))[None], "sample_rate": rate}


def rel(found, wanted) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("variant", ["small", "medium"])
def test_audio_to_audio_through_the_nodes_is_the_pipeline(sa3, load, pipeline, variant):
    one, source = load(variant), clip(2.0)
    latent = sa3.run("SA3_SAMEEncode", audio=source, vae=one.vae)[0]
    out, info = sa3.sample(one.model, sa3.prompt(one.clip, "soft rain"), latent, seed=3, steps=4, noise_level=0.6)
    wanted = pipeline(variant).generate(
        "soft rain", 2.0, init_audio=(RATE, source["waveform"][0]), init_noise_level=0.6, seed=3, steps=4, return_latents=True
    )
    assert rel(out["samples"], wanted.latents) < 1e-4
    assert info["sigmas"][0] == pytest.approx(0.6) and info["sigmas"] == sorted(info["sigmas"], reverse=True)


@pytest.mark.parametrize("variant", ["small", "medium"])
@pytest.mark.parametrize("noise_level", [1.0, 0.7])
def test_inpainting_through_the_nodes_is_the_pipeline(sa3, load, pipeline, variant, noise_level):
    one, source = load(variant), clip(3.0)
    latent = sa3.run("SA3_SAMEEncode", audio=source, vae=one.vae)[0]
    marked, regions = sa3.run("SA3_InpaintMask", latent=latent, regions="0.5-1.1")
    marked, regions = sa3.run("SA3_InpaintMask", latent=marked, regions="1.7-2.2")
    assert regions == "0.5-1.1, 1.7-2.2"
    out, _ = sa3.sample(one.model, sa3.prompt(one.clip, "glass"), marked, seed=5, steps=4, noise_level=noise_level)
    audio = (RATE, source["waveform"][0])
    wanted = pipeline(variant).generate(
        "glass", 3.0, source_audio=audio, regions=[(0.5, 1.1), (1.7, 2.2)], seed=5, steps=4, return_latents=True,
        init_audio=audio if noise_level < 1 else None, init_noise_level=noise_level,
    )  # fmt: skip
    assert rel(out["samples"], wanted.latents) < 1e-4


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("rate", [RATE, 48000])
def test_continue_lays_the_recording_on_the_longer_line_and_splice_keeps_it(sa3, load, side, rate):
    one, source = load("small"), clip(1.5, rate)
    latent, regions, line = sa3.run("SA3_Continue", audio=source, vae=one.vae, seconds=1.0, side=side)
    n, added = source["waveform"].shape[-1], rate
    assert line["waveform"].shape[-1] == n + added
    out, _ = sa3.sample(one.model, sa3.prompt(one.clip, "wind"), latent, seed=1, steps=2)
    generated = sa3.decode(out, one.vae)[0]
    result, difference, report = sa3.run("SA3_Splice", original=line, generated=generated, regions=regions)
    kept = slice(0, n) if side == "after" else slice(added, None)
    new = slice(n, None) if side == "after" else slice(0, added)
    assert torch.equal(result["waveform"][..., kept], source["waveform"])
    assert not bool(difference["waveform"][..., kept].any()) and float(result["waveform"][..., new].std()) > 1e-3
    assert "sample step" in report and result["sample_rate"] == rate


@pytest.mark.parametrize("rate", [RATE, 48000])
def test_a_loop_is_whole_bars_and_wraps_like_any_other_sample(sa3, load, rate):
    one, source = load("small"), clip(4.5, rate)
    latent, regions, line = sa3.run("SA3_Loop", audio=source, vae=one.vae, bpm=120.0, bars=2, beats_per_bar=4)
    assert line["waveform"].shape[-1] == round(4.0 * rate)
    out, _ = sa3.sample(one.model, sa3.prompt(one.clip, "beat"), latent, seed=2, steps=2)
    generated = sa3.decode(out, one.vae)[0]
    result, _, report = sa3.run("SA3_Splice", original=line, generated=generated, regions=regions)
    wave = result["waveform"]
    assert wave.shape[-1] == round(4.0 * rate)
    assert float((wave[..., 0] - wave[..., -1]).abs().max()) <= float(wave.diff(dim=-1).abs().max())
    assert "wrap" in report
    half = slice(rate, 3 * rate)  # the seam's half second on either side of the wrap is new; the middle is the recording
    assert torch.equal(wave[..., half], source["waveform"][..., half])


def test_the_headroom_of_a_latent_is_not_looped(sa3, load):
    one = load("small")
    loop = dict(vae=one.vae, bpm=120.0, beats_per_bar=4)
    latent = sa3.run("SA3_SAMEEncode", audio=clip(2.5), vae=one.vae, padding=3.0)[0]
    assert latent["samples"].shape[-1] * 4096 > 4 * RATE
    with sa3.refused("2 bars", "the clip has 2.5"):
        sa3.run("SA3_Loop", latent=latent, bars=2, **loop)
    assert sa3.run("SA3_Loop", latent=latent, bars=1, **loop)[2]["waveform"].shape[-1] == 2 * RATE
    with sa3.refused("LATENT is empty"):
        sa3.run("SA3_Loop", latent=sa3.empty(2.5), bars=1, **loop)


def test_six_channels_stay_six_through_splice(sa3, load):
    six = clip(2.0, 48000, 6)
    stereo = clip(2.0, RATE, 2, 7)
    result, _, report = sa3.run("SA3_Splice", original=six, generated=stereo, regions="0.5-1")
    assert torch.equal(result["waveform"][..., :24000], six["waveform"][..., :24000]) and "6" in report


def test_extend_joins_windows_and_keeps_the_recording(sa3, load):
    one, source = load("small"), clip(1.0, 48000)
    inputs = dict(model=one.model, vae=one.vae, positive=sa3.prompt(one.clip, "drone"), audio=source, steps=2, seed=4)
    result, report, info = sa3.run("SA3_Extend", **inputs, seconds=4.0, context=0.8, window=2.0)
    wave, record = result["waveform"], json.loads(info)
    assert wave.shape == (1, 2, 5 * 48000) and torch.equal(wave[..., :48000], source["waveform"])
    joins = [line for line in report.splitlines() if line.startswith("window")]
    assert float(wave[..., 48000:].std()) > 1e-3 and len(joins) == len(record["windows"]) == 4
    assert all("sample step" in line and "spectral flux" in line for line in joins)
    assert sa3.sample(one.model, inputs["positive"], sa3.empty(), steps=2, seed=4)[1].keys() <= record.keys()
    assert (record["seed"], record["batch_index"], record["steps"], record["seconds"]) == (4, [0], 2, [5.0])
    assert sum(window["seconds"] for window in record["windows"]) == pytest.approx(4.0, abs=1e-3)
    assert len({window["seed"] for window in record["windows"]}) == 4 and record["windows"][0]["seed"] == 4
    steps = wave[0].diff(dim=-1).abs().amax(0)
    for seconds in (1.0, 2.0, 3.0, 4.0):  # no join stands out from what lies around it
        join = round(seconds * 48000)
        assert steps[join - 240 : join + 240].max() <= 3 * steps[join - 4800 : join + 4800].quantile(0.999)


@pytest.mark.parametrize("rate", [RATE, 48000])
def test_a_wave_goes_on_across_the_first_join(sa3, load, monkeypatch, rate):
    """The model continues a wave perfectly; no join may change it. The recording ends at a crest."""

    def wave(first: int, count: int, rate: int) -> torch.Tensor:
        t = torch.arange(first, first + count) / rate
        return 0.4 * torch.cos(2 * math.pi * 200 * t).expand(1, 2, -1)

    one, given = load("small"), round(0.5 * rate)
    inputs = dict(model=one.model, vae=one.vae, positive=sa3.prompt(one.clip, "drone"), steps=2, seed=4)
    inputs["audio"] = {"waveform": wave(1 - given, given, rate), "sample_rate": rate}
    monkeypatch.setattr(one.vae, "decode_latents", lambda z, **_: wave(1 - round(0.3 * RATE), z.shape[-1] * 4096, RATE))
    result, *_ = sa3.run("SA3_Extend", **inputs, seconds=1.0, context=0.3, window=2.0)
    steps = result["waveform"][0].diff(dim=-1).abs().amax(0)
    assert steps[: given + rate // 2].max() <= 0.02


def interrupted_at(sa3, monkeypatch, number: int) -> list:
    """Interrupt the sampling of a window, counted from 1. The list has an element for each window that was begun."""
    runs, sample = [], sa3.host.sampling.sample

    def counted(*args, **kwargs):
        runs.append(1)
        if len(runs) == number:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(sa3.host.sampling, "sample", counted)
    return runs


@pytest.mark.parametrize("lora", ["none", "SA3_LoRAStack", "core's loader"])
def test_an_interrupted_extension_goes_on_where_it_stopped(sa3, load, comfy, monkeypatch, base_directory, lora):
    folder = base_directory / "models" / "loras"
    if lora != "none":
        write_lora(folder / "native.safetensors", load("small").model.model)
        (folder / "of_core.safetensors").unlink(missing_ok=True)
        sa3.run("SA3_LoRAConvert", lora="native.safetensors", format="comfyui", name="of_core")

    def with_lora(model):
        if lora == "none":
            return model
        if lora == "SA3_LoRAStack":
            return sa3.run(lora, model=model, lora="native.safetensors", start=0.2)[0]
        return comfy.nodes.comfy.sd.load_lora_for_models(model, None, load_file(folder / "of_core.safetensors"), 1.0, 0)[0]

    one, source = load("small"), clip(1.0)
    inputs = dict(model=with_lora(one.model), vae=one.vae, positive=sa3.prompt(one.clip, "drone"), audio=source, steps=2, seed=4)
    settings = dict(seconds=3.0, context=0.5, window=1.5)
    undisturbed = sa3.run("SA3_Extend", **inputs, **settings)[0]["waveform"]
    runs = interrupted_at(sa3, monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        sa3.run("SA3_Extend", **inputs, **settings)
    (job,) = (base_directory / "user" / "sa3_extend").iterdir()
    assert len(list(job.iterdir())) == 2
    sa3.run("SA3_Extend", **{**inputs, "seed": 5}, seconds=0.5, context=0.5, window=1.5)  # another job in between
    fresh = sa3.load(file=FOLDERS["small"])  # as after a restart
    monkeypatch.setattr(importlib.import_module("sa3_pack.nodes.comfyui.extend"), "SESSION", "another")
    runs.clear()
    again, _, info = sa3.run("SA3_Extend", **{**inputs, "model": with_lora(fresh.model), "vae": fresh.vae}, **settings)
    assert json.loads(info)["resumed_windows"] == 2 and bool(json.loads(info)["loras"]) == (lora == "SA3_LoRAStack")
    assert torch.equal(again["waveform"], undisturbed) and len(runs) == 1, "only the third window was computed again"
    assert not job.exists()


@pytest.mark.parametrize(
    "change", ["negative", "no negative", "guidance", "vae", "seed", "other nodes", "damaged", "16 bits", "core's lora"]
)
def test_windows_of_another_job_are_not_used(sa3, load, monkeypatch, base_directory, change):
    def with_patch(model, scale: float):
        from comfy.weight_adapter import LoRAAdapter

        clone, weights = model.clone(), model.model.state_dict()
        key = next(key for key in weights if key.endswith("to_out.weight"))
        rows, columns = weights[key].shape
        clone.add_patches({key: LoRAAdapter(set(), (torch.full((rows, 1), scale), torch.ones(1, columns), 1.0, None, None, None))})
        return clone

    one, source = load("small"), clip(1.0)
    inputs = dict(model=one.model, vae=one.vae, positive=sa3.prompt(one.clip, "drone"), audio=source, steps=2, seed=4, cfg=2.0)
    inputs["negative"] = sa3.prompt(one.clip, "rain")
    settings = dict(seconds=2.0, context=0.5, window=1.5)
    if change == "core's lora":
        inputs["model"] = with_patch(one.model, 1.0)
    runs = interrupted_at(sa3, monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        sa3.run("SA3_Extend", **inputs, **settings)
    other = {
        "negative": lambda: {"negative": sa3.prompt(one.clip, "birds")},
        "guidance": lambda: {"guidance": sa3.run("SA3_Guidance", apg=0.5)[0]},
        "vae": lambda: {"vae": load("small-base").vae},
        "seed": lambda: {"seed": 5},
        "no negative": lambda: {"positive": [*inputs["positive"], *inputs["negative"]], "negative": None},
        "other nodes": lambda: {"model": with_post_cfg(one.model)},
        "core's lora": lambda: {"model": with_patch(one.model, 1.5)},
    }

    def with_post_cfg(model):
        clone = model.clone()
        clone.set_model_sampler_post_cfg_function(lambda given: given["denoised"] * 0.9)
        return clone

    folder = base_directory / "user" / "sa3_extend"
    if change == "damaged":
        (file,) = folder.glob("*/*")
        file.write_bytes(file.read_bytes()[:1000])
    if change == "16 bits":
        (file,) = folder.glob("*/*")
        save_file({"audio": load_file(file)["audio"].half()}, file)
    runs[:] = [1, 1]  # no more interruption
    sa3.run("SA3_Extend", **inputs | (other[change]() if change in other else {}), **settings)
    assert len(runs) == 4, "both windows were computed"
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
def test_a_broken_link_among_the_windows_hinders_nobody(sa3, load, base_directory):
    folder = base_directory / "user" / "sa3_extend"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "self").symlink_to(folder / "self")
    one = load("small")
    sa3.run(
        "SA3_Extend", model=one.model, vae=one.vae, positive=sa3.prompt(one.clip, "drone"), audio=clip(1.0), steps=1, seconds=0.5,
        context=0.5, window=1.5,
    )  # fmt: skip
    shutil.rmtree(folder)


def test_abandoned_windows_are_deleted_after_a_week(sa3, load, base_directory):
    old = base_directory / "user" / "sa3_extend" / "0123"
    old.mkdir(parents=True)
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    one = load("small")
    sa3.run(
        "SA3_Extend", model=one.model, vae=one.vae, positive=sa3.prompt(one.clip, "drone"), audio=clip(1.0), steps=1, seconds=0.5,
        context=0.5, window=1.5,
    )  # fmt: skip
    assert not old.exists()


def test_encode_and_decode_are_the_round_trip_of_the_pipeline(sa3, load, pipeline):
    one, source = load("medium"), clip(2.3)
    latent = sa3.run("SA3_SAMEEncode", audio=source, vae=one.vae, padding=0.0)[0]
    audio = sa3.decode(latent, one.vae)[0]["waveform"]
    model = pipeline("medium")
    n = latent["samples"].shape[-1] * 4096
    wanted = model.decode(model.encode(torch.nn.functional.pad(source["waveform"], (0, n - source["waveform"].shape[-1]))))
    assert audio.shape == source["waveform"].shape and rel(audio, wanted[..., : audio.shape[-1]]) < 1e-5


def test_a_mono_recording_is_doubled_and_six_channels_need_a_choice(sa3, load):
    one = load("small")
    mono = sa3.run("SA3_SAMEEncode", audio=clip(1.0, channels=1), vae=one.vae)[0]["samples"]
    wave = clip(1.0, channels=1)["waveform"].expand(-1, 2, -1)
    double = sa3.run("SA3_SAMEEncode", audio={"waveform": wave, "sample_rate": RATE}, vae=one.vae)[0]["samples"]
    assert torch.equal(mono, double)
    with sa3.refused("6 channels"):
        sa3.run("SA3_SAMEEncode", audio=clip(1.0, channels=6), vae=one.vae)
    for choice in ("first two", "mix to mono"):
        sa3.run("SA3_SAMEEncode", audio=clip(1.0, channels=6), vae=one.vae, more_channels=choice)


def broken(**changes) -> dict:
    return {**clip(1.0), **changes}


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (None, ["no sound"]),
        ("a file", ["str", "audio"]),
        (broken(waveform=torch.full((1, 2, RATE), float("nan"))), ["NaN"]),
        (broken(waveform=torch.ones(1, 2, 1)), ["1 sample"]),
        (broken(sample_rate=0), ["sample rate", "0"]),
        (broken(waveform=torch.ones(1, 1, 2, RATE)), ["shape"]),
        (broken(waveform=torch.ones(1, 2, RATE, dtype=torch.int16)), ["int16"]),
    ],
)
def test_broken_recordings_are_refused_before_any_work(sa3, load, at_rest, audio, words):
    vae = load("small").vae
    for node in ("SA3_SAMEEncode", "SA3_Continue"):
        with sa3.refused(*words):
            sa3.run(node, audio=audio, vae=vae)


def test_impossible_requests_are_refused(sa3, load, at_rest):
    vae = load("small").vae
    with sa3.refused("0.500 s", "bars"):
        sa3.run("SA3_Loop", audio=clip(0.5), vae=vae, bars=4)
    with sa3.refused("SA3_Extend"):
        sa3.run("SA3_Continue", audio=clip(1.0), vae=vae, seconds=370.0)
    latent = {"samples": torch.ones(1, 32, 20), "sa3_seconds": [1.0]}
    for regions, word in (("0.5-0.2", "ends before"), ("0.5-9", "outside"), ("", "No region"), ("x", "'x'")):
        with sa3.refused(word):
            sa3.run("SA3_InpaintMask", latent=latent, regions=regions)
    with sa3.refused("empty"):
        sa3.run("SA3_InpaintMask", latent=sa3.empty(), regions="0-1")


def test_core_samplers_understand_the_marked_latent(sa3, load, comfy):
    """Core's KSampler keeps the given frames from the source itself; ours conditions on them. Both take the same LATENT."""
    one = load("small")
    latent = sa3.run("SA3_SAMEEncode", audio=clip(2.0), vae=one.vae)[0]
    marked, _ = sa3.run("SA3_InpaintMask", latent=latent, regions="0.5-1")
    positive = sa3.prompt(one.clip, "bell")
    with torch.inference_mode():
        out = comfy.nodes.KSampler().sample(one.model, 1, 2, 1.0, "euler", "simple", positive, positive, marked)[0]["samples"]
    given = marked["noise_mask"][0, 0] == 0
    assert rel(out[..., given], latent["samples"][..., given]) < 1e-5
    assert rel(out[..., ~given], latent["samples"][..., ~given]) > 1e-2


@pytest.fixture
def shown(sa3, comfy, tmp_path, monkeypatch):
    """shown(node, **inputs) -> the ui result of a node queued by a browser, its audio made by the node `source`."""
    monkeypatch.setattr(comfy.folder_paths, "temp_directory", str(tmp_path))

    def run(node: str, source: dict | None = None, workflow: bool = True, **inputs):
        made = source or {"class_type": "VAEDecodeAudio", "inputs": {}}
        prompt = {"1": made, "2": {"class_type": node, "inputs": {"audio": ["1", 0]}}}
        hidden = SimpleNamespace(prompt=prompt, unique_id="2", extra_pnginfo={"workflow": {}} if workflow else {})
        bound = type("Bound", (sa3.classes[node],), {"hidden": hidden})
        return bound.execute.__func__(bound, **inputs).ui

    return run


@pytest.mark.parametrize("node", ["SA3_InpaintMask", "SA3_Continue"])
def test_the_editor_gets_a_file_of_what_the_node_was_given(sa3, load, shown, tmp_path, node):
    one, source = load("small"), clip(1.0, 48000, 6)
    inputs = {"latent": sa3.run("SA3_SAMEEncode", audio=clip(1.0), vae=one.vae)[0], "regions": "0.2-0.5"}
    if node == "SA3_Continue":
        source = clip(1.0, 48000)
        inputs = {"vae": one.vae, "seconds": 1.0, "side": "after", "padding": 6.0, "chunk_size": 128, "overlap": 32}
    (file,) = shown(node, audio=source, **inputs)["sa3_waveform"]
    with wave.open(str(tmp_path / file["filename"])) as found:
        assert (found.getnchannels(), found.getframerate(), found.getnframes()) == (2, 48000, 48000)
        samples = np.frombuffer(found.readframes(48000), "<i2").reshape(-1, 2).T / 32768
    assert file["type"] == "temp" and np.abs(samples - source["waveform"][0, :2].numpy()).max() <= 0.5 / 32768 + 1e-7
    stamp = (tmp_path / file["filename"]).stat().st_mtime_ns
    again = shown(node, audio={**source, "waveform": source["waveform"].clone()}, **inputs)
    assert again["sa3_waveform"] == [file] and (tmp_path / file["filename"]).stat().st_mtime_ns == stamp
    loader = {"class_type": "LoadAudio", "inputs": {"audio": "take.wav"}}
    assert shown(node, source=loader, audio=source, **inputs) is None
    assert shown(node, workflow=False, audio=source, **inputs) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_the_editor_gets_a_coarse_file_of_a_long_recording(sa3, load, shown, tmp_path):
    """Also of a loader's file, which is too long for a browser to decode."""
    latent, loader = (
        sa3.run("SA3_SAMEEncode", audio=clip(1.0), vae=load("small").vae)[0],
        {"class_type": "LoadAudio", "inputs": {"audio": "a.wav"}},
    )
    for seconds, rate in ((1201, 16000), (7201, 3000)):
        audio = {"waveform": torch.full((1, 2, seconds * rate), 0.25), "sample_rate": rate}
        result = shown("SA3_InpaintMask", source=loader, audio=audio, latent=latent, regions="0.2-0.5")
        if seconds > 7200:
            assert result is None
            continue
        with wave.open(str(tmp_path / result["sa3_waveform"][0]["filename"])) as found:
            assert (found.getnchannels(), found.getframerate(), found.getnframes()) == (1, 8000, 8000 * seconds)


def test_audio_for_the_picture_alone_never_stops_a_run(sa3, load, shown):
    latent = sa3.run("SA3_SAMEEncode", audio=clip(1.0), vae=load("small").vae)[0]
    broken = {"waveform": torch.full((1, 2, 500), float("nan")), "sample_rate": 44100}
    for audio in (None, broken, {"waveform": None}):
        assert shown("SA3_InpaintMask", audio=audio, latent=latent, regions="0.2-0.5") is None


def test_a_region_may_end_a_little_behind_the_clip(sa3, load):
    latent = sa3.run("SA3_SAMEEncode", audio=clip(2.0), vae=load("small").vae)[0]
    assert sa3.run("SA3_InpaintMask", latent=latent, regions="1-2.06")[1] == "1-2"
    with sa3.refused("outside the clip"):
        sa3.run("SA3_InpaintMask", latent=latent, regions="1-2.2")
