"""The pack's VAE and CLIP have what core's have, so that nodes of any version find what they ask for."""

import ast
import inspect
import textwrap

import pytest
from core_support import FAMILIES


def attributes_set(function) -> set[str]:
    """Names that a method assigns on self in every case."""
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    targets = (target for statement in body if isinstance(statement, ast.Assign) for target in statement.targets)
    return {target.attr for target in targets if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"}


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_vae_has_core_s_attributes(load, variant):
    import comfy.sd

    vae = load(variant).vae
    missing = {name for name in attributes_set(comfy.sd.VAE.__init__) if not hasattr(vae, name)}
    assert not missing, missing
    assert "downscale_ratio" in attributes_set(comfy.sd.VAE.__init__)
    assert vae.process_input("x") == "x" and vae.memory_used_decode((1, 32, 40), vae.vae_dtype) > 0
    assert vae.memory_used_encode((1, 2, 40 * 4096), vae.vae_dtype) == vae.memory_used_decode((1, 32, 40), vae.vae_dtype)
    assert vae.spacial_compression_decode() == vae.spacial_compression_encode() == 4096
    assert vae.get_sd().keys() == vae.first_stage_model.state_dict().keys()


def test_the_clip_has_core_s_attributes(load):
    import comfy.sd

    clip = load("small").clip
    missing = {name for name in attributes_set(comfy.sd.CLIP.__init__) if not hasattr(clip, name)}
    assert not missing, missing
    assert vars(clip.clone()).keys() <= vars(clip).keys()


def test_core_s_text_generation_gets_a_sentence(sa3, load):
    clip = load("small").clip
    if not hasattr(clip, "generate"):
        pytest.skip("this ComfyUI has no text generation")
    with sa3.refused("only reads text"):
        clip.generate(clip.tokenize("rain"))
