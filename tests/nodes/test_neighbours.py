"""What other packs' nodes and core's hand over: lenient where the meaning is clear, and a sentence where something is lost."""

import copy
import importlib
import json
import pickle
from collections.abc import Mapping

import numpy
import pytest
import torch
from core_support import randn, rel_error
from test_core_nodes import outputs

RATE = 44100


class Lazy(Mapping):
    """An AUDIO that is read at its first use, as video packs hand it over."""

    def __init__(self, read):
        self.read, self.found = read, None

    def __getitem__(self, key):
        self.found = self.found or self.read()
        return self.found[key]

    def __iter__(self):
        return iter(("waveform", "sample_rate"))

    def __len__(self):
        return 2


def clip(items: int = 1, seconds: float = 1.0, rate=RATE) -> dict:
    return {"waveform": 0.1 * randn(items, 2, int(seconds * int(rate)), seed=3), "sample_rate": rate}


USES = {
    "SA3_SAMEEncode": lambda sa3, one, audio: sa3.run("SA3_SAMEEncode", audio=audio, vae=one.vae)[0]["samples"],
    "SA3_Continue": lambda sa3, one, audio: sa3.run("SA3_Continue", audio=audio, vae=one.vae, seconds=0.5)[2]["waveform"],
    "SA3_Loop": lambda sa3, one, audio: sa3.run("SA3_Loop", audio=audio, vae=one.vae, bpm=240.0, bars=1, beats_per_bar=2, seam=0.2)[2][
        "waveform"
    ],
    "SA3_Splice": lambda sa3, one, audio: sa3.run("SA3_Splice", original=audio, generated=clip(), regions="0.2-0.5")[0]["waveform"],
    "SA3_Levels": lambda sa3, one, audio: sa3.run("SA3_Levels", audio=audio, normalize="peak")[0]["waveform"],
    "SA3_AudioImage": lambda sa3, one, audio: sa3.run("SA3_AudioImage", audio=audio, width=64, height=64)[0],
    "SA3_PreviewBatch": lambda sa3, one, audio: sa3.run("SA3_PreviewBatch", audio=[audio], keep=["all"])[2],
    "SA3_Extend": lambda sa3, one, audio: sa3.run(
        "SA3_Extend", model=one.model, vae=one.vae, positive=sa3.prompt(one.clip, "rain"), audio=audio, seconds=0.3, context=0.5, steps=1
    )[0]["waveform"],
    "SA3_SaveAudio": lambda sa3, one, audio: sa3.run("SA3_SaveAudio", audio=audio, format="wav32f") and torch.zeros(1),
}
RATES = [numpy.int64(RATE), numpy.int32(RATE), float(RATE), torch.tensor(RATE), torch.tensor(float(RATE)), numpy.array(RATE)]


@pytest.mark.parametrize("node", USES)
def test_audio_that_is_read_at_its_first_use(sa3, load, node):
    wanted, use = clip(), USES[node]
    assert torch.equal(use(sa3, load("small"), Lazy(lambda: wanted)), use(sa3, load("small"), wanted))


def test_a_film_without_sound_gets_a_sentence(sa3, load, comfy):
    def read():
        raise RuntimeError("VHS failed to extract audio")

    def cancelled():
        raise comfy.management.InterruptProcessingException

    for node, use in USES.items():
        with sa3.refused("cannot be read", "failed to extract audio", "no sound"):
            use(sa3, load("small"), Lazy(read))
        with sa3.refused(*(["neither is connected"] if node == "SA3_Loop" else ["empty", "no sound"])):  # there it is optional
            use(sa3, load("small"), None)
        with pytest.raises(comfy.management.InterruptProcessingException):
            use(sa3, load("small"), Lazy(cancelled))


def test_any_whole_number_is_a_sample_rate(sa3, load):
    for node, rate in zip(USES, RATES + RATES, strict=False):
        assert torch.equal(USES[node](sa3, load("small"), clip(rate=rate)), USES[node](sa3, load("small"), clip())), (node, rate)


@pytest.mark.parametrize("rate", [44100.5, float("nan"), float("inf"), True, "44100", None, torch.ones(2), -44100.0])
def test_other_rates_are_refused(sa3, load, rate):
    for node in ("SA3_SAMEEncode", "SA3_Levels", "SA3_PreviewBatch", "SA3_SaveAudio"):
        with sa3.refused("rate"):
            USES[node](sa3, load("small"), {"waveform": clip()["waveform"], "sample_rate": rate})


@pytest.mark.parametrize("shape", [(0,), (2, 0), (1, 2, 0), (0, 2, RATE), (1, 0, RATE), (1, 1, 2, RATE), ()])
def test_no_samples_and_other_shapes_get_a_sentence(sa3, load, shape):
    for node, use in USES.items():
        with sa3.refused("audio" if node != "SA3_Splice" else "original"):
            use(sa3, load("small"), {"waveform": torch.zeros(shape), "sample_rate": RATE})


def test_a_clip_without_a_batch_is_one_item(sa3, load):
    whole = clip()
    for waveform in (whole["waveform"][0], whole["waveform"][0, 0]):
        wanted = {**whole, "waveform": waveform.reshape(1, -1, waveform.shape[-1])}
        for name, use in USES.items():
            assert torch.equal(use(sa3, load("small"), {**whole, "waveform": waveform}), use(sa3, load("small"), wanted)), name


def test_silence_is_legal_and_said(sa3, load, caplog):
    one, silent = load("small"), {"waveform": torch.zeros(1, 2, RATE), "sample_rate": RATE}
    for node in ("SA3_SAMEEncode", "SA3_Continue", "SA3_Loop"):
        caplog.clear()
        assert bool(torch.isfinite(USES[node](sa3, one, silent)).all())
        assert "silent" in caplog.text
    marked = sa3.run("SA3_InpaintMask", latent=sa3.run("SA3_SAMEEncode", audio=silent, vae=one.vae)[0], regions="0.2-0.5")[0]
    assert sa3.sample(one.model, sa3.prompt(one.clip, "rain"), marked, steps=1)[0]["samples"].isfinite().all()
    both = {**silent, "waveform": torch.cat((silent["waveform"], clip()["waveform"]))}
    caplog.clear()
    encoded = sa3.run("SA3_SAMEEncode", audio=both, vae=one.vae)[0]["samples"]
    assert rel_error(encoded[1:], USES["SA3_SAMEEncode"](sa3, one, clip())) < 1e-5 and "silent" not in caplog.text


# batches


def seconds_of(sa3, one, latent, **settings) -> list[float]:
    """Durations of the items that SA3_Sampler makes of a LATENT, as SA3_SAMEDecode cuts them."""
    out, info = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), latent, steps=1, **settings)
    clips = [item for audio in sa3.decode(out, one.vae) for item in audio["waveform"]]
    assert info["seconds"] == [round(clip.shape[-1] / RATE, 3) for clip in clips]
    return info["seconds"]


def repeat(comfy, latent: dict, amount: int) -> dict:
    return comfy.nodes.RepeatLatentBatch().repeat(latent, amount)[0]


def pick(comfy, latent: dict, start: int, count: int) -> dict:
    return comfy.nodes.LatentFromBatch().frombatch(latent, start, count)[0]


def test_repeated_latents_repeat_their_durations(sa3, load, comfy):
    one = load("small")
    assert seconds_of(sa3, one, repeat(comfy, sa3.empty(0.5), 3)) == [0.5] * 3
    listed = sa3.empty(1.0, seconds_per_item="0.5, 0.8")
    assert seconds_of(sa3, one, repeat(comfy, listed, 2)) == [0.5, 0.8, 0.5, 0.8]
    assert seconds_of(sa3, one, pick(comfy, repeat(comfy, sa3.empty(0.5), 4), 2, 2)) == [0.5, 0.5]
    assert seconds_of(sa3, one, repeat(comfy, pick(comfy, listed, 1, 1), 1)) == [0.8]
    assert seconds_of(sa3, one, repeat(comfy, pick(comfy, listed, 0, 1), 2)) == [0.5] * 2  # not that of the neighbour, whose index it gets
    assert seconds_of(sa3, one, repeat(comfy, pick(comfy, listed, 1, 1), 2)) == [0.8] * 2
    assert seconds_of(sa3, one, pick(comfy, repeat(comfy, pick(comfy, listed, 1, 1), 3), 1, 2)) == [0.8] * 2
    foreign = {**listed, "batch_index": [2]}  # of a node that makes plain numbers
    with sa3.refused("names item 2", "before items are picked"):
        seconds_of(sa3, one, {**foreign, "samples": foreign["samples"][:1]})
    out = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), listed, steps=1)[0]
    assert [audio["waveform"].shape[-1] for audio in sa3.decode(repeat(comfy, out, 2), one.vae)] == [22050, 35280] * 2


def test_the_items_of_a_repeated_batch_are_variations(sa3, load, comfy):
    one = load("small")
    positive = sa3.prompt(one.clip, "rain\nhum", one_prompt_per_line=True)
    repeated = sa3.sample(one.model, positive, repeat(comfy, sa3.empty(0.5, batch_size=2), 2), seed=3, steps=2)[0]["samples"]
    alone = sa3.sample(one.model, sa3.prompt(one.clip, "hum"), pick(comfy, sa3.empty(0.5, batch_size=4), 3, 1), seed=3, steps=2)[0][
        "samples"
    ]
    assert rel_error(repeated[3:], alone) < 1e-5 and rel_error(repeated[1:2], repeated[3:]) > 0.1
    with sa3.refused("2 prompts", "3 items"):
        sa3.sample(one.model, positive, sa3.empty(0.5, batch_size=3), steps=1)


def test_core_s_joined_and_rebatched_latents(sa3, load, comfy):
    importlib.import_module("comfy_extras.nodes_post_processing")  # imports the next one, which cannot be imported first
    latents, rebatch = (importlib.import_module(f"comfy_extras.{name}") for name in ("nodes_latent", "nodes_rebatch"))
    one, two = load("small"), sa3.empty(0.5, batch_size=2)
    joined = getattr(latents.LatentBatch, "execute", None) or latents.LatentBatch().batch
    assert seconds_of(sa3, one, outputs(joined(sa3.empty(0.5), sa3.empty(0.8, padding=5.7)))[0]) == [0.5, 0.8]
    made = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), {**two, "noise_mask": torch.ones(2, 1, two["samples"].shape[-1])}, steps=1)[
        0
    ]
    split = getattr(rebatch.LatentRebatch, "execute", None) or rebatch.LatentRebatch().rebatch
    for i, latent in enumerate(outputs(split([made], [1]))[0]):
        out, info = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), latent, steps=1, noise_level=0.05)
        assert latent["batch_index"] == [i] and out["samples"].shape == made["samples"][i : i + 1].shape
        assert info["seconds"] == [0.5] and not any("no duration" in warning for warning in info["warnings"])
        assert sa3.decode(latent, one.vae)[0]["waveform"].shape[-1] == 22050
    lost = {"samples": made["samples"], "type": "audio"}
    assert any(
        "carries no duration" in warning for warning in sa3.sample(one.model, sa3.prompt(one.clip, "rain"), lost, steps=1)[1]["warnings"]
    )


def test_an_index_keeps_its_duration_in_copies(sa3):
    item = sa3.empty(0.5)["batch_index"][0]
    for one in (item, item + 3, copy.copy(item), copy.deepcopy([item])[0], pickle.loads(pickle.dumps(item))):
        assert one.seconds == 0.5 and json.dumps(one) == str(int(one))


def test_regions_of_picked_and_of_repeated_items(sa3, load, comfy):
    one = load("small")
    both = sa3.run("SA3_SAMEEncode", audio=clip(2), vae=one.vae)[0]
    for latent, count in ((pick(comfy, both, 1, 1), 1), (repeat(comfy, both, 2), 4)):
        marked = sa3.run("SA3_InpaintMask", latent=latent, regions="0.2-0.5")[0]
        assert marked["noise_mask"].shape[0] == count
        assert sa3.sample(one.model, sa3.prompt(one.clip, "rain"), marked, steps=1)[0]["samples"].shape[0] == count


def test_two_originals_and_four_generated(sa3):
    before, after = clip(2), clip(4)
    audio, difference, _ = sa3.run("SA3_Splice", original=before, generated=after, regions="0.2-0.5")
    for i in range(4):
        part = {**before, "waveform": before["waveform"][i % 2][None]}, {**after, "waveform": after["waveform"][i][None]}
        alone = sa3.run("SA3_Splice", original=part[0], generated=part[1], regions="0.2-0.5")
        assert torch.equal(audio["waveform"][i], alone[0]["waveform"][0])
        assert torch.equal(difference["waveform"][i], alone[1]["waveform"][0])
    with sa3.refused("4 items", "3"):
        sa3.run("SA3_Splice", original=clip(3), generated=after, regions="0.2-0.5")
    with sa3.refused("3 items", "4"):
        sa3.run("SA3_PreviewBatch", audio=[clip(4)], original=[clip(3)], keep=["all"])


# core's latents


@pytest.mark.parametrize("variant", ["small", "medium"])
def test_core_s_empty_latent_audio_means_its_seconds(sa3, load, comfy, variant):
    one = load(variant)
    (core,) = outputs((getattr(comfy.audio.EmptyLatentAudio, "execute", None) or comfy.audio.EmptyLatentAudio().generate)(2.0, 2))
    seconds = core["samples"].shape[-1] * 2048 / RATE
    assert core["samples"].shape[:2] == (2, 64) and abs(seconds - 2.0) < 0.05
    out, info = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), core, seed=5, steps=2)
    ours, _ = sa3.sample(one.model, sa3.prompt(one.clip, "rain"), sa3.empty(seconds, batch_size=2), seed=5, steps=2)
    assert torch.equal(out["samples"], ours["samples"]) and info["seconds"] == [seconds] * 2
    assert sa3.decode(out, one.vae)[0]["waveform"].shape == (2, 2, int(seconds * RATE))
    assert torch.equal(
        sa3.run("SA3_Schedule", kind="flux", steps=4, latent=core)[0],
        sa3.run("SA3_Schedule", kind="flux", steps=4, latent=sa3.empty(seconds))[0],
    )
    marked = sa3.run("SA3_InpaintMask", latent=out, regions="0.5-1")[0]
    assert marked["noise_mask"].shape == (2, 1, out["samples"].shape[-1])


def test_sound_in_64_channels_is_another_model_s(sa3, load):
    one = load("small")
    with sa3.refused("64 channels", "Stable Audio 1"):
        sa3.sample(one.model, sa3.prompt(one.clip, "rain"), {"samples": randn(1, 64, 40), "type": "audio"}, steps=1)


@pytest.mark.parametrize("shape", [(40,), (1, 40), (2, 40), (1, 1, 40), (2, 1, 40), (1, 1, 1, 40), (2, 1, 8, 40), (1, 1, 2, 320)])
def test_noise_masks_of_any_shape(sa3, load, comfy, shape):
    """Core's SetLatentNoiseMask makes (B, 1, H, W); a mask that is as high as the batch is large is no mask per item."""
    one = load("small")
    latent = {"samples": randn(2, 32, 40), "type": "audio", "sa3_seconds": [3.0], "sa3_padding": 0.0}
    mask = torch.zeros(shape)
    mask[..., : shape[-1] // 2] = 1
    wanted = torch.zeros(2, 1, 40)
    wanted[..., :20] = 1
    found = [
        sa3.sample(one.model, sa3.prompt(one.clip, "rain"), {**latent, "noise_mask": one_mask}, seed=2, steps=1)[0]["samples"]
        for one_mask in (mask, wanted)
    ]
    assert torch.equal(*found)


def test_extend_with_the_autoencoder_s_own_loader(sa3, load):
    one = load("small")
    (vae,) = sa3.run("SA3_AutoencoderLoader", autoencoder="SAME-S", file="stable-audio-3-small-music")
    inputs = {"model": one.model, "positive": sa3.prompt(one.clip, "rain"), "audio": clip(), "seconds": 0.3, "context": 0.5, "steps": 1}
    found = [sa3.run("SA3_Extend", vae=used, **inputs)[0]["waveform"] for used in (vae, one.vae)]
    assert torch.equal(*found)
