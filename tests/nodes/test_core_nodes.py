"""ComfyUI's own nodes on either side of ours."""

import pytest
import torch
from core_support import FAMILIES, randn, rel_error


def outputs(found) -> tuple:
    """What a core node returns: a tuple of old, a NodeOutput in the V3 API."""
    return found if isinstance(found, tuple) else found.args


def test_clip_text_encode_is_our_text_encode(sa3, load, comfy):
    clip = load("small").clip
    (core,) = comfy.nodes.CLIPTextEncode().encode(clip, "rain on a roof")
    ours = sa3.prompt(clip, "rain on a roof")
    assert torch.equal(core[0][0], ours[0][0])
    assert torch.equal(core[0][1]["attention_mask"], ours[0][1]["attention_mask"])


def test_conditioning_is_one_entry_with_only_real_tokens(sa3, load):
    clip = load("small").clip
    lengths = [sa3.prompt(clip, text)[0][0].shape[1] for text in ("rain", "rain on a tin roof, distant thunder")]
    ((embeddings, values),) = sa3.prompt(clip, "rain\nrain on a tin roof, distant thunder", one_prompt_per_line=True)
    assert embeddings.shape[:2] == (2, lengths[1]) and lengths[0] < lengths[1]
    assert values["attention_mask"].sum(1).tolist() == lengths
    alone = sa3.prompt(clip, "rain")[0][0]
    assert rel_error(embeddings[:1, : lengths[0]], alone) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_vae_decode_audio(sa3, load, pipeline, comfy, variant):
    vae, latents = load(variant).vae, randn(2, 32, 20, seed=2)
    with torch.inference_mode():
        (audio,) = outputs(comfy.audio.VAEDecodeAudio().decode(vae=vae, samples={"samples": latents}))
    exact = pipeline(variant).decode(latents)
    exact = exact / (5 * exact.std(dim=(1, 2), keepdim=True)).clamp(min=1)  # what core does to every VAE's sound
    assert audio["sample_rate"] == 44100 and audio["waveform"].shape == (2, 2, 20 * 4096)
    assert rel_error(audio["waveform"], exact) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_tiled_decoding_is_seamless(load, pipeline, variant):
    vae, latents = load(variant).vae, randn(1, 32, 151, seed=2)
    whole = pipeline(variant).decode(latents)
    for tile, overlap in ((512, 64), (33, 7), (101, 0), (None, None)):
        tiled = vae.decode_tiled(latents, tile_x=tile, tile_y=tile, overlap=overlap)
        assert rel_error(tiled.movedim(-1, 1), whole) < 1e-5


@pytest.mark.parametrize(("channels", "samples"), [(2, 40000), (1, 40000), (2, 4096 * 3)])
@pytest.mark.parametrize("variant", FAMILIES)
def test_vae_encode_audio(load, pipeline, comfy, variant, channels, samples):
    waveform = 0.2 * randn(2, channels, samples, seed=3)
    with torch.inference_mode():
        (latent,) = outputs(comfy.audio.VAEEncodeAudio().encode(vae=load(variant).vae, audio={"waveform": waveform, "sample_rate": 44100}))
    assert latent["samples"].shape == (2, 32, -(-samples // 4096))
    assert rel_error(latent["samples"], pipeline(variant).encode(waveform.expand(-1, 2, -1))) < 1e-5


def test_core_latents_are_a_source_for_our_sampler(sa3, load, comfy):
    parts = load("small")
    with torch.inference_mode():
        audio = {"waveform": 0.2 * randn(1, 2, 44100, seed=3), "sample_rate": 44100}
        (latent,) = outputs(comfy.audio.VAEEncodeAudio().encode(vae=parts.vae, audio=audio))
    out, info = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), latent, steps=4, noise_level=0.05)
    assert info["seconds"] == [11 * 4096 / 44100]  # no duration was said, so it is that of the latents
    near = rel_error(out["samples"], latent["samples"])
    far, _ = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), latent, steps=4)
    assert near < 0.5 * rel_error(far["samples"], latent["samples"])
    assert sa3.decode(out, parts.vae)[0]["waveform"].shape == (1, 2, 11 * 4096)


@pytest.mark.parametrize("variant", FAMILIES)
def test_ksampler_runs_on_our_model(sa3, load, comfy, variant):
    parts = load(variant)
    positive, negative = sa3.prompt(parts.clip, "rain"), sa3.prompt(parts.clip, "hiss")
    with torch.inference_mode():
        (out,) = comfy.nodes.KSampler().sample(parts.model, 7, 3, 2.0, "euler", "simple", positive, negative, sa3.empty(1.0))
    assert out["samples"].shape == (1, 32, sa3.sample(parts.model, positive, sa3.empty(1.0), steps=1)[0]["samples"].shape[-1])
    assert bool(torch.isfinite(out["samples"]).all()) and float(out["samples"].std()) > 0.1
    assert sa3.decode(out, parts.vae)[0]["waveform"].shape == (1, 2, 44100)


@pytest.mark.parametrize("sampler", ["core's", "ours"])
def test_core_sampling_with_our_sigmas_is_our_run(sa3, load, comfy, sampler):
    """Core's CFGGuider, BasicScheduler-like SIGMAS and noise, against SA3_Sampler on the same whole latents."""
    parts, latent = load("small"), {"samples": torch.zeros(1, 32, 24), "type": "audio"}
    positive = sa3.prompt(parts.clip, "rain")
    name = "euler" if sampler == "core's" else "pingpong"
    (sigmas,) = sa3.run("SA3_Schedule", model=parts.model, latent=latent, steps=4)
    ours, _ = sa3.sample(parts.model, positive, latent, seed=3, steps=4, sampler=name)
    with torch.inference_mode():
        if sampler == "core's":
            (driver,) = outputs(comfy.custom.KSamplerSelect().get_sampler("euler"))
        else:
            (driver,) = sa3.run("SA3_SamplerSelect", sampler="pingpong")
        found = outputs(comfy.custom.SamplerCustom().sample(parts.model, True, 3, 1.0, positive, positive, driver, sigmas, latent))
    assert rel_error(found[0]["samples"], ours["samples"]) < 1e-4
