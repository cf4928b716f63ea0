"""Run hundreds of mixed prompts through one ComfyUI server and check results, refusals, memory, threads and handles.

    python benchmarks/load.py [--comfyui PATH] [--prompts 300] [--clients 3] [--alone 40]

Several clients send prompts at once, on the embedded demo model. The prompts are those of the shared workflows with other seeds, lengths,
batches, samplers and LoRAs; one in ten is impossible and must be refused in a sentence; one in ten is long and interrupted at a random
moment of its run; one in four repeats an earlier graph and must give the same samples again, whatever ran in between. At the end a new
server computes some of the prompts one by one: the samples must be the same.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import random
import struct
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests" / "core")]

from tools.launcher.environment import default_comfyui
from tools.launcher.server import Graph, PromptRejected, Server

CLIENTS = 3
LATEST = 40  # polls of a running prompt after which it is interrupted at the latest
POLL = 0.05  # seconds
WARM = 30  # prompts after which memory, threads and handles may no longer grow
SLOPE_MB = 1.0  # per prompt
PATIENCE = 1800.0  # seconds for one prompt, on a machine that does other work
LORAS = {"sa3_example_high": "lora", "sa3_example_decay": "dora-rows"}
FILES = sorted(file for file in (ROOT / "workflows" / "api").glob("*.json") if file.stem != "train_lora")  # it would go on, not repeat
GRAPHS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FILES}
GRAPHS = {name: graph for name, graph in GRAPHS.items() if all(node["class_type"] != "TextGenerate" for node in graph.values())}
SAMPLING = ("SA3_Sampler", "SA3_Extend")
LONG = [name for name, graph in GRAPHS.items() if any(node["class_type"] in SAMPLING for node in graph.values())]
# What makes a graph impossible, and a word of the refusal.
IMPOSSIBLE = [
    ("text_to_audio", "SA3_EmptyLatent", {"seconds": 383.0}, "at most"),
    ("text_to_audio", "SA3_EmptyLatent", {"seconds_per_item": "1, two"}, "numbers"),
    ("text_to_audio", "SA3_Sampler", {"noise_level": 0.0}, "noise_level"),
    ("text_to_audio", "SA3_Sampler", {"sampler": "ddim"}, "ddim"),
    ("text_to_audio", "SA3_ModelLoader", {"model": "medium"}, "demo"),
    ("lora_blend", "SA3_LoRAStack", {"lora": "../../escape.safetensors"}, "lora"),
    ("inpaint", "SA3_InpaintMask", {"regions": "1-99"}, "outside the clip"),
]


@dataclass
class Job:
    """One prompt: its graph, the word of its refusal when it is impossible, and what came of it.

    interrupt_after: polls of the running prompt, None = never. It may be interrupted or, when it was faster, complete.
    """

    number: int
    name: str
    graph: Graph
    refusal: str = ""
    repeats: int | None = None  # the number of the job it is a copy of
    interrupt_after: int | None = None
    interrupted: bool = False
    digest: str = ""
    error: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    jobs: list[Job] = field(default_factory=list)
    looks: list[tuple[int, int, int]] = field(default_factory=list)  # (bytes, threads, handles) after each prompt

    @property
    def failures(self) -> list[str]:
        """What did not go as it must, a sentence each."""
        said = []
        by_number = {job.number: job for job in self.jobs}
        for job in self.jobs:
            if job.refusal and job.refusal.lower() not in job.error.lower():
                said.append(f"job {job.number} ({job.name}) should be refused with '{job.refusal}': {job.error or 'it ran'}")
            elif job.interrupted and job.interrupt_after is None:
                said.append(f"job {job.number} ({job.name}) was interrupted in place of another")
            elif not job.refusal and job.error:
                said.append(f"job {job.number} ({job.name}) failed: {job.error}")
            elif job.repeats is not None and job.digest != by_number[job.repeats].digest:
                said.append(f"job {job.number} ({job.name}) differs from job {job.repeats}, of which it is a copy")
        return said

    @property
    def slope(self) -> float:
        """MB a prompt by which resident memory grows after the first ones: the median of all pairs' slopes."""
        rest = [look[0] / 1e6 for look in self.looks[WARM:]]
        slopes = sorted((rest[j] - rest[i]) / (j - i) for i in range(len(rest)) for j in range(i + 1, len(rest)))
        return slopes[len(slopes) // 2] if slopes else 0.0

    @property
    def growth(self) -> tuple[int, int]:
        """How many more (threads, handles) there are at the end than after the first prompts, at their most."""
        early, late = self.looks[: WARM + 1], self.looks[-max(1, len(self.looks) // 4) :]
        return tuple(max(look[i] for look in late) - max(look[i] for look in early) for i in (1, 2))


def variation(name: str, rng: random.Random) -> Graph:
    """A shared workflow on the demo, short, with other values."""
    graph = copy.deepcopy(GRAPHS[name])
    seconds = rng.choice([0.3, 0.5, 1.0, 2.2])
    batch = rng.choice([1, 1, 2, 3])
    changes = {
        "SA3_ModelLoader": {"model": "demo"},
        "SA3_AutoencoderLoader": {"autoencoder": "demo"},
        "SA3_TextEncode": {"text": rng.choice(["", "rain", "a low tone, then a kick", "x " * 300]), "one_prompt_per_line": False},
        "SA3_EmptyLatent": {"seconds": seconds, "batch_size": batch, "padding": rng.choice([0.0, 1.0]), "seconds_per_item": ""},
        "SA3_Sampler": {
            "seed": rng.randrange(2**40),
            "steps": rng.choice([1, 2, 4]),
            "sampler": rng.choice(["auto", "euler", "dpmpp"]),
            "cfg": rng.choice([0.0, 3.0]),
        },
        "SA3_SAMEEncode": {"padding": 1.0},
        "SA3_SAMEDecode": {
            "chunk_size": rng.choice([64, 128]),
            "overlap": 32,
            "noise": rng.choice(["off", "seeded"]),
            "seed": rng.randrange(9),
        },
        "SA3_InpaintMask": {"regions": rng.choice(["0.5-1", "0.2-0.4, 1-1.5"])},
        "SA3_Continue": {"seconds": seconds, "padding": 1.0, "side": rng.choice(["after", "before"])},
        "SA3_Loop": {"bpm": 125.0, "bars": 1, "seam": 0.5, "padding": 1.0},
        "SA3_Extend": {"seconds": 2.0, "context": 1.0, "window": 3.0, "steps": 1, "seed": rng.randrange(99)},
        "SA3_LoRAStack": {"strength": rng.choice([0.0, 0.5, 1.0]), "start": rng.choice([0.0, 0.5])},
        "SA3_PreviewBatch": {"keep": "all"},
    }
    for node in graph.values():
        node["inputs"].update({key: value for key, value in changes.get(node["class_type"], {}).items() if key in node["inputs"]})
    return graph


def long(graph: Graph) -> Graph:
    """A graph that samples for so long that an interruption comes in time."""
    for node in graph.values():
        if node["class_type"] in SAMPLING:
            node["inputs"]["steps"] = 500
    return graph


def jobs(count: int, seed: int) -> list[Job]:
    """The same prompts for the same seed."""
    rng, made = random.Random(seed), []
    for number in range(count):
        if rng.random() < 0.1:
            name, kind, change, word = rng.choice(IMPOSSIBLE)
            graph = variation(name, rng)
            next(node for node in graph.values() if node["class_type"] == kind)["inputs"].update(change)
            made.append(Job(number, name, graph, word))
            continue
        if rng.random() < 0.1:
            name = rng.choice(LONG)
            made.append(Job(number, name, long(variation(name, rng)), interrupt_after=rng.randrange(LATEST)))
            continue
        whole = [job for job in made[-40:-3] if not job.refusal and job.repeats is None and job.interrupt_after is None]
        if whole and rng.random() < 0.25:
            first = rng.choice(whole)
            made.append(Job(number, first.name, copy.deepcopy(first.graph), repeats=first.number))
            continue
        name = rng.choice(list(GRAPHS))
        made.append(Job(number, name, variation(name, rng)))
    return made


def furnish(base: Path) -> None:
    """The recording and the LoRAs that the shared workflows name."""
    from lora_support import write_lora

    import sa3_core

    module = sa3_core.load("demo").module
    for seed, (name, kind) in enumerate(LORAS.items()):
        write_lora(base / "models" / "loras" / f"{name}.safetensors", module, kind, seed=seed)
    rate, n = 32000, 70400
    wave = [int(12000 * math.sin(i * 0.0432) * (0.6 + 0.4 * math.sin(i * 0.0007))) for i in range(n)]
    data = struct.pack(f"<{n}h", *wave)
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16) + b"data" + struct.pack("<I", len(data))
    (base / "input").mkdir(parents=True, exist_ok=True)
    (base / "input" / "sa3_example.wav").write_bytes(b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data)


def digest(files: list[Path]) -> str:
    """Of the samples in audio files, whatever else is written in them."""
    import av

    total = hashlib.sha256()
    for file in files:
        with av.open(str(file)) as container:
            for frame in container.decode(audio=0):
                total.update(frame.to_ndarray().tobytes())
    return total.hexdigest()


def serve(server: Server, job: Job) -> None:
    """One prompt from its queueing to its end."""
    start = time.monotonic()
    try:
        prompt = server.queue(job.graph)
    except PromptRejected as error:
        job.error = str(error)
        return
    polls = 0  # while it is running
    while (entry := server.history(prompt)) is None:
        if time.monotonic() - start > PATIENCE:
            job.error = f"no end after {PATIENCE:g} s"
            return
        if job.interrupt_after is not None and server.running(prompt):
            polls += 1
            if polls > job.interrupt_after:
                server.interrupt(prompt)
        time.sleep(POLL)
    job.seconds = time.monotonic() - start
    if entry["status"]["status_str"] == "success":
        files = [file for file in server.output_files(entry) if file.suffix in (".flac", ".wav")]
        job.digest = digest(files) if files else ""
        job.error = "" if files else "it saved nothing"
    else:
        ends = dict(entry["status"]["messages"])
        job.interrupted = "execution_interrupted" in ends
        failure = ends.get("execution_error", {}).get("exception_message") or "it failed without a word"
        job.error = "" if job.interrupted else failure


def drive(server: Server, work: list[Job], clients: int = CLIENTS, say=None) -> Report:
    """All prompts through a running server, by clients that each wait for their own."""
    report, lock, left, broken = Report(), threading.Lock(), iter(work), []

    def client() -> None:
        try:
            while True:
                with lock:
                    job = next(left, None)
                if job is None or broken:
                    return
                serve(server, job)
                with lock:
                    report.jobs.append(job)
                    report.looks.append((server.memory, *server.handles))
                    if say:
                        say(report)
        except Exception as error:  # a client that dies must not look like one that had nothing to do
            broken.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return report


def differing(server: Server, report: Report, count: int) -> list[str]:
    """A sentence for each of `count` prompts of a report whose samples are others when it is computed alone, one after the other."""
    done = [job for job in report.jobs if job.digest and job.repeats is None and job.interrupt_after is None]
    said = []
    for job in random.Random(0).sample(done, min(count, len(done))):
        again = Job(job.number, job.name, job.graph)
        serve(server, again)
        if again.digest != job.digest:
            said.append(f"job {job.number} ({job.name}) differs from itself alone{': ' * bool(again.error)}{again.error}")
    return said


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=default_comfyui(ROOT), help="a ComfyUI tree (else the one of run.py)")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--alone", type=int, default=40, help="prompts to compute again, one by one, in a new server")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def say(report: Report) -> None:
        if len(report.jobs) % 10 == 0:
            size, threads, handles = report.looks[-1]
            print(f"{len(report.jobs)}: {size / 1e6:.0f} MB, {threads} threads, {handles} handles", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="sa3-load-") as folder:
        furnish(Path(folder))
        with Server(options.comfyui, Path(folder), packs=[ROOT]) as server:
            report = drive(server, jobs(options.prompts, options.seed), options.clients, say)
        with Server(options.comfyui, Path(folder), packs=[ROOT]) as server:
            others = differing(server, report, options.alone)
    refused, copies, late, interrupted = (
        sum(map(test, report.jobs))
        for test in (
            lambda job: bool(job.refusal),
            lambda job: job.repeats is not None,
            lambda job: job.interrupt_after is not None,
            lambda job: job.interrupted,
        )
    )
    said = [*report.failures, *others]
    print(f"{len(report.jobs)} prompts of {options.clients} clients: {refused} impossible, {copies} copies, {interrupted} interrupted")
    print(f"({late - interrupted} ended before), {options.alone} computed again alone; {len(said)} not as they must be")
    print(f"memory after the first {WARM}: {report.slope:+.3f} MB a prompt; threads {report.growth[0]:+d}, handles {report.growth[1]:+d}")
    print("\n".join(said))
    return 1 if said or report.slope >= SLOPE_MB or max(report.growth) > 2 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
