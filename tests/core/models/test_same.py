"""The autoencoder: lengths, chunks, noise.

The tiny SAME-L has two blocks, each with a window of 17 tokens, which is one latent frame: its reach is two frames. The tiny
SAME-S attends within pairs of frames, then within pairs shifted by one (reach: one frame), and its decoder has a convolution
over three patches (one more frame). Both need two frames of context on each side: with an overlap of 4 a chunked pass equals
the single one, with an overlap of 0 it does not.
"""

import json

import pytest
import torch
from core_support import FAMILIES, config_dict, randn, refused, rel_error, watched
from safetensors.torch import save_file

import sa3_core
from sa3_core.backends import cpu
from sa3_core.models.layers import DyT
from sa3_core.models.same import NOISE_BLOCK, Noise

SPF = 4096
CHUNKS = [(8, 4), (10, 4), (32, 16)]


def audio(frames: float, batch: int = 1, seed: int = 0):
    return randn(batch, 2, int(frames * SPF), seed=seed) * 0.3


def latents(frames: int, batch: int = 1, seed: int = 0):
    return randn(batch, 32, frames, seed=seed)


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_tiny_models_have_the_layout_that_the_chunk_tests_assume(model, variant):
    for side in (model.config.same.encoder, model.config.same.decoder):
        assert side.depth == 2
        assert (side.window, side.align) in {(17, 1), (None, 2)}


@pytest.mark.parametrize(("chunk", "overlap"), CHUNKS)
@pytest.mark.parametrize("variant", FAMILIES)
def test_chunked_decode_equals_a_single_pass(model, variant, chunk, overlap):
    for frames in range(1, 42):
        z = latents(frames)
        assert rel_error(model.decode(z, chunk, overlap), model.decode(z)) < 1e-5, frames


@pytest.mark.parametrize(("chunk", "overlap"), CHUNKS)
@pytest.mark.parametrize("variant", FAMILIES)
def test_chunked_encode_equals_a_single_pass(model, variant, chunk, overlap):
    for frames in range(1, 42):
        x = audio(frames - 0.3)
        assert rel_error(model.encode(x, chunk, overlap), model.encode(x)) < 1e-5, frames


@pytest.mark.parametrize("rows", [1, 100, 10_000])
def test_groups_of_rows_change_nothing(load_model, rows, monkeypatch):
    model = load_model("small")
    z, x = latents(41, batch=2), audio(41, batch=2)
    decoded, encoded = model.decode(z), model.encode(x)
    monkeypatch.setattr(cpu, "GROUP_ROWS", rows)
    assert rel_error(model.decode(z), decoded) < 1e-5 and rel_error(model.encode(x), encoded) < 1e-5


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("frames", [2, 31, 97, 128])
def test_the_rows_of_a_group_are_limited(load_model, frames, batch):
    decoder, seen = load_model("small").autoencoder.decoder, []
    blocks = decoder.layers[3].transformers
    with torch.no_grad(), watched((block, lambda h, *_: seen.append(h.shape[:2].numel())) for block in blocks):
        decoder(latents(frames, batch), None)
    assert max(seen) <= cpu.GROUP_ROWS and sum(seen) > batch * frames * 17


@pytest.mark.parametrize("variant", FAMILIES)
def test_chunks_without_overlap_differ_from_a_single_pass(model, variant):
    z, x = latents(40), audio(40)
    assert rel_error(model.decode(z, 8, 0), model.decode(z)) > 1e-3
    assert rel_error(model.encode(x, 8, 0), model.encode(x)) > 1e-3


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("variant", FAMILIES)
def test_lengths(model, variant, frames):
    assert model.encode(audio(frames)).shape == (1, 32, frames)
    assert model.encode(audio(frames)[..., :-1]).shape == (1, 32, frames)
    assert model.encode(audio(frames)[..., : (frames - 1) * SPF + 1]).shape == (1, 32, frames)
    assert model.decode(latents(frames)).shape == (1, 2, frames * SPF)


@pytest.mark.parametrize("variant", FAMILIES)
def test_an_incomplete_frame_is_zero_padded(model, variant):
    x = audio(4.3)
    padded = torch.nn.functional.pad(x, (0, 5 * SPF - x.shape[-1]))
    assert torch.equal(model.encode(x), model.encode(padded))


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_batch_item_equals_itself_alone(model, variant):
    z, x = latents(7, batch=3), audio(7, batch=3)
    for i in range(3):
        assert rel_error(model.decode(z)[i], model.decode(z[i : i + 1])[0]) < 1e-5
        assert rel_error(model.encode(x)[i], model.encode(x[i : i + 1])[0]) < 1e-5


@pytest.mark.parametrize(("variant", "reached"), [("small", range(8, 14)), ("medium", range(8, 12))])
def test_a_frame_reaches_its_neighbours_only(model, variant, reached):
    z = latents(20)
    changed = z.clone()
    changed[..., 10] += 1.0
    moved = (model.decode(changed) - model.decode(z)).unflatten(-1, (20, SPF)).abs().amax((0, 1, 3)).nonzero().flatten().tolist()
    assert moved == list(reached)


def test_progress_is_reported_once_per_chunk(load_model):
    reports = []
    load_model("medium").autoencoder.decode(latents(20), 8, 4, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Noise


@pytest.mark.parametrize("variant", FAMILIES)
def test_no_noise_is_deterministic_and_a_seed_repeats(model, variant):
    z = latents(9)
    torch.manual_seed(1)
    clean, seeded = model.decode(z), model.decode(z, noise=7)
    torch.manual_seed(2)
    assert torch.equal(model.decode(z), clean)
    assert torch.equal(model.decode(z, noise=7), seeded)
    assert not torch.equal(model.decode(z, noise=8), seeded)
    assert 0 < rel_error(seeded, clean) < 0.5


def test_noise_leaves_the_global_generator_alone(load_model):
    torch.manual_seed(3)
    wanted = torch.randn(4)
    torch.manual_seed(3)
    load_model("medium").decode(latents(3), noise=7)
    assert torch.equal(torch.randn(4), wanted)


def test_encoder_noise_follows_the_config(load_model):
    x = audio(6)
    quiet, noisy = load_model("small"), load_model("medium")
    assert quiet.config.same.encoder.mask_noise == 0 < noisy.config.same.encoder.mask_noise
    assert torch.equal(quiet.encode(x, noise=7), quiet.encode(x))
    assert not torch.equal(noisy.encode(x, noise=7), noisy.encode(x))


@pytest.mark.parametrize(("start", "frames"), [(0, 1), (5, 20), (31, 1), (31, 2), (32, 32), (33, 70), (0, 100)])
def test_noise_of_a_range_is_a_slice_of_the_whole(start, frames):
    whole = Noise(7, items=[3]).draw("decoder", 1, 4 * NOISE_BLOCK, 5)
    assert torch.equal(Noise(7, items=[3]).at(start).draw("decoder", 1, frames, 5), whole[:, start : start + frames])


def test_noise_is_independent_by_seed_item_purpose_and_frame():
    draws = [Noise(7), Noise(8), Noise(7, items=[1])]
    rows = [noise.draw("decoder", 1, 64, 8)[0] for noise in draws] + [Noise(7).draw("latents", 1, 64, 8)[0]]
    rows.append(rows[0].roll(NOISE_BLOCK, 0))
    for i, row in enumerate(rows):
        assert abs(float(row.mean())) < 0.2 and abs(float(row.std()) - 1) < 0.2
        assert all(abs(float((row * other).mean())) < 0.2 for other in rows[:i])


@pytest.mark.parametrize("variant", FAMILIES)
def test_noise_is_the_same_in_chunks(model, variant):
    z, x = latents(41), audio(41)
    assert rel_error(model.decode(z, 10, 4, noise=7), model.decode(z, noise=7)) < 1e-5
    assert rel_error(model.encode(x, 10, 4, noise=7), model.encode(x, noise=7)) < 1e-5


@pytest.mark.parametrize("variant", FAMILIES)
def test_noise_of_a_batch_item_is_its_own(model, variant):
    z = latents(1).expand(3, -1, 9)
    with torch.no_grad():
        together = model.autoencoder.decode(z, noise=Noise(7))
        alone = [model.autoencoder.decode(z[i : i + 1], noise=Noise(7, items=[i]))[0] for i in range(3)]
    for i in range(3):
        assert rel_error(together[i], alone[i]) < 1e-5
    assert not torch.equal(together[0], together[1])


# Invalid input


@pytest.mark.parametrize("shape", [(2, SPF), (1, 1, SPF), (1, 3, SPF), (1, 2, 0), (1, 1, 2, SPF)])
def test_audio_of_another_shape_is_refused(load_model, shape):
    with refused("audio", shape, 2):
        load_model("small").encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(32, 5), (1, 64, 5), (1, 32, 0), (1, 32, 5, 1)])
def test_latents_of_another_shape_are_refused(load_model, shape):
    with refused("latents", shape, 32):
        load_model("small").decode(torch.zeros(shape))


@pytest.mark.parametrize(("chunk", "overlap"), [(0, 0), (-8, 4), (8, 8), (8, 9), (8, -2)])
@pytest.mark.parametrize("variant", FAMILIES)
def test_invalid_chunks_are_refused(model, variant, chunk, overlap):
    with refused("chunk size", chunk, "overlap", overlap):
        model.decode(latents(20), chunk, overlap)


@pytest.mark.parametrize(("chunk", "overlap"), [(9, 4), (8, 3)])
def test_chunks_that_split_a_pair_are_refused_for_same_s(load_model, chunk, overlap):
    with refused("multiples of 2", chunk, overlap):
        load_model("small").decode(latents(20), chunk, overlap)


def test_a_standalone_autoencoder_encodes_and_decodes_only(load_model, tmp_path):
    """A SAME release: bare names, no conditioner, no transformer."""
    source = load_model("small")
    same = config_dict("small")["model"]["pretransform"]["config"]
    config = {"model_type": "autoencoder", "sample_rate": 44100, "audio_channels": 2, "model": same}
    (tmp_path / "model_config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in source.autoencoder.state_dict().items()}, tmp_path / "model.safetensors")
    model, z = sa3_core.load(tmp_path), latents(5)
    assert torch.equal(model.decode(z), source.decode(z))
    assert model.encode(audio(5)).shape == (1, 32, 5)
    for use in (lambda: model.dit, lambda: model.encode_text("a"), lambda: model.generate("a", 1.0)):
        with refused("standalone autoencoder"):
            use()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_dynamic_tanh_is_gamma_tanh_of_alpha_x_plus_beta(scale):
    norm = DyT(24)
    norm.load_state_dict({"alpha": torch.tensor([0.7]), "gamma": randn(24, seed=1), "beta": randn(24, seed=2)})
    x = (scale * randn(5, 24, seed=3)).requires_grad_()
    alpha, gamma, beta = (p.detach().double() for p in (norm.alpha, norm.gamma, norm.beta))
    wanted = gamma * torch.tanh(alpha * x.double()) + beta
    found = norm(x, torch.float32)
    assert (found - wanted).abs().max() < 1e-6
    slope, wanted_slope = (torch.autograd.grad(y.square().sum(), x)[0] for y in (found, wanted))
    assert rel_error(slope, wanted_slope) < 1e-5
