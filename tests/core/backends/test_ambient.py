"""torch's ambient state has no effect: autocast, the default device, the default dtype."""

from contextlib import contextmanager

import pytest
import torch
from core_support import lay_out

import sa3_core


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),  # has no values, so a tensor created there fails
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
}


def job(model):
    """Audio and latents from every stage of a run."""
    clip = torch.linspace(-0.5, 0.5, 60_000, dtype=torch.float32, device="cpu").repeat(2, 1)
    base = {"prompt": ["rain", "a bell"], "duration": [1.0, 1.5], "seed": 3, "steps": 3}
    restyled = model.generate(**base, init_audio=(48_000, clip), init_noise_level=0.7, sampler="dpmpp-2m-sde")
    inpainted = model.generate(**base, regions=[(0.2, 0.6)], source_audio=(44_100, clip), cfg=3.0, rescale=0.5, decode_noise=4)
    return [*restyled.audio, *inpainted.audio, model.encode(clip[None], chunk_size=8, overlap=4)]


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("variant", ["small", "medium-base"])
def test_a_run_is_bitwise_equal(tmp_path, load_model, variant, ambient):
    wanted = job(load_model(variant))
    with AMBIENT[ambient]():
        model = sa3_core.load(lay_out(tmp_path / variant, variant))
        found = job(model)
        parts = [sa3_core.timeline.splice(found[0][None], found[1][None, :, : found[0].shape[-1]], [(0.1, 0.3)], 44_100)]
    parts = parts[0][0] if isinstance(parts[0], tuple) else parts[0]
    assert parts.dtype == torch.float32 and parts.device.type == "cpu"
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("variant", ["small", "medium"])
def test_a_float64_model_agrees_with_float32(load_model, tmp_path, variant):
    wanted = load_model(variant).generate("rain", 1.0, seed=5, steps=4, return_latents=True).latents
    model = sa3_core.load(lay_out(tmp_path / variant, variant), dtype=torch.float64)
    found = model.generate("rain", 1.0, seed=5, steps=4, return_latents=True).latents
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
