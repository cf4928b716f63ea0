"""The public code, from a checkout of Stability-AI/stable-audio-3 that the user names, on the same release folder as ours."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.engine import Clock

ANCHORS = {"fp32": {"step": 1.88, "decode": 4.8}, "bf16": {"step": 0.75, "decode": 2.5}}
ANCHORED = "small-music, 30 s, 2 threads, recorded on a quiet machine of two cores with AVX-512 and AMX"


def checkout(path: str) -> Path:
    """A path of the command line, refused where there is no such checkout."""
    if not Path(path, "stable_audio_3", "loading_utils.py").is_file():
        raise argparse.ArgumentTypeError(
            f"{path} is not a checkout of Stability-AI/stable-audio-3: stable_audio_3/loading_utils.py is not there."
        )
    return Path(path)


class Reference:
    """A release through the public code. Importing it is for a process that does nothing else."""

    def __init__(self, public: Path, folder: Path, dtype: torch.dtype):
        sys.path.insert(0, str(public.absolute()))
        from stable_audio_3.loading_utils import load_diffusion_cond
        from stable_audio_3.model import StableAudioModel

        torch.set_grad_enabled(False)
        config = json.loads((folder / "model_config.json").read_text(encoding="utf-8"))
        for part in config["model"]["conditioning"]["configs"]:
            if part["id"] == "prompt":  # the folder on disk in place of the Hub
                part["config"] |= {"repo_id": str(folder), "subfolder": "t5gemma-b-b-ul2"}
        self.model = load_diffusion_cond(config, str(folder / "model.safetensors"), device="cpu")
        self.model.to(dtype)
        self.model.use_lora, self.model.lora_names = False, []
        self.job = StableAudioModel(self.model, config, "cpu", False)
        self.cfg = 1.0 if self.model.diffusion_objective == "rf_denoiser" else 7.0
        self.prompt = self.model.conditioner.conditioners["prompt"]
        self.text_dtype = self.prompt.model.dtype

    def text(self, seed: int) -> None:
        from benchmarks.engine import prompt_of

        self.prompt([prompt_of(seed)], "cpu")

    def run(self, seed: int, seconds: float, steps: int, batch: int, clock: Clock, stages: dict, keep: dict) -> None:
        """One whole job; what it took goes into `clock` and `stages`, its results into `keep`."""
        from benchmarks.engine import prompt_of

        network, autoencoder = self.model.model, self.model.pretransform
        forward, decode = network.forward, autoencoder.decode

        def timed_forward(*args, **kwargs):
            out = forward(*args, **kwargs)
            clock.step()
            return out

        def timed_decode(z, *args, **kwargs):
            keep["latents"] = z[:1].clone()
            start = time.perf_counter()
            audio = decode(z, *args, **kwargs)
            stages["decode"] = [time.perf_counter() - start]
            return audio

        network.forward, autoencoder.decode = timed_forward, timed_decode
        prompts = [prompt_of(1000 * seed + i) for i in range(batch)]
        audio = self.job.generate(
            prompt=prompts, duration=[seconds] * batch, batch_size=batch, steps=steps, seed=seed, cfg_scale=self.cfg, disable_tqdm=True
        )
        network.forward, autoencoder.decode = forward, decode
        keep["audio"] = audio[0]
