from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tools.launcher.server import ExecutionFailed, Interrupted, PromptRejected, Server, ServerFailed, as_yaml, rejection, search_paths


@pytest.fixture
def server(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used
    with Server(tree, tmp_path / "base", start_timeout=60) as server:
        yield server


def graph(*kinds: str) -> dict:
    return {str(number): {"class_type": kind, "inputs": {"seed": number}} for number, kind in enumerate(kinds)}


def test_a_run_with_its_events_and_files(server: Server, tmp_path: Path):
    seen = []
    prompt_id = server.queue(graph("Say"))
    entry = server.wait(prompt_id, seen.append)
    assert server.output_files(entry) == [tmp_path / "base/output/audio/a_00001_.flac"]
    assert [event.kind for event in seen] == [
        "execution_start", "execution_cached", "executing", "progress", "progress", "progress", "execution_success"
    ]  # fmt: skip
    assert server.cached(prompt_id) == {"cached"}
    assert server.progress(prompt_id, "0") == [(1, 3), (2, 3), (3, 3)]
    assert server.memory > 1_000_000


def test_two_prompts_queued_at_once_keep_their_events(server: Server):
    first, second = server.queue(graph("Say")), server.queue(graph("Say", "Say"))
    server.wait(second)
    server.wait(first)
    assert len(server.progress(first, "0")) == 3
    assert len(server.progress(second, "1")) == 3


def test_refusal_in_comfyui_words(server: Server):
    with pytest.raises(PromptRejected, match=r"^Bad \(node 1\): Value -1 smaller than min of 0: seconds$"):
        server.queue(graph("Say", "Bad"))


def test_node_error(server: Server):
    with pytest.raises(ExecutionFailed) as failed:
        server.wait(server.queue(graph("Boom")))
    assert (failed.value.node_type, failed.value.message) == ("Boom", "seconds must be positive, got -1")


def test_interrupt_from_within_a_run(server: Server):
    with pytest.raises(Interrupted, match="Wait"):
        server.wait(server.queue(graph("Wait")), lambda event: server.interrupt() if event.kind == "progress" else None)


def test_wait_gives_up(server: Server):
    with pytest.raises(TimeoutError):
        server.wait(server.queue(graph("Wait")), timeout=0.2)


def test_the_end_of_comfyui_during_a_run_is_reported_with_the_log(server: Server):
    with pytest.raises(ServerFailed, match="the fake is dying"):
        server.wait(server.queue(graph("Die")))


def test_upload(server: Server, tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert server.upload(tmp_path / "a.wav") == "a.wav"


def test_the_end_of_comfyui_at_start_is_reported_with_the_log(tree: Path, tmp_path: Path):
    server = Server(tree, tmp_path / "base", arguments=["--die-at-start"])
    with pytest.raises(ServerFailed, match=r"(?s)status 1.*the fake has no torch"):
        server.__enter__()


def test_process_ends_with_the_context_also_after_an_error(tree: Path, tmp_path: Path):
    with pytest.raises(KeyError), Server(tree, tmp_path / "base") as server:
        process = psutil.Process(server._process.pid)
        raise KeyError
    assert not process.is_running()


def test_packs_and_models_reach_comfyui(tree: Path, tmp_path: Path):
    pack = tmp_path / "packs" / "mine"
    with Server(tree, tmp_path / "base", packs=[pack], models=[tree / "models"], arguments=["--lowvram"]) as server:
        received = server.object_info()
    assert received["paths"] == {
        "pack0": {"custom_nodes": str(pack.parent)},
        "models0": {"checkpoints": str(tree / "models" / "checkpoints")},
    }
    arguments = received["arguments"]
    assert arguments[-2:] == ["--whitelist-custom-nodes", "mine"]
    assert {"--cpu", "--lowvram", "--disable-all-custom-nodes", "--disable-api-nodes"} <= set(arguments)


def test_two_packs_in_one_folder_name_it_once(tmp_path: Path):
    assert search_paths([tmp_path / "a", tmp_path / "b"], []) == {"pack0": {"custom_nodes": str(tmp_path)}}


def test_refusal_of_a_whole_graph():
    error = {"message": "Cannot execute because node X does not exist.", "details": "Node ID '#1'"}
    assert rejection({"error": error, "node_errors": []}) == "Cannot execute because node X does not exist. Node ID '#1'"


def test_paths_outside_the_basic_plane_reach_comfyui(tmp_path: Path):
    yaml = pytest.importorskip("yaml")
    paths = search_paths([tmp_path / "mus\U0001f3b5ik" / "pack"], [])
    assert yaml.safe_load(as_yaml(paths)) == paths
