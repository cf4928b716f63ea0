"""SA3_EmptyLatent says the duration once, SA3_SAMEDecode keeps it to the sample."""

import pytest
import torch
from core_support import FAMILIES, randn, rel_error


def filled(sa3, latent: dict, channels: int = 32) -> dict:
    samples = latent["samples"]
    return {**latent, "samples": randn(samples.shape[0], channels, samples.shape[2], seed=4)}


def test_an_empty_latent(sa3):
    latent = sa3.empty(10.0, batch_size=3)
    assert latent["samples"].shape == (3, 256, 174) and not latent["samples"].any()
    assert latent["sa3_seconds"] == [10.0] * 3
    assert latent["type"] == "audio" and latent["downscale_ratio_temporal"] == 4096
    assert sa3.empty(10.0, padding=0.0)["samples"].shape[-1] == 108


@pytest.mark.parametrize("text", ["1, 2.5, 0.7", "1;2.5;0.7", " 1  2.5\n0.7 "])
@pytest.mark.parametrize("batch", [1, 3])
def test_durations_per_item(sa3, text, batch):
    latent = sa3.empty(30.0, batch_size=batch, seconds_per_item=text)
    assert latent["sa3_seconds"] == [1.0, 2.5, 0.7] and latent["samples"].shape[0] == 3


@pytest.mark.parametrize("seconds", [0.1, 0.999999, 1.0, 3.3, 7.777])
@pytest.mark.parametrize("variant", FAMILIES)
def test_the_length_is_exact_to_the_sample(sa3, load, variant, seconds):
    (audio,) = sa3.decode(filled(sa3, sa3.empty(seconds, batch_size=2)), load(variant).vae)
    assert audio["waveform"].shape == (2, 2, int(seconds * 44100)) and audio["sample_rate"] == 44100
    assert audio["waveform"].dtype == torch.float32


def test_equal_lengths_are_one_audio_and_others_a_list(sa3, load):
    vae = load("small").vae
    assert [clip["waveform"].shape[0] for clip in sa3.decode(filled(sa3, sa3.empty(seconds_per_item="1, 1, 1")), vae)] == [3]
    lengths = [clip["waveform"].shape for clip in sa3.decode(filled(sa3, sa3.empty(seconds_per_item="1, 2, 1")), vae)]
    assert lengths == [(1, 2, 44100), (1, 2, 88200), (1, 2, 44100)]


@pytest.mark.parametrize("variant", FAMILIES)
def test_what_lies_behind_the_clip_is_heard_only_as_far_as_the_decoder_looks(sa3, load, pipeline, variant):
    latent = filled(sa3, sa3.empty(2.0, padding=20.0))
    (audio,) = sa3.decode(latent, load(variant).vae)
    assert rel_error(audio["waveform"], pipeline(variant).decode(latent["samples"])[..., : 2 * 44100]) < 1e-5


@pytest.mark.parametrize(("chunk", "overlap"), [(128, 32), (64, 32), (30, 16), (4096, 512)])
@pytest.mark.parametrize("variant", FAMILIES)
def test_chunks_leave_the_sound_as_it_is(sa3, load, pipeline, variant, chunk, overlap):
    latent = filled(sa3, sa3.empty(13.0))
    (audio,) = sa3.decode(latent, load(variant).vae, chunk_size=chunk, overlap=overlap)
    assert rel_error(audio["waveform"], pipeline(variant).decode(latent["samples"])[..., : 13 * 44100]) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_noise_is_off_or_seeded(sa3, load, variant):
    vae, latent = load(variant).vae, filled(sa3, sa3.empty(1.0, batch_size=2))

    def sound(**widgets):
        return sa3.decode(latent, vae, **widgets)[0]["waveform"]

    off, first = sound(), sound(noise="seeded", seed=1)
    assert torch.equal(off, sound(seed=1))
    assert torch.equal(first, sound(noise="seeded", seed=1))
    assert 0 < rel_error(first, off) < 0.5
    assert not torch.equal(first, sound(noise="seeded", seed=2))
    assert not torch.equal((first - off)[0], (first - off)[1])


@pytest.mark.parametrize("variant", FAMILIES)
def test_seeded_noise_does_not_depend_on_chunks(sa3, load, variant):
    latent = filled(sa3, sa3.empty(10.0))
    whole, parts = (
        sa3.decode(latent, load(variant).vae, noise="seeded", seed=3, chunk_size=chunk, overlap=32)[0]["waveform"] for chunk in (4096, 64)
    )
    assert rel_error(parts, whole) < 1e-5


@pytest.mark.usefixtures("at_rest")
@pytest.mark.parametrize(("chunk", "overlap"), [(32, 32), (16, 40), (33, 16), (32, 15)])
def test_chunks_that_cannot_be(sa3, load, chunk, overlap):
    latent = filled(sa3, sa3.empty(25.0))
    with sa3.refused(str(chunk), str(overlap), "overlap"):
        sa3.decode(latent, load("small").vae, chunk_size=chunk, overlap=overlap)


def test_an_unsampled_latent_is_not_decoded(sa3, load):
    with sa3.refused("empty", "SA3 Sampler"):
        sa3.decode(sa3.empty(1.0), load("small").vae)


def test_levels_are_left_alone(sa3, load):
    latent = filled(sa3, sa3.empty(1.0))
    loud = {**latent, "samples": 40 * latent["samples"]}
    assert float(sa3.decode(loud, load("small").vae)[0]["waveform"].abs().max()) > 1
