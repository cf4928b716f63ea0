"""locales/ is complete in every language, current in English, and served by ComfyUI with the help pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.docs import make_locales as locales
from tools.launcher.server import LOCAL, Server

ROOT = Path(__file__).parents[2]


def test_english_is_current(comfy: Server):
    assert locales.read("en") == locales.english(comfy.object_info()), "run: python tools/docs/make_locales.py"


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_no_text_is_missing_or_obsolete(language: str):
    assert locales.problems(language, locales.read("en")) == []
    assert locales.flat(locales.read(language, "main")).keys() == locales.flat(locales.read("en", "main")).keys()


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_sentences_are_translated(language: str):
    english, translated = locales.flat(locales.read("en")), locales.flat(locales.read(language))
    sentences = [path for path in translated if path.endswith(("tooltip", "description", "display_name"))]
    assert [path for path in sentences if translated[path] == english[path]] == []


def test_comfyui_serves_the_locales(comfy: Server):
    with LOCAL.open(f"{comfy.url}/i18n") as answer:
        served = json.load(answer)
    for language in locales.LANGUAGES:
        assert served[language]["nodeDefs"].items() >= locales.read(language).items()
        assert "stable audio 3" in served[language]["nodeCategories"]


def test_comfyui_serves_the_help_pages(comfy: Server):
    for page in (ROOT / "web" / "docs").glob("*.md"):
        with LOCAL.open(f"{comfy.url}/extensions/{ROOT.name}/docs/{page.name}") as answer:
            assert answer.read() == page.read_bytes()
