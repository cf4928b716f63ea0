"""SA3_SaveLatent and SA3_LoadLatent through a real server: the list of files, validation, results, and what is cached."""

from __future__ import annotations

import pytest

from tools.launcher.server import PromptRejected, Server

EMPTY = {"class_type": "SA3_EmptyLatent", "inputs": {"seconds": 1.5, "batch_size": 2, "padding": 6.0, "seconds_per_item": "1.5, 0.5"}}


def saved(comfy: Server, graph: dict) -> list[str]:
    """Run a graph whose node `save` saves latents: the names that SA3_LoadLatent takes."""
    outputs = comfy.wait(comfy.queue(graph))["outputs"]
    return [f"{one['subfolder']}/{one['filename']} [{one['type']}]" for one in outputs["save"]["latents"]]


def reload(file: str, prefix: str) -> dict:
    return {
        "load": {"class_type": "SA3_LoadLatent", "inputs": {"file": file}},
        "save": {
            "class_type": "SA3_SaveLatent",
            "inputs": {"latent": ["load", 0], "run_info": ["load", 1], "filename_prefix": prefix, "format": "safetensors"},
        },
    }


@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_what_was_saved_can_be_chosen_and_loaded(comfy: Server, kind: str):
    save = {"class_type": "SA3_SaveLatent", "inputs": {"latent": ["empty", 0], "filename_prefix": f"latents/{kind}", "format": kind}}
    file = saved(comfy, {"empty": EMPTY, "save": save})[-1]
    (options, *_) = comfy.object_info("SA3_LoadLatent")["SA3_LoadLatent"]["input"]["required"]["file"]
    if options == "COMBO":
        options = comfy.object_info("SA3_LoadLatent")["SA3_LoadLatent"]["input"]["required"]["file"][1]["options"]
    assert file in options
    graph = reload(file, f"again/{kind}")
    (again,) = saved(comfy, graph)
    first, second = ((comfy.base_directory / "output" / name.removesuffix(" [output]")).read_bytes() for name in (file, again))
    assert kind == "npy" or first[-400:] == second[-400:]
    prompt = comfy.queue(reload(file, f"more/{kind}"))
    comfy.wait(prompt)
    assert "load" in comfy.cached(prompt)  # unchanged, so it is not read again


@pytest.mark.parametrize("file", ["latents/missing.latent [output]", "../../etc/passwd", "latents [output]", ""])
def test_other_names_are_rejected_before_the_run(comfy: Server, file: str):
    with pytest.raises(PromptRejected, match="selects no file"):
        comfy.queue(reload(file, "latents/x"))
