"""Time and check every kind of job through a real ComfyUI on a GPU: loading, sampling, editing, LoRAs, CUDA graphs.

    python benchmarks/gpu_server.py [--comfyui PATH] [--device auto|cpu] [--tiny] [--limit SECONDS] [--out FILE.json]

Releases of real size with random weights are written into a temporary folder (9 GB; TMPDIR names another disk): small-music as the one
file repackaged for ComfyUI, medium as a release's folder. --tiny takes the demos of assets/ instead. The servers: ComfyUI's default
flags, and `--disable-dynamic-vram` where there is such a flag. What fails
is a row of the table, and the rest goes on; a server that died is started again. Exit status 1 when a row failed or a check did not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import aiohttp
import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks import make_release
from benchmarks.measure import hardware, relative, table
from benchmarks.through_server import Clock
from sa3_core.audio import files as audio_files
from sa3_core.lora.stack import SECONDS, targets
from sa3_core.models.release import build
from tools.launcher.environment import default_comfyui, is_comfyui
from tools.launcher.job import fill, read_graph
from tools.launcher.probe import has_accelerator
from tools.launcher.server import LOCAL, ExecutionFailed, Graph, Interrupted, PromptRejected, Server, ServerFailed

RATE = 44100  # samples a second, of every model
RANK = 16
PATIENCE = 300.0  # seconds after which a run counts as hung
INTERVAL = 0.25  # seconds between two looks at the server's memory
TRACE = 14  # lines of a traceback that are kept
WORDS = 300  # characters of an error that are kept
LARGE = 1 << 16  # elements from which a tensor is cut from the block of noise
BLOCK = (1 << 24) + 41
LEGACY = "--disable-dynamic-vram"
STAGES = {
    "load": ["SA3_ModelLoader"],
    "text": ["SA3_TextEncode"],
    "encode": ["SA3_SAMEEncode", "SA3_Continue"],
    "sample": ["SA3_Sampler"],
    "decode": ["SA3_SAMEDecode"],
}
FACTS = re.compile(
    r"ComfyUI version|pytorch version|Python version|^Device:|Total VRAM|vram state|DynamicVRAM|[Dd]ynamic vram|aimdo|kitchen version|"
    r"attention|async weight offload|pinned memory",
)
COMPLAINTS = re.compile(r"WARNING|\bERROR\b|\bWarning\b|IMPORT FAILED|Traceback|Error:|out of memory")
SICK = re.compile(r"CUDA error|cudaError|CUBLAS_STATUS|CUDNN_STATUS|device-side assert|illegal memory|launch failure", re.IGNORECASE)
ABOUT = ("model", "layout", "dtype", "device", "load_elapsed_s", "load_stages_s", "sampler", "steps", "versions")
PROMPT = "Warm analogue pads over a slow four to the floor beat, 100 BPM"


@dataclass(frozen=True)
class Model:
    """A model that the servers find: its name in the table, the loader's choice, seconds of a clip, steps (0 = its own), a prompt."""

    name: str
    choice: str
    seconds: float
    steps: int = 0
    prompt: str = PROMPT

    @property
    def lora(self) -> str:
        return f"{self.name.split(',')[0]}.safetensors"


class Check(NamedTuple):
    """What was compared, and whether it is as it must be."""

    words: str
    good: bool = True


@dataclass
class Run:
    """One prompt: seconds of all and of each node, bytes on the device at most, the saved files, the record of the run."""

    seconds: float
    nodes: dict[str, float]
    used: int
    reserved: int
    files: list[Path]
    cached: list[str]
    record: dict = field(default_factory=dict)

    def stage(self, name: str) -> float:
        return sum(self.nodes.get(node, 0.0) for node in STAGES[name])

    @property
    def samples(self) -> Tensor:
        """(channels, samples) of the float file."""
        return audio_files.read(next(file for file in self.files if file.suffix == ".wav"))[0]


@dataclass
class Row:
    """A line of the table. state: ok, failed, check, not reached, skipped."""

    server: str
    model: str
    item: str
    state: str = "ok"
    runs: list[Run] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    error: str = ""
    trace: str = ""


class Failed(Exception):
    """A run came to nothing; `trace` is the end of ComfyUI's own account of it."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message[:WORDS])
        self.trace = trace


# the models


class Draws:
    """In place of make_release.draw: large tensors are cut from one block of noise, so that writing is as fast as the disk."""

    def __init__(self) -> None:
        self._small = make_release.draw
        self._block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(make_release.SEED)).bfloat16()
        self._at = 0

    def __call__(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        count = math.prod(shape)
        if count < LARGE:
            return self._small(name, shape, generator)
        parts, left = [], count
        while left:
            part = self._block[self._at : self._at + left]
            parts.append(part)
            left -= len(part)
            self._at = (self._at + len(part)) % BLOCK
        return (torch.cat(parts) * math.prod(shape[1:]) ** -0.5).view(shape)


def write_model(release: str, models: Path) -> float:
    """A release of real size in bf16 and a LoRA for it, in ComfyUI's folders below `models`; seconds that it took."""
    start = time.perf_counter()
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    make_release.draw = Draws()
    checkpoints = models / "checkpoints"
    if release.startswith("small"):
        make_release.make_release(release, checkpoints, "bf16", "single")
        (checkpoints / "t5gemma_b_b_ul2.safetensors").replace(models / "text_encoders" / "t5gemma_b_b_ul2.safetensors")
    else:
        make_release.make_release(release, checkpoints / f"stable-audio-3-{release}", "bf16", "release")
    config = json.loads((make_release.RELEASES / f"{release}.json").read_text(encoding="utf-8"))
    write_lora(models / "loras" / f"{release}.safetensors", config)
    return time.perf_counter() - start


def write_lora(path: Path, config: dict) -> None:
    """A random LoRA for every layer of a model, about a third as strong as random weights are."""
    generator = torch.Generator().manual_seed(make_release.SEED)
    tensors = {}
    for layer, part in targets(build(config)).items():
        out, inner = part.weight.shape[0], math.prod(part.weight.shape[1:])
        name = f"{layer if layer == SECONDS else f'model.{layer}'}.parametrizations.weight.0"
        tensors[f"{name}.lora_A"] = torch.randn(RANK, inner, generator=generator)
        tensors[f"{name}.lora_B"] = torch.randn(out, RANK, generator=generator) * 0.3 * (inner * RANK) ** -0.5
    save_file(tensors, path, {"lora_config": json.dumps({"rank": RANK, "alpha": RANK, "adapter_type": "lora"})})


def prepare(models: Path, tiny: bool, pool: ProcessPoolExecutor) -> dict[Model, Future | str | None]:
    """The models to run -> what to wait for, None where it is there already, or why it is left out."""
    for kind in ("checkpoints", "text_encoders", "loras"):
        (models / kind).mkdir(parents=True, exist_ok=True)
    if not tiny:
        small, medium = Model("small-music, one file", "auto", 30.0), Model("medium, folder", "medium", 120.0)
        return {model: pool.submit(write_model, model.name.split(",")[0], models) for model in (small, medium)}
    found: dict[Model, Future | str | None] = {}
    for name in ("demo", "demo-medium"):
        model, folder = Model(name, name, 2.0, 4, "A low tone, then a kick every half second"), ROOT / "assets" / name
        there = (folder / "model.safetensors").is_file()
        found[model] = None if there else f"assets/{name} is not here"
        if there:
            write_lora(models / "loras" / model.lora, json.loads((folder / "model_config.json").read_text(encoding="utf-8")))
    return found


# the servers


class NodeClock(Clock):
    """Seconds of each node that ran, by its class."""

    def nodes(self) -> dict[str, float]:
        marks = [(when, node) for when, kind, node in self._seen if kind == "executing"] + [(self._seen[-1][0], "")]
        out: dict[str, float] = {}
        for (start, node), (end, _) in itertools.pairwise(marks):
            out[node] = out.get(node, 0.0) + end - start
        return {node: seconds for node, seconds in out.items() if node}


class Memory:
    """The most that the device held during a block, as ComfyUI tells it: bytes in use, and bytes that torch has reserved."""

    def __init__(self, url: str) -> None:
        self._url, self._over = url, threading.Event()
        self.used = self.reserved = 0

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        with suppress(OSError, ValueError, KeyError, IndexError):
            device = stats(self._url)["devices"][0]
            self.used = max(self.used, device["vram_total"] - device["vram_free"])
            if device["type"] != "cpu":  # there ComfyUI names the machine's memory
                self.reserved = max(self.reserved, device["torch_vram_total"])


def stats(url: str) -> dict:
    with LOCAL.open(f"{url}/system_stats", timeout=30) as answer:
        return json.load(answer)


class Host:
    """A ComfyUI with one set of flags, started when it is needed and again when it died."""

    def __init__(self, name: str, flags: Sequence[str], options: argparse.Namespace, folder: Path) -> None:
        self.name, self.flags, self.starts, self.logs = name, list(flags), [], []
        self._options, self._folder, self._server, self._uploads = options, folder, None, {}

    def start(self) -> Server:
        """The running server; a new one has no recordings yet."""
        if self._server is None:
            base = self._folder / f"{len(self.logs)}-{re.sub(r'[^a-z]+', '-', self.name)}"
            base.mkdir(parents=True)
            self.logs.append(base / "comfyui.log")
            environ = os.environ | ({"OMP_NUM_THREADS": "1"} if self._options.cpu and self._options.tiny else {})  # more only wait there
            more = {"packs": [ROOT], "models": [self._folder / "models"], "python": self._options.python, "arguments": self.flags}
            server, begun = Server(self._options.comfyui, base, cpu=self._options.cpu, environ=environ, **more), time.perf_counter()
            try:
                server.__enter__()
            except (ServerFailed, OSError) as error:
                raise Failed(str(error), last_words(self.logs[-1].read_text(encoding="utf-8", errors="replace"))) from None
            self.starts.append(time.perf_counter() - begun)
            self._server, self._uploads = server, {}
        return self._server

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.__exit__()

    def device(self) -> dict:
        """ComfyUI's own words about its device and versions."""
        found = stats(self.start().url)
        return {key: value for key, value in found["system"].items() if "version" in key and isinstance(value, str)} | found["devices"][0]

    def upload(self, file: Path) -> str:
        server = self.start()
        if file not in self._uploads:
            self._uploads[file] = server.upload(file)
        return self._uploads[file]

    def run(self, graph: Graph, patience: float) -> Run:
        """One prompt to its end. Raises Failed."""
        server, log = self.start(), self.logs[-1]
        begun, clock = log.stat().st_size, NodeClock(graph)
        try:
            with Memory(server.url) as memory:
                prompt = server.queue(graph)
                entry = server.wait(prompt, clock, max(1.0, patience))
        except (ExecutionFailed, Interrupted, PromptRejected, ServerFailed, OSError, TimeoutError, aiohttp.ClientError) as error:
            words = f"{type(error).__name__}: {error}"
            text = log.read_bytes()[begun:].decode("utf-8", "replace")
            hung = isinstance(error, TimeoutError)
            if hung or SICK.search(words + text) or not self._answers():
                words += " (the server is started again)"
                self.stop()
            raise Failed(words, last_words(text)) from None
        files = server.output_files(entry)
        cached = sorted(graph[node]["class_type"] for node in server.cached(prompt) if node in graph)
        record = record_of(next((file for file in files if file.suffix == ".wav"), None))
        return Run(clock.total, clock.nodes(), memory.used, memory.reserved, files, cached, record)

    def free(self) -> None:
        """Unloads the models and forgets all results; returns when that is done."""
        server = self.start()
        server.free()
        time.sleep(1.0)  # ComfyUI does it between two prompts, and says nothing

    def _answers(self) -> bool:
        try:
            return bool(stats(self._server.url))
        except (OSError, ValueError):
            return False

    def account(self) -> dict:
        """What its logs say: versions and memory, and each different complaint once, with how often it came."""
        facts, complaints = {}, {}
        for log in self.logs:
            text = clean(log.read_text(encoding="utf-8", errors="replace"))
            for line in re.sub(r"(\*+ ERROR \*+)\s+", r"\1 ", text).splitlines():
                if FACTS.search(line) and len(line) < WORDS:
                    facts[line.strip()] = None
                elif COMPLAINTS.search(line):
                    complaints[line.strip()[:WORDS]] = complaints.get(line.strip()[:WORDS], 0) + 1
        return {"flags": self.flags, "starts_s": self.starts, "facts": list(facts), "complaints": complaints}


def clean(text: str) -> str:
    """Without colours and the level in front of lines that only inform."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("[INFO] ", "")


def last_words(text: str) -> str:
    """The last traceback of a log, or its last lines."""
    text = clean(text)
    lines = text[max(text.rfind("Traceback (most recent call last)"), 0) :].splitlines()
    return "\n".join([line[:WORDS] for line in lines if line.strip(" ^~")][-TRACE:])


def record_of(file: Path | None) -> dict:
    """The record of the run inside a WAV file of SA3_SaveAudio; empty where there is none."""
    if file is None:
        return {}
    with file.open("rb") as content:
        content.seek(12)
        while len(head := content.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == audio_files.CHUNK:
                return json.loads(content.read(size)).get("sa3") or {}
            content.seek(size + size % 2, 1)
    return {}


# the graphs


def node_of(graph: Graph, node_class: str) -> str:
    """The id of the only node of a class."""
    (found,) = [name for name, node in graph.items() if node["class_type"] == node_class]
    return found


def graph_of(name: str, model: Model, seed: int, **inputs: object) -> Graph:
    """A shared workflow for a model. inputs: class of node -> more of its inputs. Its sound is saved as float WAV, with the record."""
    graph = read_graph(ROOT / "workflows" / "api" / f"{name}.json")
    graph = fill(graph, {"prompt": model.prompt, "seed": seed, "steps": model.steps, "model": model.choice})
    for node_class, values in inputs.items():
        graph[node_of(graph, node_class)]["inputs"] |= values
    graph[node_of(graph, "SA3_SaveAudio")]["inputs"]["format"] = "wav32f"
    return graph


def text_graph(model: Model, seed: int, **sampler: object) -> Graph:
    return graph_of("text_to_audio", model, seed, SA3_EmptyLatent={"seconds": model.seconds}, SA3_Sampler=sampler)


def with_node(graph: Graph, node_class: str, **inputs: object) -> Graph:
    """The graph with one more node between its model and its sampler."""
    sampler = graph[node_of(graph, "SA3_Sampler")]["inputs"]
    graph["between"] = {"class_type": node_class, "inputs": {"model": sampler["model"], **inputs}}
    sampler["model"] = ["between", 0]
    return graph


def with_lora(graph: Graph, model: Model, start: float = 0.0, end: float = 1.0) -> Graph:
    values = {"strength": 1.0, "start": start, "end": end, "skip_layers": "", "seconds_strength": -1.0, "mode": "chain"}
    return with_node(graph, "SA3_LoRAStack", lora=model.lora, **values)


def recording(folder: Path, seconds: float) -> Path:
    """A stereo recording of two tones that swell: floats, so that what is kept can be compared bit for bit."""
    path = folder / f"recording-{seconds:g}.wav"
    if not path.exists():
        t = torch.arange(round(seconds * RATE)) / RATE
        swell = 0.2 + 0.1 * torch.sin(2 * math.pi * 0.7 * t)
        audio_files.write(path, torch.stack([swell * torch.sin(2 * math.pi * pitch * t) for pitch in (220.0, 331.0)]), RATE, "wav32f")
    return path


# the items


def heard(run: Run) -> list[Check]:
    """Whether every saved file holds finite samples that are not silence."""
    checks = []
    for file in run.files:
        samples, _ = audio_files.read(file)
        finite, level = bool(torch.isfinite(samples).all()), float(samples.double().square().mean().sqrt())
        checks.append(Check(f"{file.suffix[1:]} rms {level:.2g}" if finite else f"{file.suffix[1:]} NOT FINITE", finite and level > 1e-4))
    return checks


def same(words: str, found: Tensor, wanted: Tensor | None) -> list[Check]:
    """Bit for bit."""
    if wanted is None:
        return [Check(f"{words}: nothing to compare with")]
    if found.shape != wanted.shape:
        return [Check(f"{words}: {tuple(found.shape)} in place of {tuple(wanted.shape)}", False)]
    equal = torch.equal(found, wanted)
    return [Check(f"{words}: same bytes" if equal else f"{words}: DIFFERS by {relative(found, wanted):.1e}", equal)]


def distance(words: str, found: Tensor, other: Tensor | None, must: bool = True) -> list[Check]:
    """How far two sounds are apart. must: the same would be wrong."""
    if other is None or found.shape != other.shape:
        return [Check(f"{words}: nothing to compare with")]
    apart = relative(found, other)
    return [Check(f"{apart:.1e} from {words}", not must or apart > 1e-4)]


class Session:
    """The items for one model on one server. known: sounds of this model so far, kept over servers. Each item returns runs and checks."""

    def __init__(self, host: Host, model: Model, known: dict[str, Tensor], folder: Path, left: Callable[[], float]) -> None:
        self.host, self.model, self.known, self.folder, self._left = host, model, known, folder, left
        self.about: dict = {}  # what the first run's record says of the model

    def run(self, graph: Graph) -> Run:
        return self.host.run(graph, min(PATIENCE, self._left()))

    def twice(self, graph: Callable[[int], Graph]) -> list[Run]:
        return [self.run(graph(seed)) for seed in (1, 2)]

    def text_to_audio(self) -> tuple[list[Run], list[Check]]:
        runs = self.twice(lambda seed: text_graph(self.model, seed))
        sound = runs[0].samples
        checks = heard(runs[0]) + heard(runs[1]) + distance("the other seed", sound, runs[1].samples)
        if sound.shape[1] != round(self.model.seconds * RATE):
            checks.append(Check(f"{sound.shape[1]} samples", False))
        if "plain" in self.known:
            checks += distance("the first server's", sound, self.known["plain"], must=False)
        self.known["plain"] = self.known.get("plain", sound)
        self.about = {key: value for key, value in runs[0].record.items() if key in ABOUT}
        self.known["here"] = sound
        return runs, checks

    def after_free(self) -> tuple[list[Run], list[Check]]:
        graph = text_graph(self.model, 1)
        self.host.free()
        run = self.run(graph)
        if "SA3_Sampler" in run.cached:  # the prompt came before the request
            self.host.free()
            run = self.run(graph)
        return [run], self.again(run, "before")

    def again(self, run: Run, words: str) -> list[Check]:
        computed = Check("it was not computed anew", False)
        return [computed] * ("SA3_Sampler" in run.cached) + same(words, run.samples, self.known.get("here"))

    def lora(self) -> tuple[list[Run], list[Check]]:
        runs = self.twice(lambda seed: with_lora(text_graph(self.model, seed), self.model))
        self.known["lora"] = runs[0].samples
        return runs, heard(runs[0]) + distance("without", self.known["lora"], self.known.get("here"))

    def scheduled_lora(self) -> tuple[list[Run], list[Check]]:
        runs = self.twice(lambda seed: with_lora(text_graph(self.model, seed), self.model, 0.3, 0.95))
        sound = runs[0].samples
        checks = distance("without", sound, self.known.get("here")) + distance("constant", sound, self.known.get("lora"))
        return runs, heard(runs[0]) + checks

    def without_lora_again(self) -> tuple[list[Run], list[Check]]:
        run = self.run(text_graph(self.model, 1, preview="off"))  # another input with the same result, so that nothing comes from a cache
        return [run], self.again(run, "before the LoRA")

    def after_the_other(self) -> tuple[list[Run], list[Check]]:
        run = self.run(text_graph(self.model, 1, preview="on"))
        return [run], self.again(run, "before the other model")

    def audio_to_audio(self) -> tuple[list[Run], list[Check]]:
        file = {"audio": self.host.upload(recording(self.folder, self.model.seconds))}
        runs = self.twice(lambda seed: graph_of("audio_to_audio", self.model, seed, LoadAudio=file))
        return runs, heard(runs[0]) + distance("the other seed", runs[0].samples, runs[1].samples)

    def inpaint(self) -> tuple[list[Run], list[Check]]:
        path, (start, end) = recording(self.folder, self.model.seconds), (self.model.seconds / 4, self.model.seconds / 2)
        given = {"LoadAudio": {"audio": self.host.upload(path)}, "SA3_InpaintMask": {"regions": f"{start:g}-{end:g}"}}
        runs = self.twice(lambda seed: graph_of("inpaint", self.model, seed, **given))
        return runs, self.kept(runs, path, start, end)

    def continued(self) -> tuple[list[Run], list[Check]]:
        path, more = recording(self.folder, self.model.seconds / 2), self.model.seconds / 4
        given = {"LoadAudio": {"audio": self.host.upload(path)}, "SA3_Continue": {"seconds": more}}
        runs = self.twice(lambda seed: graph_of("continue", self.model, seed, **given))
        return runs, self.kept(runs, path, self.model.seconds / 2, math.inf)

    def kept(self, runs: list[Run], path: Path, start: float, end: float) -> list[Check]:
        """Outside start to end (seconds) the recording must be what it was, and inside it must not."""
        original, found = audio_files.read(path)[0], runs[0].samples
        inside = slice(round(start * RATE), None if end == math.inf else round(end * RATE))
        checks = heard(runs[0]) + same("kept part", found[:, : inside.start], original[:, : inside.start])
        if inside.stop:
            checks += same("and after it", found[:, inside.stop :], original[:, inside.stop :])
            checks += distance("the old section", found[:, inside], original[:, inside])
        return checks + distance("the other seed", found[:, inside], runs[1].samples[:, inside])

    def graphed(self) -> tuple[list[Run], list[Check]]:
        runs = self.twice(lambda seed: with_node(text_graph(self.model, seed), "SA3_Compile", when="in background"))
        checks = heard(runs[0]) + same("eager", runs[0].samples, self.known.get("here"))
        return runs, [*checks, Check(str(runs[-1].record.get("compiled")))]


ITEMS: dict[str, Callable[[Session], tuple[list[Run], list[Check]]]] = {
    "text to audio": Session.text_to_audio,
    "same seed after /free": Session.after_free,
    "LoRA, constant": Session.lora,
    "LoRA, scheduled": Session.scheduled_lora,
    "without LoRA again": Session.without_lora_again,
    "audio to audio": Session.audio_to_audio,
    "inpaint, splice": Session.inpaint,
    "continue, splice": Session.continued,
    "CUDA graphs": Session.graphed,
    "after the other model": Session.after_the_other,
}
FEW = ["text to audio", "same seed after /free", "LoRA, constant", "without LoRA again", "continue, splice", "CUDA graphs"]
SERVERS: dict[str, tuple[list[str], list[str]]] = {"default": ([], list(ITEMS)), "legacy": ([LEGACY], FEW)}  # name -> flags, items


# the whole


class Report:
    """The rows so far; the file is written after each, so that an interruption leaves what there is."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began, self.rows, self.servers = options, time.perf_counter(), [], {}
        self.about: dict = {"machine": hardware(), "tiny": options.tiny}
        if options.out:
            options.out.with_suffix(".log").unlink(missing_ok=True)

    def left(self) -> float:
        """Seconds until the limit."""
        return self.options.limit - (time.perf_counter() - self.began)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"[{time.perf_counter() - self.began:6.1f} s] {' | '.join(cells(row))}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        if self.options.out:
            whole = {**self.about, "servers": self.servers, "rows": [asdict(row) for row in self.rows]}
            self.options.out.write_text(json.dumps(whole, indent=1, default=str), encoding="utf-8")

    def keep_logs(self, host: Host) -> None:
        """What the servers said, in one file in the folder of the JSON."""
        if self.options.out:
            with self.options.out.with_suffix(".log").open("a", encoding="utf-8") as file:
                for log in host.logs:
                    file.write(f"\n===== {log.parent.name}\n{clean(log.read_text(encoding='utf-8', errors='replace'))}")

    def item(self, session: Session, name: str) -> None:
        """One row, whatever becomes of it."""
        row = Row(session.host.name, session.model.name, name)
        if self.left() <= 0:
            row.state = "not reached"
        else:
            try:
                row.runs, row.checks = ITEMS[name](session)
                self.about |= {session.model.name: session.about} if session.about else {}
                row.state = "ok" if all(check.good for check in row.checks) else "check"
            except Failed as error:
                row.state, row.error, row.trace = "failed", str(error), error.trace
                if self.left() <= 0:
                    row.state, row.trace = "not reached", ""
            except Exception as error:
                row.state, row.error = "failed", f"{type(error).__name__}: {error}"[:WORDS]
        self.add(row)

    def show(self) -> str:
        """The servers' accounts, the tracebacks, and the table last."""
        lines = [self.about["machine"], *(f"{key}: {value}" for key, value in self.about.items() if key not in ("machine", "tiny"))]
        for name, account in self.servers.items():
            lines += ["", f"## server '{name}' {' '.join(account['flags'])}", *(f"  {fact}" for fact in account["facts"])]
            lines += [f"  {count} x {words}" for words, count in account["complaints"].items()]
        warned = Counter(str(words) for row in self.rows for run in row.runs for words in run.record.get("warnings", []))
        lines += ["", "## warnings of runs", *(f"  {count} x {words}" for words, count in warned.items())] if warned else []
        for row in self.rows:
            if row.trace:
                lines += ["", f"## {row.server}, {row.model}, {row.item}: {row.error}", row.trace]
        return "\n".join([*lines, "", table(HEAD, [cells(row) for row in self.rows])])


HEAD = ["server", "model", "what", "first", "second", "load", "text", "encode", "sample", "decode", "device", "result"]


def cells(row: Row) -> list[str]:
    """A row's cells: load and text of the first run, the other stages of the last one, both runs' own seconds, GB used (reserved)."""
    first, last = (row.runs[0], row.runs[-1]) if row.runs else (None, None)

    def stage(name: str) -> str:
        seconds = (first if name in ("load", "text", "encode") else last).stage(name) if first else 0.0
        return f"{seconds:.3f}" if seconds else ""

    times = [f"{run.seconds:.2f}" for run in row.runs[:2]] + [""] * (2 - len(row.runs[:2]))
    used, reserved = (max((getattr(run, name) for run in row.runs), default=0) / 1e9 for name in ("used", "reserved"))
    memory = f"{used:.2f}" + (f" ({reserved:.2f})" if reserved else "") if used else ""
    words = "; ".join(dict.fromkeys(check.words if check.good else f"**{check.words}**" for check in row.checks))
    result = {"ok": words, "check": f"**CHECK** {words}", "failed": f"**FAILED** {row.error}"}.get(
        row.state, f"{row.state} {row.error}".strip()
    )
    result = " ".join(result.split()).replace("|", "/")
    return [row.server, row.model, row.item, *times, *map(stage, STAGES), memory, result]


def knows_flag(comfyui: Path, flag: str) -> bool:
    with suppress(OSError):
        return f'"{flag}"' in (comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    return False


def ready(models: dict[Model, Future | str | None], report: Report) -> list[Model]:
    """Waits for the files; what is not there becomes a row."""
    there = []
    for model, state in models.items():
        try:
            if isinstance(state, Future):
                report.about[f"seconds to write {model.name}"] = round(state.result(), 1)
            if isinstance(state, str):
                report.add(Row("", model.name, "all", "skipped", error=state))
            else:
                there.append(model)
        except Exception as error:
            report.add(Row("", model.name, "its files", "failed", error=f"{type(error).__name__}: {error}"[:WORDS]))
    return there


def serve(host: Host, names: list[str], models: list[Model], known: dict[Model, dict[str, Tensor]], report: Report, folder: Path) -> None:
    """All items of one server, model after model; at the end the first model again."""
    sessions = [Session(host, model, known[model], folder, report.left) for model in models]
    for session in sessions:
        session.known.pop("here", None)
        for name in names:
            if name != "after the other model":
                report.item(session, name)
    if "after the other model" in names and len(sessions) > 1:
        report.item(sessions[0], "after the other model")


def measure(options: argparse.Namespace) -> Report:
    """Everything that the options ask for, as rows."""
    report = Report(options)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="sa3-gpu-") as name, ProcessPoolExecutor(2, spawn) as pool:
        folder = Path(name)
        prepared, models, known = prepare(folder / "models", options.tiny, pool), None, {}
        for server in options.servers:
            flags, items = SERVERS[server]
            host, names = Host(server, flags, options, folder), [item for item in items if item in options.items]
            if LEGACY in flags and not knows_flag(options.comfyui, LEGACY):
                report.add(Row(server, "", "all", "skipped", error=f"this ComfyUI has no {LEGACY}"))
                continue
            try:
                if report.left() > 0 and names:
                    with suppress(Failed):  # the first item says it again
                        report.about.setdefault("device", host.device())
                if models is None:
                    models = ready(prepared, report)
                    known = {model: {} for model in models}
                serve(host, names, models, known, report, folder)
            finally:
                host.stop()
                report.servers[server] = host.account()
                report.keep_logs(host)
                report.save()
    report.about["seconds in all"] = round(time.perf_counter() - report.began, 1)
    report.save()
    return report


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(";") if name.strip()]
        if not names or set(names) - set(known):
            raise argparse.ArgumentTypeError(f"'{text}' is not a list of {'; '.join(known)}")
        return names

    return read


def comfyui_at(path: str) -> Path:
    if not is_comfyui(Path(path)):
        raise argparse.ArgumentTypeError(f"there is no ComfyUI in {path}")
    return Path(path).absolute()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=comfyui_at, default=str(default_comfyui(ROOT)), help="a ComfyUI tree (else the one of run.py)")
    parser.add_argument("--python", default=sys.executable, help="that runs it; else this one")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="auto: what ComfyUI chooses")
    parser.add_argument("--tiny", action="store_true", help="the demos of assets/ and clips of 2 s, to try the script itself")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which no item is begun")
    parser.add_argument("--out", type=Path, help="everything as JSON, written after each row; the servers' logs in the same folder")
    parser.add_argument("--servers", type=names_of(list(SERVERS)), default=list(SERVERS), help="; between them: " + "; ".join(SERVERS))
    parser.add_argument("--items", type=names_of(list(ITEMS)), default=list(ITEMS), help="; between them: " + "; ".join(ITEMS))
    options = parser.parse_args(arguments)
    options.cpu = options.device == "cpu" or not has_accelerator()
    report = measure(options)
    print(report.show(), flush=True)
    return int(any(row.state in ("failed", "check") for row in report.rows))


if __name__ == "__main__":
    sys.exit(main())
