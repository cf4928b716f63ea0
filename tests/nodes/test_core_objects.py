"""The pack's VAE and CLIP have what core's have, so that nodes of any version find what they ask for."""

import ast
import gc
import inspect
import textwrap
import weakref

import pytest
import torch
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


def test_a_vae_is_freed_at_once(sa3, load):
    load("small")
    (vae,) = sa3.run("SA3_AutoencoderLoader", autoencoder="SAME-S", file="stable-audio-3-small-music")
    gone = weakref.ref(vae)
    gc.collect()
    gc.disable()
    try:
        del vae
        assert gone() is None
    finally:
        gc.enable()


def test_core_s_text_generation_gets_a_sentence(sa3, load):
    clip = load("small").clip
    if not hasattr(clip, "generate"):
        pytest.skip("this ComfyUI has no text generation")
    with sa3.refused("only reads text"):
        clip.generate(clip.tokenize("rain"))


@pytest.fixture
def arguments(monkeypatch):
    """set(name=value, ...): ComfyUI's command line for this test."""
    from comfy.cli_args import args

    def set_arguments(**values):
        for name, value in values.items():
            monkeypatch.setattr(args, name, value)

    return set_arguments


DTYPES = [  # option, part of the loader's output, its type
    ("fp32_vae", "vae", torch.float32),
    ("fp16_vae", "vae", torch.float16),
    ("bf16_vae", "vae", torch.bfloat16),
    ("fp16_unet", "model", torch.float16),
    ("bf16_unet", "model", torch.bfloat16),
    ("fp32_unet", "model", torch.float32),
    ("bf16_text_enc", "clip", torch.bfloat16),
    ("fp32_text_enc", "clip", torch.float32),
]


@pytest.mark.parametrize(("option", "part", "dtype"), DTYPES, ids=[option for option, *_ in DTYPES])
def test_options_of_number_formats_are_respected(sa3, shelf, arguments, option, part, dtype):
    arguments(**{option: True})
    one = sa3.load(file="stable-audio-3-small-music")
    found = {"vae": one.vae.vae_dtype, "model": one.model.model.get_dtype(), "clip": one.clip.dtype}[part]
    assert found == dtype
    assert sa3.load(file="stable-audio-3-small-music", dtype="fp32").vae.vae_dtype == torch.float32  # the loader's own choice comes first


OTHER = ["use_quad_cross_attention", "use_split_cross_attention", "force_upcast_attention"]  # devices: a CPU has no choice


@pytest.mark.parametrize("option", OTHER)
def test_other_options_change_no_result(sa3, load, arguments, option):
    def run():
        one = sa3.load(file="stable-audio-3-small-music")
        out = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), sa3.empty(0.5), steps=2, seed=3)[0]
        return sa3.decode(out, one.vae)[0]["waveform"]

    load("small")
    before = run()
    arguments(**{option: True})
    assert torch.equal(run(), before)


@pytest.mark.parametrize("device", ["default", "cpu", "gpu:7"])
def test_core_s_select_device_nodes(sa3, load, device):
    """On a machine without a GPU: where the choice is, and stays, the CPU."""
    try:
        from comfy_extras import nodes_multigpu as multi
    except ImportError:
        pytest.skip("this ComfyUI has no nodes that select a device")
    one = load("small")
    (model,) = multi.SelectModelDeviceNode.execute(one.model, device).args
    (clip,) = multi.SelectCLIPDeviceNode.execute(one.clip, device).args
    (vae,) = multi.SelectVAEDeviceNode.execute(one.vae, device).args
    found = [
        sa3.decode(sa3.sample(m, sa3.prompt(c, "rain"), sa3.empty(0.5), steps=2, seed=3)[0], v)[0]["waveform"]
        for m, c, v in ((model, clip, vae), (one.model, one.clip, one.vae))
    ]
    assert torch.equal(*found)
