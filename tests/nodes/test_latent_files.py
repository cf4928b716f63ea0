"""SA3_SaveLatent and SA3_LoadLatent: nothing is lost, with core's SaveLatent and LoadLatent and the public tools' pairs on either side."""

import importlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from core_support import randn
from safetensors.torch import load_file, save_file

PROMPT = {"1": {"class_type": "SA3_Sampler", "inputs": {"seed": 3}}}
WORKFLOW = {"nodes": [{"id": 1, "type": "SA3_Sampler"}], "version": 0.4}


@pytest.fixture
def disk(sa3, comfy, tmp_path, monkeypatch) -> SimpleNamespace:
    """disk.save(latent, **widgets) -> the files; disk.load(name or path) -> (LATENT, run_info); disk.said: the messages of both."""
    module, said = importlib.import_module("sa3_pack.nodes.latent_files"), []
    folders = {name: tmp_path / name for name in ("input", "output")}
    for name, folder in folders.items():
        folder.mkdir()
        monkeypatch.setattr(comfy.folder_paths, f"{name}_directory", str(folder))
    monkeypatch.setattr(module, "warn", lambda *messages: said.extend(messages))

    def save(latent, **widgets) -> list[Path]:
        cls = sa3.classes["SA3_SaveLatent"]
        values = {"filename_prefix": "latents/sa3", "format": "safetensors", **widgets}
        bound = type("Bound", (cls,), {"hidden": SimpleNamespace(prompt=PROMPT, extra_pnginfo={"workflow": WORKFLOW}, unique_id="9")})
        with torch.inference_mode():
            out = bound.execute.__func__(bound, latent=latent, **values)
        assert out.args[0] is latent and all(one["type"] == "output" for one in out.ui["latents"])
        return [folders["output"] / one["subfolder"] / one["filename"] for one in out.ui["latents"]]

    def load(file) -> tuple[dict, str]:
        if isinstance(file, Path):
            file = f"{file.relative_to(folders['output']).as_posix()} [output]"
        assert sa3.classes["SA3_LoadLatent"].validate_inputs(file=file) is True
        return sa3.run("SA3_LoadLatent", file=file)

    return SimpleNamespace(save=save, load=load, said=said, **folders)


def filled(sa3, **widgets) -> dict:
    latent = sa3.empty(**widgets)
    return {**latent, "samples": randn(*latent["samples"].shape)[:, :32]}


def same(a: dict, b: dict) -> bool:
    """Whether two LATENTs hold the same; a file lists the durations of its own items only."""
    tensors = {key for key in a if isinstance(a[key], torch.Tensor)}
    durations = [[item.seconds for item in latent.get("batch_index", [])] for latent in (a, b)]
    kept = a.keys() - {"sa3_seconds"}
    alike = all(torch.equal(a[key], b[key]) if key in tensors else a[key] == b[key] for key in kept)
    return a.keys() == b.keys() and durations[0] == durations[1] and alike


def rich(sa3, comfy) -> dict[str, dict]:
    """LATENTs with everything that one can hold."""
    batch = filled(sa3, seconds_per_item="1.2345678, 3, 0.5", padding=2.5)
    masked, _ = sa3.run("SA3_InpaintMask", latent=filled(sa3, seconds=3.0), regions="0.5-1, 2-2.25")
    (picked,) = comfy.nodes.LatentFromBatch().frombatch(sa3.run("SA3_InpaintMask", latent=batch, regions="0.1-0.3")[0], 1, 2)
    return {
        "empty": sa3.empty(2.0),
        "batch": batch,
        "masked": masked,
        "picked": picked,
        "repeated": comfy.nodes.RepeatLatentBatch().repeat(batch, 2)[0],
        "core's mask": {**batch, "noise_mask": torch.rand(3, 1, 8, 20)},
    }


@pytest.mark.parametrize("case", ["empty", "batch", "masked", "picked", "repeated", "core's mask"])
def test_a_round_trip_is_exact(sa3, comfy, disk, case):
    latent = rich(sa3, comfy)[case]
    (path,) = disk.save(latent, run_info='{"seed": 3}')
    assert path == disk.output / "latents" / "sa3_00001_.latent"
    loaded, run_info = disk.load(path)
    assert same(loaded, latent) and run_info == '{"seed": 3}' and not disk.said
    assert [type(region) for region in loaded.get("sa3_regions", [])] == [tuple] * len(latent.get("sa3_regions", []))


@pytest.mark.parametrize("case", ["batch", "masked", "picked"])
def test_the_sampler_computes_the_same_bytes(sa3, comfy, load, disk, case):
    parts, latent = load("small"), rich(sa3, comfy)[case]
    loaded, _ = disk.load(*disk.save(latent))
    settings = dict(steps=2, noise_level=0.5, seed=5)
    out, info = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), latent, **settings)
    again, other = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), loaded, **settings)
    assert torch.equal(out["samples"], again["samples"]) and info["batch_index"] == other["batch_index"]
    stored, run_info = disk.load(*disk.save(out, run_info=json.dumps(info)))
    assert same(stored, out) and json.loads(run_info) == info
    for a, b in zip(sa3.decode(out, parts.vae), sa3.decode(stored, parts.vae), strict=True):
        assert torch.equal(a["waveform"], b["waveform"])


def test_a_latent_without_durations_stays_without(sa3, disk):
    latent = {"samples": randn(1, 32, 24), "type": "audio"}
    loaded, run_info = disk.load(*disk.save(latent))
    assert same(loaded, latent) and run_info == "" and not disk.said


def test_half_precision_and_foreign_keys(sa3, disk):
    latent = {"samples": randn(1, 32, 24).half(), "batch_index": torch.tensor([4]), "other_pack": 5}
    loaded, _ = disk.load(*disk.save(latent))
    assert torch.equal(loaded["samples"], latent["samples"].float()) and loaded["batch_index"] == [4]
    assert len(disk.said) == 1 and "other_pack" in disk.said[0]


def test_the_header_restores_the_graph(sa3, disk, monkeypatch):
    (path,) = disk.save(sa3.empty(), run_info="{}")
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert json.loads(header["prompt"]) == PROMPT and json.loads(header["workflow"]) == WORKFLOW and header["sa3"] == "{}"
    monkeypatch.setattr(importlib.import_module("comfy.cli_args").args, "disable_metadata", True)
    (bare,) = disk.save(sa3.empty(), run_info="{}")
    assert bare.name == "sa3_00002_.latent" and not any(word in bare.read_bytes() for word in (b"SA3_Sampler", b"workflow", b"{}"))
    assert disk.load(bare)[0]["sa3_seconds"] == [1.5] and not disk.said


def test_files_are_not_overwritten_and_folders_are_made(sa3, disk):
    names = [disk.save(sa3.empty(), filename_prefix="a/b/x", format=kind)[-1].name for kind in ("safetensors", "npy", "safetensors")]
    assert names == ["x_00001_.latent", "x_00002_.npy", "x_00003_.latent"]
    assert len(list((disk.output / "a" / "b").iterdir())) == 4  # nothing hidden either


# core's nodes


def test_core_loads_our_file(sa3, comfy, disk, monkeypatch):
    latent = filled(sa3, seconds_per_item="1, 2")
    (path,) = disk.save(latent)
    shutil.copy(path, disk.input)
    (options,) = comfy.nodes.LoadLatent.INPUT_TYPES()["required"]["latent"][:1]
    assert options == [path.name]
    (found,) = comfy.nodes.LoadLatent().load(path.name)
    assert torch.equal(found["samples"], latent["samples"])


def test_core_s_file_says_what_it_does_not_hold(sa3, comfy, load, disk):
    parts = load("small")
    out, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(seconds_per_item="0.5, 2", padding=0.0), steps=1)
    saver = comfy.nodes.SaveLatent()
    saver.output_dir = str(disk.output)
    (one,) = saver.save(out, "latents/core")["ui"]["latents"]
    loaded, run_info = disk.load(disk.output / one["subfolder"] / one["filename"])
    assert torch.equal(loaded["samples"], out["samples"]) and run_info == "" and "sa3_seconds" not in loaded
    assert len(disk.said) == 1 and "neither durations nor headroom" in disk.said[0] and "SA3 Save Latent" in disk.said[0]
    assert sa3.decode(loaded, parts.vae)[0]["waveform"].shape[-1] == 4096 * out["samples"].shape[-1]


def test_core_s_other_latents(sa3, comfy, disk):
    saver = comfy.nodes.SaveLatent()
    saver.output_dir = str(disk.output)
    for samples, words in ((torch.ones(1, 4, 8, 8), ["(1, 4, 8, 8)", "expected audio"]), (torch.ones(1, 32, 4).long(), ["int64"])):
        (one,) = saver.save({"samples": samples}, "latents/core")["ui"]["latents"]
        with sa3.refused(one["filename"], *words):
            disk.load(disk.output / one["subfolder"] / one["filename"])


# the public tools' pairs


def test_pairs_round_trip(sa3, comfy, load, disk):
    latent = filled(sa3, seconds_per_item="1.5, 3", padding=1.0)
    paths = disk.save(latent, format="npy", filename_prefix="latents/pair%batch_num%")
    assert [path.name for path in paths] == [f"pair{i}_00001_.{kind}" for i in (0, 1) for kind in ("json", "npy")]
    (warning,) = disk.said
    for words in ("headroom", "mask", "regions", "batch_index", "run record", "workflow", "safetensors", "caption", "1.5 to 1.579 s"):
        assert words in warning, warning
    assert "3 to" not in warning  # whole seconds are exact
    items = [disk.load(path) for path in paths[1::2]]
    assert len(disk.said) == 1 and all(info == "" for _, info in items)
    for i, (item, _) in enumerate(items):
        assert torch.equal(item["samples"][0], latent["samples"][i]) and item["sa3_padding"] == 0
    assert [item["sa3_seconds"] for item, _ in items] == [[17 * 4096 / 44100], [3.0]]
    parts = load("small")
    out, info = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), items[1][0], steps=1, noise_level=0.5)
    assert info["seconds"] == [3.0] and sa3.decode(out, parts.vae)[0]["waveform"].shape[-1] == 132_300


def test_a_pair_of_a_latent_without_durations(sa3, disk):
    record, array = disk.save({"samples": randn(1, 32, 24)}, format="npy")
    assert json.loads(record.read_text())["padding_mask"] == [1] * 24 and "rounded" not in disk.said[0]
    assert disk.load(array)[0]["sa3_seconds"] == [24 * 4096 / 44100]


def test_an_array_without_its_json(sa3, disk):
    np.save(disk.input / "silence.npy", randn(1, 32, 24).numpy())
    loaded, _ = disk.load("silence.npy")
    assert loaded["samples"].shape == (1, 32, 24) and "sa3_seconds" not in loaded
    assert len(disk.said) == 1 and "silence.npy holds neither durations" in disk.said[0]


# refusals


@pytest.mark.parametrize(
    ("latent", "words"),
    [
        ({"samples": torch.ones(1, 4, 8, 8)}, ["expected audio"]),
        ({"samples": torch.full((1, 32, 4), float("nan"))}, ["NaN"]),
        ({"samples": torch.ones(1, 32, 4), "sa3_seconds": [1.0, 2.0]}, ["2 numbers", "1 items"]),
        ({"samples": torch.ones(1, 32, 4), "sa3_seconds": [float("nan")]}, ["sa3_seconds", "nan"]),
        ({"samples": torch.ones(1, 32, 4), "sa3_regions": "1-2"}, ["regions"]),
        ({"samples": torch.ones(1, 32, 4), "downscale_ratio_temporal": 0}, ["downscale_ratio_temporal", "0"]),
        (None, ["no samples"]),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_what_is_no_latent_is_not_saved(sa3, disk, latent, words, kind):
    with sa3.refused(*words):
        disk.save(latent, format=kind)
    assert not list(disk.output.rglob("*.*"))


VALUES = {
    "durations of another batch": ({"sa3_seconds": [1.0, 2.0]}, ["2 numbers"]),
    "durations in words": ({"sa3_seconds": "1"}, ["sa3_seconds"]),
    "nested durations": ({"sa3_seconds": [[1.0]]}, ["sa3_seconds"]),
    "endless durations": ({"sa3_seconds": [10**400]}, ["sa3_seconds"]),
    "negative durations": ({"sa3_seconds": [-1]}, ["-1", "positive"]),
    "headroom in words": ({"sa3_padding": "6"}, ["padding is 6"]),
    "no headroom": ({"sa3_padding": None}, ["padding is None"]),
    "regions of three": ({"sa3_regions": [[1, 2, 3]]}, ["regions"]),
    "regions of objects": ({"sa3_regions": {"a": 1}}, ["regions"]),
    "a region backwards": ({"sa3_regions": [[2, 1]]}, ["region", "ends before"]),
    "frames of no samples": ({"downscale_ratio_temporal": "x"}, ["downscale_ratio_temporal", "x"]),
    "an index in words": ({"batch_index": ["a"]}, ["batch_index"]),
    "an endless index": ({"batch_index": [10**400]}, ["batch_index"]),
    "indices of another batch": ({"batch_index": [0, 1]}, ["batch_index", "2 entries"]),
}


@pytest.mark.parametrize("case", VALUES)
def test_hostile_values(sa3, disk, case):
    values, words = VALUES[case]
    tensors = {"latent_tensor": randn(1, 32, 24), "latent_format_version_0": torch.tensor([])}
    save_file(tensors, disk.input / "x.latent", {"sa3_latent": json.dumps(values)})
    with sa3.refused("x.latent", *words):
        disk.load("x.latent")


def test_hostile_values_cannot_add_keys(sa3, disk):
    tensors = {"latent_tensor": randn(1, 32, 24), "latent_format_version_0": torch.tensor([])}
    values = {"samples": [1], "noise_mask": [1], "type": "video", "sa3_roll": 3}
    save_file(tensors, disk.input / "x.latent", {"sa3_latent": json.dumps(values)})
    loaded, _ = disk.load("x.latent")
    assert same(loaded, {"samples": tensors["latent_tensor"], "type": "audio"})


@pytest.mark.parametrize("mask", [torch.ones(2, 1, 24), torch.ones(1, 1, 0), torch.tensor(1.0)])
def test_a_hostile_mask(sa3, disk, mask):
    tensors = {"latent_tensor": randn(1, 32, 24), "latent_format_version_0": torch.tensor([]), "noise_mask": mask}
    save_file(tensors, disk.input / "x.latent", {"sa3_latent": "{}"})
    with sa3.refused("x.latent", "noise mask"):
        disk.load("x.latent")


# names


def test_the_list_of_files(sa3, comfy, disk):
    cls = sa3.classes["SA3_LoadLatent"]
    for name in ("b.latent", "a.NPY", "a.json", "c.wav", ".hidden.npy", "latents/deep/d.safetensors", "other/e.latent", "f.npy/x.txt"):
        (disk.input / name).parent.mkdir(parents=True, exist_ok=True)
        (disk.input / name).write_bytes(b"")
    disk.save(sa3.empty())
    disk.save(sa3.empty(), filename_prefix="elsewhere/x")
    (file,) = cls.define_schema().inputs
    assert file.options == ["a.NPY", "b.latent", "latents/deep/d.safetensors", "latents/sa3_00001_.latent [output]"]
    assert disk.load("elsewhere/x_00001_.latent [output]")[0]["sa3_seconds"] == [1.5]  # not listed, but inside


@pytest.mark.parametrize(
    "name",
    [
        "",
        "missing.latent",
        "../secret.latent",
        "x/../../secret.latent [output]",
        "note.txt",
        "sub.latent",
        5,
        "a\0.latent",
        "of_temp.latent [temp]",
    ],
)
def test_names_that_select_no_file(sa3, comfy, disk, name):
    save_file({"latent_tensor": torch.ones(1, 32, 4), "latent_format_version_0": torch.tensor([])}, disk.input.parent / "secret.latent")
    (disk.input / "note.txt").write_text("x")
    temp = Path(comfy.folder_paths.get_temp_directory())
    temp.mkdir(parents=True, exist_ok=True)
    (temp / "of_temp.latent").write_bytes((disk.input.parent / "secret.latent").read_bytes())
    (disk.input / "sub.latent").mkdir()
    cls = sa3.classes["SA3_LoadLatent"]
    assert cls.validate_inputs(file=None) is True and "selects no file" in cls.validate_inputs(file=name)
    with sa3.refused("file is"):
        sa3.run("SA3_LoadLatent", file=name)
    for target in (disk.input.parent / "secret.latent", "/etc/passwd"):
        (disk.input / "link.latent").unlink(missing_ok=True)
        (disk.input / "link.latent").symlink_to(target)
        assert "selects no file" in cls.validate_inputs(file="link.latent")


def test_a_replaced_file_is_read_again(sa3, disk):
    cls = sa3.classes["SA3_LoadLatent"]
    record, array = disk.save(filled(sa3), format="npy")
    name = f"latents/{array.name} [output]"
    found = [cls.fingerprint_inputs(file=name)]
    assert cls.fingerprint_inputs(file=name) == found[0]
    for path in (array, record):
        data = path.read_bytes()
        os.replace(shutil.copy(path, path.with_suffix(".new")), path)
        assert path.read_bytes() == data
        found.append(cls.fingerprint_inputs(file=name))
    assert len(set(found)) == 3


def test_our_header_is_core_s(sa3, disk):
    tensors = load_file(disk.save(sa3.empty())[0])
    assert tensors.keys() == {"latent_tensor", "latent_format_version_0"} and tensors["latent_format_version_0"].numel() == 0
