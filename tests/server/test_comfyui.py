"""The launcher against a real ComfyUI, with core's nodes only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.launcher.server import ExecutionFailed, PromptRejected, Server

PACK = """
class Refuse:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True
    INPUT_TYPES = classmethod(lambda cls: {"required": {"audio": ("AUDIO",)}})

    def run(self, audio):
        raise ValueError("this clip is too short")

NODE_CLASS_MAPPINGS = {"Refuse": Refuse}
"""


def graph(seconds: float, end: str = "SaveAudio") -> dict:
    return {
        "1": {"class_type": "EmptyAudio", "inputs": {"duration": seconds, "sample_rate": 44100, "channels": 2}},
        "2": {"class_type": end, "inputs": {"audio": ["1", 0], "filename_prefix": "audio/launcher"}},
    }


def test_a_file_is_saved_and_nothing_is_recomputed(comfy: Server):
    first = comfy.wait(comfy.queue(graph(0.5)))
    (file,) = comfy.output_files(first)
    assert file.is_file() and file.suffix == ".flac"
    again = comfy.queue(graph(0.5))
    comfy.wait(again)
    assert comfy.cached(again) == {"1", "2"}


def test_preview_lies_in_the_temporary_folder(comfy: Server):
    (file,) = comfy.output_files(comfy.wait(comfy.queue(graph(0.25, "PreviewAudio"))))
    assert file.is_file()


def test_refusal_names_the_node(comfy: Server):
    with pytest.raises(PromptRejected, match=r"EmptyAudio \(node 1\): Value -1.0 smaller than min of 0.0"):
        comfy.queue(graph(-1.0))


def test_unknown_node(comfy: Server):
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        comfy.queue({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_upload_is_found_by_core(comfy: Server, tmp_path: Path):
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    name = comfy.upload(tmp_path / "clip.wav")
    offered, *options = comfy.object_info("LoadAudio")["LoadAudio"]["input"]["required"]["audio"]
    assert name in (options[0]["options"] if offered == "COMBO" else offered)  # the V3 form and the older one


def test_only_the_named_packs_and_all_named_models_are_loaded(comfyui_tree: Path, tmp_path: Path):
    for name in ("wanted", "unwanted"):
        (tmp_path / "packs" / name).mkdir(parents=True)
        (tmp_path / "packs" / name / "__init__.py").write_text(PACK.replace("Refuse", f"Refuse_{name}"))
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    (tmp_path / "models" / "checkpoints" / "mine.safetensors").touch()
    packs, models = [tmp_path / "packs" / "wanted"], [tmp_path / "models"]
    with Server(comfyui_tree, tmp_path / "base", packs=packs, models=models) as server:
        nodes = server.object_info()
        assert "Refuse_wanted" in nodes and "Refuse_unwanted" not in nodes
        assert "mine.safetensors" in nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
        with pytest.raises(ExecutionFailed, match=r"^Refuse_wanted: this clip is too short$"):
            server.wait(server.queue(graph(0.1, "Refuse_wanted")))
