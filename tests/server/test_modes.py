"""The shared workflows that work on a recording, run by a real server on recordings made here."""

import json
import math
import re
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tools.launcher.server import Event, Interrupted

WORKFLOWS = Path(__file__).parents[2] / "workflows" / "api"


def sound(kind: str, rate: int, channels: int, seconds: float = 2.2) -> np.ndarray:
    """(N, channels), within +-0.9: a tone, noise, or something that has the ups and downs of speech."""
    t = np.arange(int(rate * seconds)) / rate
    rng = np.random.default_rng(7)
    if kind == "tone":
        wave_ = 0.4 * np.sin(2 * math.pi * 220 * t)
    elif kind == "noise":
        wave_ = 0.2 * rng.standard_normal(t.size)
    else:
        syllables = np.clip(np.sin(2 * math.pi * 3 * t), 0, 1) ** 0.5
        voice = sum(np.sin(2 * math.pi * 120 * k * t) / k for k in range(1, 12))
        wave_ = 0.25 * syllables * voice + 0.005 * rng.standard_normal(t.size)
    return np.stack([np.clip(wave_ * (1 - 0.1 * c), -0.9, 0.9) for c in range(channels)], axis=1)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def read(path: Path) -> tuple[torch.Tensor, int]:
    """(C, N) float32 and the rate, by an independent reader."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        stream = container.streams.audio[0]
        channels, rate = stream.channels, stream.rate
    data = np.concatenate(frames, axis=1)
    data = data.reshape(-1, channels).T if data.shape[0] != channels else data
    scale = {"int16": 2**15, "int32": 2**31}.get(str(data.dtype), 1)
    return torch.from_numpy(np.ascontiguousarray(data).astype(np.float32) / scale), rate


def graph(name: str, **changes) -> dict:
    """A shared workflow; changes are inputs by class, as SA3_Sampler={"seed": 1}."""
    nodes = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for node in nodes.values():
        node["inputs"].update(changes.get(node["class_type"], {}))
    return nodes


@pytest.fixture
def run(comfy, tmp_path):
    def run_graph(nodes: dict, samples: np.ndarray, rate: int) -> tuple[torch.Tensor, int]:
        name = comfy.upload(write_wav(tmp_path / "recording.wav", samples, rate))
        for node in nodes.values():
            if node["class_type"] == "LoadAudio":
                node["inputs"]["audio"] = name
        files = comfy.output_files(comfy.wait(comfy.queue(nodes)))
        return read(files[-1])

    return run_graph


def given(samples: np.ndarray) -> torch.Tensor:
    """What ComfyUI's LoadAudio makes of the 16-bit file."""
    return torch.from_numpy((samples * 32767).astype("<i2").T.astype(np.float32) / 2**15)


CASES = [("speech", 44100, 2), ("tone", 8000, 1), ("noise", 96000, 2), ("speech", 192000, 1), ("tone", 48000, 2)]


@pytest.mark.parametrize(("kind", "rate", "channels"), CASES)
def test_inpainting_leaves_every_other_sample_alone_in_the_saved_file(run, kind, rate, channels):
    samples = sound(kind, rate, channels)
    out, out_rate = run(graph("inpaint", SA3_InpaintMask={"regions": "0.5-1, 1.5-1.75"}), samples, rate)
    source = given(samples)
    assert out_rate == rate and out.shape == source.shape
    inside = torch.zeros(source.shape[1], dtype=torch.bool)
    for start, end in ((0.5, 1.0), (1.5, 1.75)):
        inside[int(start * rate) : int(end * rate)] = True
    assert torch.equal(out[:, ~inside], source[:, ~inside])
    assert not torch.equal(out[:, inside], source[:, inside])


@pytest.mark.parametrize("side", ["after", "before"])
def test_continuing_keeps_the_recording_and_adds_exactly_the_seconds(run, side):
    samples, rate = sound("speech", 48000, 2), 48000
    out, _ = run(graph("continue", SA3_Continue={"seconds": 1.5, "side": side}), samples, rate)
    source = given(samples)
    assert out.shape[1] == source.shape[1] + 72000
    kept = out[:, : source.shape[1]] if side == "after" else out[:, 72000:]
    assert torch.equal(kept, source)


def test_a_loop_is_whole_bars_and_wraps(run):
    samples, rate = sound("tone", 44100, 2), 44100
    out, _ = run(graph("loop", SA3_Loop={"bpm": 125.0, "bars": 1}), samples, rate)
    assert out.shape[1] == round(4 * 60 / 125 * rate)
    assert float((out[:, 0] - out[:, -1]).abs().max()) <= float(out.diff(dim=1).abs().max())


def test_audio_to_audio_has_the_recordings_length(run):
    samples = sound("speech", 44100, 2)
    near, _ = run(graph("audio_to_audio", SA3_Sampler={"noise_level": 0.05, "steps": 4}), samples, 44100)
    far, _ = run(graph("audio_to_audio", SA3_Sampler={"noise_level": 1.0, "steps": 4}), samples, 44100)
    assert near.shape == far.shape == given(samples).shape and not torch.equal(near, far)


def test_the_round_trip_keeps_length_and_rate(run):
    samples = sound("noise", 22050, 1, 1.3)
    out, rate = run(graph("autoencoder_round_trip"), samples, 22050)
    assert rate == 44100 and out.shape == (2, 2 * samples.shape[0])


def test_extending_past_the_window_keeps_the_recording(run):
    samples = sound("tone", 44100, 1)
    settings = {"seconds": 5.0, "context": 1.0, "window": 3.0, "steps": 2}
    out, _ = run(graph("extend", SA3_Extend=settings), samples, 44100)
    source = given(samples)
    assert out.shape == (1, source.shape[1] + 5 * 44100) and torch.equal(out[:, : source.shape[1]], source)


def test_six_channels_come_back_untouched_outside_the_region(run):
    nodes = graph("inpaint", SA3_SAMEEncode={"more_channels": "mix to mono"}, SA3_InpaintMask={"regions": "0.5-1"})
    samples = sound("speech", 48000, 6)
    out, _ = run(nodes, samples, 48000)
    source = given(samples)
    assert out.shape == source.shape and torch.equal(out[:, :24000], source[:, :24000]) and torch.equal(out[:, 48000:], source[:, 48000:])


def test_an_extension_has_one_progress_over_the_whole_job(comfy, tmp_path):
    comfy.upload(write_wav(tmp_path / "recording.wav", sound("tone", 44100, 1), 44100))
    prompt = comfy.queue(graph("extend", SA3_Extend={"seconds": 5.0, "context": 1.0, "window": 3.0, "steps": 2, "seed": 77}))
    comfy.wait(prompt)
    reports = comfy.progress(prompt, "4")
    assert reports == sorted(reports) and reports[-1] == (6, 6) and len({total for _, total in reports}) == 1


def test_an_interrupted_extension_resumes(comfy, tmp_path):
    name = comfy.upload(write_wav(tmp_path / "recording.wav", sound("tone", 44100, 2), 44100))
    changes = dict(SA3_Extend={"seconds": 8.0, "context": 1.0, "window": 3.0, "steps": 16}, LoadAudio={"audio": name})
    nodes = graph("extend", SA3_ModelLoader={"model": "demo"}, **changes)

    def interrupt(event: Event) -> None:
        if any((comfy.base_directory / "user" / "sa3_extend").rglob("*.safetensors")):
            comfy.interrupt()

    with pytest.raises(Interrupted):
        comfy.wait(comfy.queue(nodes), interrupt)
    (file,) = comfy.output_files(comfy.wait(comfy.queue(nodes)))
    assert int(re.search(rb"resumed_windows\W+(\d+)", file.read_bytes()).group(1)) >= 1
    assert read(file)[0].shape[1] == round(10.2 * 44100) and not any((comfy.base_directory / "user" / "sa3_extend").iterdir())
