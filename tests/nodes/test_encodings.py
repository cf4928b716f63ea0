"""CLIP encodes the same through this pack's node and core's, and an adapter on it leaves no trace."""

import torch


def rows(conditioning) -> torch.Tensor:
    return conditioning[0][0]


def test_core_encodes_the_same(sa3, comfy, load):
    clip = load("small").clip
    encoded = sa3.prompt(clip, "rain on a roof")
    (core,) = comfy.nodes.CLIPTextEncode().encode(clip, "rain on a roof")
    assert torch.equal(rows(core), rows(encoded)) and not torch.equal(rows(sa3.prompt(clip, "wind")), rows(encoded))
    assert torch.equal(core[0][1]["attention_mask"], encoded[0][1]["attention_mask"])


def test_an_adapter_on_the_clip_is_heard_and_leaves_no_trace(sa3, load):
    plain = load("small").clip
    before = rows(sa3.prompt(plain, "rain"))
    patched = plain.clone()
    name = next(name for name in plain.cond_stage_model.state_dict() if name.endswith("mlp.down_proj.weight"))
    change = torch.ones_like(plain.cond_stage_model.state_dict()[name]) * 0.05
    assert patched.add_patches({name: (change,)}, 1.0) == [name]
    changed = rows(sa3.prompt(patched, "rain"))
    assert not torch.equal(changed, before) and torch.equal(rows(sa3.prompt(patched, "rain")), changed)
    assert torch.equal(rows(sa3.prompt(plain, "rain")), before)
