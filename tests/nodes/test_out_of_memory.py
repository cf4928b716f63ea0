"""Out of memory in each stage: the retry with less at once gives the same result; else an error, and the memory is free again."""

import gc
import logging
import weakref

import pytest
import torch
from core_support import randn, rel_error

STAGES = ["encode", "text", "sample", "decode"]
KINDS = {
    "device": lambda comfy: comfy.management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": lambda comfy: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"
    ),
    "host": lambda comfy: MemoryError(),
}

OTHERS = [("small", "decode", "cpu"), ("small", "text", "host")]


def jobs(sa3, one) -> dict:
    """Per stage: the class whose forward fails, and what a user does there, as numbers."""
    clip = {"waveform": randn(2, 2, 500_000) * 0.1, "sample_rate": 44100}
    prompts = "rain\na long train passes under a bridge\nwind\nx"
    latent = {"samples": randn(1, one.vae.latent_channels, 200), "type": "audio", "sa3_seconds": [15.0]}
    return {
        "encode": (sa3.core.same.Resampler, lambda: sa3.run("SA3_SAMEEncode", audio=clip, vae=one.vae)[0]["samples"]),
        "text": (sa3.core.text_encoder.TextEncoder, lambda: real_rows(sa3.prompt(one.clip, prompts, one_prompt_per_line=True))),
        "sample": (
            sa3.core.dit.DiT,
            lambda: sa3.sample(one.model, sa3.prompt(one.clip, "x"), sa3.empty(1.0, batch_size=4), steps=2, seed=9)[0]["samples"],
        ),
        "decode": (sa3.core.same.Resampler, lambda: sa3.decode(latent, one.vae)[0]["waveform"]),
    }


def real_rows(conditioning) -> torch.Tensor:
    """Embeddings with zeros where there is no token: what stands there is never read."""
    ((embeddings, values),) = conditioning
    return embeddings * values["attention_mask"][..., None]


def size_of(stage: str, arguments) -> int:
    """How much a forward pass is asked for at once: items, or frames."""
    first = arguments[0].ids if stage == "text" else arguments[0]
    return first.shape[0] if stage in ("text", "sample") else first.shape[-1]


@pytest.fixture
def short(monkeypatch, comfy):
    """short(stage, class, room, kind): forward passes that are asked for more than `room` run out of memory; -> the sizes asked for."""

    def install(stage, cls, room, kind="device"):
        forward, asked = cls.forward, []

        def limited(self, *arguments, **more):
            asked.append(size_of(stage, arguments))
            if asked[-1] > room:
                hoard.append(torch.zeros(1000))
                raise KINDS[kind](comfy)
            return forward(self, *arguments, **more)

        hoard: list[torch.Tensor] = []
        monkeypatch.setattr(cls, "forward", limited)
        return asked

    return install


@pytest.mark.parametrize(
    ("variant", "stage", "kind"), [*((variant, stage, "device") for variant in ("small", "medium") for stage in STAGES), *OTHERS]
)
def test_less_at_once_gives_the_same(sa3, load, short, caplog, monkeypatch, variant, stage, kind):
    cls, job = jobs(sa3, load(variant))[stage]
    asked = short(stage, cls, 10**9)
    whole = job()
    monkeypatch.undo()
    largest = max(asked)
    asked = short(stage, cls, largest * 0.6, kind)
    with caplog.at_level(logging.WARNING, "sa3"):
        parts = job()
    assert max(asked) == largest and len(asked) > 2
    said = [record.getMessage() for record in caplog.records if "Out of memory" in record.getMessage()]
    assert len(said) == 1 and "retrying with" in said[0]
    assert rel_error(parts, whole) < 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_what_never_fits_is_an_error_that_holds_no_memory(sa3, load, short, comfy, stage):
    one = load("small")
    cls, job = jobs(sa3, one)[stage]
    before = job()
    kept = []
    forward = cls.forward

    def hold(self, *arguments, **more):
        big = torch.zeros(10_000)
        kept.append(weakref.ref(big))
        raise comfy.management.OOM_EXCEPTION("out of memory")

    cls.forward = hold
    try:
        with pytest.raises(sa3.SA3Error) as caught:
            job()
    finally:
        cls.forward = forward
    assert "Out of memory while" in str(caught.value) and "even with" in str(caught.value)
    assert caught.value.__context__ is None and caught.value.__cause__ is None  # the failed attempt would live on in them
    gc.collect()
    assert kept and not any(ref() is not None for ref in kept)
    assert not comfy.management.current_loaded_models
    assert torch.equal(job(), before)  # the next run is as if nothing had been


def test_other_errors_are_not_retried(sa3, load, monkeypatch):
    one = load("small")
    cls, job = jobs(sa3, one)["decode"]
    calls = []

    def broken(self, *arguments, **more):
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cls, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        job()
    assert len(calls) == 1


def test_the_node_shows_the_retry(sa3, load, short, monkeypatch):
    import server
    from comfy_execution.utils import CurrentNodeContext

    heard = []

    class Instance:
        def send_progress_text(self, text, node_id):
            heard.append((node_id, text))

    monkeypatch.setattr(server.PromptServer, "instance", Instance(), raising=False)
    one = load("small")
    cls, job = jobs(sa3, one)["decode"]
    short("decode", cls, 70)
    with CurrentNodeContext("prompt", "17", 0):
        job()
    assert any(node == "17" and "Out of memory while decoding" in text for node, text in heard)
