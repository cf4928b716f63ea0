"""Downloads with the real huggingface_hub from a local test server, and the table of releases."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from core_support import DATA, TEXT_ENCODER, refused
from hub_server import Hub, Repository, use_hub

import sa3_core
from sa3_core.checkpoints import __main__ as command
from sa3_core.checkpoints import download, releases

TOKEN = "hf_aVerySecretTokenOfTheTests"
ROOT = Path(__file__).parents[3]


def tiny(variant: str) -> dict[str, bytes]:
    """A tiny release as the files of a repository."""
    files = {"model.safetensors": (DATA / variant.removesuffix("-base") / "model.safetensors").read_bytes()}
    files["model_config.json"] = (DATA / variant / "model_config.json").read_bytes()
    files |= {f"{TEXT_ENCODER}/{path.name}": path.read_bytes() for path in (DATA / TEXT_ENCODER).iterdir()}
    files |= {"LICENSE.md": b"the licence", "LICENSE_GEMMA.md": b"gemma", "NOTICE": b"notice", "README.md": b"no", "demo.wav": b"no"}
    return files


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The Hub with three models, the first gated; releases.RELEASES knows their hashes."""
    with Hub(tokens={TOKEN}) as running:
        for variant, kind, gated in (("small-music", "small", True), ("small-sfx-base", "small-base", False), ("medium", "medium", True)):
            release, files = releases.RELEASES[variant], tiny(kind)
            running.repositories[release.repository] = Repository(files, release.revision, gated)
            digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
            monkeypatch.setitem(releases.RELEASES, variant, dataclasses.replace(release, sha256=digest))
        use_hub(running, monkeypatch, tmp_path)
        monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
        yield running


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


MUSIC, OPEN = "small-music", "small-sfx-base"


def fetch(folder: Path, variant: str = OPEN, source: str = "official", progress=None) -> Path:
    return download.download(releases.RELEASES[variant], folder, source, progress)


def test_a_download_is_a_whole_release(server, tmp_path):
    seen = []
    folder = fetch(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / "stable-audio-3-small-sfx-base" and [path.name for path in tmp_path.iterdir()] == [folder.name]
    encoder = {f"{TEXT_ENCODER}/{path.name}" for path in (DATA / TEXT_ENCODER).iterdir()}
    assert names(folder) == encoder | {
        "model.safetensors", "model_config.json", "LICENSE.md", "LICENSE_GEMMA.md", "NOTICE", "sa3_download.json",
    }  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "sa3_download.json")
    assert seen == sorted(seen) and seen[-1] == (size, size)
    loaded = sa3_core.load(folder).loaded
    release = releases.RELEASES[OPEN]
    assert (loaded["variant"], loaded["repository"], loaded["revision"], loaded["sha256"]) == (
        OPEN, release.repository, release.revision, release.sha256,
    )  # fmt: skip


def test_a_complete_download_is_not_repeated(server, tmp_path):
    fetch(tmp_path)
    server.requests.clear()
    assert fetch(tmp_path).is_dir() and server.requests == []
    (tmp_path / "stable-audio-3-small-sfx-base" / "model.safetensors").unlink()
    with refused("stable-audio-3-small-sfx-base", "move it away"):
        fetch(tmp_path)


def test_gated_without_a_token(server, tmp_path):
    with refused("401", "no token", "https://huggingface.co/stabilityai/stable-audio-3-small-music", "HF_TOKEN"):
        fetch(tmp_path, MUSIC)
    assert [request.method for request in server.requests if "resolve" in request.path] == ["HEAD"]
    assert list(tmp_path.iterdir()) == []


def test_gated_with_a_token(server, tmp_path, token):
    assert (fetch(tmp_path, MUSIC) / "model.safetensors").is_file()
    stores = [request for request in server.requests if request.path.startswith("/store")]
    assert stores and not any(request.token for request in stores), "the store of large files must not see the token"
    assert all(request.token == TOKEN for request in server.requests if not request.path.startswith("/store"))


def test_gated_with_a_token_without_access(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ofSomebodyElse")
    with refused("403", "your token has no access", "https://huggingface.co/stabilityai/stable-audio-3-small-music"):
        fetch(tmp_path, MUSIC)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(tmp_path, MUSIC).is_dir()


def test_an_open_model_needs_no_token(server, tmp_path):
    fetch(tmp_path)
    assert not any(request.token for request in server.requests)


def test_a_wrong_hash(server, tmp_path, monkeypatch):
    monkeypatch.setitem(releases.RELEASES, OPEN, dataclasses.replace(releases.RELEASES[OPEN], sha256="0" * 64))
    with refused("model.safetensors", "sha256", "0000000000000000", "not the published file"):
        fetch(tmp_path)
    assert not any(name.endswith(("model.safetensors", "model.safetensors.part")) for name in names(tmp_path) if TEXT_ENCODER not in name)
    assert not (tmp_path / "stable-audio-3-small-sfx-base").exists()


def test_a_wrong_hash_of_the_text_encoder(server, tmp_path, monkeypatch):
    files = server.repositories[releases.RELEASES[OPEN].repository].files
    real, info = files[f"{TEXT_ENCODER}/model.safetensors"], server.info

    def publish_old_hash(*args):
        files[f"{TEXT_ENCODER}/model.safetensors"] = real
        info(*args)
        files[f"{TEXT_ENCODER}/model.safetensors"] = real[:-1] + bytes([real[-1] ^ 1])

    monkeypatch.setattr(server, "info", publish_old_hash)
    with refused(f"{TEXT_ENCODER}/model.safetensors", "sha256"):
        fetch(tmp_path)


def test_an_interrupted_download_is_resumed(server, tmp_path):
    server.budget = 2_000_000
    with refused("broke off", "kept"):
        fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".stable-audio-3-small-sfx-base.part"]
    assert not list(tmp_path.glob(".*.part/model.safetensors")), "a partial file has a name of its own"
    with refused("has no model.safetensors", "unfinished"):
        sa3_core.load(tmp_path / ".stable-audio-3-small-sfx-base.part")
    held = {name: (tmp_path / name).stat().st_size for name in names(tmp_path) if name.endswith(".part")}
    server.budget = None
    server.requests.clear()
    folder = fetch(tmp_path)
    assert sa3_core.load(folder).text_encoder is not None
    ranges = {request.range for request in server.requests if request.range}
    assert ranges == {f"bytes={size}-" for size in held.values()}
    (size,) = held.values()
    assert 500_000 < size < 1_000_000


def test_a_stopped_download_is_resumed(server, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done > total // 2:
            raise Stop

    with pytest.raises(Stop):
        fetch(tmp_path, progress=stop)
    assert (tmp_path / ".stable-audio-3-small-sfx-base.part").is_dir()
    assert fetch(tmp_path).name == "stable-audio-3-small-sfx-base"


def test_a_missing_repository(server, tmp_path):
    del server.repositories[releases.RELEASES[OPEN].repository]
    with refused(releases.RELEASES[OPEN].repository, "404"):
        fetch(tmp_path)


def test_a_missing_revision(server, tmp_path):
    server.repositories[releases.RELEASES[OPEN].repository].revision = "1" * 40
    with refused("revision", "newer version"):
        fetch(tmp_path)


def test_a_repository_without_weights(server, tmp_path):
    del server.repositories[releases.RELEASES[OPEN].repository].files["model.safetensors"]
    with refused("no model.safetensors"):
        fetch(tmp_path)


def test_too_little_disk_space(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000_000))
    with refused("0.0 GB free", "make room"):
        fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_during_the_download(server, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download._Counting, "write", full)
    with refused("disk is full", "make room"):
        fetch(tmp_path)


def test_offline(server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with refused("offline", "HF_HUB_OFFLINE"):
        fetch(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()


def test_no_connection(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with refused("broke off", "again"):
        fetch(tmp_path)


def test_the_mirror(server, tmp_path):
    files = {
        f"small-sfx-base/{name}": content for name, content in tiny("small-base").items() if not name.startswith(("LICENSE", "NOTICE"))
    }
    files |= {f"medium/{name}": b"other" for name in tiny("medium")} | {"LICENSE.md": b"of all", "NOTICE": b"of all"}
    server.repositories[releases.MIRROR] = Repository(files, "2" * 40)
    folder = fetch(tmp_path, source="mirror")
    assert (folder / "LICENSE.md").read_bytes() == b"of all" and sa3_core.load(folder).loaded["revision"] == "2" * 40
    with refused("'torrent'", "official, mirror"):
        fetch(tmp_path / "b", source="torrent")


def test_a_base_model_takes_the_text_encoder_of_its_sibling(server, tmp_path, monkeypatch, token):
    files = server.repositories[releases.RELEASES[OPEN].repository].files
    for name in [name for name in files if name.startswith(TEXT_ENCODER)]:
        del files[name]
    sibling = releases.RELEASES["small-sfx"]
    server.repositories[sibling.repository] = Repository(tiny("small"), sibling.revision, gated=True)
    assert sa3_core.load(fetch(tmp_path)).text_encoder is not None
    monkeypatch.delenv("HF_TOKEN")
    with refused("401", sibling.repository):
        fetch(tmp_path / "without")


def test_unsafe_file_names_are_skipped(server, tmp_path):
    files = server.repositories[releases.RELEASES[OPEN].repository].files
    files |= {f"{TEXT_ENCODER}/../../evil": b"x", "../evil": b"x", "/evil": b"x", f"{TEXT_ENCODER}/a/b": b"x", "LICENSE/../../evil": b"x"}
    fetch(tmp_path / "deep" / "er")
    assert not any("evil" in name for name in names(tmp_path))


def test_the_token_is_never_logged_or_stored(server, tmp_path, token, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    folder = fetch(tmp_path, MUSIC)
    server.repositories[releases.RELEASES["medium"].repository].files.pop("model_config.json")
    server.budget = 1000
    texts = []
    for variant in ("medium", OPEN):
        with pytest.raises(sa3_core.SA3Error) as caught:
            fetch(tmp_path, variant)
        texts += [
            str(caught.value),
            repr(caught.value.__cause__),
            repr(caught.value.__context__) if not caught.value.__suppress_context__ else "",
        ]
    texts += [caplog.text, *capfd.readouterr(), (folder / "sa3_download.json").read_text()]
    assert TOKEN not in "".join(texts)


# The table and the command


def test_the_listing_has_all_models_with_size_licence_and_access():
    lines = releases.listing()
    assert len(lines) == 9
    for line, variant in zip(lines, releases.RELEASES, strict=False):
        assert line.startswith(variant) and "GB" in line and "License" in line
        assert ("gated" in line) == (variant in ("small-music", "small-sfx", "medium"))
    assert "stable-audio-3-optimized" in lines[-1] and "ONNX" in lines[-1]


def test_find_by_variant_folder_or_repository():
    for name in ("medium", "stable-audio-3-medium", "stabilityai/stable-audio-3-medium", "MEDIUM"):
        assert releases.find(name).variant == "medium"
    assert releases.find("same-l").repository == "stabilityai/SAME-L"
    for name in ("optimized", "stabilityai/stable-audio-3-optimized"):
        with refused("optimized", "ONNX", "TensorRT", "small-music"):
            releases.find(name)
    with refused("'large'", "medium-base"):
        releases.find("large")


def test_the_command(server, tmp_path):
    environ = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}

    def run(*arguments, answer=""):
        command = [sys.executable, "-m", "sa3_core.checkpoints", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environ, input=answer, capture_output=True, text=True)

    asked = run("download", OPEN, "--folder", str(tmp_path), answer="n\n")
    assert asked.returncode == 1 and "Nothing was downloaded" in asked.stdout and "Community License" in asked.stdout
    assert releases.RELEASES[OPEN].repository in asked.stdout and server.requests == []
    done = run("download", OPEN, "--folder", str(tmp_path), "--yes")  # the tiny file is not the published one
    assert done.returncode == 1 and "sha256" in done.stderr and "Traceback" not in done.stderr
    assert "ONNX" in run("download", "optimized").stderr and "medium-base" in run("list").stdout


def test_hashes_and_revisions_are_complete():
    for release in releases.RELEASES.values():
        assert len(bytes.fromhex(release.sha256)) == 32 and len(bytes.fromhex(release.revision)) == 20
    assert len({release.sha256 for release in releases.RELEASES.values()}) == 8
    json.dumps({name: dataclasses.asdict(release) for name, release in releases.RELEASES.items()})


def test_verify_detects_a_wrong_byte(tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the published bytes")
    small = releases.find("small-music")
    monkeypatch.setitem(releases.RELEASES, "small-music", dataclasses.replace(small, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    assert command.main(["verify", str(path)]) == 0 and small.repository in capsys.readouterr().out
    assert command.main(["verify", str(path), "--model", "medium"]) == 1 and "not that of medium" in capsys.readouterr().err
    path.write_bytes(b"the published bytez")
    assert command.main(["verify", str(path)]) == 1 and "no published release" in capsys.readouterr().err
