"""The live preview while sampling and its time budget, and the lines on a node: status, reports, warnings. None changes the result."""

import importlib
import itertools
import math
from types import SimpleNamespace

import comfy.model_management
import comfy.utils
import pytest
import server
import torch
from comfy.cli_args import LatentPreviewMethod, args
from lora_support import write_lora
from node_support import put


@pytest.fixture(scope="module")
def live(sa3):
    return importlib.import_module("sa3_pack.nodes.comfyui.live_preview")


@pytest.fixture(scope="module")
def host(sa3):
    return importlib.import_module("sa3_pack.nodes.comfyui.progress")


@pytest.fixture
def browser(host, monkeypatch):
    """A connected browser; what it receives: .lines of (node, text), .pictures, .bars of (done, total)."""
    from comfy_execution.utils import CurrentNodeContext

    host._shown.clear()
    # Newer versions of ComfyUI leave out bars that come too fast, by a clock that is not the tests'.
    monkeypatch.setattr("comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)
    seen = SimpleNamespace(lines=[], pictures=[], bars=[])

    def hook(done, total, picture, node_id=None):
        seen.bars.append((done, total))
        if picture is not None:
            seen.pictures.append(picture)

    instance = SimpleNamespace(client_id="browser", send_progress_text=lambda text, node: seen.lines.append((node, text)))
    monkeypatch.setattr(server.PromptServer, "instance", instance, raising=False)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with CurrentNodeContext("prompt", "17", 0):
        yield seen


@pytest.fixture
def generous(live, monkeypatch):
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    monkeypatch.setattr(live, "TIME_SHARE", 1e6)
    monkeypatch.setattr(live, "GROWTH", 1.0)


def sampled(sa3, one, **inputs):
    return sa3.sample(one.model, sa3.prompt(one.clip, "rain"), sa3.empty(1.5, batch_size=2), seed=3, steps=4, **inputs)[0]["samples"]


@pytest.mark.parametrize("variant", ["small", "medium"])
def test_the_result_is_the_same_with_and_without(sa3, load, browser, generous, variant):
    one = load(variant)
    without = sampled(sa3, one, preview="off")
    assert browser.pictures == []
    shown = sampled(sa3, one, preview="on")
    assert torch.equal(shown, without)
    assert len(browser.pictures) == 3  # the first of four steps tells what a piece costs
    kind, image, side = browser.pictures[-1]
    assert kind == "JPEG" and image.size == (384, 192) and side == 384


def test_a_preview_moves_no_weights(sa3, load, live, browser, generous, monkeypatch):
    """It decodes where the weights are, and not at all while they are on several devices."""
    one, loaded = load("medium"), []
    vae, load_models = one.vae.first_stage_model, comfy.model_management.load_models_gpu

    def watched(patchers, *rest, **options):
        loaded.extend(patchers)
        return load_models(patchers, *rest, **options)

    def moved(*rest):
        raise AssertionError("the autoencoder was moved or converted")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watched)
    monkeypatch.setattr(type(vae), "_apply", moved)
    addresses = [weight.data_ptr() for weight in vae.parameters()]
    sampled(sa3, one, preview="on")
    assert browser.pictures and loaded and all(patcher is not one.vae.patcher for patcher in loaded)
    assert [weight.data_ptr() for weight in vae.parameters()] == addresses
    elsewhere = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, device="meta")])
    divided = live.LivePreview(SimpleNamespace(first_stage_model=elsewhere, vae_dtype=torch.float32, patcher=None))
    divided.started = divided.last = -1e6
    assert divided(torch.zeros(1, 4, 8), None) is None and divided.spent == 0


def test_extend_shows_it_too(sa3, load, browser, generous):
    one = load("small")
    audio = {"waveform": 0.1 * torch.randn(1, 2, 44100, generator=torch.Generator().manual_seed(0)), "sample_rate": 44100}
    text = sa3.prompt(one.clip, "rain")

    def extended(mode):
        inputs = {"model": one.model, "vae": one.vae, "positive": text, "audio": audio, "seconds": 1.0, "context": 0.5, "steps": 3}
        return sa3.run("SA3_Extend", **inputs, preview=mode)[0]["waveform"]

    assert torch.equal(extended("on"), extended("off")) and browser.pictures


def test_who_decides(live, browser, monkeypatch):
    none, rgb = LatentPreviewMethod.NoPreviews, LatentPreviewMethod.Latent2RGB
    for method, mode, expected in [(none, "auto", False), (none, "on", True), (rgb, "auto", True), (rgb, "off", False)]:
        monkeypatch.setattr(args, "preview_method", method)
        assert live.enabled(mode) is expected
    server.PromptServer.instance.client_id = None
    assert not live.enabled("on")


def test_an_unknown_choice_is_refused(sa3, load):
    with sa3.refused("preview is 'maybe'", "auto, on, off"):
        sampled(sa3, load("small"), preview="maybe")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("step", "piece", "lanes"), [(2.0, 0.02, 1), (0.05, 0.001, 4), (10.0, 1.0, 1), (0.3, 0.0001, 2)])
def test_the_budget_is_kept(live, monkeypatch, step, piece, lanes):
    """Never more than the share of the run so far, but for the first piece; never twice a second."""
    clock = Clock()
    monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=clock))
    module = torch.nn.Linear(1, 1)
    vae = SimpleNamespace(sa3_config=None, first_stage_model=module, vae_dtype=torch.float32, patcher=None)
    pictures = live.LivePreview(vae)

    def draw(estimate, lengths, count):
        clock.now += count * estimate.shape[0] * piece
        return clock.now

    monkeypatch.setattr(pictures, "_draw", draw)
    shown, computed = [], 0.0
    for _ in range(round(200 / step)):
        clock.now += step
        computed += step
        if (made := pictures(torch.zeros(lanes, 4, 8), None)) is not None:
            shown.append(made)
        assert pictures.spent <= 0.04 * computed + lanes * piece + 1e-9
    assert all(later - earlier >= live.INTERVAL for earlier, later in itertools.pairwise(shown))
    assert len(shown) >= (1 if piece < 0.5 else 0)


def test_low_tones_are_low_and_later_is_further_right(live):
    rate, frame = 44100, 4096
    same = SimpleNamespace(decoder=SimpleNamespace(align=2), samples_per_frame=frame)
    time = torch.arange(2 * frame) / rate

    def decode(pieces):  # what the latents say: the first channel is the frequency
        return torch.stack([0.3 * torch.sin(2 * math.pi * float(piece[0, 0]) * time)[None] for piece in pieces])

    module = torch.nn.Linear(1, 1)
    module.decode = decode
    vae = SimpleNamespace(sa3_config=SimpleNamespace(same=same, sample_rate=rate), first_stage_model=module, vae_dtype=torch.float32)
    z = torch.zeros(1, 4, 40)
    z[0, 0, :20], z[0, 0, 20:] = 200.0, 8000.0
    _, image, _ = live.LivePreview(vae)._draw(z, SimpleNamespace(samples=(40 * frame,)), 20)
    light = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8).reshape(192, 384).float()
    early, late = light[:, 20:150].mean(1), light[:, 230:360].mean(1)
    assert int(early.argmax()) > 170 and int(late.argmax()) < 80


# -- status line --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(host, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(host, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_a_stage_and_the_time_left(host, browser, clock):
    progress = host.Progress(8, "decoding chunk")
    for done in range(1, 9):
        clock.now += 10
        progress(done, 8)
    progress.finish()
    assert browser.lines[0] == ("17", "decoding chunk 1 of 8") and browser.lines[1] == ("17", "decoding chunk 2 of 8, 1:00 min left")
    assert browser.lines[5] == ("17", "decoding chunk 6 of 8, 20 s left")
    assert browser.lines[-1] == ("17", "done in 1:20 min") and len(browser.lines) == 8
    assert browser.bars == [(done, 8) for done in range(1, 9)]


def test_short_stages_show_no_status_and_fast_ones_little(host, browser, clock):
    progress = host.Progress(4, "decoding chunk")
    for done in range(1, 5):
        clock.now += 0.2
        progress(done, 4)
    progress.finish()
    assert browser.lines == []
    progress = host.Progress(1000, "step")
    for done in range(1, 1001):
        clock.now += 0.01
        progress(done, 1000)
    assert 10 <= len(browser.lines) <= 20


def test_parts_count_as_one(host, browser, clock):
    progress = host.Progress(1, "decoding chunk")
    for item in range(2):
        part = progress.part(item, 2, "item")
        for done in range(1, 3):
            clock.now += 5
            part(done, 2)
    assert browser.bars == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [text for _, text in browser.lines] == [
        "item 1 of 2, decoding chunk 1 of 2", "item 1 of 2, decoding chunk 2 of 2, 10 s left",
        "item 2 of 2, decoding chunk 1 of 2, 5 s left",
    ]  # fmt: skip


def test_warnings_stay_below_the_status_line(host, browser, clock):
    host.warn("Mind the gap.")
    progress = host.Progress(2, "step")
    clock.now += 5
    progress(1, 2)
    progress.finish()
    assert [text for _, text in browser.lines] == ["Mind the gap.", "step 1 of 2\nMind the gap.", "done in 5 s\nMind the gap."]


def test_loading_and_finished_parts_say_nothing_about_the_speed(host, browser, clock):
    progress = host.Progress(1000, "step")
    clock.now += 60  # loading
    for done in (501, 502):  # a resumed run
        clock.now += 2
        progress(done, 1000)
    progress.finish()
    assert [text for _, text in browser.lines] == ["step 501 of 1000", "step 502 of 1000, 16:36 min left", "done in 1:04 min"]


def test_the_sampler_counts_its_steps(sa3, load, host, browser, monkeypatch):
    monkeypatch.setattr(host, "STATUS_DELAY", 0.0)
    monkeypatch.setattr(host, "STATUS_INTERVAL", 0.0)
    sampled(sa3, load("small"), preview="off")
    texts = [text for node, text in browser.lines if node == "17"]
    assert texts[0] == "step 1 of 4" and texts[2].startswith("step 3 of 4, ") and texts[-1].startswith("done in ")


CLIP = {"waveform": 0.1 * torch.randn(1, 2, 200_000, generator=torch.Generator().manual_seed(0)), "sample_rate": 44100}
STAGES = {  # run until its third report -> its last line
    "sample": (lambda sa3, one: sampled(sa3, one, preview="off"), "stopped at step 3 of 4"),
    "encode": (
        lambda sa3, one: sa3.run("SA3_SAMEEncode", audio=CLIP, vae=one.vae, chunk_size=16, overlap=4), "stopped at encoding chunk 3 of 10",
    ),
    "decode": (
        lambda sa3, one: sa3.run("SA3_SAMEDecode", latent={"samples": torch.ones(1, 32, 64)}, vae=one.vae, chunk_size=16, overlap=4),
        "stopped at decoding chunk 3 of 5",
    ),
    "extend": (
        lambda sa3, one: sa3.run("SA3_Extend", model=one.model, vae=one.vae, positive=sa3.prompt(one.clip, "rain"), audio=CLIP, seconds=2.0,
                                 context=0.5, window=2.0, steps=4),
        "stopped at window 1 of 2, step 3 of 4; queue again to resume",
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_stage_says_where(sa3, load, comfy, browser, monkeypatch, stage):
    (run, line), one, reports, update = STAGES[stage], load("small"), [], comfy.utils.ProgressBar.update_absolute

    def third(self, *values):
        reports.append(values)
        if len(reports) == 3:
            comfy.management.interrupt_current_processing()
        update(self, *values)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", third)
    with pytest.raises(comfy.management.InterruptProcessingException):
        run(sa3, one)
    assert browser.lines[-1][1].splitlines()[0] == line


def test_reports_stand_on_their_nodes(sa3, load, host, browser, base_directory):
    one = load("small")

    def line(node, **inputs):
        host._shown.clear()
        sa3.run(node, **inputs)
        return browser.lines[-1][1]

    ramp = torch.linspace(0, 0.5, 44100).repeat(1, 2, 1)  # the step from 0.25 to a doubled 0.25 is 0.25, -12 dBFS
    original, doubled = ({"waveform": factor * ramp, "sample_rate": 44100} for factor in (1, 2))
    pasted = line("SA3_Splice", original=original, generated=doubled, regions="0.5-1", crossfade=0.0)
    assert pasted == "1 region pasted, largest step at a join -12.0 dBFS (nearby -92.9 dBFS)"
    both = {**doubled, "waveform": doubled["waveform"].repeat(2, 1, 1)}
    whole = line("SA3_Splice", original=original, generated=both, regions="0-1")
    assert whole == "1 region pasted in each of 2 items\nThe whole clip was replaced."
    nothing = line("SA3_Splice", original=original, generated=doubled, regions="")
    assert nothing == "no regions pasted\nNo region is given: nothing was changed."
    loop = line("SA3_Loop", vae=one.vae, audio=CLIP, bpm=240.0, bars=2, seam=0.5)
    assert loop == "2 bars at 240 BPM: a loop of 2.000 s (88200 samples), to regenerate: 0.75-1.25 s"
    sine = torch.sin(torch.arange(88200) * (2 * math.pi * 997 / 44100)).repeat(2, 1)  # -3.01 LUFS per channel
    tones = {"waveform": torch.stack([sine, sine / 10]), "sample_rate": 44100}
    assert line("SA3_Levels", audio=tones) == "2 items: -20.0 to 0.0 LUFS, true peak 0.0 dBTP"
    loud = line("SA3_Levels", audio=tones, normalize="loudness", target=-14.0)
    assert loud == "2 items: -14.0 LUFS, true peak -14.0 dBTP after the changes"
    file = write_lora(base_directory / "models" / "loras" / "line.safetensors", one.model.model).name
    assert line("SA3_LoRAStack", model=one.model, lora=file, strength=0.5).startswith("line.safetensors: lora, rank 2, trained on ")


def test_the_loader_says_what_it_took(sa3, checkpoints, browser):
    sa3.load()
    assert browser.lines[-1][1] == "demo, fp32: tones, beats and noises only"
    put(checkpoints, "small")
    sa3.load(dtype="bf16")
    assert browser.lines[-1][1] == "small-music, bf16, 1 M parameters"


def test_what_no_region_means_stands_on_the_sampler(sa3, load, browser):
    one = load("small")
    text, latent = sa3.prompt(one.clip, "rain"), sa3.run("SA3_SAMEEncode", audio=CLIP, vae=one.vae)[0]
    everything, kept = "everything is regenerated", "the mask keeps the whole sound"
    for mask, noise_level, words in ((None, 1.0, everything), (None, 0.5, ""), (torch.zeros(1, 1, 1), 1.0, kept)):
        browser.lines.clear()
        sa3.sample(one.model, text, {**latent, "noise_mask": mask}, steps=4, noise_level=noise_level)
        shown = "\n".join(line for _, line in browser.lines)
        assert words in shown and ("No region is marked" in shown) is bool(words)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3725, "1:02:05 h")])
def test_durations(host, seconds, text):
    assert host.duration(seconds) == text
