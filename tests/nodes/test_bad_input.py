"""What does not fit is refused with a sentence, before any network computes."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from comfy_api.latest import io
from core_support import randn

pytestmark = pytest.mark.usefixtures("at_rest")

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def prompt():
    """A CONDITIONING as SA3_TextEncode makes it for the tiny models."""
    return [[randn(1, 5, 64), {"attention_mask": torch.ones(1, 5, dtype=torch.bool)}]]


@pytest.fixture
def stranger():
    """A MODEL, CLIP or VAE of another family."""

    class BaseModel(torch.nn.Linear):
        pass

    inner = BaseModel(2, 2)
    return SimpleNamespace(model=inner, cond_stage_model=inner, first_stage_model=inner, tokenizer=object())


def audio_latent(batch: int = 1, frames: int = 40, **keys) -> dict:
    return {"samples": randn(batch, 32, frames), "type": "audio", **keys}


@pytest.mark.parametrize("kind", ["none", "stranger"])
def test_foreign_model(sa3, prompt, stranger, kind):
    with sa3.refused("MODEL", "NoneType" if kind == "none" else "BaseModel", "SA3_ModelLoader"):
        sa3.sample(stranger if kind == "stranger" else None, prompt, sa3.empty(1.0))


@pytest.mark.parametrize("kind", ["none", "stranger"])
def test_foreign_clip(sa3, stranger, kind):
    with sa3.refused("CLIP", "empty" if kind == "none" else "BaseModel", "SA3_ModelLoader"):
        sa3.prompt(stranger if kind == "stranger" else None, "rain")


@pytest.mark.parametrize("kind", ["none", "stranger"])
def test_foreign_vae(sa3, stranger, kind):
    with sa3.refused("VAE", "empty" if kind == "none" else "BaseModel", "SA3_ModelLoader"):
        sa3.decode(audio_latent(), stranger if kind == "stranger" else None)


def test_tokens_of_another_clip(sa3, load):
    with sa3.refused("another CLIP", "l, g", "SA3_ModelLoader"):
        load("small").clip.encode_from_tokens_scheduled({"l": [[(1, 1.0)]], "g": [[(1, 1.0)]]})


BAD_LATENTS = {
    "nothing": (None, ["LATENT", "no samples", "SA3_EmptyLatent"]),
    "a tensor": (torch.zeros(1, 32, 8), ["no samples", "SA3_EmptyLatent"]),
    "no samples": ({"type": "audio"}, ["no samples", "SA3_EmptyLatent"]),
    "an image": ({"samples": torch.ones(1, 4, 64, 64)}, ["(1, 4, 64, 64)", "image", "expected audio"]),
    "a video": ({"samples": torch.ones(1, 16, 5, 64, 64)}, ["image or video", "expected audio"]),
    "full Stable Audio Open": ({"samples": torch.ones(1, 64, 1024), "type": "audio"}, ["64 channels", "Stable Audio 1 or Open", "32"]),
    "another SA3": ({"samples": torch.ones(1, 256, 40), "sa3_seconds": [1.0]}, ["256 channels", "another model", "32"]),
    "too few durations": (audio_latent(3, sa3_seconds=[1.0, 2.0]), ["sa3_seconds", "2 numbers", "3 items"]),
    "too many durations": (audio_latent(1, sa3_seconds=[1.0, 2.0]), ["sa3_seconds", "2 numbers", "1 items"]),
    "a duration without a list": (audio_latent(1, sa3_seconds=1.0), ["sa3_seconds", "no list"]),
    "a duration too long for its frames": (audio_latent(1, 40, sa3_seconds=[20.0]), ["40 frames", "20"]),
    "a duration of 0": (audio_latent(1, sa3_seconds=[0.0]), ["duration is 0", "positive"]),
    "a negative duration": (audio_latent(1, sa3_seconds=[-2.0]), ["duration is -2", "positive"]),
    "no duration at all": (audio_latent(1, sa3_seconds=[NAN]), ["sa3_seconds is [nan]", "numbers of seconds"]),
    "less than a sample": (audio_latent(1, sa3_seconds=[1e-6]), ["1e-06", "sample"]),
    "too long for the model": (audio_latent(1, 600, sa3_seconds=[50.0]), ["50", "at most 47"]),
    "negative padding": (audio_latent(1, sa3_seconds=[1.0], sa3_padding=-1.0), ["padding is -1", "0 or more"]),
    "another batch's indices": (audio_latent(2, batch_index=[0, 1, 2]), ["batch_index", "3 entries", "2 items"]),
    "a mask of another batch": (audio_latent(2, noise_mask=torch.ones(3, 1, 40)), ["mask", "3 rows", "2 items"]),
    "NaN": ({"samples": torch.full((1, 32, 40), NAN)}, ["NaN", "check the node"]),
    "complex numbers": ({"samples": torch.ones(1, 32, 40, dtype=torch.complex64)}, ["complex64", "floating-point"]),
    "whole numbers": ({"samples": torch.ones(1, 32, 40, dtype=torch.long)}, ["int64", "floating-point"]),
    "no values": ({"samples": torch.ones(1, 32, 40, device="meta")}, ["meta tensor", "dense"]),
    "sparse values": ({"samples": torch.ones(1, 32, 40).to_sparse()}, ["sparse", "dense"]),
    "a single number": ({"samples": torch.tensor(1.0)}, ["shape ()", "expected audio"]),
    "no items": ({"samples": torch.zeros(0, 32, 40), "sa3_seconds": []}, ["(0, 32, 40)", "empty"]),
    "no frames": ({"samples": torch.zeros(1, 32, 0)}, ["(1, 32, 0)", "empty"]),
    "a duration in words": (audio_latent(1, sa3_seconds=["1.0"]), ["sa3_seconds", "['1.0']", "numbers"]),
    "a duration of True": (audio_latent(1, sa3_seconds=[True]), ["sa3_seconds", "True", "numbers"]),
    "a duration beyond floating point": (audio_latent(1, sa3_seconds=[10**400]), ["sa3_seconds", "numbers"]),
    "padding in words": (audio_latent(1, sa3_seconds=[1.0], sa3_padding="6"), ["padding is 6", "0 or more"]),
    "no padding": (audio_latent(1, sa3_seconds=[1.0], sa3_padding=None), ["padding is None", "0 or more"]),
    "indices in words": (audio_latent(1, batch_index=["a"]), ["batch_index", "['a']", "whole numbers"]),
    "an index without a list": (audio_latent(1, batch_index=3), ["batch_index", "3", "list"]),
    "a negative index": (audio_latent(1, batch_index=[-1], sa3_seconds=[1.0, 2.0]), ["batch_index", "-1", "from 0"]),
    "a fractional index": (audio_latent(1, batch_index=[0.5]), ["batch_index", "0.5", "whole numbers"]),
    "a mask of NaN": (audio_latent(1, noise_mask=torch.full((1, 1, 40), NAN)), ["noise mask", "finite"]),
    "a mask without values": (audio_latent(1, noise_mask=torch.zeros(1, 1, 0)), ["noise mask", "(1, 1, 0)"]),
    "a mask without a tensor": (audio_latent(1, noise_mask=[1, 0]), ["noise mask", "list"]),
    "a mask of complex numbers": (audio_latent(1, noise_mask=torch.ones(1, 1, 40, dtype=torch.complex64)), ["noise mask", "complex64"]),
}


@pytest.mark.parametrize("case", BAD_LATENTS)
def test_foreign_latent(sa3, load, prompt, case):
    latent, words = BAD_LATENTS[case]
    with sa3.refused(*words):
        sa3.sample(load("small").model, prompt, latent)


@pytest.mark.parametrize("case", [case for case, (latent, _) in BAD_LATENTS.items() if "another batch" not in case])
def test_foreign_latent_to_decode(sa3, load, case):
    latent, words = BAD_LATENTS[case]
    with sa3.refused(*words):
        sa3.decode(latent, load("small").vae)


@pytest.mark.parametrize(
    "case", ["no samples", "no values", "no items", "a duration in words", "a duration without a list", "a negative index"]
)
def test_foreign_latent_for_a_schedule(sa3, case):
    latent, words = BAD_LATENTS[case]
    latent = {**latent, "sa3_seconds": latent.get("sa3_seconds", [1.0])}
    with sa3.refused(*words):
        sa3.run("SA3_Schedule", latent=latent, kind="logsnr", steps=3)


def test_indices_as_a_tensor(sa3, load):
    latent = audio_latent(2, batch_index=torch.tensor([2, 3]), sa3_seconds=[1.0, 1.0, 1.5, 2.0])
    read = importlib.import_module("sa3_pack.nodes.comfyui.latent").read_latent(latent, load("small").model.model.sa3_config)
    assert read.indices == (2, 3) and read.lengths.seconds == (1.5, 2.0)


def test_an_empty_latent_longer_than_the_model_makes(sa3, load, prompt):
    with sa3.refused("60", "at most 47"):
        sa3.sample(load("small").model, prompt, sa3.empty(60.0))


BAD_CONDITIONING = {
    "nothing": (None, ["positive", "empty", "SA3_TextEncode"]),
    "an empty list": ([], ["positive", "empty", "SA3_TextEncode"]),
    "no embeddings": ([[None, {}]], ["no prompt embeddings", "SA3_TextEncode"]),
    "pooled only": ([[randn(1, 64), {}]], ["no prompt embeddings", "SA3_TextEncode"]),
    "another width": ([[randn(1, 77, 768), {}]], ["positive", "768", "64", "CLIP"]),
    "another batch": ([[randn(3, 5, 64), {}]], ["3 prompts", "2 items", "one"]),
    "NaN": ([[torch.full((1, 5, 64), NAN), {}]], ["NaN", "CLIP"]),
    "complex numbers": ([[torch.ones(1, 5, 64, dtype=torch.complex64), {}]], ["complex64", "floating-point"]),
    "no values": ([[torch.ones(1, 5, 64, device="meta"), {}]], ["meta tensor"]),
    "a list of numbers": ([[[1, 2, 3], {}]], ["no prompt embeddings", "SA3_TextEncode"]),
    "an entry without settings": ([[randn(1, 5, 64)]], ["positive", "entry", "SA3_TextEncode"]),
    "settings of None": ([[randn(1, 5, 64), None]], ["positive", "entry", "SA3_TextEncode"]),
    "an attention mask of another batch": (
        [[randn(1, 5, 64), {"attention_mask": torch.ones(3, 5)}]],
        ["attention_mask", "(3, 5)", "(1, 5)"],
    ),
    "an attention mask in words": ([[randn(1, 5, 64), {"attention_mask": "all"}]], ["attention_mask", "str"]),
    "an area of an image": ([[randn(1, 5, 64), {"area": (1, 1, 0, 0)}]], ["positive", "'area'", "images", "remove"]),
    "a mask of an image": ([[randn(1, 5, 64), {"mask": torch.ones(1, 64, 64)}]], ["positive", "'mask'", "images", "remove"]),
    "a second entry of another width": ([[randn(1, 5, 64), {}], [randn(1, 5, 2048), {}]], ["2048", "64"]),
}


@pytest.mark.parametrize("case", BAD_CONDITIONING)
def test_foreign_conditioning(sa3, load, case):
    conditioning, words = BAD_CONDITIONING[case]
    with sa3.refused(*words):
        sa3.sample(load("small").model, conditioning, sa3.empty(1.0, batch_size=2))


@pytest.mark.parametrize("case", ["an empty list", "another width", "another batch"])
def test_foreign_negative(sa3, load, prompt, case):
    conditioning, words = BAD_CONDITIONING[case]
    with sa3.refused(*[word.replace("positive", "negative") for word in words]):
        sa3.sample(load("small").model, prompt, sa3.empty(1.0, batch_size=2), negative=conditioning, cfg=2.0)


BAD_SIGMAS = {
    "above 1": (torch.tensor([14.6, 3.0, 0.0]), ["14.6", "between 1 and 0"]),
    "below 0": (torch.tensor([1.0, -0.5]), ["-0.5", "between 1 and 0"]),
    "NaN": (torch.tensor([1.0, NAN, 0.0]), ["NaN", "noise levels"]),
    "complex numbers": (torch.tensor([1 + 0j, 0]), ["complex64"]),
    "no values": (torch.zeros(3, device="meta"), ["meta tensor"]),
    "words": ("abc", ["str", "list of noise levels"]),
    "one point": (torch.tensor([1.0]), ["at least two"]),
    "none": (torch.zeros(0), ["at least two"]),
    "of another batch": (torch.rand(3, 5), ["(3, 5)", "(2, steps + 1)"]),
    "0 in the middle": (torch.tensor([1.0, 0.0, 0.0]), ["do not fall", "level 2"]),
}


@pytest.mark.parametrize("case", BAD_SIGMAS)
def test_foreign_sigmas(sa3, load, prompt, case):
    sigmas, words = BAD_SIGMAS[case]
    with sa3.refused("SIGMAS", *words):
        sa3.sample(load("small").model, prompt, sa3.empty(1.0, batch_size=2), sigmas=sigmas)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 10**400, -1e20, "three", [1.0], True, 1j, None], ids=["10**400", *map(str, range(9))])
def test_every_number_of_every_node_is_checked(sa3, value):
    """JSON has NaN, and links bring anything."""
    for node in sa3.classes.values():
        definition = node.define_schema()
        for item in definition.inputs:
            if isinstance(item, (io.Float.Input, io.Int.Input)):
                if value is None and item.optional:
                    continue
                with sa3.refused(item.id, "expected a", "number from", str(item.max)):
                    node.execute(**{item.id: [value] if definition.is_input_list else value})


def test_every_choice_and_text_of_every_node_is_checked(sa3):
    files = {"autoencoder", "file", "lora", "model", "text_encoder"}  # choices of files, which the loaders check
    for node in sa3.classes.values():
        definition = node.define_schema()
        for item in definition.inputs:
            kind = type(item)
            for value in ({}, 3, torch.ones(2)) if kind is io.Combo.Input and item.id in files else ():
                with sa3.refused(item.id, "expected one of"):
                    node.execute(**{item.id: [value] if definition.is_input_list else value})
            for value in ("maybe", 2, torch.ones(2), None) if kind is io.Boolean.Input and not item.optional else ():
                with sa3.refused(item.id, "expected true or false"):
                    node.execute(**{item.id: value})
            for value in ("nonsense", {}, 3, torch.ones(2)) if kind is io.Combo.Input and item.id not in files else ():
                with sa3.refused(item.id, "expected one of", str(item.options[-1])):
                    node.execute(**{item.id: [value] if definition.is_input_list else value})
            for value in (3, {}, b"x") if kind is io.String.Input else ():
                with sa3.refused(item.id, "expected text"):
                    node.execute(**{item.id: [value] if definition.is_input_list else value})


def test_an_empty_list_is_refused(sa3):
    with sa3.refused("audio is an empty list"):
        sa3.classes["SA3_PreviewBatch"].execute(audio=[], keep=["all"])


def test_numbers_of_other_types_are_numbers(sa3):
    numpy = pytest.importorskip("numpy")
    wanted = sa3.empty(2.0, batch_size=2)
    found = sa3.empty(numpy.float32(2), batch_size=numpy.int64(2))
    assert found["samples"].shape == wanted["samples"].shape and found["sa3_seconds"] == wanted["sa3_seconds"]
    assert sa3.empty(2, batch_size=2.0)["samples"].shape == wanted["samples"].shape


def test_foreign_guidance(sa3, load, prompt):
    with sa3.refused("guidance is dict", "SA3_Guidance"):
        sa3.sample(load("small").model, prompt, sa3.empty(1.0), guidance={"cfg": 3})


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ({"steps": -1}, ["steps", "-1"]),
        ({"noise_level": 0.0}, ["noise_level", "0.0"]),
        ({"noise_level": 1.5}, ["noise_level", "1.5"]),
        ({"noise_level": NAN}, ["noise_level", "nan"]),
        ({"cfg": -1.0}, ["cfg", "-1"]),
        ({"cfg": NAN}, ["cfg", "nan"]),
        ({"sampler": "ddim"}, ["sampler", "ddim", "pingpong"]),
    ],
    ids=str,
)
def test_widgets_of_the_sampler(sa3, load, prompt, widgets, words):
    with sa3.refused(*words):
        sa3.sample(load("small").model, prompt, sa3.empty(1.0), **widgets)


@pytest.mark.parametrize("text", ["3, four", "3..5", "1:30", "3,,4 s", "3-4"])
def test_seconds_per_item_that_are_no_numbers(sa3, text):
    with sa3.refused("seconds_per_item", text, "numbers", "3, 4.5, 8"):
        sa3.empty(seconds_per_item=text)


OUT_OF_RANGE = [("3, 0", "0"), ("-1", "-1"), ("nan", "nan"), ("3, inf", "inf"), ("1e9", "1e+09"), ("385", "385")]


@pytest.mark.parametrize(("text", "value"), OUT_OF_RANGE)
def test_seconds_per_item_out_of_range(sa3, text, value):
    with sa3.refused("seconds_per_item", value, "above 0", "384"):
        sa3.empty(seconds_per_item=text)


def test_seconds_per_item_against_the_batch_size(sa3):
    with sa3.refused("2 numbers", "batch_size is 3"):
        sa3.empty(batch_size=3, seconds_per_item="1, 2")


@pytest.mark.parametrize("value", [0.0, -1.0, -20.0, 385.0])
def test_seconds_that_cannot_be(sa3, value):
    with sa3.refused("seconds is", f"{value:g}", "0.1 to 384"):
        sa3.empty(value)


BAD_AUDIO = {
    "no values": (torch.ones(1, 2, 4410, device="meta"), ["meta tensor"]),
    "sparse values": (torch.ones(1, 2, 4410).to_sparse(), ["sparse"]),
    "complex numbers": (torch.ones(1, 2, 4410, dtype=torch.complex64), ["complex64"]),
    "eight bits": (torch.ones(1, 2, 4410).to(torch.float8_e4m3fn), ["float8"]),
    "NaN": (torch.full((1, 2, 4410), NAN), ["NaN"]),
}


@pytest.mark.parametrize("node", ["SA3_SAMEEncode", "SA3_Levels", "SA3_AudioImage"])
@pytest.mark.parametrize("case", BAD_AUDIO)
def test_foreign_audio(sa3, load, node, case):
    waveform, words = BAD_AUDIO[case]
    vae = {"vae": load("small").vae} if node == "SA3_SAMEEncode" else {}
    with sa3.refused("AUDIO", *words):
        sa3.run(node, audio={"waveform": waveform, "sample_rate": 44100}, **vae)


@pytest.mark.parametrize("case", [case for case in BAD_AUDIO if case != "NaN"])
def test_foreign_audio_to_preview(sa3, case):
    waveform, words = BAD_AUDIO[case]
    with sa3.refused("AUDIO", *words):
        sa3.run("SA3_PreviewBatch", audio=[{"waveform": waveform, "sample_rate": 44100}], keep=["all"])


def test_audio_beyond_float32_when_squared_has_an_image(sa3):
    (image,) = sa3.run("SA3_AudioImage", audio={"waveform": randn(1, 2, 4410) * 1e37, "sample_rate": 44100})
    assert bool(torch.isfinite(image).all())
