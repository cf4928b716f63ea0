"""Measure agreement, time, kernels, memory, a ComfyUI server, LoRAs and training on a GPU, in one call of at most 6 minutes.

    python benchmarks/gpu.py [--comfyui PATH] [--reference PATH] [--device cuda] [--tiny] [--parts 1,2] [--limit 348] [--out FILE.json]

Models have their real size and random weights, made on the device; the demos in assets/ have trained ones. Nothing is downloaded. The most
important items come first, and an item that needs more time than is left is not begun. Every item is isolated: what fails or cannot run
here is a row of the last table, and the rest continues, in a new process where a device error left the old one unusable. --tiny takes the
recorded tiny models and short clips, for a check on a CPU. Parts: 1 agreement, 2 whole runs, 3 kernels and floors, 4 memory, 5 a ComfyUI
server (with --comfyui; gpu_server.py alone does more), 6 LoRAs and training. With --out the tables are also written to FILE.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.gpu_summary import DEVICE, NOTES, SERVER, tables

SERVER_GROUP = "server"
GROUPS = ("main", "reference", SERVER_GROUP, "rest")  # processes, in this order: gpu_parts.py's items, and gpu_server.py
TINY_GROUPS = ("main reference rest", SERVER_GROUP)  # starting a process takes longer there than its items
PARTS = range(1, 7)
SERVER_PART = 5
SERVER_NEEDS = 100  # seconds of the items below on an H100; 17 of the seconds write 9 GB of models
SERVER_ITEMS = ("text to audio", "CUDA graphs")
LIMIT = 348.0
NO_DEVICE = "no CUDA device; use --device cpu --tiny"
UNUSABLE = 3  # exit status of a worker whose device answers no more
RESTARTS = 5
GRACE = 11  # seconds beyond the limit after which a process is stopped


def parts(text: str) -> list[int]:
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    if not numbers or any(not part.isdigit() or int(part) not in PARTS for part in numbers):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of parts from {PARTS[0]} to {PARTS[-1]}")
    return [int(part) for part in numbers]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cpu or mps")
    parser.add_argument("--tiny", action="store_true", help="the recorded tiny models and short clips")
    parser.add_argument("--parts", type=parts, default=list(PARTS))
    parser.add_argument("--only", action="append", default=[], help="items whose name contains this; may be given several times")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds within which items are to end")
    parser.add_argument("--reference", type=Path, help="a checkout of Stability-AI/stable-audio-3 to compare with")
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI for part 5")
    parser.add_argument("--out", type=Path, help="all rows as JSON")
    parser.add_argument("--worker", nargs=2, metavar=("GROUP", "RECORDS"), help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser


# the worker


def work(options: argparse.Namespace) -> int:
    """Run the items of a group that no worker before began; append what they yield to the records."""
    from benchmarks import gpu_parts
    from benchmarks.gpu_lab import Lab

    group, path = options.worker[0], Path(options.worker[1])
    known = read(path)
    begun = {record["item"] for record in known if record["kind"] == "begin"}
    with path.open("a", encoding="utf-8") as file:

        def tell(kind: str, **values) -> None:
            print(json.dumps({"kind": kind, "group": group, **values}, default=str), file=file, flush=True)

        lab = Lab(options.device, options.tiny)
        if not any(record.get("table") == DEVICE for record in known):
            tell("row", item=DEVICE, table=DEVICE, row=lab.describe())
        items = [one for one in gpu_parts.items(options.reference) if one.part in options.parts]
        items = [one for one in items if any(words in one.name for words in options.only or [""])]
        tell("items", items={one.name: one.part for one in items}, groups=sorted({one.group for one in items}))
        items = [one for one in items if one.group in group]
        for item in items:
            if item.name in begun:
                continue
            needed = item.needs if lab.cuda and not lab.tiny else 0
            if time.time() + needed > options.deadline:
                tell("late", item=item.name, part=item.part)
            elif not measure(item, lab, tell, options):
                return UNUSABLE
        tell("finished")
    return 0


def measure(item, lab, tell: Callable[..., None], options: argparse.Namespace) -> bool:
    """Run one item. False where the device cannot be used any more."""
    import torch

    from benchmarks.gpu_lab import Skipped

    say(options, f"part {item.part}: {item.name}")
    tell("begin", item=item.name, part=item.part)
    start, error, skipped, usable = time.perf_counter(), None, "", True
    try:
        with torch.no_grad():
            for table, row in item.job(lab):
                tell("row", item=item.name, table=table, row=row)
    except Skipped as reason:
        skipped = str(reason)
        say(options, f"    skipped: {skipped}")
    except Exception as caught:
        told = traceback.format_exc()
        error = {"type": type(caught).__name__, "message": str(caught)[:2000], "traceback": told[-6000:]}
        say(options, f"    FAILED: {error['type']}: {error['message'][:300]}")
        traceback.clear_frames(caught.__traceback__)
        if isinstance(caught, torch.OutOfMemoryError):
            lab.clear()
        del caught
    try:
        if lab.cuda:
            gc.collect()
        lab.check()
    except Exception as caught:
        usable = False
        error = error or {"type": type(caught).__name__, "message": str(caught)[:2000], "traceback": ""}
        say(options, "    the device answers no more; a new process goes on")
    for note in lab.notes:
        tell("row", item=item.name, table=NOTES, row={"item": item.name, "note": note})
    lab.notes.clear()
    tell("end", item=item.name, part=item.part, seconds=time.perf_counter() - start, error=error, skipped=skipped)
    return usable


def say(options: argparse.Namespace, words: str) -> None:
    left = options.deadline - time.time()
    print(f"[{options.limit - left:6.1f} s] {words}", flush=True)


# the supervisor


def read(path: Path) -> list[dict]:
    """Records so far; a line that a dying process left half is no record."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def supervise(options: argparse.Namespace, records: Path) -> None:
    """One worker after the other until every group has finished or the limit is over."""
    for group in TINY_GROUPS if options.tiny else GROUPS:
        if group == SERVER_GROUP:
            serve(options, records)
            continue
        wanted = [record["groups"] for record in read(records) if record["kind"] == "items"]
        if wanted and (not any(one in group for one in wanted[0]) or time.time() > options.deadline):
            continue
        for _ in range(RESTARTS):
            command = [sys.executable, __file__, *passed_on(options), "--worker", group, str(records), "--deadline", str(options.deadline)]
            begun = count(records, "begin")
            status = run(command, options.deadline + GRACE - time.time())
            if status == 0:
                break
            note_end(records, group, status)
            if time.time() > options.deadline or count(records, "begin") == begun:
                break


def count(records: Path, kind: str) -> int:
    return sum(record["kind"] == kind for record in read(records))


def passed_on(options: argparse.Namespace) -> list[str]:
    """The options of a worker."""
    given = ["--device", options.device, "--parts", ",".join(map(str, options.parts)), "--limit", str(options.limit)]
    given += [word for words in options.only for word in ("--only", words)] + ["--tiny"] * options.tiny
    return given + (["--reference", str(options.reference.absolute())] if options.reference else [])


def run(command: list[str], seconds: float) -> int | str:
    """Exit status, or words where the process was stopped."""
    process = subprocess.Popen(command)
    try:
        return process.wait(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return "stopped: it ran past the limit"
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            process.wait()


def note_end(records: Path, group: str, status: int | str) -> None:
    """Record the item in which a worker ended."""
    found = read(records)
    ended = {record["item"] for record in found if record["kind"] == "end"}
    began = [record for record in found if record["kind"] == "begin" and record["item"] not in ended]
    with records.open("a", encoding="utf-8") as file:
        for record in began or ([] if status == UNUSABLE else [{"item": f"the process of '{group}'", "part": 0}]):
            error = {"type": "Process", "message": f"ended with {status}", "traceback": ""}
            print(json.dumps({"kind": "end", "item": record["item"], "part": record["part"], "seconds": 0, "error": error}), file=file)


def serve(options: argparse.Namespace, records: Path) -> None:
    """Part 5: gpu_server.py as a process of its own; what it prints is kept whole."""
    script = Path(__file__).with_name("gpu_server.py")
    if SERVER_PART not in options.parts:
        return
    with records.open("a", encoding="utf-8") as file:

        def tell(kind: str, **values) -> None:
            print(json.dumps({"kind": kind, "item": SERVER, "part": SERVER_PART, **values}), file=file, flush=True)

        if options.comfyui is None:
            return tell("end", seconds=0, error=None, skipped="--comfyui names no ComfyUI")
        left = options.deadline - time.time()
        if left < (0 if options.tiny else SERVER_NEEDS):
            return tell("late")
        left = left if options.tiny else SERVER_NEEDS
        tell("begin")
        start, error, printed = time.time(), None, []
        out = records.with_name("server.json")
        command = [sys.executable, str(script), "--comfyui", str(options.comfyui.absolute()), "--out", str(out)]
        command += ["--items", ";".join(SERVER_ITEMS), "--device", "cpu" if options.device == "cpu" else "auto"]
        command += ["--limit", f"{left:.0f}"] + ["--tiny"] * options.tiny
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
        stop = stopping(process, left + GRACE)
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                printed.append(line)
        finally:
            stop()
            process.kill() if sys.exc_info()[0] else None
        if process.wait():
            words = f"ended with {process.returncode}" + "; its table names what failed" * (process.returncode == 1)
            error = {"type": "Process", "message": words, "traceback": "".join(printed)[-6000:]}
        found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else None
        tell("server", text="".join(printed), found=found)
        tell("end", seconds=time.time() - start, error=error)


def stopping(process: subprocess.Popen, seconds: float) -> Callable[[], None]:
    """Stop a process after a while; returns what calls this off."""
    import threading

    timer = threading.Timer(seconds, process.kill)
    timer.start()
    return timer.cancel


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def main(given: list[str]) -> int:
    parser = arguments()
    options = parser.parse_args(given)
    if options.worker:
        return work(options)
    if options.device.startswith("cuda") and not has_cuda():
        print(NO_DEVICE, file=sys.stderr)
        return 2
    if options.reference is not None and not (options.reference / "stable_audio_3" / "factory.py").is_file():
        parser.error(f"{options.reference} is no checkout of Stability-AI/stable-audio-3.")
    options.deadline = time.time() + options.limit
    signal.signal(signal.SIGTERM, interrupted)
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.jsonl"
        if options.out is not None:
            records = options.out.with_suffix(".jsonl").absolute()
            records.parent.mkdir(parents=True, exist_ok=True)
            records.unlink(missing_ok=True)
        with suppress(KeyboardInterrupt):
            supervise(options, records)
        found = read(records)
        if options.out is not None:
            options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        text = "\n".join(tables(found))
        if options.out is not None:
            options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
            records.unlink(missing_ok=True)
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
