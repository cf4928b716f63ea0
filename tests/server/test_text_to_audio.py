"""The shared workflow through a real ComfyUI server: what a user sees, hears and is told."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tools.launcher.server import Event, ExecutionFailed, Interrupted, PromptRejected, Server

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
GRAPH = json.loads((ROOT / "workflows" / "api" / "text_to_audio.json").read_text())
LOADER, PROMPT, LATENT, SAMPLER, DECODE, SAVE = (
    next(node for node, content in GRAPH.items() if content["class_type"] == name)
    for name in ("SA3_ModelLoader", "SA3_TextEncode", "SA3_EmptyLatent", "SA3_Sampler", "SA3_SAMEDecode", "SA3_SaveAudio")
)


def workflow(changes: dict[str, dict] | None = None, **sampler) -> dict:
    """The shared workflow on the embedded model, half a second long, with other values in some nodes."""
    graph = copy.deepcopy(GRAPH)
    for node, inputs in {LOADER: {"model": "demo"}, LATENT: {"seconds": 0.5}, SAMPLER: sampler}.items():
        graph[node]["inputs"].update(inputs)
    for node, inputs in (changes or {}).items():
        graph[node]["inputs"].update(inputs)
    return graph


def made(comfy: Server, graph: dict) -> tuple[str, list[Path]]:
    """Runs a graph: its prompt id and its files."""
    prompt = comfy.queue(graph)
    return prompt, comfy.output_files(comfy.wait(prompt))


def sound(file: Path) -> tuple[int, np.ndarray]:
    """(rate, samples (channels, N)) of an audio file."""
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        stream = container.streams.audio[0]
        channels, rate = stream.codec_context.channels, stream.rate
    planes = [frame.reshape(-1, channels).T if frame.shape[0] == 1 else frame for frame in frames]
    return rate, np.concatenate(planes, axis=1)


def requests_to_load(comfy: Server) -> int:
    return comfy.log.read_text(encoding="utf-8", errors="replace").count("Requested to load")


@pytest.fixture
def release(comfy: Server) -> Iterator[Path]:
    """A tiny small-music among the server's models, for as long as the test runs."""
    folder = comfy.base_directory / "models" / "checkpoints" / "stable-audio-3-small-music"
    folder.mkdir(parents=True)
    for name in ("model_config.json", "model.safetensors"):
        shutil.copyfile(DATA / "small" / name, folder / name)
    shutil.copytree(DATA / "t5gemma-b-b-ul2", folder / "t5gemma-b-b-ul2")
    yield folder
    shutil.rmtree(folder)


def test_without_any_model_the_workflow_runs_as_it_is_shared(comfy: Server):
    prompt, (file,) = made(comfy, GRAPH)
    rate, samples = sound(file)
    assert (rate, samples.shape) == (44100, (2, round(44100 * GRAPH[LATENT]["inputs"]["seconds"]))) and samples.any()
    done, total = comfy.progress(prompt, SAMPLER)[-1]
    assert done == total > 1


@pytest.mark.parametrize("seconds", [0.1, 0.7, 1.2345, 3.0])
def test_the_file_has_exactly_the_asked_length(comfy: Server, seconds: float):
    _, (file,) = made(comfy, workflow({LATENT: {"seconds": seconds}}, steps=1))
    rate, samples = sound(file)
    assert (rate, samples.shape) == (44100, (2, int(seconds * 44100)))


def test_progress_counts_the_steps(comfy: Server):
    prompt, _ = made(comfy, workflow(steps=5, seed=77))
    reports = comfy.progress(prompt, SAMPLER)
    # newer versions leave out reports that follow within a tenth of a second, never the first and the last
    assert reports[0] == (1, 5) and reports[-1] == (5, 5)
    assert reports == sorted(set(reports)) and {total for _, total in reports} == {5}


def test_a_batch_of_durations_becomes_a_file_each(comfy: Server):
    _, files = made(comfy, workflow({LATENT: {"seconds_per_item": "0.5, 0.8, 0.3"}}, steps=1))
    assert [sound(file)[1].shape for file in files] == [(2, 22050), (2, 35280), (2, 13230)]


def test_the_same_seed_is_the_same_sound_and_another_is_not(comfy: Server):
    results = []
    for seed in (1, 2, 1):
        prompt, (file,) = made(comfy, workflow(seed=seed))
        assert SAMPLER not in comfy.cached(prompt)  # made anew each time
        results.append(sound(file)[1])
    one, other, same = results
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_nothing_is_made_twice(comfy: Server):
    made(comfy, workflow(seed=5))
    prompt, _ = made(comfy, workflow(seed=5))
    assert comfy.cached(prompt) >= {LOADER, PROMPT, LATENT, SAMPLER, DECODE}


def test_another_prompt_loads_nothing_again(comfy: Server):
    made(comfy, workflow({PROMPT: {"text": "a deep bell, then some rain"}}))  # new words: what was encoded before needs no encoder
    before = requests_to_load(comfy)
    prompt, _ = made(comfy, workflow({PROMPT: {"text": "a deep bell, then the wind"}}))
    assert comfy.cached(prompt) == {LOADER, LATENT}
    assert requests_to_load(comfy) == before > 0


def test_an_interrupted_run_stops_and_leaves_no_trace(comfy: Server):
    clean = workflow(seed=21)
    _, (undisturbed,) = made(comfy, clean)
    long = workflow({LATENT: {"seconds": 100.0, "batch_size": 2}}, seed=21, steps=200)
    seen: list[int] = []

    def stop_at_the_second_step(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] == SAMPLER:
            seen.append(event.data["value"])
            if len(seen) == 2:
                comfy.interrupt()

    prompt = comfy.queue(long)
    with pytest.raises(Interrupted, match="SA3_Sampler"):
        comfy.wait(prompt, stop_at_the_second_step)
    assert len(seen) <= 4  # the step under way, and one whose report crossed the request
    prompt, (after,) = made(comfy, clean)
    assert SAMPLER not in comfy.cached(prompt)
    assert np.array_equal(sound(after)[1], sound(undisturbed)[1])  # the record in the file says how long it took


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        (SAMPLER, {"steps": -1}, "SA3_Sampler .*-1.*steps"),
        (SAMPLER, {"cfg": -0.5}, "SA3_Sampler .*-0.5.*cfg"),
        (SAMPLER, {"noise_level": 0.0}, "SA3_Sampler .*0.0.*noise_level"),
        (LATENT, {"seconds": 0}, "SA3_EmptyLatent .*0.*seconds"),
        (LATENT, {"seconds": 1e6}, "SA3_EmptyLatent .*1000000.*seconds"),
        (LATENT, {"batch_size": 0}, "SA3_EmptyLatent .*0.*batch_size"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(comfy: Server, node: str, inputs: dict, words: str):
    with pytest.raises(PromptRejected, match=words):
        comfy.queue(workflow({node: inputs}))


@pytest.mark.parametrize(("node", "inputs"), [(SAMPLER, {"sampler": "ddim"}), (LOADER, {"model": "large"})], ids=str)
def test_unknown_choices_are_named(comfy: Server, node: str, inputs: dict):
    ((_, value),) = inputs.items()
    # 0.3.75 lets any text through a V3 combo, so the node has to say it
    with pytest.raises((PromptRejected, ExecutionFailed), match=f"{GRAPH[node]['class_type']}.*'{value}'"):
        comfy.wait(comfy.queue(workflow({node: inputs})))


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        (LOADER, {"model": "medium"}, r"^SA3_ModelLoader: .*'medium'.*(none|small-music).*demo"),
        (LATENT, {"seconds": 150.0}, r"^SA3_Sampler: The duration is 150.00 s; this model makes at most 120.0 s in one run.*SA3_Extend"),
        (LATENT, {"seconds_per_item": "3, four"}, r"^SA3_EmptyLatent: seconds_per_item is '3, four'; expected numbers"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_a_sentence(comfy: Server, node: str, inputs: dict, words: str):
    prompt = comfy.queue(workflow({node: inputs}))
    with pytest.raises(ExecutionFailed, match=words):
        comfy.wait(prompt)
    assert not comfy.progress(prompt, SAMPLER)


def test_an_empty_latent_of_core_means_its_seconds(comfy: Server):
    graph = workflow(steps=2)
    graph[LATENT] = {"class_type": "EmptyLatentAudio", "inputs": {"seconds": 2.0, "batch_size": 1}}
    _, (file,) = made(comfy, graph)
    assert sound(file)[1].shape[-1] == 44 * 2048  # in core's frames


def test_an_empty_prompt_is_legal(comfy: Server):
    _, (file,) = made(comfy, workflow({PROMPT: {"text": ""}}, steps=2))
    assert sound(file)[1].any()


def test_a_replaced_file_is_noticed(comfy: Server, release: Path):
    graph = workflow({LOADER: {"model": "small-music"}}, steps=2)
    _, (first,) = made(comfy, graph)
    prompt, _ = made(comfy, graph)
    assert LOADER in comfy.cached(prompt)
    shutil.copyfile(ROOT / "assets" / "demo" / "model_config.json", release / "model_config.json")
    shutil.copyfile(ROOT / "assets" / "demo" / "model.safetensors", release / "model.safetensors.new")
    (release / "model.safetensors.new").replace(release / "model.safetensors")
    prompt, (second,) = made(comfy, graph)
    assert not comfy.cached(prompt) & {LOADER, PROMPT, SAMPLER, DECODE}
    assert not np.array_equal(sound(first)[1], sound(second)[1])


def test_a_broken_file_is_named_and_a_good_one_heals(comfy: Server, release: Path):
    graph = workflow({LOADER: {"model": "small-music"}}, steps=2, seed=3)
    good = (release / "model.safetensors").read_bytes()
    (release / "model.safetensors").write_bytes(good[:-500])
    with pytest.raises(ExecutionFailed, match=r"^SA3_ModelLoader: .*model.safetensors is not a complete safetensors file"):
        comfy.wait(comfy.queue(graph))
    (release / "model.safetensors").write_bytes(good)
    assert made(comfy, graph)[1][0].is_file()


def test_auto_takes_what_is_there(comfy: Server, release: Path):
    graph = workflow({LOADER: {"model": "auto"}}, steps=2, seed=4)
    named = workflow({LOADER: {"model": "small-music"}}, steps=2, seed=4)
    (_, (one,)), (_, (other,)) = made(comfy, graph), made(comfy, named)
    assert np.array_equal(sound(one)[1], sound(other)[1])
    offered = comfy.object_info("SA3_ModelLoader")["SA3_ModelLoader"]["input"]["required"]["file"]
    assert release.name in json.dumps(offered)


def test_every_node_and_every_input_explains_itself(comfy: Server):
    nodes = {name: info for name, info in comfy.object_info().items() if name.startswith("SA3_")}
    assert {content["class_type"] for content in GRAPH.values()} <= set(nodes)
    silent = [
        f"{name}.{key}"
        for name, info in nodes.items()
        for inputs in (info["input"].get("required", {}), info["input"].get("optional", {}))
        for key, (kind, options, *_) in ((key, (*value, {})) for key, value in inputs.items())
        if not options.get("tooltip") and kind != "AUDIO_UI"  # the front end's player, which shows no input
    ]
    assert not silent
    assert all(info["description"] and info["display_name"].startswith("SA3 ") for info in nodes.values())
    assert all(info["category"].startswith("audio/stable audio 3") for info in nodes.values())
