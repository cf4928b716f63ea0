"""LoRA training on a tiny base: it starts at the base, changes only the adapters, resumes bit for bit, and its files load."""

import contextlib
import dataclasses
import json
import shutil
import signal
import wave

import pytest
import torch
from core_support import lay_out, randn, refused, rel_error
from safetensors import safe_open

import sa3_core
from sa3_core.audio import files as audio_files
from sa3_core.checkpoints.tensors import TensorFile
from sa3_core.lora.algebra import TYPES, apply_stack
from sa3_core.lora.formats import SECONDS, read_lora
from sa3_core.lora.stack import targets
from sa3_core.models.layers import adapted
from sa3_core.training import dataset, flow
from sa3_core.training.__main__ import main, open_base
from sa3_core.training.adapters import Adapters
from sa3_core.training.base import load_network
from sa3_core.training.lora import Callbacks, train
from sa3_core.training.settings import LoRASettings

RATE = 44100
QUICK = LoRASettings(rank=2, steps=6, seconds=1.0, save_every=0, preview_every=0, validation=0.25)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("base") / "stable-audio-3-small-music-base", "small-base")


@pytest.fixture(scope="module")
def source(base):
    return open_base(str(base), None, "cpu")


def write_clip(file, seconds=0.6, seed=0, caption="a new sound", kind="wav16", channels=2, level=0.2):
    file.parent.mkdir(parents=True, exist_ok=True)
    audio_files.write(file, (randn(channels, round(seconds * RATE), seed=seed) * level).clamp(-1, 1), RATE, kind)
    if caption:
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(4):
        write_clip(folder / f"{i}.wav", 0.4 + 0.5 * i, i, f"sound {i % 2}")
    return folder


def batch(net, n=2, frames=6, seed=3, adapters=None):
    c = net.config
    z = randn(n, c.dit.io_channels, frames, seed=seed)
    rows = randn(n, 4, c.conditioning.cond_dim, seed=seed + 1).to(next(net.parameters()).dtype)
    return z, net.conditioner(rows, torch.ones(n, 4).bool(), [3.0, 5.0][:n], adapters=adapters and adapters.now())


def loss_of(net, adapters=None, seed=3):
    z, condition = batch(net, seed=seed, adapters=adapters)
    given = torch.zeros(2, 6, dtype=torch.bool)
    given[1, :2] = True
    noise = randn(*z.shape, seed=9)
    return flow.flow_loss(net, z, noise, torch.tensor([0.3, 0.8]), [6, 5], given, condition, torch.tensor([True, True]))["loss"]


def bases_of(net):
    def bases(layer, rank):
        from sa3_core.lora.algebra import svd_bases

        return svd_bases(targets(net)[layer].weight.flatten(1), rank)

    return bases


def perturbed(adapters, size=0.05):
    """Adapters with every parameter changed, as after some training."""
    with torch.no_grad():
        for i, p in enumerate(adapters.trained().values()):
            p.add_(randn(*p.shape, seed=i) * size * p.abs().mean().clamp_min(0.1))
    return adapters


# --- adapters


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", TYPES)
def test_training_starts_exactly_at_the_base(source, kind, dtype):
    net = load_network(source, dtype)
    plain, layers = loss_of(net), targets(net)
    inputs = {name: randn(2, *reversed(layer.weight.shape[1:]), 5, seed=1).squeeze(1).to(layer.weight) for name, layer in layers.items()}
    inputs = {name: x if isinstance(layers[name], torch.nn.Conv1d) else x.mT for name, x in inputs.items()}
    before = {name: layer(inputs[name]) for name, layer in layers.items()}
    adapters = Adapters(net, kind, 3, bases=bases_of(net))
    assert set(adapters.layers) == set(layers)
    now = adapters.now()
    assert [name for name, layer in layers.items() if not torch.equal(adapted(layer, inputs[name], now), before[name])] == []
    # The whole loss up to rounding: with gradients or another memory layout torch uses other kernels.
    assert rel_error(loss_of(net, adapters).detach(), plain) < {"fp32": 1e-6, "bf16": 1e-2}[dtype]


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_reach_every_adapter_and_nothing_else(source, kind):
    net = load_network(source)
    adapters = perturbed(Adapters(net, kind, 3, bases=bases_of(net)))
    loss_of(net, adapters).backward()
    assert all(p.grad is None for p in net.parameters())
    idle = [name for name, p in adapters.trained().items() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_are_those_of_the_changed_weights(source, kind):
    """The gradients equal those of the loss with merged weights, as in inference."""
    net = load_network(source)
    adapters = perturbed(Adapters(net, kind, 3, include=["layers.0.ff", "to_cond_embed"], bases=bases_of(net)))
    parameters = adapters.trained()
    loss = loss_of(net, adapters)
    found = torch.autograd.grad(loss, list(parameters.values()))
    changed = {}
    for name, layer in adapters.layers.items():
        weight = layer.target[0].weight
        changed[name] = apply_stack(weight, [(layer.adapter(), 1.0, "chain")])
    prefix = {name: f"model.model.{name}.weight" for name in changed}
    whole = torch.func.functional_call(Whole(net), {f"net.{prefix[n]}": w for n, w in changed.items()}, ())
    assert rel_error(loss.detach(), whole.detach()) < 1e-5
    wanted = torch.autograd.grad(whole, list(parameters.values()))
    for name, a, b in zip(parameters, found, wanted, strict=True):
        assert rel_error(a, b) < 1e-3, name


@pytest.mark.parametrize("kind", ["dora-rows", "bora-xs"])
def test_checkpointing_changes_no_gradient(source, kind):
    net = load_network(source)
    adapters, kept = perturbed(Adapters(net, kind, 3, bases=bases_of(net))), []
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            net.dit.gradient_checkpointing = True

        def keep(tensor, sizes=kept):
            sizes.append(tensor.numel())
            return tensor

        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(net, adapters)
        gradients.append((sum(kept), torch.autograd.grad(loss, list(adapters.trained().values()))))
    (much, plain), (little, found) = gradients
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert little < 0.6 * much


class Whole(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self):
        return loss_of(self.net)


def test_include_and_exclude_choose_layers(source):
    net = load_network(source)
    some = Adapters(net, "lora", 2, include=["layers.[0-1].", "seconds_total"], exclude=["to_qkv"])
    names = set(some.layers)
    assert SECONDS in names and all("layers.0." in n or "layers.1." in n or n == SECONDS for n in names)
    assert not any("to_qkv" in n for n in names) and any("ff.ff" in n for n in names)
    with refused("'nothing like this'", "leave no layer"):
        Adapters(net, "lora", 2, include=["nothing like this"])
    with refused("'loha'", "dora-rows"):
        LoRASettings("loha")
    with refused("rank", "0"):
        Adapters(net, "lora", 0)


# --- pairing and fixed losses


def test_noise_is_paired_with_the_nearest_item():
    z = randn(6, 3, 5)
    order = torch.randperm(6, generator=generator(1))
    assert (
        torch.equal(flow.pair_noise(z, z[order] + 0.01 * randn(6, 3, 5, seed=2)).round(decimals=1), z.round(decimals=1))
        or rel_error(flow.pair_noise(z, z[order] + 0.01 * randn(6, 3, 5, seed=2)), z) < 0.02
    )
    noise = randn(8, 3, 5, seed=4)
    paired = flow.pair_noise(randn(8, 3, 5, seed=5), noise)
    assert sorted(map(float, paired.flatten(1).sum(1))) == sorted(map(float, noise.flatten(1).sum(1)))  # a permutation


def test_pairing_lowers_the_cost_and_a_single_item_keeps_its_noise():
    z, noise = randn(16, 2, 3, seed=6), randn(16, 2, 3, seed=7)
    before, after = ((z - n).square().sum() for n in (noise, flow.pair_noise(z, noise)))
    assert after < before
    assert torch.equal(flow.pair_noise(z[:1], noise[:1]), noise[:1])


def test_fixed_losses_are_the_same_each_time(source):
    net = load_network(source)
    z, condition = batch(net)
    one = flow.Batch(z, [6, 4], condition)
    assert flow.fixed_noise_loss(net, one, 0) == flow.fixed_noise_loss(net, one, 0) != flow.fixed_noise_loss(net, one, 1)


# --- data


def load(source, folder, **more):
    return dataset.load(folder, source.config, source.autoencoder, source.load_encoder, **more)


def test_a_folder_is_encoded_once(source, tmp_path):
    write_clip(tmp_path / "a.wav", 1.0, 1, "one")
    write_clip(tmp_path / "deep" / "b.flac", 0.5, 2, "two\nlines", "flac16", channels=1)
    clips = load(source, tmp_path, validation=0.0)
    assert [(clip.name, clip.caption, clip.seconds) for clip in clips.training] == [("a.wav", "one", 1), ("deep/b.flac", "two lines", 1)]
    frames = source.config.same.samples_per_frame
    assert clips.training[0].valid == -(-RATE // frames)
    with torch.no_grad():
        waveform = dataset.read_clip(tmp_path / "a.wav", source.config)
        room = torch.nn.functional.pad(waveform, (0, 40 * frames - waveform.shape[-1]))
        alone = source.load_encoder()(room[None])[0]
    z, valid = clips.crop(clips.training[0], 24, None)
    assert valid == clips.training[0].valid and rel_error(z, alone[:, :24]) < 1e-5  # silence behind the clip, as if encoded with it
    again = dataset.load(tmp_path, source.config, source.autoencoder, lambda: pytest.fail("encoded again"), 0.0)
    assert torch.equal(again.training[1].latents, clips.training[1].latents)
    with pytest.raises(pytest.fail.Exception):
        dataset.load(tmp_path, source.config, "another", lambda: pytest.fail("encoded again"), 0.0)


def test_crops_stay_inside_and_flip(source, tmp_path):
    write_clip(tmp_path / "long.wav", 3.0, 1)
    (clip,) = load(source, tmp_path, validation=0.0).training
    clips = dataset.Dataset([clip], [], torch.zeros(clip.latents.shape[1], 2), 10.0)
    places = set()
    for seed in range(40):
        z, valid = clips.crop(clip, 8, generator(seed))
        assert valid == 8
        hits = [(f, s) for f in (0, 1) for s in range(clip.valid - 7) if torch.equal(clip.latents[f, :, s : s + 8], z)]
        places.add(hits[0])
    assert {f for f, _ in places} == {0, 1} and {0, clip.valid - 8} <= {s for _, s in places}


def test_the_split_is_by_name_and_covers_everything():
    names = [f"clip{i}.wav" for i in range(40)]
    out = dataset.held_out(names, 0.1)
    assert len(out) == 4 and out == dataset.held_out(names[::-1], 0.1) and out <= set(names)
    assert dataset.held_out(names, 0) == set() and dataset.held_out(["only.wav"], 0.5) == set()
    assert len(dataset.held_out(names[:3], 0.01)) == 1


def test_tables(source, tmp_path):
    for name in ("a.wav", "sub/b.wav", "c.wav"):
        write_clip(tmp_path / name, caption="")
    (tmp_path / "captions.csv").write_text('file,caption\na.wav,"one, two"\nsub/b.wav,three\n', encoding="utf-8")
    clips, left = dataset.find_clips(tmp_path)
    assert [(c.name, c.caption) for c in clips] == [("a.wav", "one, two"), ("sub/b.wav", "three")] and "c.wav" in left[0]
    (tmp_path / "captions.csv").unlink()
    lines = [{"file_name": "c.wav", "text": "four"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert [(c.name, c.caption) for c in dataset.find_clips(tmp_path)[0]] == [("c.wav", "four")]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,caption\n../x.wav,hello\n", ("row 2", "outside the folder")),
        ("file,caption\n/etc/passwd,hello\n", ("row 2", "outside the folder")),
        ("file,caption\nnone.wav,hello\n", ("row 2", "none.wav", "not in")),
        ("name,words\na.wav,hello\n", ("row 2", "columns file and caption")),
    ],
)
def test_wrong_tables_are_refused(tmp_path, table, words):
    write_clip(tmp_path / "a.wav", caption="")
    (tmp_path / "captions.csv").write_text(table, encoding="utf-8")
    with refused("captions.csv", *words):
        dataset.find_clips(tmp_path)


def test_unusable_files_are_skipped_with_a_reason(source, tmp_path):
    with refused("is not a folder"):
        dataset.find_clips(tmp_path / "none")
    with refused("contains no audio files"):
        dataset.find_clips(tmp_path)
    write_clip(tmp_path / "a.wav", caption="")
    with refused("a.txt next to a.wav"):
        dataset.find_clips(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with refused("a.txt", "utf-8"):
        dataset.find_clips(tmp_path)
    (tmp_path / "a.txt").write_text("fine", encoding="utf-8")
    write_clip(tmp_path / "silent.wav", level=0.0, seed=1)
    write_clip(tmp_path / "short.wav", 0.05, seed=2)
    write_clip(tmp_path / "words.wav", seed=3)
    (tmp_path / "words.wav").write_text("this is no sound")
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
    (tmp_path / "empty.txt").write_text("nothing", encoding="utf-8")
    clips = load(source, tmp_path, validation=0.0)
    assert [clip.name for clip in clips.training] == ["a.wav"]
    report = "\n".join(clips.skipped)
    for name, why in (("silent", "below -60 dB"), ("short", "0.050 s long"), ("words", "cannot be read"), ("empty", "empty")):
        assert any(name in line and why in line for line in clips.skipped), report
    assert all(line in clips.describe() for line in clips.skipped) and clips.describe().startswith("1 clips, ")
    (tmp_path / "a.wav").unlink()
    with refused("none of the", "can be used"):
        load(source, tmp_path)


# --- runs


class Stop(Callbacks):
    """Interrupts the run after the given steps."""

    def __init__(self, *stops):
        self.stops, self.steps, self.samples = stops, [], []

    def step(self, step, steps, loss):
        self.steps.append(step)
        if step in self.stops:
            raise KeyboardInterrupt

    def sample(self, step, waveform, rate):
        self.samples.append((step, waveform.shape, rate))


def test_a_resumed_run_gives_the_same_bytes(source, data, tmp_path):
    settings = dataclasses.replace(QUICK, batch=2, kind="bora")
    train(source, data, tmp_path / "a.safetensors", tmp_path / "a", settings)
    callbacks = Stop(2, 4)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(source, data, tmp_path / "b" / "a.safetensors", tmp_path / "b", settings, callbacks)
    done = train(source, data, tmp_path / "b" / "a.safetensors", tmp_path / "b", settings, callbacks)
    assert callbacks.steps == [1, 2, 3, 4, 5]
    assert (tmp_path / "a.safetensors").read_bytes() == done.path.read_bytes()
    assert (tmp_path / "a" / "state.safetensors").read_bytes() == (tmp_path / "b" / "state.safetensors").read_bytes()
    assert "4 of them before" in done.report


def test_an_interruption_leaves_a_lora_that_works(source, data, base, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(source, data, tmp_path / "a.safetensors", tmp_path / "run", dataclasses.replace(QUICK, lr=0.05), Stop(3))
    assert not (tmp_path / "a.safetensors").exists()
    model = sa3_core.load(base)
    plain = model.generate("sound 1", 0.5, steps=2).audio[0]
    assert "dora-rows, rank 2" in model.add_lora(tmp_path / "a_step000003.safetensors")
    assert rel_error(model.generate("sound 1", 0.5, steps=2).audio[0], plain) > 1e-3


@pytest.mark.parametrize("kind", TYPES)
def test_files_of_every_kind_work_at_once(source, data, base, tmp_path, kind):
    settings = dataclasses.replace(QUICK, kind=kind, steps=4, lr=0.02, exclude=("layers.1.",))
    done = train(source, data, tmp_path / "a.safetensors", tmp_path / "run", settings)
    lora = read_lora(done.path)
    assert lora.layout == "native" and lora.kind == ("dora-rows" if kind == "dora" else kind) and lora.ranks == [2]
    assert not any("layers.1." in layer for layer in lora.layers) and lora.base == source.name
    model = sa3_core.load(base)
    plain = model.generate("sound 1", 0.5, steps=2, seed=1).audio[0]
    assert "Warning" not in model.add_lora(done.path)
    assert rel_error(model.generate("sound 1", 0.5, steps=2, seed=1).audio[0], plain) > 1e-4
    model.remove_loras()
    model.add_lora(done.path, strength=0.0)
    assert torch.equal(model.generate("sound 1", 0.5, steps=2, seed=1).audio[0], plain)


def test_what_the_file_computes_is_what_was_trained(source, data, tmp_path):
    """The loss with the file's fp16 tensors in the inference code equals the trainer's last evaluation."""
    settings = dataclasses.replace(QUICK, steps=8, lr=0.01, kind="dora-cols")
    done = train(source, data, tmp_path / "a.safetensors", tmp_path / "run", settings)
    model = sa3_core.load(source.checkpoint)
    model.add_lora(done.path)
    clips = load(source, data, validation=0.25)
    values = []
    for i, clip in enumerate(clips.training):
        z, valid = clips.crop(clip, 11, None)
        condition = model.condition(model.encode_text(clip.caption), [float(clip.seconds)])
        values.append(flow.fixed_noise_loss(model.module, flow.Batch(z[None], [valid], condition), i))
    assert sum(values) / len(values) == pytest.approx(done.history[-1]["training"], rel=2e-3)
    assert done.history[-1]["training"] != pytest.approx(done.history[0]["training"], rel=2e-3)


def test_the_metadata_is_complete(source, data, tmp_path):
    settings = dataclasses.replace(QUICK, alpha=4.0, exclude=("seconds_total",))
    done = train(source, data, tmp_path / "a.safetensors", tmp_path / "run", settings)
    with safe_open(done.path, "pt") as file:
        config = json.loads(file.metadata()["lora_config"])
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        assert all(name.startswith("model.") for name in file.keys())  # noqa: SIM118
    wanted = {
        "rank": 2, "alpha": 4.0, "adapter_type": "dora-rows", "dropout": 0.0, "include": None, "exclude": ["seconds_total"],
        "base_model": "stable-audio-3-small-music-base", "step": 6, "epoch": 2, "lr": 1e-4, "batch": 1, "seed": 42, "seconds": 1.0,
        "clips": 3, "held_out": 1, "base_dtype": "fp32",
    }  # fmt: skip
    assert {key: config.get(key) for key in wanted} == wanted
    assert read_lora(done.path).layers["to_cond_embed.0"].scale == 2.0
    assert "trained on stable-audio-3-small-music-base" in read_lora(done.path).details()


def test_two_trained_loras_stack_in_the_order_of_the_chain(source, data, base, tmp_path):
    files = [
        train(
            source, data, tmp_path / f"{i}.safetensors", tmp_path / f"{i}",
            dataclasses.replace(QUICK, seed=i, lr=0.02, kind=kind, exclude=("seconds_total",)),
        ).path
        for i, kind in enumerate(("lora", "dora-rows"))
    ]  # fmt: skip
    model = sa3_core.load(base)
    weight = model.dit.transformer.layers[0].ff.ff[2].weight.clone()
    reports = [model.add_lora(file) for file in files]
    assert len(reports[1].splitlines()) == 2 and "Warning" not in reports[1]
    adapters = [(read_lora(file).layers["transformer.layers.0.ff.ff.2"], 1.0, "chain") for file in files]
    assert rel_error(model.dit.transformer.layers[0].ff.ff[2].weight, apply_stack(weight, adapters)) < 1e-6
    model.remove_loras()
    assert torch.equal(model.dit.transformer.layers[0].ff.ff[2].weight, weight)


def test_more_steps_resume_and_keep_the_shorter_result(source, data, tmp_path):
    def run(steps):
        return train(source, data, tmp_path / "a.safetensors", tmp_path / "run", dataclasses.replace(QUICK, steps=steps))

    first = run(3).path.read_bytes()
    stamp = (tmp_path / "a.safetensors").stat().st_mtime_ns
    assert run(3).path.stat().st_mtime_ns == stamp  # finished: nothing is written
    run(5)
    assert (tmp_path / "a_step000003.safetensors").read_bytes() == first != (tmp_path / "a.safetensors").read_bytes()
    assert read_lora(tmp_path / "a.safetensors").config["step"] == 5
    straight = train(source, data, tmp_path / "b.safetensors", tmp_path / "other", dataclasses.replace(QUICK, steps=5))
    assert straight.path.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_files_of_other_runs_are_not_overwritten(source, data, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"somebody's")
    with refused("a.safetensors", "exists already"):
        train(source, data, tmp_path / "a.safetensors", tmp_path / "run", QUICK)
    assert (tmp_path / "a.safetensors").read_bytes() == b"somebody's"
    train(source, data, tmp_path / "b.safetensors", tmp_path / "b", QUICK)
    with refused("rank 2 is now 3", "other settings"):
        train(source, data, tmp_path / "b.safetensors", tmp_path / "b", dataclasses.replace(QUICK, rank=3))


@pytest.mark.parametrize("change", ["caption", "clip"])
def test_a_run_is_not_resumed_with_other_clips(source, data, tmp_path, change):
    shutil.copytree(data, tmp_path / "clips")
    with pytest.raises(KeyboardInterrupt):
        train(source, tmp_path / "clips", tmp_path / "a.safetensors", tmp_path / "run", QUICK, Stop(2))
    file = next(path for path in sorted((tmp_path / "clips").iterdir()) if path.suffix == (".txt" if change == "caption" else ".wav"))
    before = file.read_bytes()
    if change == "caption":
        file.write_text("another caption")
    else:
        file.unlink()
        write_clip(file, seed=99)
    with refused("clips or captions", "have changed"):
        train(source, tmp_path / "clips", tmp_path / "a.safetensors", tmp_path / "run", QUICK)
    file.write_bytes(before)
    if change == "caption":
        assert train(source, tmp_path / "clips", tmp_path / "a.safetensors", tmp_path / "run", QUICK).path.is_file()


@pytest.mark.parametrize("rank", [0, 1025, 100000, 2.5, True])
def test_a_rank_out_of_range_is_refused(rank):
    with refused("rank is", "1 to 1024"):
        dataclasses.replace(QUICK, rank=rank)


def test_the_base_must_be_a_base(tmp_path, data):
    post = lay_out(tmp_path / "stable-audio-3-small-music", "small")
    with refused("post-trained", "-base"):
        train(open_base(str(post), None, "cpu"), data, tmp_path / "a.safetensors", tmp_path / "run", QUICK)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_16_bit_base_trains_float32_adapters(source, data, tmp_path, dtype):
    settings = dataclasses.replace(QUICK, dtype=dtype, steps=8, lr=0.005)
    done = train(source, data, tmp_path / "a.safetensors", tmp_path / "run", settings)
    state = TensorFile(tmp_path / "run" / "state.safetensors")
    assert {state.dtype(name) for name in state.names} == {"F32"}
    moved = [name for name in state.names if name.startswith("weight/") and name.endswith("lora_B") and bool(state.read(name).any())]
    assert len(moved) == len(read_lora(done.path).layers)


def test_it_learns(source, data, tmp_path):
    done = train(source, data, tmp_path / "a.safetensors", tmp_path / "run", dataclasses.replace(QUICK, steps=60, lr=0.01, batch=2))
    assert done.history[0]["training"] > 1.02 * done.history[-1]["training"]
    assert {"step", "loss", "training", "validation"} == set(done.history[-1])


def test_samples_during_training(source, data, tmp_path):
    callbacks = Stop()
    settings = dataclasses.replace(QUICK, prompt="sound 1", preview_every=4, preview_seconds=0.5, preview_steps=2, save_every=4)
    done = train(source, data, tmp_path / "a.safetensors", tmp_path / "run", settings, callbacks)
    assert callbacks.samples == [(4, (2, RATE // 2), RATE), (6, (2, RATE // 2), RATE)]
    assert (tmp_path / "run" / "sample_step000004.wav").is_file() and (tmp_path / "a_step000004.safetensors").is_file()
    model = sa3_core.load(source.checkpoint)
    model.add_lora(done.path)
    again = model.generate("sound 1", 0.5, steps=2, seed=42).audio[0]
    assert rel_error(again, done.sample) < 1e-2  # the file rounds to 16 bits


# --- the command


def test_the_command(base, data, tmp_path, capsys):
    words = ["--data", str(data), "--model", str(base), "--out", str(tmp_path / "x.safetensors"), "--rank", "2", "--steps", "3",
             "--seconds", "1", "--exclude", "seconds_total", "to_qkv", "--device", "cpu"]  # fmt: skip
    before = signal.getsignal(signal.SIGINT)
    assert main(words) == 0
    assert signal.getsignal(signal.SIGINT) is before
    output = capsys.readouterr().out
    assert "3 steps" in output and str(tmp_path / "x.safetensors") in output
    assert (tmp_path / "x.training" / "losses.png").is_file()
    assert read_lora(tmp_path / "x.safetensors").config["exclude"] == ["seconds_total", "to_qkv"]
    assert main([*words, "--rank", "3"]) == 1
    assert "other settings" in capsys.readouterr().err


def test_ctrl_c_stops_after_the_step_and_the_command_resumes(base, data, tmp_path, monkeypatch, capsys):
    from sa3_core.training import __main__ as command

    words = ["--data", str(data), "--model", str(base), "--out", str(tmp_path / "x.safetensors"), "--rank", "2", "--steps", "5",
             "--seconds", "1", "--device", "cpu"]  # fmt: skip
    original = command.ConsoleCallbacks.step

    def step(self, number, steps, loss):
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        original(self, number, steps, loss)

    with monkeypatch.context() as patched:
        patched.setattr(command.ConsoleCallbacks, "step", step)
        assert main(words) == 130
    assert "same command resumes" in capsys.readouterr().err and (tmp_path / "x_step000002.safetensors").is_file()
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "x.safetensors").stat()
        pytest.fail("a stopped run has written its last file")
    assert main(words) == 0 and "2 of them before" in capsys.readouterr().out


def test_the_medium_family_is_trained_too(data, tmp_path):
    """Differential attention has weights of other shapes; a checkpointed run gives the same file as one that is not."""
    base = lay_out(tmp_path / "stable-audio-3-medium-base", "medium-base")
    files = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        settings = dataclasses.replace(QUICK, checkpointing=checkpointing)
        files.append(train(open_base(str(base), None, "cpu"), data, folder / "new.safetensors", folder / "run", settings).path)
    plain, checkpointed = files
    assert plain.read_bytes() == checkpointed.read_bytes()
    model = sa3_core.load(base)
    quick = {"duration": 0.5, "steps": 2, "seed": 3, "padding": 0.0, "return_latents": True}
    before = model.generate("a new sound", **quick).latents
    model.add_lora(plain)
    assert rel_error(model.generate("a new sound", **quick).latents, before) > 1e-3
    model.remove_loras()
    model.add_lora(plain, strength=0)
    assert torch.equal(model.generate("a new sound", **quick).latents, before)
