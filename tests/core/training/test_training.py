"""Training: the corpus matches its captions, the random draws follow the public code, a resumed run equals an uninterrupted one."""

import dataclasses
import itertools
import math
import struct

import pytest
import torch

from sa3_core import SA3Error, build
from sa3_core.config import parse
from sa3_core.models.conditioning import Condition
from sa3_core.models.release import ConditionedDiT
from sa3_core.sampling.guidance import Guidance
from sa3_core.sampling.predictor import Predictor
from sa3_core.sampling.schedule import build as build_schedule
from sa3_core.training import curves, flow
from sa3_core.training.trainer import Trainer, TrainerSettings
from tools.demo import autoencoder, corpus, distil, metrics
from tools.demo.trainer import EMATrainer, Settings


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- corpus


def test_a_clip_is_a_function_of_seed_and_index():
    a, b, c = corpus.clip(2, 7, 1.0), corpus.clip(2, 7, 1.0), corpus.clip(2, 8, 1.0)
    assert a.caption == b.caption and torch.equal(a.audio, b.audio)
    assert not torch.equal(a.audio, c.audio)


@pytest.mark.parametrize("kind", corpus.SOUNDS)
def test_every_sound_is_finite_audible_and_within_full_scale(kind):
    clip = corpus.clip(2, 1, 1.5, kind)
    assert clip.audio.shape == (2, round(1.5 * corpus.RATE)) and clip.kind == kind
    assert torch.isfinite(clip.audio).all() and 0.2 < clip.audio.abs().max() <= 1


def test_captions_use_the_vocabulary_and_the_hold_out_splits_them():
    train = [corpus.clip(2, i, 0.5).caption for i in range(300)]
    test = [corpus.clip(3, i, 0.5).caption for i in range(100)]
    words = {word for caption in train + test for word in caption.replace(",", " ,").split()}
    assert words <= set(corpus.vocabulary())
    assert not set(train) & set(test)
    assert all(map(corpus.held_out, test)) and not any(map(corpus.held_out, train))


@pytest.mark.parametrize("index", range(6))
def test_a_rhythm_has_the_spacing_that_it_states(index):
    part = corpus._rhythm(corpus.Random(11, index), 4 * corpus.RATE, "kick")
    assert metrics.spacing(part.audio) == pytest.approx(part.spacing, abs=0.02)


def test_a_caption_that_is_one_rhythm_says_its_spacing():
    for index in range(60):
        clip = corpus.clip(12, index, 4.0, "kick", 0.9)
        assert corpus.stated_spacing(clip.caption) == (clip.spacing if "," not in clip.caption else None)
    assert corpus.stated_spacing("a kick at 120 bpm") == 0.5
    assert corpus.stated_spacing("a kick every half second and rain") is None


def test_a_rhythm_keeps_time_unless_hits_are_missing_or_late():
    hit = corpus.SOUNDS["kick"].synthesise(corpus.Random(1, 1), corpus.RATE // 4, 0.0)
    steady = corpus.repeated(hit, 4 * corpus.RATE, 0.1, 0.5)
    assert metrics.keeps_time(steady, 0.5)
    assert not metrics.keeps_time(steady, 0.25) and not metrics.keeps_time(steady, 1.0)
    half = steady.clone()
    half[2 * corpus.RATE :] = 0
    assert not metrics.keeps_time(half, 0.5)
    assert not metrics.keeps_time(corpus.repeated(hit, 4 * corpus.RATE, 0.1, 0.6), 0.5)
    assert not metrics.keeps_time(torch.zeros(corpus.RATE), 0.5)


def test_pitch_words_order_the_brightness():
    by_pitch = {pitch: [] for pitch in corpus.PITCHES}
    for i in range(60):
        clip = corpus.clip(2, i, 1.0, "tone")
        if clip.pitch and clip.spacing is None:
            by_pitch[clip.pitch].append(metrics.centroid(metrics.mono(clip.audio)))
    assert max(by_pitch["low"]) < min(by_pitch["mid"]) and max(by_pitch["mid"]) < min(by_pitch["high"])


def test_noise_is_flatter_than_a_tone():
    flat = {kind: metrics.flatness(metrics.mono(corpus.clip(2, 3, 1.0, kind).audio)) for kind in ("tone", "wind", "rain", "static")}
    assert min(flat["wind"], flat["rain"], flat["static"]) > 10 * flat["tone"]


# --- flow matching


def test_times_lie_in_range_and_depend_on_the_generator():
    t = flow.draw_times(4096, generator())
    assert t.min() >= 0 and t.max() <= 1 and t.std() > 0.1
    assert torch.equal(t, flow.draw_times(4096, generator())) and not torch.equal(t, flow.draw_times(4096, generator(1)))


@pytest.mark.parametrize("level", [0.3, 0.6, 0.9, 0.99])
def test_truncated_logit_normal_follows_its_distribution(level):
    """t = 1 - (x - 0.075) / 0.925, x logit-normal above 0.075: the cut end becomes t = 1 and keeps its density."""

    def phi(x):
        return 0.5 * (1 + math.erf(math.log(x / (1 - x)) / math.sqrt(2)))

    t = flow.draw_times(400_000, generator())
    wanted = (phi(0.075 + 0.925 * (1 - level)) - phi(0.075)) / (1 - phi(0.075))
    assert float((t > level).float().mean()) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("length", [10, 256, 1000, 4096, 9000])
def test_times_are_shifted_by_the_full_schedule(length, monkeypatch):
    monkeypatch.setattr(flow, "draw_times", lambda n, generator: torch.linspace(0, 1, n))
    monkeypatch.setattr(flow, "flow_loss", lambda net, z, noise, t, *others: t)
    batch = flow.Batch(torch.zeros(9, 4, 16), [16] * 9, None, [length] * 9)
    t = flow.training_loss(None, lambda generator: batch, 10.0)(0, generator())
    full = build_schedule("full", 8, length=float(length), mode="reference").flip(0)
    assert torch.allclose(t, full.float(), atol=1e-6)


def test_silence_after_the_clip_has_the_requested_mean():
    more = flow.extend_lengths([0] * 20_000, 86.0, 10**6, generator())
    assert sum(more) / len(more) == pytest.approx(85.5, rel=0.03)
    assert max(flow.extend_lengths([50] * 100, 86.0, 64, generator())) == 64
    assert flow.extend_lengths([50, 60], 0.0, 64, generator()) == [50, 60]


def test_masks_come_in_the_three_kinds_at_their_chances():
    given = flow.draw_masks([40] * 6000, 64, (0.1, 0.8, 0.1), generator())
    assert not given[:, 40:].any()
    empty = ~given.any(1)
    beginning = torch.stack([(row[:40].long().diff() <= 0).all() and row[0] for row in given]) & ~empty
    assert float(empty.float().mean()) == pytest.approx(0.80, abs=0.02)
    assert 0.08 < float(beginning.float().mean()) < 0.16  # segments at the end look alike
    assert 0.04 < float((~empty & ~beginning).float().mean()) < 0.11


@pytest.fixture(scope="module")
def case():
    """A demo-sized generator with random weights, and the draws of one step."""
    import json

    from sa3_core.pipeline import DEMOS

    config = json.loads((DEMOS["demo"] / "model_config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    net = ConditionedDiT(parse(config), device="cpu", dtype=torch.float32)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    c = net.config
    g = generator(5)
    z, noise = torch.randn(3, c.dit.io_channels, 24, generator=g), torch.randn(3, c.dit.io_channels, 24, generator=g)
    rows = c.conditioning.max_tokens + 1
    condition = Condition(torch.randn(3, rows, c.dit.cond_dim, generator=g), torch.randn(3, c.dit.cond_dim, generator=g))
    given = torch.zeros(3, 24, dtype=torch.bool)
    given[1, :8] = True
    return net, z, noise, torch.tensor([0.2, 0.5, 0.9]), [24, 20, 10], given, condition, torch.tensor([True, True, False])


def test_the_loss_is_the_mean_of_its_items_whatever_their_length(case):
    net, z, noise, t, lengths, given, condition, kept = case
    whole = flow.flow_loss(*case)
    alone = [
        flow.flow_loss(net, z[i : i + 1], noise[i : i + 1], t[i : i + 1], lengths[i : i + 1], given[i : i + 1],
                       Condition(condition.cross_attn[i : i + 1], condition.global_cond[i : i + 1]), kept[i : i + 1])
        for i in range(3)
    ]  # fmt: skip
    for term in ("loss", "generated", "context"):
        assert whole[term].item() == pytest.approx(sum(one[term].item() for one in alone) / 3, rel=1e-5)
    assert alone[0]["context"].item() == 0 < alone[1]["context"].item()


def test_what_lies_beyond_the_clip_costs_nothing(case):
    net, z, noise, t, lengths, given, condition, kept = case
    other = z.clone()
    other[2, :, 10:] = 99.0
    a, b = (flow.flow_loss(net, x, noise, t, lengths, given, condition, kept)["loss"] for x in (z, other))
    assert a.item() == pytest.approx(b.item(), rel=1e-6)


def test_a_dropped_prompt_is_zeros_in_every_row(case):
    condition = case[6]
    blank = Condition(condition.cross_attn.clone(), condition.global_cond)
    blank.cross_attn[2] = 0
    assert flow.flow_loss(*case)["loss"].item() == flow.flow_loss(*case[:6], blank, torch.ones(3).bool())["loss"].item()


def test_gradients_reach_every_parameter(case):
    net = case[0]
    net.zero_grad()
    flow.flow_loss(*case)["loss"].backward()
    idle = {"conditioner.conditioners.prompt.padding_embedding"}  # the condition is given here
    missing = [n for n, p in net.named_parameters() if (p.grad is None or not p.grad.any()) and n not in idle and "seconds_total" not in n]
    net.zero_grad()
    assert not missing


# --- post-training


def paths_of(case, items, **more):
    net, z, _, _, lengths, given, condition, _ = case
    batch = flow.Batch(z[items], [lengths[i] for i in items], Condition(condition.cross_attn[items], condition.global_cond[items]))
    return distil.sample_paths(net, batch, batch.lengths, given[items], Guidance(cfg=3.0, apg=0.0), 3, generator(1), "euler", **more)


def test_a_path_is_the_teachers_guided_trajectory(case):
    net, z, _, _, lengths, given, condition, _ = case
    paths = paths_of(case, [0, 1, 2])
    assert paths.states.shape == (3, 3, *z.shape[1:]) and paths.times.shape == (3, 3) and torch.all(paths.times[:, 0] == 1)
    velocity = Predictor.prepare(net.dit, condition, flow.local_input(z, given), z.shape[-1], lengths, Guidance(cfg=3.0, apg=0.0))
    levels = torch.cat((paths.times, torch.zeros(3, 1)), 1)
    some = paths.pick([2, 0])
    assert len(some) == 2 and torch.equal(some.ends, paths.ends[[2, 0]]) and some.lengths.tolist() == [lengths[2], lengths[0]]
    both = distil.Paths.join([some, paths.pick([1])])
    assert torch.equal(both.states, paths.states[[2, 0, 1]])
    stations = [*paths.states.unbind(1), paths.ends]
    with torch.no_grad():
        for k, (x, after) in enumerate(itertools.pairwise(stations)):
            step = (levels[:, k + 1] - levels[:, k])[:, None, None]
            assert torch.allclose(x + step * velocity(x, levels[:, k]), after, atol=1e-5)


def test_a_student_that_hits_every_end_has_no_loss_and_learning_comes_nearer(case, monkeypatch):
    net, paths = case[0], paths_of(case, [0, 1, 2])
    items, places = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])
    ends, plain = paths.ends[items], net.dit.forward
    monkeypatch.setattr(net.dit, "forward", lambda x, t, inputs: (x - ends) / t[:, None, None])
    assert float(distil.distil_loss(net, paths, items, places)["loss"]) < 1e-10
    monkeypatch.setattr(net.dit, "forward", plain)
    alone = [distil.distil_loss(net, paths, items[i : i + 1], places[i : i + 1])["loss"].item() for i in range(4)]
    whole = distil.distil_loss(net, paths, items, places)["loss"]
    assert whole.item() == pytest.approx(sum(alone) / 4, rel=1e-5)  # whatever the items' lengths
    parameters = [p for p in net.dit.parameters() if p.numel()]
    gradients = torch.autograd.grad(whole, parameters, allow_unused=True)
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p.sub_(1e-3 * (0 if g is None else g))
        nearer = distil.distil_loss(net, paths, items, places)["loss"]
        for p, g in zip(parameters, gradients, strict=True):
            p.add_(1e-3 * (0 if g is None else g))
    assert nearer.item() < whole.item()


# --- SAME


@pytest.fixture(scope="module")
def clips():
    return torch.stack([corpus.clip(2, i, 0.8, kind).audio for i, kind in enumerate(("tone", "bell", "kick", "tone", "major chord") * 8)])


def test_a_student_autoencoder_learns_its_teachers_latents(clips, tmp_path):
    teacher, same, audio = small_same(), small_same(), clips[..., : 512 * 32]
    for one, seed in ((teacher, 0), (same, 1)):
        autoencoder.init_block_pca(one, audio, generator(seed))
    teacher.requires_grad_(False)
    weights = autoencoder.Weights(waveform=0.0, spectral=0.0, soft_norm=0.0, latent=1.0)
    loss = autoencoder.training_loss(same, lambda g: audio[:4], 30, weights, teacher)
    before = loss(0, generator())["latent"].item()
    EMATrainer(dict(same.named_parameters()), Settings(steps=30, lr=2e-3, warmup=5, ema=0.0), tmp_path).run(loss)
    assert loss(0, generator())["loss"].item() < 0.6 * before


def small_same(stride=2):
    side = {"channels": 64, "c_mults": [1], "strides": [stride], "latent_dim": 32, "transformer_depths": [1], "differential": True,
            "dim_heads": 32 // stride, "variable_stride": True, "dyt": True, "chunk_size": 8, "chunk_midpoint_shift": False}  # fmt: skip
    config = {
        "model_type": "autoencoder", "sample_rate": 44100, "audio_channels": 2, "model": {
            "pretransform": {"type": "patched", "config": {"patch_size": 256, "channels": 2}},
            "encoder": {"type": "taae_v2", "config": {**side, "in_channels": 512}},
            "decoder": {"type": "taae_v2", "config": {**side, "out_channels": 512, "conv_mapping": True}},
            "bottleneck": {"type": "softnorm", "config": {"dim": 32, "noise_regularize": True}},
            "latent_dim": 32, "downsampling_ratio": 256 * stride},
    }  # fmt: skip
    torch.manual_seed(0)
    return build(config, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("stride", [1, 2])
def test_block_pca_preserves_the_waveform_before_training(clips, stride):
    same, audio = small_same(stride), clips[..., : 512 * 64]
    autoencoder.init_block_pca(same, audio, generator())
    with torch.no_grad():
        made = same.decode(same.encode(audio))
    assert torch.tensor([autoencoder.snr(a, b) for a, b in zip(made, audio, strict=True)]).median() > 5


def test_block_pca_refuses_a_network_with_other_heads(clips):
    same = small_same()
    wrong = build_with_heads(same, 32)
    with pytest.raises(SA3Error, match="heads of latents / stride = 16"):
        autoencoder.init_block_pca(wrong, clips, generator())


def build_with_heads(same, head_dim):

    from sa3_core.models.same import SAME

    config = dataclasses.replace(same.config, encoder=dataclasses.replace(same.config.encoder, head_dim=head_dim))
    return SAME(config, device="cpu", dtype=torch.float32)


def test_training_lowers_the_error_and_sets_the_scale(clips, tmp_path):
    same, audio = small_same(), clips[..., : 512 * 32]
    autoencoder.init_block_pca(same, audio, generator())

    def crops(g):
        return audio[torch.randint(len(audio), (4,), generator=g)]

    def error():
        with torch.no_grad():
            return float(autoencoder.waveform_loss(same.decode(same.encode(audio)), audio))

    before = error()
    settings = Settings(steps=40, lr=2e-3, warmup=5, ema=0.0)
    trainer = EMATrainer(dict(same.named_parameters()), settings, tmp_path)
    trainer.run(autoencoder.training_loss(same, crops, 40, autoencoder.Weights()))
    assert error() < 0.8 * before
    with torch.no_grad():
        autoencoder.measure_scale(same, [audio])
        assert float(same.encode(audio).std()) == pytest.approx(1, rel=1e-3)


def test_losses_are_zero_where_they_should_be():
    audio = torch.randn(2, 2, 8192, generator=generator())
    assert float(autoencoder.waveform_loss(audio, audio)) == 0
    assert float(autoencoder.spectral_loss(audio, audio, torch.zeros(2))) == 0
    assert float(autoencoder.spectral_loss(-audio, audio, torch.ones(2))) == pytest.approx(0, abs=1e-6)  # blind to the sign
    z = torch.randn(2, 64, 256, generator=generator())
    assert float(autoencoder.soft_norm_loss(z)) < 0.1 < float(autoencoder.soft_norm_loss(3 * z))


# --- the loop


def quadratic(parameter):
    def loss(step, g):
        return {"loss": (parameter - torch.randn(parameter.shape, generator=g)).square().mean()}

    return loss


def trained(folder, stops):
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    for stop in stops:
        parameter = torch.nn.Parameter(torch.zeros(4, 4))
        trainer = EMATrainer({"p": parameter}, Settings(steps=30, warmup=3, record_every=5, save_every=10), folder)
        inner = quadratic(parameter)

        def loss(step, g, inner=inner, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return inner(step, g)

        try:
            trainer.run(loss)
        except KeyboardInterrupt:
            continue
    return parameter, trainer


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    a, whole = trained(tmp_path / "a", [None])
    b, resumed = trained(tmp_path / "b", [17, 25, None])
    assert torch.equal(a, b) and torch.equal(whole.averaged()["p"], resumed.averaged()["p"])
    assert (tmp_path / "a" / "state.safetensors").read_bytes() == (tmp_path / "b" / "state.safetensors").read_bytes()


def test_a_state_of_another_network_is_refused(tmp_path):
    trained(tmp_path, [None])
    with pytest.raises(SA3Error, match="another network"):
        Trainer({"q": torch.nn.Parameter(torch.zeros(2))}, TrainerSettings(steps=3), tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data.replace(b"history", b"mystery")]
)
def test_a_damaged_state_is_refused_with_the_way_out(tmp_path, damage):
    trained(tmp_path, [17, None])
    file = tmp_path / "state.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(SA3Error, match=r"state\.safetensors, is damaged .*delete it"):
        trained(tmp_path, [None])


def test_a_step_whose_gradients_are_not_finite_is_skipped_and_counted(tmp_path, caplog):
    parameter = torch.nn.Parameter(torch.ones(4))
    trainer = Trainer({"p": parameter}, TrainerSettings(steps=3), tmp_path)

    def loss(step, g):
        # the square root of 0 has an infinite gradient
        return {"loss": parameter.sum() + (torch.sqrt(0 * parameter).sum() if step == 1 else 0)}

    with caplog.at_level("WARNING", logger="sa3"):
        trainer.run(loss)
    assert trainer.skipped == 1 and bool(torch.isfinite(parameter).all()) and "Step 1 is skipped" in caplog.text


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    trainer = Trainer({"p": torch.nn.Parameter(torch.zeros(2))}, TrainerSettings(steps=3), tmp_path)
    with pytest.raises(SA3Error, match="nan at step 0"):
        trainer.run(lambda step, g: {"loss": trainer.parameters["p"].sum() * float("nan")})


@pytest.mark.parametrize("value", [3e-9, 4.2e-5, 0.5, 1234.0, 5e6])
def test_curves_of_any_size_have_labels(value):
    picture = curves.draw_history([{"step": 1, "loss": value}, {"step": 2, "loss": 2 * value}])
    assert picture.shape[2] == 3 and int(picture.max()) > int(picture.min())


def test_curves_are_a_picture_that_others_can_read(tmp_path):
    from PIL import Image

    curves.write_curves(tmp_path / "c.png", [{"step": 1, "a": 1.0}, {"step": 2, "a": 0.1, "b": 0.5}, {"step": 3, "a": 0.01, "b": 0.5}])
    image = Image.open(tmp_path / "c.png").convert("RGB")
    assert image.size == (curves.WIDTH, curves.HEIGHT)
    colours = {colour for _, colour in image.getcolors(10_000)}
    assert {curves.COLOURS[0], curves.COLOURS[1], (255, 255, 255)} <= colours
    assert struct.unpack(">I", (tmp_path / "c.png").read_bytes()[8:12]) == (13,)
