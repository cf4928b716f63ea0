"""The host runs ahead of the device: in the steps of a run and in a decode it reads nothing back, and what it sends is in pinned memory."""

import copy
from contextlib import ExitStack

import pytest
import torch
from core_support import FAMILIES, randn
from lora_support import write_lora
from torch.utils._python_dispatch import TorchDispatchMode

from sa3_core import samplers, sampling, timeline, transfer
from sa3_core.guidance import Guidance
from sa3_core.network import Predictor
from sa3_core.same import Noise

aten = torch.ops.aten
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


class Sent(TorchDispatchMode):
    """Notes what goes from the CPU to the device "meta", which stands for one here: it has no values, so reading any is an error."""

    def __init__(self):
        super().__init__()
        self.pinned, self.ways = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, source, target = kwargs or {}, None, None
        if func is aten._to_copy.default:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
        elif func is aten.copy_.default:
            source, target = args[1], args[0].device
        if source is not None and source.device.type == "cpu" and target.type == "meta":
            waits = not (kwargs.get("non_blocking") or args[2:] == (True,)) or not any(source is x for x in self.pinned)
            self.ways.append("waits" if waits else "runs ahead")
        return func(*args, **kwargs)


@pytest.fixture
def sent(monkeypatch) -> Sent:
    mode = Sent()

    def pin_memory(x: torch.Tensor) -> torch.Tensor:
        mode.pinned.append(x)
        return x

    monkeypatch.setattr(transfer, "PINNED", {"meta"})
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return mode


def make_run(model, name: str, device: str, cfg: float = 3.0, stack=None):
    """A run on a device, two items of different lengths: (plan, velocity)."""
    lengths = timeline.lengths(model.config, [1.0, 0.6], 0.5)
    plan = sampling.plan(model.config, lengths, steps=3, sampler=name, seed=1)
    cond = model.condition(model.encode_text(["rain", "a kick"]), lengths.seconds)
    dit = copy.deepcopy(model.dit).to(device)
    local = dit._local(randn(2, max(lengths.valid), model.config.dit.local_dim).to(device))
    inputs, uncond = (
        dit.prepare(context.to(device), cond.global_cond.to(device), local, lengths.frames, lengths.valid)
        for context in (cond.cross_attn, torch.zeros_like(cond.cross_attn))
    )
    guidance = Guidance(cfg=cfg, rescale=0.3, norm_threshold=2.0, start=0.2, end=0.9)
    network = dit if stack is None else (lambda x, t, own: stack.velocity(dit, x, t, own, plan.sigmas))
    return plan, Predictor(network, inputs, None if cfg == 1 else uncond, guidance, lengths.valid)


def sample(model, plan, velocity, device: str, watch=None) -> torch.Tensor:
    """The run; watched from its first step on, when everything is ready."""
    with ExitStack() as stack, torch.no_grad():
        watches = iter([watch] if watch is not None else [])

        def watched(x, t):
            for mode in watches:
                stack.enter_context(mode)
            return velocity(x, t)

        return sampling.run(watched, plan, channels=model.config.same.latent_dim, device=device)


def scheduled(model, folder):
    """The stack of a LoRA that has another strength in each step; the model itself stays as it was."""
    model.add_lora(write_lora(folder / "a.safetensors", model.module, "bora"), curve=[0.2, 1.0, 0.4], seconds_strength=0)
    stack = model.loras
    model.remove_loras()
    return stack


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_no_step_waits_for_the_device(load_model, sent, name, family, cfg):
    model = load_model(family)
    plan, velocity = make_run(model, name, "meta", cfg)
    sent.pinned.clear()
    out = sample(model, plan, velocity, "meta", sent)
    assert out.device.type == "meta" and set(sent.ways) == {"runs ahead"}


def test_no_step_with_another_strength_of_a_lora_waits(load_model, sent, tmp_path):
    model = load_model("small")
    plan, velocity = make_run(model, "pingpong", "meta", stack=scheduled(model, tmp_path))
    sample(model, plan, velocity, "meta", sent)
    assert set(sent.ways) == {"runs ahead"}


@pytest.mark.parametrize("noise", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_chunk_of_a_decode_waits(load_model, sent, family, noise):
    model = load_model(family)
    same = copy.deepcopy(model.autoencoder).to("meta")
    z = torch.empty(1, model.config.same.latent_dim, 140, device="meta")
    with sent, torch.no_grad():
        audio = same.decode(z, 64, 16, None if noise is None else Noise(noise))
    assert audio.shape[-1] == 140 * model.config.same.samples_per_frame and set(sent.ways) == {"runs ahead"}


def test_the_watch_sees_what_waits(sent):
    x = torch.ones(3)
    with sent:
        x.to("meta")
        torch.empty(3, device="meta").copy_(x)
        x.to("meta", non_blocking=True)  # not pinned
        with pytest.raises((RuntimeError, NotImplementedError)):
            x.to("meta").sum().item()
        transfer.put(x, "meta")
    assert sent.ways == ["waits"] * 4 + ["runs ahead"]


def test_what_is_put_keeps_its_values():
    x = randn(2, 3)
    assert transfer.put(x, "cpu") is x
    assert torch.equal(transfer.put(x, torch.device("cpu"), torch.bfloat16), x.bfloat16())


@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["pingpong", "dpmpp-3m-sde"])
def test_a_gpu_is_not_waited_for(load_model, name, family):
    model = load_model(family)
    plan, velocity = make_run(model, name, "cuda")
    expected = sample(model, plan, velocity, "cuda")
    mode = torch.cuda.get_sync_debug_mode()

    def strict(x, t):
        torch.cuda.set_sync_debug_mode("error")
        return velocity(x, t)

    try:
        out = sampling.run(strict, plan, channels=model.config.same.latent_dim, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.equal(out, expected)
