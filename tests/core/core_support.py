"""What the core tests share: recorded data, releases laid out in a folder, and the two ways to judge a result."""

import functools
import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from recorded_cases import DATA, golden_tensors
from safetensors.torch import load_file

from sa3_core import SA3Error
from sa3_core.backends import cpu

VARIANTS = ["small", "medium", "small-base", "medium-base"]
FAMILIES = ["small", "medium"]  # SAME-S in chunks with a plain transformer; SAME-L in a window with a differential one
RELEASES = ["small-music", "small-sfx", "medium", "small-music-base", "small-sfx-base", "medium-base", "SAME-S", "SAME-L"]
TEXT_ENCODER = "t5gemma-b-b-ul2"
needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN")
needs_bfloat16 = pytest.mark.skipif(
    not cpu.prefers_onednn(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)), reason="this processor has no bfloat16 for oneDNN"
)


@functools.cache
def recorded(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file below tests/data."""
    variant, _, file = name.rpartition("/")
    return golden_tensors(variant) if file == "golden" else load_file(DATA / f"{name}.safetensors")


@functools.cache
def index() -> dict:
    return json.loads((DATA / "index.json").read_text())


def config_dict(variant: str) -> dict:
    """A fresh, editable model_config of a tiny variant."""
    return json.loads((DATA / variant / "model_config.json").read_text())


def release_dict(name: str) -> dict:
    """A fresh, editable model_config of a real release."""
    return json.loads((DATA / "releases" / f"{name}.json").read_text())


def lay_out(folder: Path, variant: str) -> Path:
    """A tiny release as it lies on disk, every file a copy that may be damaged."""
    folder.mkdir(parents=True)
    shutil.copyfile(DATA / variant / "model_config.json", folder / "model_config.json")
    shutil.copyfile(DATA / variant.removesuffix("-base") / "model.safetensors", folder / "model.safetensors")
    shutil.copytree(DATA / TEXT_ENCODER, folder / TEXT_ENCODER)
    return folder


def rel_error(found, wanted) -> float:
    """||found - wanted|| / ||wanted||, in float64; infinite for another shape or anything not finite."""
    found, wanted = torch.as_tensor(found).double(), torch.as_tensor(wanted).double()
    if found.shape != wanted.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


@contextmanager
def refused(*words):
    """The block must raise SA3Error with a message that holds all of `words`. pytest's own folder, named after the test, is no word."""
    with pytest.raises(SA3Error) as caught:
        yield
    said = re.sub(r"\S*/pytest-\d+/[^/\s]+/?", "", str(caught.value)).lower()
    missing = [word for word in words if str(word).lower() not in (str(caught.value).lower() if isinstance(word, Path) else said)]
    assert not missing, f"{missing} not in: {caught.value}"


@contextmanager
def watched(told):
    """told: (module, function) pairs; each function is called with what its module is called with."""
    handles = [module.register_forward_pre_hook(lambda _, args, tell=tell: tell(*args)) for module, tell in told]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fake_captures(monkeypatch, graphs) -> list:
    """Capturing without a GPU, for the module `graphs`: a replay runs the same function on the same buffers. The captured functions."""
    captured = []

    def capture(function, device, pool):
        function()
        captured.append(function)
        return function

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool")
    monkeypatch.setattr(graphs.Graphs, "_unusable", staticmethod(lambda x: ""))
    return captured


def randn(*shape, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class OnDevice(torch.Tensor):
    """A tensor that stands for one on a GPU: what is made from it is one too, and reading its values on the host is counted in `reads`."""

    reads: list[str] = []
    READS = ("cpu", "tolist", "item", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "equal")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in cls.READS or (name == "to" and "cpu" in map(str, (*args[1:], *(kwargs or {}).values()))):
            cls.reads.append(name)
        return super().__torch_function__(func, types, args, kwargs or {})
