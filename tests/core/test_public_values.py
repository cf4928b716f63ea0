"""Values of a wrong type or shape at the public functions raise SA3Error with the value found, before anything is computed."""

import math

import pytest
import torch
from core_support import lay_out, randn, refused
from lora_support import write_lora

import sa3_core

COMPLEX = torch.ones(1, 32, 76, dtype=torch.complex64)
META = torch.ones(1, 32, 76, device="meta")
UPDATE = {"lora_A": randn(2, 6), "lora_B": randn(8, 2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sa3_core.load(lay_out(tmp_path_factory.mktemp("release") / "small-music", "small"))


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("duration", 10**400, ["duration", "positive"]),
        ("sampler", ["euler"], ["sampler", "euler"]),
        ("schedule", "logsnr", ["schedule", "logsnr", "dict"]),
        ("schedule", {"kind": "identity", "steps": 3}, ["steps", "remove"]),
        ("schedule", {"kind": ["a"]}, ["schedule", "unknown"]),
        ("init_audio", 3, ["init_audio", "int", "(rate, waveform)"]),
        ("init_audio", (44100,), ["init_audio", "tuple", "(rate, waveform)"]),
        ("init_audio", (44100, "abc"), ["init_audio", "str", "waveform"]),
        ("cfg_interval", 3, ["cfg_interval", "3"]),
        ("eta", "x", ["eta", "x"]),
        ("initial_noise", [1], ["initial_noise", "list"]),
        ("initial_noise", META, ["initial_noise", "meta"]),
        ("step_noise", 3, ["step_noise", "int"]),
        ("step_noise", [3], ["step_noise", "int"]),
        ("prompt", 3, ["prompt is int", "text"]),
    ],
    ids=str,
)
def test_generate(model, argument, value, words):
    with refused(*words):
        model.generate(**{"prompt": "rain", "duration": 0.5, "steps": 1, "return_latents": True, argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x", None), ("x", COMPLEX), ("x", META), ("x", randn(1, 32, 0)), ("t", 0.5), ("t", [0.5]), ("cross_attn", 3),
        ("cross_attn", randn(1, 33, 5)), ("cross_attn", randn(1, 0, 64)), ("global_cond", None),
        ("global_cond", randn(1, 5)), ("global_cond", randn(64)), ("local_add", 3), ("local_add", randn(1, 33, 10)),
        ("padding_mask", torch.ones(1, 3)), ("padding_mask", torch.ones(2, 76)), ("negative_cross_attn", randn(1, 33, 5)),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else str(value),
)  # fmt: skip
def test_velocity(model, argument, value):
    cond = model.condition(model.encode_text("rain"), [1.0])
    given = {"x": randn(1, 32, 76), "t": torch.tensor([0.5]), "cross_attn": cond.cross_attn, "global_cond": cond.global_cond}
    with refused("velocity()"):
        model.velocity(**{**given, argument: value})


@pytest.mark.parametrize(
    "value", [3, None, COMPLEX, META, torch.ones(1, 2, 8192, dtype=torch.long)], ids=["3", "None", "complex", "meta", "int"]
)
def test_encode_and_decode(model, value):
    with refused("audio to encode", "floating-point"):
        model.encode(value)
    with refused("latents to decode", "floating-point"):
        model.decode(value)


@pytest.mark.parametrize("options", [{"chunk_size": "x"}, {"chunk_size": 16, "overlap": "x"}, {"noise": "x"}, {"noise": -1}], ids=str)
def test_options_of_decode(model, options):
    with refused(str(list(options.values())[-1])):
        model.decode(randn(1, 32, 64), **options)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("strength", "x"), ("strength", None), ("interval", 3), ("interval", ("a", "b")), ("skip_layers", 3), ("skip_layers", [3]),
     ("seconds_strength", "x"), ("curve", "x"), ("curve", [None])],
    ids=str,
)  # fmt: skip
def test_add_lora(model, tmp_path, argument, value):
    path = write_lora(tmp_path / "one.safetensors", model.module)
    with refused(argument.removesuffix("_strength") if argument == "curve" else argument, str(value)):
        model.add_lora(path, **{argument: value})
    assert not model.loras.loras


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("x", 3, ["latents x", "int"]),
        ("x", randn(32, 76), ["(32, 76)"]),
        ("x", COMPLEX, ["complex64"]),
        ("sigmas", "x", ["Sigmas", "str"]),
        ("sigmas", None, ["Sigmas", "None"]),
        ("sigmas", torch.ones(3, device="meta"), ["Sigmas", "meta"]),
        ("noise", 3, ["noise is 3"]),
        ("noise", [3, 3], ["noise draw", "int"]),
        ("name", ["euler"], ["Sampler", "euler"]),
    ],
)
def test_sample(argument, value, words):
    given = {"name": "pingpong", "velocity": lambda x, t: x, "x": randn(1, 32, 76), "sigmas": torch.tensor([1.0, 0.5, 0.0])}
    with refused(*words):
        sa3_core.samplers.sample(**{**given, "noise": lambda t, t_next: randn(1, 32, 76), argument: value})


@pytest.mark.parametrize("length", ["x", math.nan, math.inf, torch.zeros(0), torch.ones(1, 1), torch.tensor([math.nan])], ids=str)
def test_length_of_a_schedule(length):
    with refused("length", "latent frames"):
        sa3_core.schedule.build("logsnr", 3, length=length)


@pytest.mark.parametrize("level", ["x", None, math.nan])
def test_noise_level_of_a_schedule(level):
    with refused("noise level", str(level)):
        sa3_core.schedule.build("identity", 3, level)


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("weight", 3, ["weight", "int"]),
        ("weight", randn(6), ["weight", "(6,)"]),
        ("weight", torch.ones(8, 6, dtype=torch.long), ["weight", "int64"]),
        ("tensors", 3, ["tensors", "int"]),
        ("tensors", {"lora_A": 3, "lora_B": 4}, ["lora_A", "floating-point"]),
        ("tensors", {**UPDATE, "lora_A": UPDATE["lora_A"] * math.nan}, ["lora_A", "finite"]),
        ("strength", math.nan, ["strength", "nan"]),
        ("strength", None, ["strength", "None"]),
        ("alpha", "x", ["alpha", "x"]),
        ("rank", 0, ["rank", "0"]),
    ],
)
def test_apply(argument, value, words):
    with refused(*words):
        sa3_core.lora.apply(**{"weight": randn(8, 6), "adapter_type": "lora", "tensors": UPDATE, "alpha": 2, "rank": 2, argument: value})


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("original", 3, ["original", "int"]),
        ("original", META, ["original", "meta"]),
        ("original", randn(0, 2, 4410), ["(0, 2, 4410)"]),
        ("generated", None, ["generated", "None"]),
        ("generated", randn(1, 0, 4410), ["(1, 0, 4410)"]),
        ("regions", 3, ["regions", "3", "pairs"]),
        ("regions", [(1,)], ["regions", "pairs"]),
        ("sample_rate", 0, ["sample_rate", "0"]),
        ("sample_rate", "x", ["sample_rate", "x"]),
        ("generated_rate", math.nan, ["generated_rate", "nan"]),
        ("crossfade", None, ["cross-fade", "None"]),
    ],
)
def test_splice(argument, value, words):
    given = {"original": randn(1, 2, 44100), "generated": randn(1, 2, 44100), "regions": [(0.2, 0.5)], "sample_rate": 44100}
    with refused(*words):
        sa3_core.timeline.splice(**{**given, argument: value})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "half"}, ["dtype is 'half'", "fp16"]), ({"dtype": 16}, ["dtype is 16"]), ({"dtype": torch.int8}, ["torch.int8"]),
        ({"device": "gpu"}, ["device is 'gpu'"]), ({"device": 99}, ["device is 99"]), ({"device": "cuda:99"}, ["device is 'cuda:99'"]),
        ({"path": None}, ["model is None", "demo"]), ({"path": 5}, ["model is 5"]), ({"path": b"demo"}, ["model is b'demo'"]),
    ],
)  # fmt: skip
def test_arguments_of_load(arguments, words):
    with refused(*words):
        sa3_core.load(**{"path": "demo", **arguments})


def test_a_dtype_may_be_named():
    assert sa3_core.load("demo", dtype="bf16").dtype == torch.bfloat16
