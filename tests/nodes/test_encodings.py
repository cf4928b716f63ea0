"""Prompts are encoded once, whichever node asks, and neither an adapter on the CLIP nor missing weights change what comes out."""

import pytest
import torch


@pytest.fixture
def runs(sa3, monkeypatch):
    """One entry per time that an encoder computes; nothing is known at the start."""
    cls, seen = sa3.core.text_encoder.TextEncoder, []
    compute = cls.compute
    monkeypatch.setattr(cls, "compute", lambda self, tokens: (seen.append(self), compute(self, tokens))[1])
    sa3.core.text_encoder.ENCODINGS.discard()
    return seen


def rows(conditioning) -> torch.Tensor:
    return conditioning[0][0]


def test_nodes_and_a_second_loader_share_what_was_said(sa3, comfy, load, runs):
    load("small")  # lays the files out; another test may have written them again since
    clip = sa3.load(file="stable-audio-3-small-music").clip
    first = sa3.prompt(clip, "rain on a roof")
    again = sa3.prompt(clip, "rain on a roof")
    (core,) = comfy.nodes.CLIPTextEncode().encode(clip, "rain on a roof")
    loaded_again = sa3.prompt(sa3.load(file="stable-audio-3-small-music").clip, "rain on a roof")
    assert len(runs) == 1
    assert all(torch.equal(rows(other), rows(first)) for other in (again, core, loaded_again))
    assert torch.equal(again[0][1]["attention_mask"], first[0][1]["attention_mask"])
    sa3.prompt(clip, "wind")
    assert len(runs) == 2


def test_what_is_known_moves_no_weights(sa3, comfy, load, runs, monkeypatch):
    clip = load("small").clip
    known = sa3.prompt(clip, "rain")
    comfy.management.unload_all_models()
    monkeypatch.setattr(comfy.management, "load_model_gpu", lambda patcher: pytest.fail("the text encoder was moved"))
    assert torch.equal(rows(sa3.prompt(clip, "rain")), rows(known)) and len(runs) == 1


def test_an_adapter_on_the_clip_is_heard_and_leaves_no_trace(sa3, load, runs):
    plain = load("small").clip
    before = rows(sa3.prompt(plain, "rain"))
    patched = plain.clone()
    name = next(name for name in plain.cond_stage_model.state_dict() if name.endswith("mlp.down_proj.weight"))
    change = torch.ones_like(plain.cond_stage_model.state_dict()[name]) * 0.05
    assert patched.add_patches({name: (change,)}, 1.0) == [name]
    changed = rows(sa3.prompt(patched, "rain"))
    assert not torch.equal(changed, before) and torch.equal(rows(sa3.prompt(patched, "rain")), changed)
    assert torch.equal(rows(sa3.prompt(plain, "rain")), before)
    sa3.core.text_encoder.ENCODINGS.discard()
    sa3.prompt(patched, "rain")
    assert torch.equal(rows(sa3.prompt(plain, "rain")), before)  # computed anew, with the weights of the file
