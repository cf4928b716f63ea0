"""Prompts -> tokens -> embeddings -> conditioning."""

import json

import pytest
import torch
from core_support import DATA, TEXT_ENCODER, VARIANTS, randn, recorded, refused, rel_error
from tokenizers.processors import TemplateProcessing

from sa3_core.checkpoints import checkpoint
from sa3_core.models.text_encoder import Tokens
from sa3_core.pipeline import DEMOS

PROMPTS = ["heavy rain on a tin roof", "kick", "lo-fi hip hop beat, 90 BPM", ""]
LONG = "a very long prompt " * 100


def edit_json(path, **changes):
    values = json.loads(path.read_text())
    values["encoder"].update(changes)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def encoder():
    return checkpoint.load_text_encoder(DATA / TEXT_ENCODER)


def test_the_softcap_has_an_effect(release, encoder):
    folder = release("small") / TEXT_ENCODER
    edit_json(folder / "config.json", attn_logit_softcapping=None)
    tokens = encoder.tokenize(PROMPTS, 32)
    capped, uncapped = encoder(tokens), checkpoint.load_text_encoder(folder)(tokens)
    assert rel_error(uncapped, capped) > 1e-3


def test_attention_is_eager(encoder):
    assert encoder.model.config._attn_implementation == "eager"
    assert encoder.config.attn_logit_softcapping == 50.0
    found = {module.config._attn_implementation for module in encoder.model.modules() if hasattr(module, "config")}
    assert found == {"eager"}


def test_the_softmax_receives_capped_logits(encoder, monkeypatch):
    """Every unmasked logit is within +-50, and large enough for the cap to matter."""
    seen, original = [], torch.nn.functional.softmax

    def watch(x, *args, **kwargs):
        seen.append(x[x > -1e9].abs().max())
        return original(x, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "softmax", watch)
    encoder(encoder.tokenize(PROMPTS[:1], 32))
    assert len(seen) == encoder.config.num_hidden_layers
    assert 20 < max(seen) <= 50


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
def test_tokens_have_no_bos_no_eos_and_zero_padding(encoder, prompt):
    tokens = encoder.tokenize([prompt], 32)
    n = int(tokens.mask.sum())
    wanted = encoder.tokenizer.encode(prompt, add_special_tokens=False).ids[:32]
    assert tokens.ids.shape == tokens.mask.shape == (1, 32)
    assert tokens.ids[0, :n].tolist() == wanted
    assert not tokens.mask[0, n:].any() and not tokens.ids[0, n:].any()
    assert not {encoder.config.bos_token_id, encoder.config.eos_token_id} & set(wanted)


def test_a_tokenizer_that_adds_bos_and_eos_is_used_without_them():
    encoder, tokens = checkpoint.load_text_encoder(DATA / TEXT_ENCODER), [("<bos>", 2), ("<eos>", 1)]
    expected = encoder.tokenize(PROMPTS, 32)
    encoder.tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=tokens)
    assert encoder.tokenizer.encode("kick").ids[0] == 2
    assert torch.equal(encoder.tokenize(PROMPTS, 32).ids, expected.ids)


def test_a_long_prompt_is_cut_to_max_tokens(load_model):
    model = load_model("small")
    ids = model.text_encoder.tokenizer.encode(LONG, add_special_tokens=False).ids
    text = model.encode_text(LONG)
    assert len(ids) > 32 and text.input_ids[0].tolist() == ids[:32] and text.mask.all()
    assert torch.equal(model.encode_text(LONG + " and more").embeddings, text.embeddings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_empty_prompt_is_all_learned_rows(model, variant):
    text = model.encode_text("")
    learned = model.module.conditioner.conditioners["prompt"].padding_embedding
    assert not text.mask.any()
    assert torch.equal(text.embeddings[0], learned.expand(32, -1))
    assert float(learned.norm()) > 0


def test_padding_rows_are_learned_in_a_prompt_and_zero_in_a_negative_one(load_model):
    model = load_model("small")
    text = model.encode_text("kick")
    n = int(text.mask.sum())
    positive, negative = model.condition(text, [3.0]), model.condition(text, [3.0], negative=True)
    learned = model.module.conditioner.conditioners["prompt"].padding_embedding
    assert torch.equal(positive.cross_attn[0, n:32], learned.expand(32 - n, -1))
    assert not negative.cross_attn[0, n:32].any()
    assert torch.equal(positive.cross_attn[0, :n], negative.cross_attn[0, :n])
    assert torch.equal(positive.cross_attn[0, 32], negative.cross_attn[0, 32])  # the seconds row stays
    assert torch.equal(positive.global_cond, negative.global_cond)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_batch_of_prompts_equals_each_alone(load_model, prompt):
    model = load_model("small")
    together = model.encode_text([*PROMPTS, LONG])
    assert rel_error(together.embeddings[PROMPTS.index(prompt)], model.encode_text(prompt).embeddings[0]) < 1e-5


def test_computing_only_real_positions_changes_nothing(encoder):
    """The encoder computes the longest prompt's length, the public code all positions."""
    tokens = encoder.tokenize(PROMPTS[:2], 32)
    short = encoder(tokens)
    full = encoder.model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    for i, n in enumerate(tokens.mask.sum(1).tolist()):
        assert rel_error(short[i, :n], full[i, :n]) < 1e-5


def test_seconds_are_clamped_to_the_embedder(load_model):
    model = load_model("small")
    rows = model.condition(model.encode_text([""] * 4), [384.0, 500.0, 0.0, -3.0]).global_cond
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[2], rows[3])
    assert rel_error(rows[2], rows[0]) > 1e-2


def test_a_prompt_must_be_text(load_model):
    with refused("int", "text"):
        load_model("small").encode_text([5])


def test_embeddings_of_another_width_are_refused(load_model):
    with refused(48, 64, "text encoder"):
        load_model("small").module.conditioner(randn(1, 3, 48), torch.ones(1, 3, dtype=torch.bool), [1.0])


def test_the_encoder_accepts_tokens_from_elsewhere(encoder):
    ids, mask = recorded("small/golden")["cond.prompt.input_ids"].long(), recorded("small/golden")["cond.prompt.mask"].bool()
    out = encoder(Tokens(ids, mask))
    assert out.shape == (4, int(mask.sum(1).max()), encoder.config.hidden_size)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a low tone, then a kick every half second", []),
        ("TrackType: SFX, a low tone. A kick! (122 BPM)", []),
        ("TrackType: Music, VocalType: Instrumental, Genre: Dub Techno, 77 BPM; a bell", ["Dub", "Techno"]),
        ("a zither, a low zither\nTrackType: SFX\na gong", ["zither", "gong"]),
    ],
)
def test_the_demo_names_the_words_that_it_does_not_know(prompt, words):
    demo = checkpoint.load_text_encoder(DEMOS["demo"] / TEXT_ENCODER)
    assert demo.unknown_words([prompt]) == words


def test_a_large_vocabulary_has_no_unknown_words(encoder):
    assert encoder.unknown_words(["zither, Dub Techno"]) == []
