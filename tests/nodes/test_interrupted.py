"""Stopped at every place where a run looks whether it should stop: the next run is as if nothing had been."""

import pytest
import torch
from core_support import randn


def whole(sa3, parts) -> torch.Tensor:
    """Every stage once: a prompt, a recording, a region, three steps with guidance, the sound."""
    clip = {"waveform": randn(1, 2, 40_000) * 0.1, "sample_rate": 44100}
    positive = sa3.prompt(parts.clip, "rain")
    latent = sa3.run("SA3_SAMEEncode", audio=clip, vae=parts.vae, padding=0.0, chunk_size=64)[0]
    marked = sa3.run("SA3_InpaintMask", latent=latent, regions="0.2-0.5")[0]
    out, _ = sa3.sample(parts.model, positive, marked, steps=3, cfg=2.0, seed=4)
    return sa3.decode(out, parts.vae, chunk_size=64)[0]["waveform"]


class Stop:
    """Counts the looks, and interrupts at one of them."""

    def __init__(self, comfy, at: int | None = None):
        self.comfy, self.at, self.count = comfy, at, 0

    def __call__(self, *_) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.comfy.management.InterruptProcessingException


def test_at_every_look(sa3, load, comfy, monkeypatch):
    parts = load("small")
    undisturbed = whole(sa3, parts)
    counting = Stop(comfy)
    monkeypatch.setattr(comfy.management, "throw_exception_if_processing_interrupted", counting)
    whole(sa3, parts)
    assert counting.count >= 6  # steps and chunks, at least
    for at in range(1, counting.count + 1):
        stop = Stop(comfy, at)
        monkeypatch.setattr(comfy.management, "throw_exception_if_processing_interrupted", stop)
        with pytest.raises(comfy.management.InterruptProcessingException):
            whole(sa3, parts)
        assert stop.count == at  # nothing went on
        monkeypatch.setattr(comfy.management, "throw_exception_if_processing_interrupted", Stop(comfy))
        assert torch.equal(whole(sa3, parts), undisturbed), f"the run after a stop at look {at}"


@pytest.mark.parametrize("stage", ["encode", "decode", "sample", "text"])
def test_in_the_middle_of_a_stage(sa3, load, comfy, monkeypatch, stage):
    """An error of any kind inside a network leaves no trace either."""
    parts = load("medium")
    undisturbed = whole(sa3, parts)
    cls = {"sample": sa3.core.dit.DiT, "text": sa3.core.text_encoder.TextEncoder}.get(stage, sa3.core.same.Resampler)
    forward, side, seen = cls.forward, f"{stage}r", []

    def broken(self, *arguments, **more):
        if stage in ("sample", "text") or self.config.side == side:
            seen.append(1)
            if stage != "sample" or len(seen) == 2:
                raise comfy.management.InterruptProcessingException
        return forward(self, *arguments, **more)

    monkeypatch.setattr(cls, "forward", broken)
    with pytest.raises(comfy.management.InterruptProcessingException):
        whole(sa3, parts)
    monkeypatch.undo()
    assert seen and torch.equal(whole(sa3, parts), undisturbed)
