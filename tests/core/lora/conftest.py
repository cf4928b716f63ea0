"""Fixtures of the LoRA tests."""

import pytest
from core_support import lay_out

import sa3_core


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("models") / "stable-audio-3-small-music", "small")


@pytest.fixture
def model(folder):
    return sa3_core.load(folder)
