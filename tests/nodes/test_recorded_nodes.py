"""The recorded runs of the public code, through the node classes on ComfyUI's MODEL, CLIP, VAE and LATENT."""

import pytest
import torch
from core_support import VARIANTS, index, recorded, rel_error

RUN = 1e-4
RUNS = [(variant, key) for variant in VARIANTS for key in index()[variant]["cases"]]


@pytest.fixture
def recorded_draws(sa3, monkeypatch):
    """recorded_draws(golden, key): the next run takes the draws of a recorded one in place of its own."""

    def use(golden: dict, key: str) -> None:
        draws = iter([golden[f"{key}.noise"], *golden.get(f"{key}.step_noise", ())])
        monkeypatch.setattr(sa3.core.runs, "Draws", lambda *_: draws.__next__)

    return use


def latent_of(sa3, vae, golden: dict, key: str, case: dict) -> dict:
    """The LATENT that a user would connect for a recorded case."""
    durations = case["duration"] if isinstance(case["duration"], list) else [case["duration"]]
    if "init_audio" in case:
        return {"samples": golden[f"{key}.init_latents"], "type": "audio", "sa3_seconds": durations}
    if "inpaint_audio" in case:
        mask, source = golden[f"{key}.local_add_cond"][:, :1], golden["gen.source_audio"]
        n = case["latent_length"] * 4096
        clip = torch.nn.functional.pad(source[:, :n], (0, max(0, n - source.shape[1])))
        samples = vae.encode(clip.T[None])  # core hands audio over with the channels last
        return {"samples": samples, "type": "audio", "sa3_seconds": durations, "noise_mask": 1 - mask}
    return sa3.empty(seconds_per_item=", ".join(map(str, durations)))


@pytest.mark.parametrize(("variant", "key"), RUNS, ids=["-".join(run) for run in RUNS])
def test_whole_run(sa3, load, recorded_draws, variant, key):
    golden, case, parts = recorded(f"{variant}/golden"), index()[variant]["cases"][key], load(variant)
    prompts = case["prompt"] if isinstance(case["prompt"], list) else [case["prompt"]]
    positive = sa3.prompt(parts.clip, "\n".join(prompts), one_prompt_per_line=True)
    inputs = {"steps": case["steps"], "sampler": case["sampler"], "cfg": case.get("cfg_scale", 1.0)}
    if "negative_prompt" in case:
        inputs["negative"] = sa3.prompt(parts.clip, case["negative_prompt"])
        inputs["guidance"] = sa3.run("SA3_Guidance", apg=case["apg_scale"])[0]
    latent = latent_of(sa3, parts.vae, golden, key, case)
    if "init_audio" in case:
        levels = {"steps": case["steps"], "noise_level": case["init_noise_level"], "mode": case["schedule"]}
        inputs["sigmas"] = sa3.run("SA3_Schedule", model=parts.model, latent=latent, **levels)[0]
    recorded_draws(golden, key)
    out, info = sa3.sample(parts.model, positive, latent, **inputs)
    assert info["steps"] == case["steps"] and info["sampler"] == case["sampler"]
    assert out["samples"].shape[-1] == case["latent_length"]
    for i, valid in enumerate(case["valid_lengths"]):
        assert rel_error(out["samples"][i, :, :valid], golden[f"{key}.latents"][i, :, :valid]) < RUN
