"""locales/: complete in every language, current in English, and served by ComfyUI in the form its editor reads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tools.launcher.server import LOCAL, Server

ROOT = Path(__file__).parents[2]


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


locales = load_script("make_locales")


def test_english_is_current(comfy: Server):
    assert locales.read("en") == locales.english(comfy.object_info()), "run: python tools/docs/make_locales.py"


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_nothing_is_missing_or_left_over(language: str):
    assert locales.problems(language, locales.read("en")) == []
    assert locales.flat(locales.read(language, "main")).keys() == locales.flat(locales.read("en", "main")).keys()


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_sentences_are_translated(language: str):
    english, ours = locales.flat(locales.read("en")), locales.flat(locales.read(language))
    alike = [path for path, text in ours.items() if text == english[path] and path.endswith(("tooltip", "description", "display_name"))]
    assert alike == []


def test_comfyui_serves_them(comfy: Server):
    with LOCAL.open(f"{comfy.url}/i18n") as answer:
        served = json.load(answer)
    for language in locales.LANGUAGES:
        assert served[language]["nodeDefs"].items() >= locales.read(language).items()
        assert "stable audio 3" in served[language]["nodeCategories"]


def test_comfyui_serves_the_help_pages(comfy: Server):
    for page in (ROOT / "web" / "docs").glob("*.md"):
        with LOCAL.open(f"{comfy.url}/extensions/{ROOT.name}/docs/{page.name}") as answer:
            assert answer.read() == page.read_bytes()
