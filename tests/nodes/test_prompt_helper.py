"""SA3_PromptHelper as a graph uses it."""

import logging


def test_parts_become_a_prompt(sa3):
    prompt, seconds, instruction = sa3.run("SA3_PromptHelper", track_type="instrument loop", instruments="Rhodes", bpm=120.0, seconds=7.7)
    assert prompt == "TrackType: Instrument, Instruments: Rhodes, loop, 120 BPM"
    assert seconds == 8.0 and prompt in instruction


def test_rewritten_wins_unless_it_is_empty(sa3):
    assert sa3.run("SA3_PromptHelper", rewritten='"A storm."')[0] == "A storm."
    assert sa3.run("SA3_PromptHelper", rewritten=" \n")[0] == sa3.run("SA3_PromptHelper")[0]


def test_a_prompt_that_is_cut_is_noticed(sa3, load, caplog):
    with caplog.at_level(logging.WARNING, "sa3"):
        sa3.prompt(load("small").clip, "rain " * 800)
        assert "tokens; the model reads the first" in caplog.text
        sa3.prompt(load("small").clip, "rain\n" + "rain " * 800, one_prompt_per_line=True)
    assert "Prompt 2 has" in caplog.text


def test_a_long_prompt_is_noticed(sa3, caplog):
    with caplog.at_level(logging.WARNING, "sa3"):
        sa3.run("SA3_PromptHelper", rewritten="rain " * 300)
    assert "reads the first 256" in caplog.text
