"""Core's own Stable Audio 3 (ComfyUI 0.22 and later): the same weights through it and this pack, and its MODEL, CLIP and VAE in this
pack's nodes."""

import copy
import importlib
import json
from types import SimpleNamespace

import pytest
import torch
from core_support import config_dict, randn, rel_error
from node_support import FOLDERS
from safetensors.torch import load_file, save_file

SEED, FRAMES, SECONDS = 11, 40, 3.0


def real_sized_inputs(config: dict) -> dict:
    """A tiny transformer with the input sizes of the releases, which core takes for granted."""
    config = copy.deepcopy(config)
    model = config["model"]
    model["io_channels"] = 256
    for side in ("encoder", "decoder"):
        model["pretransform"]["config"][side]["config"]["latent_dim"] = 256
    model["pretransform"]["config"]["latent_dim"] = model["pretransform"]["config"]["bottleneck"]["config"]["dim"] = 256
    model["conditioning"]["cond_dim"] = 768
    model["conditioning"]["configs"][0]["config"]["max_length"] = 256
    model["diffusion"]["config"].update(
        io_channels=256, cond_token_dim=768, global_cond_dim=768, local_add_cond_dim=257, ff_kwargs={"mult": 4.0}, num_memory_tokens=64
    )
    return config


def random_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    state = {}
    for name, tensor in module.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        state[name] = 1 + 0.1 * drawn if name.endswith("gamma") else drawn / max(1, tensor.shape[-1] if tensor.dim() > 1 else 16) ** 0.5
    return state


@pytest.fixture
def core(pack):
    """Core's modules, of a ComfyUI with a Stable Audio 3 of its own."""
    names = ("latent_formats", "lora", "sample", "samplers", "sd", "supported_models_base")
    core = SimpleNamespace(**{name: importlib.import_module(f"comfy.{name}") for name in names})
    if not hasattr(core.latent_formats, "StableAudio3"):
        pytest.skip("this ComfyUI has no Stable Audio 3 of its own")
    return core


def write_release(sa3, family: str, folder):
    """A tiny release with the input sizes of a real one; returns its folder."""
    described = real_sized_inputs(config_dict(family))
    state = random_weights(sa3.core.release.build(described))
    state["model.model.transformer.rotary_pos_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, 32, 2) / 32)
    folder.mkdir()
    (folder / "model_config.json").write_text(json.dumps(described))
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(sa3, tmp_path_factory):
    return write_release(sa3, "small", tmp_path_factory.mktemp("core") / "release")


@pytest.fixture
def theirs(core, folder):
    """theirs(): core's MODEL of the release, as CheckpointLoaderSimple loads it."""
    path = str(folder / "model.safetensors")
    return lambda: core.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]


@pytest.fixture
def ours(sa3, folder):
    return sa3.host.model.load_model(sa3.core.checkpoint.open_checkpoint(folder), torch.float32)


POSITIVE = [[randn(1, 7, 768, seed=2), {"seconds_total": SECONDS}]]
LAYER = "diffusion_model.transformer.layers.0.self_attn.to_qkv.weight"


def through_core(core, model) -> torch.Tensor:
    """Latents by core's own sampling."""
    noise, sigmas = randn(1, 256, FRAMES, seed=1), torch.tensor([1.0, 0.95, 0.8, 0.5, 0.2, 0.0])
    sampler = core.samplers.sampler_object("euler")
    with torch.inference_mode():
        return core.sample.sample_custom(model, noise, 1.0, sampler, sigmas, POSITIVE, POSITIVE, torch.zeros_like(noise), disable_pbar=True)


def through_pack(sa3, model) -> torch.Tensor:
    return sa3.sample(model, POSITIVE, sa3.empty(1.0, padding=0.0), seed=3, steps=2)[0]["samples"]


@pytest.mark.parametrize("family", ["small", "medium"])
def test_core_and_pack_agree_on_the_same_sigmas_and_seconds(sa3, core, family, tmp_path):
    opened = sa3.core.checkpoint.open_checkpoint(write_release(sa3, family, tmp_path / "release"))
    ours = sa3.host.model.load_model(opened, torch.float32)
    state = load_file(tmp_path / "release" / "model.safetensors")
    theirs = core.sd.load_state_dict_guess_config(state, output_vae=False, output_clip=False)[0]
    error = rel_error(through_core(core, ours), through_core(core, theirs))
    print(f"{family}: core and pack differ by {error:.1e}")
    assert error < 1e-3


def test_core_s_model_in_our_sampler(sa3, core, theirs, ours):
    model, wanted = theirs(), through_pack(sa3, ours)
    before = through_core(core, model)
    assert torch.equal(through_pack(sa3, model), wanted)
    assert torch.equal(through_core(core, model), before)
    adopt = importlib.import_module("sa3_pack.nodes.comfyui.core_models").adopt_model
    adopted = adopt(model)
    assert adopt(model.clone()).model is adopted.model  # made once
    storages = {tensor.data_ptr() for tensor in model.model.state_dict().values()}
    assert {tensor.data_ptr() for tensor in adopted.model.diffusion_model.state_dict().values()} <= storages
    assert adopted.load_device == model.load_device and adopt(ours) is ours


def test_core_s_loras_on_core_s_model(sa3, core, theirs, ours):
    model, patch = theirs(), {LAYER: (randn(*ours.model.state_dict()[LAYER].shape, seed=6),)}
    plain = through_pack(sa3, model)
    found = []
    for one in (model, ours):
        clone = one.clone()
        assert clone.add_patches(patch, 0.05) == [LAYER]
        found.append(through_pack(sa3, clone))
    assert torch.equal(*found) and rel_error(found[0], plain) > 1e-3
    assert torch.equal(through_pack(sa3, model), plain)


def test_patches_of_a_run_in_core_are_not_baked_in(sa3, core, theirs, ours):
    model = theirs()
    patched = model.clone()
    patched.add_patches({LAYER: (randn(*ours.model.state_dict()[LAYER].shape, seed=6),)}, 0.05)
    through_core(core, patched)  # leaves patched weights in place
    assert torch.equal(through_pack(sa3, model), through_pack(sa3, ours))


def test_what_has_no_effect_on_core_s_model_is_said(sa3, core, theirs, ours):
    from comfy_api.torch_helpers.torch_compile import set_torch_compile_wrapper

    model = theirs()
    compiled, unmatched = model.clone(), model.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model"])  # what TorchCompileModel calls
    unmatched.add_patches({})  # what a LoRA loader calls that knows no name in the file
    assert torch.equal(through_pack(sa3, compiled), through_pack(sa3, ours))
    for one, words in ((compiled, "TorchCompileModel has no effect"), (unmatched, "changed no layer"), (model, None)):
        _, info = sa3.sample(one, [[torch.ones(1, 3, 768), {}]], {"samples": torch.zeros(1, 256, 20)}, steps=1)
        remarks = [warning for warning in info["warnings"] if "no effect" in warning or "no layer" in warning]
        assert len(remarks) == (words is not None) and all(words in remark for remark in remarks)


def test_quantised_weights_of_core_are_refused(sa3, theirs):
    model = theirs()
    model.model.diffusion_model.to(torch.float8_e4m3fn)
    with sa3.refused("float8_e4m3fn", "SA3_ModelLoader"):
        through_pack(sa3, model)


def test_a_core_model_without_a_known_file_is_refused(sa3, core, folder, at_rest):
    state = load_file(folder / "model.safetensors")
    model = core.sd.load_state_dict_guess_config(state, output_vae=False, output_clip=False)[0]
    with sa3.refused("MODEL of core's loader", "its file is not known", "SA3_ModelLoader"):
        through_pack(sa3, model)


def test_core_s_unet_loader_needs_the_conditioner(core, folder):
    """It drops what is not the transformer, and then misses it."""
    with pytest.raises(RuntimeError, match="NumberConditioner"):
        core.sd.load_diffusion_model(str(folder / "model.safetensors"))


# VAE


def tree(state: dict[str, torch.Tensor], name: str) -> torch.nn.Module:
    """A module of this class name with these parameters."""
    root = type(name, (torch.nn.Module,), {})()
    for path, tensor in state.items():
        module, *parts = root, *path.split(".")
        for part in parts[:-1]:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(parts[-1], torch.nn.Parameter(tensor, requires_grad=False))
    return root


@pytest.mark.parametrize("variant", ["small", "medium"])
def test_a_vae_as_core_wraps_it(sa3, core, load, shelf, variant):
    import comfy.model_patcher
    import comfy.sd

    path, prefix = shelf / FOLDERS[variant] / "model.safetensors", "pretransform.model."
    state = {name.removeprefix(prefix): tensor.float() for name, tensor in load_file(path).items() if name.startswith(prefix)}
    for old, new in (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1")):
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    state["encoder.layers.0.transformers.0.rope.inv_freq"] = torch.ones(4)
    vae = comfy.sd.VAE.__new__(comfy.sd.VAE)
    vars(vae).update(sa3.host.vae.core_defaults())
    vae.first_stage_model, vae.device, vae.vae_dtype = tree(state, "SA3AudioVAE"), torch.device("cpu"), torch.float32
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, load_device=vae.device, offload_device=vae.device)
    audio, ours = {"waveform": 0.1 * randn(1, 2, 30000, seed=3), "sample_rate": 44100}, load(variant).vae
    with sa3.refused("VAE of core's loader", "its file is not known", "SA3_AutoencoderLoader"):
        sa3.run("SA3_SAMEEncode", audio=audio, vae=vae)
    vae.patcher.cached_patcher_init = (None, (str(path), None, {}, {}))
    latents = [sa3.run("SA3_SAMEEncode", audio=audio, vae=one)[0] for one in (vae, ours)]
    assert torch.equal(*(latent["samples"] for latent in latents))
    assert torch.equal(*(sa3.decode(latents[0], one)[0]["waveform"] for one in (vae, ours)))
    adopted = importlib.import_module("sa3_pack.nodes.comfyui.core_models").adopt_vae(vae)
    storages = {tensor.data_ptr() for tensor in vae.first_stage_model.state_dict().values()}
    tensors = adopted.first_stage_model.state_dict().values()
    assert {tensor.data_ptr() for tensor in tensors if tensor.numel()} <= storages


# CLIP


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> bytes:
    """A small SentencePiece model with Gemma's settings."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    folder = tmp_path_factory.mktemp("spiece")
    words = ["rain on a tin roof", "warm (Rhodes:1.3) and drums", "a distant train", "heavy rain, thunder"]
    (folder / "text.txt").write_text("\n".join(f"{a} {b} {i}" for i in range(40) for a in words for b in words))
    trainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=380, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        minloglevel=2, split_digits=True, hard_vocab_limit=False,
    )  # fmt: skip
    return (folder / "m.model").read_bytes()


@pytest.fixture
def clip(sa3, core, spiece, monkeypatch, tmp_path):
    """Core's CLIP of a repackaged text encoder, as its CLIPLoader loads it, as wide as the tiny releases."""
    text, t5gemma = importlib.import_module("comfy.text_encoders.sa3"), importlib.import_module("sa3_pack.sa3_core.models.t5gemma")
    part = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 64, "query_pre_attn_scalar": 64, "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip

    class Tiny(text.T5GemmaEncoderConfig):
        def __init__(self):
            super().__init__()
            vars(self).update(part)

    monkeypatch.setattr(text, "T5GemmaEncoderConfig", Tiny)
    config = t5gemma.config_from({"model_type": "t5gemma", "encoder": part, "decoder": part, "is_encoder_decoder": True})
    shapes = t5gemma.empty_model(config).state_dict()
    tensors = {f"model.{name}": randn(*tensor.shape, seed=i).mul(0.2) for i, (name, tensor) in enumerate(shapes.items())}
    tensors["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    save_file(tensors, tmp_path / "t5gemma_b_b_ul2.safetensors")
    return core.sd.load_clip([str(tmp_path / "t5gemma_b_b_ul2.safetensors")], clip_type=core.sd.CLIPType.STABLE_AUDIO)


def rows(conditioning) -> tuple[torch.Tensor, torch.Tensor]:
    ((embeddings, values),) = conditioning
    return embeddings, values["attention_mask"]


def test_core_s_clip_in_our_text_encode(sa3, comfy, clip, load, tmp_path):
    """The rows are core's own, and those of this pack's encoder from the same file."""
    embeddings, mask = rows(sa3.prompt(clip, "rain on a tin roof"))
    (core,) = comfy.nodes.CLIPTextEncode().encode(clip, "rain on a tin roof")
    assert torch.equal(embeddings, core[0][0]) and bool(mask.all()) and mask.shape == embeddings.shape[:2]
    encoder = sa3.core.checkpoint.load_text_encoder(tmp_path / "t5gemma_b_b_ul2.safetensors")
    assert rel_error(embeddings, encoder(encoder.tokenize(["rain on a tin roof"], mask.shape[1]))) < 5e-3  # core's is float16
    one = load("small")
    out, _ = sa3.sample(one.model, sa3.prompt(clip, "rain on a tin roof"), sa3.empty(0.5), steps=1)
    assert rel_error(out["samples"], sa3.sample(one.model, sa3.prompt(clip, "a train"), sa3.empty(0.5), steps=1)[0]["samples"]) > 1e-3


def test_core_s_clip_takes_text_verbatim(sa3, comfy, clip, spiece):
    from sentencepiece import SentencePieceProcessor

    text = "warm (Rhodes:1.3) and [drums]"
    embeddings, _ = rows(sa3.prompt(clip, text))
    assert embeddings.shape[1] == len(SentencePieceProcessor(model_proto=spiece).encode(text))
    assert comfy.nodes.CLIPTextEncode().encode(clip, text)[0][0][0].shape[1] != embeddings.shape[1]  # core reads 1.3 as a weight


def test_an_empty_prompt_on_core_s_clip(sa3, clip, load, comfy):
    one, empty = load("small-base"), sa3.prompt(clip, "")
    embeddings, mask = rows(empty)
    assert embeddings.shape[1] == 1 and not bool(mask.any())
    positive, latent = sa3.prompt(clip, "rain"), sa3.empty(0.5)
    zeroed = comfy.nodes.ConditioningZeroOut().zero_out(positive)[0]
    found, ours, none = (
        sa3.sample(one.model, positive, latent, steps=1, cfg=4.0, negative=negative)[0]["samples"]
        for negative in (empty, sa3.prompt(one.clip, ""), zeroed)
    )
    assert torch.equal(found, ours) and rel_error(found, none) > 1e-3


def test_long_prompts_on_core_s_clip_are_cut_and_said(sa3, clip, caplog):
    embeddings, mask = rows(sa3.prompt(clip, "7" * 300))
    assert embeddings.shape[1] == mask.shape[1] == 256 and "300 tokens; the model reads the first 256" in caplog.text
    assert torch.equal(embeddings, rows(sa3.prompt(clip, "7" * 256))[0])


def test_one_prompt_per_line_on_core_s_clip(sa3, clip):
    texts = ("rain on a tin roof", "train")
    embeddings, mask = rows(sa3.prompt(clip, "\n".join(texts), one_prompt_per_line=True))
    assert mask.shape == embeddings.shape[:2]
    for i, text in enumerate(texts):
        alone, _ = rows(sa3.prompt(clip, text))
        assert int(mask[i].sum()) == alone.shape[1] and torch.equal(embeddings[i, mask[i]], alone[0])
