"""What the node tests share: a node run as ComfyUI runs it, and tiny releases laid out as a user's model folder."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from core_support import lay_out

FOLDERS = {  # a tiny variant -> the folder a user would have for it
    "small": "stable-audio-3-small-music",
    "medium": "stable_audio_3_medium",
    "small-base": "stable-audio-3-small-music-base",
    "medium-base": "stable_audio_3_medium_base",
}


class Pack(SimpleNamespace):
    """The pack's node classes by id, its error class, and its modules."""

    def run(self, node: str, **inputs) -> tuple:
        """A node's outputs; widgets that are not given have their defaults. As in ComfyUI, under inference mode."""
        cls = self.classes[node]
        widgets = {one.id: one.default for one in cls.define_schema().inputs if getattr(one, "default", None) is not None}
        with torch.inference_mode():
            return cls.execute(**{**widgets, **inputs}).args

    def load(self, **widgets) -> SimpleNamespace:
        model, clip, vae = self.run("SA3_ModelLoader", **widgets)
        return SimpleNamespace(model=model, clip=clip, vae=vae)

    def prompt(self, clip, text: str, **widgets) -> list:
        return self.run("SA3_TextEncode", clip=clip, text=text, **widgets)[0]

    def empty(self, seconds: float = 1.5, **widgets) -> dict:
        return self.run("SA3_EmptyLatent", seconds=seconds, **widgets)[0]

    def sample(self, model, positive, latent, **inputs) -> tuple[dict, dict]:
        """(LATENT, run info)."""
        out, info = self.run("SA3_Sampler", model=model, positive=positive, latent=latent, **inputs)
        return out, json.loads(info)

    def decode(self, latent, vae, **widgets) -> list[dict]:
        return self.run("SA3_SAMEDecode", latent=latent, vae=vae, **widgets)[0]

    @contextmanager
    def refused(self, *words):
        """The block must raise the pack's error with a message of all of `words`."""
        with pytest.raises(self.SA3Error) as caught:
            yield
        missing = [word for word in words if word.lower() not in str(caught.value).lower()]
        assert not missing, f"{missing} not in: {caught.value}"


def put(checkpoints: Path, variant: str, name: str = "") -> Path:
    """A tiny release in a folder of checkpoints, under a user's name for it."""
    return lay_out(checkpoints / (name or FOLDERS[variant]), variant)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_weights(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
