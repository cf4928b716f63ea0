"""SA3_Download: nothing without the user's word, then a model that the loader finds."""

import dataclasses
import hashlib
import importlib

import huggingface_hub
import huggingface_hub.constants
import pytest
from core_support import DATA, TEXT_ENCODER
from hub_server import Hub, Repository


@pytest.fixture
def server(sa3, checkpoints, comfy, monkeypatch, tmp_path):
    """A Hub with a tiny small-sfx-base; any model folder is the test's own."""
    hub = importlib.import_module("sa3_pack.sa3_core.checkpoints.releases")
    release = hub.RELEASES["small-sfx-base"]
    files = {"model.safetensors": (DATA / "small" / "model.safetensors").read_bytes(), "LICENSE.md": b"licence"}
    files["model_config.json"] = (DATA / "small-base" / "model_config.json").read_bytes()
    files |= {f"{TEXT_ENCODER}/{path.name}": path.read_bytes() for path in (DATA / TEXT_ENCODER).iterdir()}
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    monkeypatch.setitem(hub.RELEASES, release.variant, dataclasses.replace(release, sha256=digest))
    with Hub({release.repository: Repository(files, release.revision)}) as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield running


def test_without_confirm_it_only_says_what_it_would_do(sa3, server, checkpoints):
    (text,) = sa3.run("SA3_Download", model="small-sfx-base")
    for word in ("Nothing was downloaded", "stabilityai/stable-audio-3-small-sfx-base", "3.5 GB", "Community License", str(checkpoints)):
        assert word in text
    (text,) = sa3.run("SA3_Download", model="medium")
    assert "Gated" in text and "https://huggingface.co/stabilityai/stable-audio-3-medium" in text
    assert "mirror" in sa3.run("SA3_Download", model="medium", source="mirror")[0].lower()
    assert server.requests == [] and list(checkpoints.iterdir()) == []


def test_with_confirm_the_loader_finds_it(sa3, server, checkpoints):
    assert "Downloaded" in sa3.run("SA3_Download", model="small-sfx-base", confirm=True)[0]
    parts = sa3.load(model="small-sfx-base")
    _, info = sa3.sample(parts.model, sa3.prompt(parts.clip, "rain"), sa3.empty(0.5), steps=2)
    assert info["variant"] == "small-sfx-base" and info["sha256"] and info["revision"]
    fingerprint = sa3.classes["SA3_Download"].fingerprint_inputs
    assert fingerprint("small-sfx-base", "official", True) is True
    missing = fingerprint("medium-base", "official", True)
    assert missing != missing  # NaN: what was deleted is downloaded again
    server.requests.clear()
    assert "already in" in sa3.run("SA3_Download", model="small-sfx-base", confirm=True)[0] and server.requests == []


def test_the_user_may_stop_it_and_go_on(sa3, server, checkpoints, comfy, monkeypatch):
    management = comfy.management
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        sa3.run("SA3_Download", model="small-sfx-base", confirm=True)
    assert sa3.host.folders.releases() == {}, "an unfinished download is not offered"
    assert [path.name for path in checkpoints.iterdir()] == [".stable-audio-3-small-sfx-base.part"]
    assert "Downloaded" in sa3.run("SA3_Download", model="small-sfx-base", confirm=True)[0]


def test_optimized_is_named_and_refused(sa3, server):
    with sa3.refused("stable-audio-3-optimized", "ONNX", "small-music"):
        sa3.run("SA3_Download", model="stabilityai/stable-audio-3-optimized", confirm=True)
