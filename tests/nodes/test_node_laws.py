"""Laws that the nodes keep over random legal audio: shapes, finite values, untouched samples, an item of a batch equals the item alone.

SA3_LONG=1 runs twenty times as many cases.
"""

import dataclasses
import importlib
import json
import os
import random

import pytest
import torch
from core_support import rel_error

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 192000]
CASES = 10 * (20 if os.environ.get("SA3_LONG") else 1)


@pytest.fixture(params=range(CASES))
def rng(request):
    return random.Random(request.param)


def audio(rng, seconds=(0.01, 1.5), channels=(1, 2), batch=(1, 3)) -> dict:
    """Noise of random rate, length, channels and batch, as any node may lay it out in memory."""
    rate, generator = rng.choice(RATES), torch.Generator().manual_seed(rng.randrange(10**6))
    samples = max(256, int(rng.uniform(*seconds) * rate) + rng.randrange(3))
    shape = rng.randint(*batch), rng.randint(*channels), samples
    wave = rng.choice([0.01, 0.3, 1.5]) * torch.randn(shape, generator=generator)
    layout = rng.choice(["contiguous", "channels last", "strided", "expanded"])
    if layout == "channels last":
        wave = wave.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "strided":
        wave = wave.repeat_interleave(2, -1)[..., ::2]
    elif layout == "expanded":
        wave = wave[:1].expand(shape)
    return {"waveform": wave, "sample_rate": rate}


def item(sound: dict, i: int) -> dict:
    return {**sound, "waveform": sound["waveform"][i : i + 1].clone()}


def seconds_of(sound: dict) -> float:
    return sound["waveform"].shape[-1] / sound["sample_rate"]


def finite(sound: dict) -> bool:
    return bool(torch.isfinite(sound["waveform"]).all())


def test_encoding_and_decoding(sa3, load, rng):
    one = load(rng.choice(["small", "medium"]))
    sound = audio(rng, channels=(1, 8))
    widgets = dict(padding=rng.choice([0.0, 1.0, 6.0]), more_channels=rng.choice(["first two", "mix to mono"]))
    latent = sa3.run("SA3_SAMEEncode", audio=sound, vae=one.vae, **widgets)[0]
    clips = sa3.decode(latent, one.vae)
    samples = -(-sound["waveform"].shape[-1] * 44100 // sound["sample_rate"])
    assert [clip["waveform"].shape for clip in clips] == [(len(sound["waveform"]), 2, samples)] and finite(clips[0])
    i = rng.randrange(len(sound["waveform"]))
    alone = sa3.run("SA3_SAMEEncode", audio=item(sound, i), vae=one.vae, **widgets)[0]
    assert rel_error(latent["samples"][i : i + 1], alone["samples"]) < 1e-4
    assert rel_error(clips[0]["waveform"][i : i + 1], sa3.decode(alone, one.vae)[0]["waveform"]) < 1e-3


def test_continuing_and_splicing(sa3, load, rng):
    one, sound, side = load("small"), audio(rng, channels=(1, 2)), rng.choice(["before", "after"])
    seconds = rng.uniform(0.1, 2.0)
    latent, regions, original = sa3.run(
        "SA3_Continue", audio=sound, vae=one.vae, seconds=seconds, side=side, padding=rng.choice([0.0, 6.0])
    )
    (generated,) = sa3.decode(latent, one.vae)
    out, difference, report = sa3.run("SA3_Splice", original=original, generated=generated, regions=regions, crossfade=rng.uniform(0, 0.1))
    n, added = sound["waveform"].shape[-1], round(seconds * sound["sample_rate"])
    kept = slice(0, n) if side == "after" else slice(added, None)
    assert out["waveform"].shape[-1] == n + added and finite(out) and report
    assert torch.equal(out["waveform"][..., kept], sound["waveform"]) and not bool(difference["waveform"][..., kept].any())
    assert torch.equal(out["waveform"] - original["waveform"], difference["waveform"])


def test_inpainting_and_splicing(sa3, load, rng):
    one, sound = load("medium"), audio(rng, seconds=(0.3, 2.0))
    length = seconds_of(sound)
    edges = sorted(rng.uniform(0, length) for _ in range(2 * rng.randint(1, 3)))
    wanted = ", ".join(f"{a:.6f}-{b:.6f}" for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1e-4) or f"0-{length / 2:.6f}"
    latent = sa3.run("SA3_SAMEEncode", audio=sound, vae=one.vae, padding=0.0)[0]
    masked, regions = sa3.run("SA3_InpaintMask", latent=latent, regions=wanted)
    assert masked["noise_mask"].shape[-1] == latent["samples"].shape[-1] and bool((masked["noise_mask"] == 1).any())
    generated = {"waveform": sa3.decode(masked, one.vae)[0]["waveform"].flip(-1), "sample_rate": 44100}
    given = dict(regions=regions, crossfade=rng.uniform(0, 0.05), match_level=rng.random() < 0.5)
    out, *_ = sa3.run("SA3_Splice", original=sound, generated=generated, **given)
    rate, outside = sound["sample_rate"], torch.ones(sound["waveform"].shape[-1], dtype=torch.bool)
    for region in regions.split(", "):
        start, end = map(float, region.split("-"))
        outside[max(0, int(start * rate) - 1) : int(end * rate) + 2] = False
    assert torch.equal(out["waveform"][..., outside], sound["waveform"][..., outside]) and finite(out)
    i = rng.randrange(len(sound["waveform"]))
    alone = sa3.run("SA3_Splice", original=item(sound, i), generated=item(generated, i), **given)[0]
    assert torch.equal(out["waveform"][i : i + 1], alone["waveform"])


def test_loops(sa3, load, rng):
    one, sound = load("small"), audio(rng, seconds=(1.2, 2.5), batch=(1, 1))
    bpm = rng.uniform(240, 400)
    latent, regions, line = sa3.run("SA3_Loop", audio=sound, vae=one.vae, bpm=bpm, bars=1, beats_per_bar=4, seam=rng.uniform(0.1, 0.5))
    out, *_ = sa3.run("SA3_Splice", original=line, generated=sa3.decode(latent, one.vae)[0], regions=regions)
    samples = round(4 * 60 / bpm * sound["sample_rate"])
    quarter = samples // 4 + 2
    assert out["waveform"].shape[-1] == samples and finite(out)
    middle = slice(samples // 2 - quarter // 4, samples // 2 + quarter // 4)
    assert torch.equal(out["waveform"][..., middle], sound["waveform"][..., :samples][..., middle])


def test_levels(sa3, rng):
    sound = audio(rng, channels=(1, 8))
    given = dict(normalize=rng.choice(["off", "peak", "loudness"]), target=rng.uniform(-40, 0), limit=rng.choice(["off", "true peak"]))
    out, report = sa3.run("SA3_Levels", audio=sound, ceiling=rng.uniform(-20, 0), **given)
    assert out["waveform"].shape == sound["waveform"].shape and finite(out) and report


def test_looking_listening_and_saving(sa3, comfy, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(comfy.folder_paths, "get_output_directory", lambda: str(tmp_path))
    sound = audio(rng, channels=(1, 8))
    images = sa3.run("SA3_AudioImage", audio=sound, width=64, height=64, kind=rng.choice(["waveform", "spectrogram", "both"]))[0]
    assert images.shape[0] == len(sound["waveform"]) and bool(torch.isfinite(images).all())
    kept, *_ = sa3.classes["SA3_PreviewBatch"].execute(audio=[sound], keep=["1"]).args
    assert torch.equal(kept[0]["waveform"], sound["waveform"][:1])
    kind = rng.choice(["flac", "wav16", "wav24", "wav32f"])
    sa3.run("SA3_SaveAudio", audio=sound, filename_prefix="law", format=kind)
    assert len(list(tmp_path.iterdir())) == len(sound["waveform"])


@pytest.fixture
def simulated(sa3, load, monkeypatch):
    """A VAE of a model of 50 minutes whose networks and resampler give constants of the right length, without memory of their own."""
    vae, waveform = load("small").vae, importlib.import_module("sa3_pack.sa3_core.audio.waveform")

    def constant(value: float, *shape: int) -> torch.Tensor:
        return torch.full((1,) * len(shape), value).expand(shape)

    def resampled(wave, rate: int, target: int) -> torch.Tensor:
        return wave[..., -1:].expand(*wave.shape[:-1], waveform.resampled_length(wave.shape[-1], rate, target))

    monkeypatch.setattr(waveform, "resample", resampled)
    monkeypatch.setattr(vae, "sa3_config", dataclasses.replace(vae.sa3_config, sample_size=2**27))
    monkeypatch.setattr(vae, "encode_audio", lambda clip, *_, **__: constant(1.0, len(clip), 32, -(-clip.shape[-1] // 4096)))
    monkeypatch.setattr(vae, "decode_latents", lambda z, *_, **__: constant(0.25, len(z), 2, z.shape[-1] * 4096))
    return vae, constant


def runs_of(sound: dict) -> list[tuple[float, int]]:
    """(value, number of samples) of the runs of equal samples in a mono AUDIO."""
    values, counts = sound["waveform"].flatten().unique_consecutive(return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def long_clip(rate: int) -> tuple[int, int]:
    """Samples of a clip, and of a part to add: numbers that float32 cannot hold."""
    rng = random.Random(rate)
    return 2**24 + 2 * rng.randrange(10**5) + 1, rng.randrange(rate // 2, 2 * rate)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 96000, 192000])
def test_regions_past_the_integers_of_float32(sa3, simulated, rate):
    """More than 2**24 samples: every position is an exact integer."""
    _, constant = simulated
    n, width = long_clip(rate)
    first, end = n - width - 1, n - 1
    latent = {"samples": constant(1.0, 1, 32, -(-n * 44100 // (rate * 4096))), "sa3_seconds": [n / rate]}
    masked, regions = sa3.run("SA3_InpaintMask", latent=latent, regions=f"{first / rate:.9f}-{end / rate:.9f}")
    frames = masked["noise_mask"][0, 0].nonzero().flatten().tolist()
    wanted = [i for i in range(latent["samples"].shape[-1]) if first * 44100 <= i * 4096 * rate < end * 44100]
    assert frames == wanted
    generated = {"waveform": constant(0.25, 1, 1, -(-n * 44100 // rate)), "sample_rate": 44100}
    original = {"waveform": constant(0.5, 1, 1, n), "sample_rate": rate}
    out, difference, _ = sa3.run("SA3_Splice", original=original, generated=generated, regions=regions, crossfade=0.0)
    assert n == difference["waveform"].shape[-1]
    assert runs_of(out) == [(0.5, first), (0.25, width), (0.5, 1)]


@pytest.mark.parametrize("rate", [96000, 192000])  # at lower rates the model's audio would fill the memory
def test_continuing_past_the_integers_of_float32(sa3, simulated, rate):
    vae, constant = simulated
    n, added = long_clip(rate)
    sound = {"waveform": constant(0.5, 1, 1, n), "sample_rate": rate}
    latent, regions, original = sa3.run("SA3_Continue", audio=sound, vae=vae, seconds=added / rate, side="after", padding=0.0)
    (generated,) = sa3.decode(latent, vae)
    assert generated["waveform"].shape[-1] == -(-(n + added) * 44100 // rate)
    out = sa3.run("SA3_Splice", original=original, generated=generated, regions=regions, crossfade=0.0)[0]
    assert runs_of(out) == [(0.5, n), (0.25, added)]


def test_extending_past_the_integers_of_float32(sa3, load, simulated, monkeypatch):
    (vae, constant), rate = simulated, 192000
    job = importlib.import_module("sa3_pack.nodes.comfyui.extend").ExtendJob
    monkeypatch.setattr(job, "_generate", lambda self, tail, part, *_: constant(0.25, 1, 2, part.new))
    added, given = long_clip(rate)
    sound = {"waveform": constant(0.5, 1, 1, given), "sample_rate": rate}
    one = load("small")
    out, report, info = sa3.run(
        "SA3_Extend", model=one.model, vae=vae, positive=sa3.prompt(one.clip, "drone"), audio=sound, seconds=added / rate, context=0.2,
        crossfade=0.0,
    )  # fmt: skip
    assert runs_of(out) == [(0.5, given), (0.25, added)]
    windows = json.loads(info)["windows"]
    assert len(windows) == report.count("dBFS RMS") and round(sum(part["seconds"] for part in windows) * rate) in range(added, added + 10)
