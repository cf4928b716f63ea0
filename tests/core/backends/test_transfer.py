"""Steps and decodes never synchronize with the device: nothing is read back, and copies to it are pinned and non-blocking."""

import copy
import itertools
from contextlib import ExitStack

import pytest
import torch
from core_support import FAMILIES, randn
from lora_support import write_lora
from torch.utils._python_dispatch import TorchDispatchMode

from sa3_core import timeline
from sa3_core.backends import device
from sa3_core.backends.base import Backend
from sa3_core.models.same import Noise
from sa3_core.sampling import runs, samplers
from sa3_core.sampling.guidance import Guidance
from sa3_core.sampling.predictor import Predictor

aten = torch.ops.aten
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Copies(TorchDispatchMode):
    """Records the copies from the CPU to the device "meta", a stand-in for a GPU: reading a value from it is an error.

    A copy is asynchronous if it is non-blocking and its source dense and pinned. Indexing with a CPU tensor is a blocking copy.
    """

    def __init__(self):
        super().__init__()
        self.pinned, self.kinds = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, source, target = kwargs or {}, None, None
        if func is aten._to_copy.default:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
        elif func is aten.copy_.default:
            source, target = args[1], args[0].device
        if source is not None and source.device.type == "cpu" and target.type == "meta":
            direct = any(source is x for x in self.pinned) and source.is_contiguous()
            self.kinds.append("asynchronous" if direct and (kwargs.get("non_blocking") or args[2:] == (True,)) else "blocking")
        if func in (aten.index.Tensor, aten.index_put_.default) and any(i is not None and i.device != args[0].device for i in args[1]):
            self.kinds.append("blocking")
        return func(*args, **kwargs)


@pytest.fixture
def copies(monkeypatch) -> Copies:
    mode = Copies()

    def pin_memory(x: torch.Tensor) -> torch.Tensor:
        mode.pinned.append(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x))  # torch keeps strides too
        return mode.pinned[-1]

    pinning = Backend()
    pinning.pins = True
    monkeypatch.setitem(device.BACKENDS, "meta", pinning)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return mode


def make_run(model, name: str, device: str, cfg: float = 3.0, stack=None, items: int = 2, sigmas=None):
    """(plan, velocity) of a run on a device, with items of different lengths."""
    lengths = timeline.lengths(model.config, [1.0, 0.6, 0.8][:items], 0.5)
    plan = runs.plan(model.config, lengths, steps=3, sampler=name, seed=1, sigmas=sigmas)
    cond = model.condition(model.encode_text(["rain", "a kick", "a dog"][:items]), lengths.seconds)
    dit = copy.deepcopy(model.dit).to(device)
    local = dit._embed_local(randn(items, max(lengths.valid), model.config.dit.local_dim).to(device))
    inputs, uncond = (
        dit.prepare(context.to(device), cond.global_cond.to(device), local, lengths.frames, lengths.valid)
        for context in (cond.cross_attn, torch.zeros_like(cond.cross_attn))
    )
    guidance = Guidance(cfg=cfg, rescale=0.3, norm_threshold=2.0, start=0.2, end=0.9)
    network = dit if stack is None else (lambda x, t, own: stack.velocity(dit, x, t, own, plan.sigmas))
    return plan, Predictor(network, inputs, None if cfg == 1 else uncond, guidance, lengths.valid)


def sample(model, plan, velocity, device: str, watch=None, since: int = 0, **options) -> torch.Tensor:
    """Sample. watch: a context entered at step `since`, when everything is prepared."""
    with ExitStack() as stack, torch.no_grad():
        steps = itertools.count()

        def watched(x, t):
            if next(steps) == since and watch is not None:
                stack.enter_context(watch)
            return velocity(x, t)

        return runs.run(watched, plan, channels=model.config.same.latent_dim, device=device, **options)


@pytest.fixture
def scheduled(load_model, tmp_path):
    """Function (schedule) -> the stack of a scheduled LoRA; the model is unchanged."""

    def stack(**schedule):
        model = load_model("small")
        model.add_lora(write_lora(tmp_path / "a.safetensors", model.module, "bora"), seconds_strength=0, **schedule)
        loras = model.loras
        model.remove_loras()
        return loras

    return stack


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_no_step_synchronizes(load_model, copies, name, family, cfg):
    model = load_model(family)
    plan, velocity = make_run(model, name, "meta", cfg)
    out = sample(model, plan, velocity, "meta", copies)
    assert out.device.type == "meta" and set(copies.kinds) == {"asynchronous"}


@pytest.mark.parametrize("items", [2, 3])
@pytest.mark.parametrize("schedule", [{"curve": [0.2, 1.0, 0.4]}, {"interval": (0.5, 0.8)}], ids=["curve", "interval"])
def test_only_the_first_step_with_a_lora_synchronizes(load_model, copies, scheduled, schedule, items):
    """Items at several noise levels, so that a step has the LoRA for some of them only."""
    model = load_model("small")
    levels = torch.tensor([[1.0, 0.9, 0.4, 0.0], [1.0, 0.7, 0.3, 0.0], [1.0, 0.95, 0.6, 0.0]])[:items]
    plan, velocity = make_run(model, "pingpong", "meta", items=items, stack=scheduled(**schedule), sigmas=levels)
    sample(model, plan, velocity, "meta", copies, since=1)
    assert set(copies.kinds) == {"asynchronous"}


def test_shared_levels_and_draws_do_not_synchronize(load_model, copies):
    model = load_model("small")
    plan, velocity = make_run(model, "pingpong", "meta", sigmas=torch.tensor([1.0, 0.7, 0.3, 0.0]))
    draw = randn(1, model.config.same.latent_dim, plan.lengths.frames)
    sample(model, plan, velocity, "meta", copies, step_noise=[draw] * 3)
    assert set(copies.kinds) == {"asynchronous"}


@pytest.mark.parametrize("noise", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_chunk_of_a_decode_synchronizes(load_model, copies, family, noise):
    model = load_model(family)
    same = copy.deepcopy(model.autoencoder).to("meta")
    z = torch.empty(1, model.config.same.latent_dim, 140, device="meta")
    with copies, torch.no_grad():
        audio = same.decode(z, 64, 16, None if noise is None else Noise(noise))
    assert audio.shape[-1] == 140 * model.config.same.samples_per_frame and set(copies.kinds) == {"asynchronous"}


def test_blocking_copies_are_detected(copies):
    x = torch.ones(3)
    with copies:
        x.to("meta")
        torch.empty(3, device="meta").copy_(x)
        x.to("meta", non_blocking=True)  # not pinned
        with pytest.raises((RuntimeError, NotImplementedError)):
            x.to("meta").sum().item()
        torch.empty(3, device="meta")[torch.tensor([0, 2])]
        device.to_device(x, "meta")
        device.to_device(x[:1].expand(3), "meta")
        device.to_device(torch.ones(3, 2)[:, 1], "meta", torch.bfloat16)
    assert copies.kinds == ["blocking"] * 5 + ["asynchronous"] * 3


def test_to_device_keeps_values():
    x = randn(2, 3)
    assert device.to_device(x, "cpu") is x
    assert torch.equal(device.to_device(x, torch.device("cpu"), torch.bfloat16), x.bfloat16())


@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["pingpong", "dpmpp-3m-sde"])
def test_a_run_on_a_gpu_does_not_synchronize(load_model, name, family):
    model = load_model(family)
    plan, velocity = make_run(model, name, "cuda")
    expected = sample(model, plan, velocity, "cuda")
    mode = torch.cuda.get_sync_debug_mode()

    def strict(x, t):
        torch.cuda.set_sync_debug_mode("error")
        return velocity(x, t)

    try:
        out = sample(model, plan, strict, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.equal(out, expected)
