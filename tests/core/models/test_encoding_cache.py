"""The cache of prompt encodings: its keys, its limits, its lifetime, and that it changes no byte."""

import gc
import os
import shutil

import pytest
import torch
from core_support import TEXT_ENCODER
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core.backends.tensor_cache import TensorCache
from sa3_core.checkpoints import checkpoint
from sa3_core.models import text_encoder

PROMPTS = ["heavy rain on a tin roof", "kick"]


@pytest.fixture(autouse=True)
def empty_cache():
    text_encoder.ENCODINGS.discard()
    yield
    text_encoder.ENCODINGS.discard()


@pytest.fixture
def computed(monkeypatch):
    """One entry per call of an encoder's `compute`."""
    compute, seen = text_encoder.TextEncoder.compute, []
    monkeypatch.setattr(text_encoder.TextEncoder, "compute", lambda self, tokens: (seen.append(self), compute(self, tokens))[1])
    return seen


def test_a_repeated_batch_of_prompts_is_cached_and_bitwise_equal(release, computed):
    model = sa3_core.load(release("small"))
    first = model.encode_text(PROMPTS)
    second, other = model.encode_text(PROMPTS), model.encode_text(PROMPTS[:1])
    assert len(computed) == 2
    text_encoder.ENCODINGS.discard()
    again = model.encode_text(PROMPTS)
    assert torch.equal(first.embeddings, second.embeddings) and torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(other.embeddings, model.encode_text(PROMPTS[:1]).embeddings)


def test_a_run_with_the_cache_equals_a_run_without(release, computed):
    model = sa3_core.load(release("small"))
    one, two = (model.generate("rain", 0.5, steps=2, seed=3).audio[0] for _ in range(2))
    assert len(computed) == 1 and torch.equal(one, two)


def test_a_reloaded_model_shares_the_cache_and_another_dtype_does_not(release, computed):
    folder = release("small")
    first = sa3_core.load(folder).encode_text("rain").embeddings
    gc.collect()
    assert torch.equal(sa3_core.load(folder).encode_text("rain").embeddings, first) and len(computed) == 1
    half = sa3_core.load(folder, dtype=torch.bfloat16).encode_text("rain").embeddings
    assert len(computed) == 2 and half.dtype == torch.bfloat16


def test_a_replaced_file_of_the_same_size_and_time_invalidates_the_cache(release, computed):
    folder = release("small") / TEXT_ENCODER
    old, weights = checkpoint.load_text_encoder(folder), folder / "model.safetensors"
    before = old(old.tokenize(PROMPTS, 32))
    stat = weights.stat()
    save_file({name: tensor * 1.25 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new = checkpoint.load_text_encoder(folder)
    assert not torch.equal(new(new.tokenize(PROMPTS, 32)), before) and len(computed) == 2
    assert torch.equal(old(old.tokenize(PROMPTS, 32)), before) and len(computed) == 2  # the old encoder's entry remains


def test_writing_into_an_encoding_does_not_change_the_cache(release):
    encoder = checkpoint.load_text_encoder(release("small") / TEXT_ENCODER)
    tokens = encoder.tokenize(PROMPTS, 32)
    first = encoder(tokens)
    wanted = first.clone()
    first.zero_()
    encoder(tokens).zero_()
    assert torch.equal(encoder(tokens), wanted)


def test_encodings_of_a_deleted_model_are_discarded_when_another_is_loaded(release, tmp_path):
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


def test_the_least_recently_used_entries_are_evicted_first():
    cache, tensor = TensorCache(entries=3, size=1000), torch.zeros(50)
    for i in range(3):
        cache.store((i,), tensor)
    assert cache.get((0,)) is not None
    cache.store((3,), tensor)
    assert (0,) in cache and (1,) not in cache and len(cache) == 3
    cache.store((4,), torch.zeros(200))
    assert cache.nbytes <= 1000 and (4,) in cache and (3,) in cache and len(cache) == 2
    cache.store((5,), torch.zeros(300))  # larger than the cache: evicts nothing
    assert (5,) not in cache and len(cache) == 2
