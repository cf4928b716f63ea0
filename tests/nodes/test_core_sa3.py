"""The same weights through core's own Stable Audio 3 (ComfyUI 0.22 and later) and through this pack's MODEL."""

import copy
import json

import pytest
import torch
from core_support import config_dict
from safetensors.torch import save_file

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


@pytest.mark.parametrize("family", ["small", "medium"])
def test_core_and_pack_agree_on_the_same_sigmas_and_seconds(sa3, pack, family, tmp_path):
    import comfy.latent_formats
    import comfy.sample
    import comfy.samplers
    import comfy.sd

    if not hasattr(comfy.latent_formats, "StableAudio3"):
        pytest.skip("this ComfyUI has no Stable Audio 3 of its own")
    described = real_sized_inputs(config_dict(family))
    state = random_weights(sa3.core.release.build(described))
    (tmp_path / "model_config.json").write_text(json.dumps(described))
    save_file(state, tmp_path / "model.safetensors")
    ours = sa3.host.model.load_model(sa3.core.checkpoint.open_checkpoint(tmp_path), torch.float32)
    state["model.model.transformer.rotary_pos_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, 32, 2) / 32)
    theirs = comfy.sd.load_state_dict_guess_config(state, output_vae=False, output_clip=False)[0]
    noise = torch.randn(1, 256, FRAMES, generator=torch.Generator().manual_seed(1))
    prompt = torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(2))
    positive = [[prompt, {"seconds_total": SECONDS}]]
    sigmas = torch.tensor([1.0, 0.95, 0.8, 0.5, 0.2, 0.0])
    latents = []
    with torch.inference_mode():
        for model in (theirs, ours):
            sampler = comfy.samplers.sampler_object("euler")
            latents.append(
                comfy.sample.sample_custom(
                    model, noise, 1.0, sampler, sigmas, positive, positive, torch.zeros_like(noise), disable_pbar=True
                )
            )
    error = float((latents[0] - latents[1]).norm() / latents[0].norm())
    print(f"{family}: core and pack differ by {error:.1e}")
    assert error < 1e-3
