"""SA3_Tempo, SA3_CueSheet and SA3_Mix as a graph uses them."""

from __future__ import annotations

import logging
from fractions import Fraction
from types import SimpleNamespace

import rhythm_support as sounds
import torch


def audio(clip: torch.Tensor, rate: int = 44100) -> dict:
    return {"waveform": clip.reshape(1, -1, clip.shape[-1]), "sample_rate": rate}


def test_a_tempo_from_numbers(sa3):
    tempo, bpm, seconds, report = sa3.run("SA3_Tempo", bpm=97.5, beats_per_bar=3, key="am", offset=0.25, length="8 bars")
    assert (tempo.bpm, tempo.beats_per_bar, tempo.key, tempo.offset) == (97.5, 3, "A minor", 0.25)
    assert (
        bpm == 97.5
        and int(seconds * 44100) == round(24 * 60 / 97.5 * 44100)
        and report == "97.5 BPM, 3/4, A minor, first downbeat at 0.250 s, as entered"
    )


def test_a_length_that_cannot_be_read_is_refused(sa3):
    for text in ("", "8", "0 bars", "eight bars"):
        with sa3.refused("length is", "expected bars or beats"):
            sa3.run("SA3_Tempo", length=text)


def test_the_duration_in_bars_is_exact_to_the_sample(sa3, load):
    tempo, _, seconds, _ = sa3.run("SA3_Tempo", bpm=173.3, length="2 beats")
    (decoded,) = sa3.decode(
        sa3.sample(load("small").model, sa3.prompt(load("small").clip, ""), sa3.empty(seconds), steps=1)[0], load("small").vae
    )
    assert decoded["waveform"].shape[-1] == tempo.samples(2, 44100)


def test_saved_files_tell_their_tempo(sa3, comfy, base_directory):
    tempo, *_ = sa3.run("SA3_Tempo", bpm=120.0, key="A minor")
    clip = {"waveform": torch.zeros(1, 2, 88200), "sample_rate": 44100}
    for kind, present in (("wav24", (b"smpl", b"acid")), ("flac", (b"BPM=120", b"INITIALKEY=Am")), ("mp3", (b"TBPM", b"TKEY"))):
        sa3.run("SA3_SaveAudio", audio=clip, filename_prefix=f"tempo/{kind}", format=kind, tempo=tempo)
        (file,) = (base_directory / "output" / "tempo").glob(f"{kind}_*")
        assert all(word in file.read_bytes() for word in present)
    with sa3.refused("tempo is int; expected the TEMPO of SA3 Tempo"):
        sa3.run("SA3_SaveAudio", audio=clip, filename_prefix="tempo/x", tempo=120)


def test_a_tempo_from_a_prompt(sa3):
    tempo, *_ = sa3.run("SA3_Tempo", bpm=0.0, prompt="TrackType: Music, Genre: house, 122 BPM, A minor")
    assert (tempo.bpm, tempo.key, tempo.beats_per_bar) == (122.0, "A minor", 4)
    assert sa3.run("SA3_Tempo", bpm=0.0, beats_per_bar=3, prompt="like AC/DC, 120 BPM")[0].beats_per_bar == 3  # that names no meter
    with sa3.refused("bpm is 0", "names no tempo", "enter bpm"):
        sa3.run("SA3_Tempo", bpm=0.0, prompt="rain")


def test_a_tempo_from_a_recording(sa3):
    tempo, *_, report = sa3.run("SA3_Tempo", bpm=0.0, audio=audio(sounds.drums(126.0, 8.0, 0.2, "house")))
    assert abs(tempo.bpm - 126) < 0.5 and abs(tempo.offset - 0.2) < 0.02 and "detected with confidence" in report
    with sa3.refused("no clear tempo", "enter bpm"):
        sa3.run("SA3_Tempo", bpm=0.0, audio=audio(torch.randn(1, 8 * 44100, generator=torch.Generator().manual_seed(0))))


SHEET = "0.5; a low tone; 1; -6; 0.5\n00:00:02:12; a kick; 0.5"


def test_a_cue_sheet_feeds_the_batch_nodes(sa3, load):
    prompts, seconds, cues, items = sa3.run("SA3_CueSheet", rows=SHEET, fps=24.0)
    assert prompts == "a low tone\na kick" and seconds == "1, 0.5" and items == 2 and [cue.start for cue in cues["cues"]] == [0.5, 2.5]
    latent = sa3.run("SA3_EmptyLatent", seconds_per_item=seconds)[0]
    assert latent["samples"].shape[0] == len(sa3.prompt(load("small").clip, prompts, one_prompt_per_line=True)[0][0])


def test_a_film_gives_its_rate_and_length(sa3):
    film = SimpleNamespace(get_frame_rate=lambda: Fraction(30), get_duration=lambda: 5.5)
    *_, cues, _ = sa3.run("SA3_CueSheet", rows="00:00:01:15; a kick", film=film)
    assert cues["cues"][0].start == 1.5 and cues["seconds"] == 5.5
    mixed, *_ = sa3.run("SA3_Mix", audio=[audio(torch.ones(2, 1000))], cues=[cues], seconds=[0.0], sample_rate=["48000"])
    assert mixed["waveform"].shape == (1, 2, 264000) and mixed["sample_rate"] == 48000


def test_stems_sum_to_the_mix(sa3):
    cues = sa3.run("SA3_CueSheet", rows=SHEET, fps=24.0)[2]
    given = [audio(torch.randn(2, n, generator=torch.Generator().manual_seed(n))) for n in (44100, 22050)]
    mixed, stems, report = sa3.run("SA3_Mix", audio=given, cues=[cues], seconds=[0.0], sample_rate=["as the sounds"])
    assert torch.equal(stems["waveform"][0] + stems["waveform"][1], mixed["waveform"][0]) and mixed["waveform"].shape[-1] == 132300
    assert report.splitlines()[0] == "0.500 s, 1.000 s: a low tone, -6 dB, pan +0.5"


def test_what_does_not_fit_is_said(sa3, caplog):
    cues = sa3.run("SA3_CueSheet", rows=SHEET, fps=24.0)[2]
    with sa3.refused("has 1 sounds and the cue sheet 2 rows"):
        sa3.run("SA3_Mix", audio=[audio(torch.ones(2, 1000))], cues=[cues], seconds=[0.0], sample_rate=["48000"])
    with caplog.at_level(logging.WARNING, "sa3"):
        sa3.run("SA3_Mix", audio=[audio(3 * torch.ones(2, 1000))] * 2, cues=[cues], seconds=[2.6], sample_rate=["as the sounds"])
    assert "Rows 2 end after the mix" in caplog.text and "of full scale" in caplog.text


def test_a_bad_row_is_named(sa3):
    with sa3.refused("Row 2 of the cue sheet", "gain is 'x'"):
        sa3.run("SA3_CueSheet", rows="0; a\n1; b; 1; x")


def test_a_last_sound_that_fits_within_a_sample_is_not_reported(sa3, caplog):
    cues = sa3.run("SA3_CueSheet", rows="0.0004; a low tone; 0.5004")[2]
    with caplog.at_level(logging.WARNING, "sa3"):
        sa3.run("SA3_Mix", audio=[audio(torch.ones(2, 600), 1000)], cues=[cues], seconds=[0.0], sample_rate=["as the sounds"])
    assert caplog.text == ""
