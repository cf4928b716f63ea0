"""Prompts are encoded once: what is kept, for whom, how much of it, and that it changes no byte."""

import gc
import os
import shutil

import pytest
import torch
from core_support import TEXT_ENCODER
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core.checkpoints import checkpoint
from sa3_core.models import text_encoder
from sa3_core.models.text_encoder import Encodings

PROMPTS = ["heavy rain on a tin roof", "kick"]


@pytest.fixture(autouse=True)
def nothing_kept():
    text_encoder.ENCODINGS.clear()
    yield
    text_encoder.ENCODINGS.clear()


@pytest.fixture
def runs(monkeypatch):
    """One entry per time that an encoder computes."""
    compute, seen = text_encoder.TextEncoder.compute, []
    monkeypatch.setattr(text_encoder.TextEncoder, "compute", lambda self, tokens: (seen.append(self), compute(self, tokens))[1])
    return seen


def test_a_second_prompt_of_the_same_words_computes_nothing_and_is_the_same_bytes(release, runs):
    model = sa3_core.load(release("small"))
    first = model.encode_text(PROMPTS)
    second, other = model.encode_text(PROMPTS), model.encode_text(PROMPTS[:1])
    assert len(runs) == 2
    text_encoder.ENCODINGS.clear()
    again = model.encode_text(PROMPTS)
    assert torch.equal(first.embeddings, second.embeddings) and torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(other.embeddings, model.encode_text(PROMPTS[:1]).embeddings)


def test_a_run_with_the_cache_is_the_run_without(release, runs):
    model = sa3_core.load(release("small"))
    one, two = (model.generate("rain", 0.5, steps=2, seed=3).audio[0] for _ in range(2))
    assert len(runs) == 1 and torch.equal(one, two)


def test_a_model_loaded_again_knows_its_prompts_and_another_number_format_does_not(release, runs):
    folder = release("small")
    first = sa3_core.load(folder).encode_text("rain").embeddings
    gc.collect()
    assert torch.equal(sa3_core.load(folder).encode_text("rain").embeddings, first) and len(runs) == 1
    half = sa3_core.load(folder, dtype=torch.bfloat16).encode_text("rain").embeddings
    assert len(runs) == 2 and half.dtype == torch.bfloat16


def test_a_replaced_file_of_the_same_size_and_time_is_encoded_anew(release, runs):
    folder = release("small") / TEXT_ENCODER
    old, weights = checkpoint.load_text_encoder(folder), folder / "model.safetensors"
    before = old(old.tokenize(PROMPTS, 32))
    stat = weights.stat()
    save_file({name: tensor * 1.25 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new = checkpoint.load_text_encoder(folder)
    assert not torch.equal(new(new.tokenize(PROMPTS, 32)), before) and len(runs) == 2
    assert torch.equal(old(old.tokenize(PROMPTS, 32)), before) and len(runs) == 2  # the old one is still there and what it was


def test_who_writes_into_an_encoding_changes_only_a_copy(release):
    encoder = checkpoint.load_text_encoder(release("small") / TEXT_ENCODER)
    tokens = encoder.tokenize(PROMPTS, 32)
    first = encoder(tokens)
    wanted = first.clone()
    first.zero_()
    encoder(tokens).zero_()
    assert torch.equal(encoder(tokens), wanted)


def test_encodings_go_with_their_model_once_another_is_loaded(release, tmp_path):
    folder = release("small") / TEXT_ENCODER
    encoder = checkpoint.load_text_encoder(folder)
    encoder(encoder.tokenize(PROMPTS, 32))
    shutil.copytree(folder, tmp_path / "other")
    other = checkpoint.load_text_encoder(tmp_path / "other")
    assert len(text_encoder.ENCODINGS) == 1
    del encoder
    gc.collect()
    another = checkpoint.load_text_encoder(tmp_path / "other")
    assert len(text_encoder.ENCODINGS) == 0 and another.identity == other.identity


def test_little_is_kept_and_what_was_used_last_stays():
    encodings, tensor = Encodings(entries=3, size=1000), torch.zeros(50)
    for i in range(3):
        encodings.put((i,), tensor)
    assert encodings.get((0,)) is not None
    encodings.put((3,), tensor)
    assert (0,) in encodings and (1,) not in encodings and len(encodings) == 3
    encodings.put((4,), torch.zeros(200))
    assert encodings.nbytes <= 1000 and (4,) in encodings and (3,) in encodings and len(encodings) == 2
    encodings.put((5,), torch.zeros(300))  # larger than all there is room for: it throws nothing out
    assert (5,) not in encodings and len(encodings) == 2
