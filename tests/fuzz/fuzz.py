"""Damaged files through every loader of the pack, each case in a child process that may fall over.

    python tests/fuzz/fuzz.py --count 10000 --seed 0
    python tests/fuzz/fuzz.py --case 1234 --seed 0          one case, in this process, with its traceback
    python tests/fuzz/fuzz.py --count 2000 --only LoRA

A case is loaded or refused with the pack's own error. Anything else is a failure: another exception, the end of the process, more than
5 seconds, more memory than the file declares, a file written outside the case's output folder, a connection. Same seed, same cases.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

SECONDS = 5.0  # of the processor; longest a case may take, on a busy machine too
PATIENCE = 12  # times that on the clock, for a case that waits
MEMORY = 256 << 20  # bytes a case may hold beyond what the process holds already; no file here declares a tenth of it
ADDRESSES = 2 << 30  # hard limit of the address space beyond the start
WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.move")
FORBIDDEN = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pickle.find_class",
)


class Watch:
    """What a case does to the system, by Python's audit events."""

    def __init__(self) -> None:
        self.allowed: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.allowed is None:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif event in WRITING or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            for path in arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]:
                if isinstance(path, (str, bytes)) and not self.inside(os.fsdecode(path)):
                    self.seen.append(f"{event} {path!r}"[:200])

    def inside(self, path: str) -> bool:
        return path in ("/dev/null", "/proc/self/clear_refs") or Path(os.path.abspath(path)).is_relative_to(self.allowed)


def memory() -> tuple[int, int]:
    """Bytes (now, at most since `forget`) of this process."""
    values = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(values[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))


def forget() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def prepare(corpus, seed: int, number: int, only: str | None, folder: Path):
    """The damaged files of a case in its folder -> (target, the function that loads them)."""
    from fuzz_targets import make

    folder.mkdir(parents=True)
    return make(corpus, seed, number, folder, only)


def place_of(error: BaseException) -> str:
    """The innermost line of the pack, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if str(ROOT) in frame.filename and "/fuzz" not in frame.filename] or frames[-1:]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"


def judge(run, watch: Watch, folder: Path, errors: tuple[type[BaseException], ...]) -> dict:
    """Run a case and return its outcome, with the reason of a failure."""
    forget()
    before, _ = memory()
    watch.allowed, watch.seen = folder / "out", []
    why = ""
    try:
        run()
        outcome = "loaded"
    except errors:
        outcome = "refused"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        outcome, why = "escaped", f"{type(error).__name__}: {str(error)[:160]} at {place_of(error)}"
    finally:
        watch.allowed = None
    used = memory()[1] - before
    if watch.seen:
        outcome, why = "trespassed", watch.seen[0]
    elif outcome != "escaped" and used > MEMORY:
        outcome, why = "memory", f"{used >> 20} MB"
    return {"outcome": outcome, "why": why, "bytes": used}


def work(seed: int, only: str | None, folder: Path) -> None:
    """The child: case numbers in, a line of JSON out for each."""
    import resource
    import warnings

    import torch
    from fuzz_targets import Corpus

    from sa3_core import SA3Error
    from tools.launcher.environment import SetupError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    corpus, watch = Corpus(folder / "corpus"), Watch()
    if only != "faults":
        corpus.model.generate("warm up", 0.05, steps=1)
        corpus.loras, corpus.spiece  # noqa: B018  made now, not inside a case
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        number = int(line)
        place = folder / f"case-{number}"
        target, run = prepare(corpus, seed, number, only, place)
        print(json.dumps(target), file=answers, flush=True)
        start = time.process_time()
        found = judge(run, watch, place, (SA3Error, SetupError))
        seconds = time.process_time() - start
        shutil.rmtree(place, ignore_errors=True)
        print(json.dumps({"number": number, **found, "seconds": seconds}), file=answers, flush=True)


class Child:
    """A worker process, started again whenever a case has ended it."""

    def __init__(self, seed: int, only: str | None, folder: Path):
        self.command = [
            sys.executable,
            str(HERE / "fuzz.py"),
            "--worker",
            str(folder),
            "--seed",
            str(seed),
            *(["--only", only] if only else []),
        ]
        self.folder, self.process, self.buffer, self.done = folder, None, b"", 0

    def start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "0"}
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ, cwd=ROOT
        )
        self.buffer, self.done = b"", 0
        if self.answer(600, 600) != "ready":
            raise RuntimeError(f"the worker did not start: {' '.join(self.command)}")

    def cpu_seconds(self) -> float:
        """Seconds of the processor that the child has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def answer(self, seconds: float, patience: float):
        """The next line; None when the process has ended, has used `seconds` of processor time, or after `patience` seconds."""
        deadline, before = time.monotonic() + patience, self.cpu_seconds()
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.5)
            if not ready and time.monotonic() < deadline and self.cpu_seconds() - before < seconds:
                continue
            piece = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                return None
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def run(self, number: int) -> dict:
        if self.process is None or self.done >= 1000:
            self.stop()
            self.start()
        self.process.stdin.write(f"{number}\n".encode())
        self.process.stdin.flush()
        self.done += 1
        target = self.answer(60, 600)  # making the files is not what is timed
        found = target and self.answer(SECONDS, SECONDS * PATIENCE)
        if found:
            return {"target": target, **found}
        ended = self.process.poll()
        if ended is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = self.process.wait(0.5)
        self.stop()
        why = f"more than {SECONDS:g} s" if ended is None else f"the process ended with {ended}"
        if target is None:
            raise RuntimeError(f"case {number} could not be made; see --case {number}")
        return {
            "target": target,
            "number": number,
            "outcome": "hung" if ended is None else "died",
            "why": why,
            "bytes": 0,
            "seconds": SECONDS,
        }

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


def sweep(count: int, seed: int, only: str | None = None, first: int = 0, say=None) -> list[dict]:
    """The results of `count` cases."""
    with tempfile.TemporaryDirectory(prefix="sa3-fuzz-") as folder:
        child = Child(seed, only, Path(folder) / "work")
        try:
            results = []
            for number in range(first, first + count):
                results.append(child.run(number))
                if say:
                    say(results[-1], len(results))
            return results
        finally:
            child.stop()


def failed(results: list[dict]) -> list[dict]:
    """The results of failed cases."""
    return [result for result in results if result["outcome"] not in ("loaded", "refused")]


def table(results: list[dict]) -> str:
    """A Markdown table with a row per target."""
    rows = ["| target | cases | loaded | refused | failed | slowest | peak memory |", "|---|---|---|---|---|---|---|"]
    groups: dict[str, list[dict]] = collections.defaultdict(list)
    for result in results:
        groups[result["target"]].append(result)
    for name, group in [*sorted(groups.items()), ("all", results)]:
        n = collections.Counter(result["outcome"] for result in group)
        slowest, most = max(result["seconds"] for result in group), max(result["bytes"] for result in group)
        rows.append(
            f"| {name} | {len(group)} | {n['loaded']} | {n['refused']} | {len(failed(group))} | {slowest:.2f} s | {most / 1e6:.0f} MB |"
        )
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--case", type=int, help="run this case alone, in this process")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.seed, options.only, options.worker)
        return 0
    if options.case is not None:
        from fuzz_targets import Corpus

        with tempfile.TemporaryDirectory(prefix="sa3-fuzz-") as folder:
            target, run = prepare(Corpus(Path(folder) / "corpus"), options.seed, options.case, options.only, Path(folder) / "case")
            print(target)
            run()
        return 0

    def say(result: dict, done: int) -> None:
        if failed([result]):
            print(f"case {result['number']} {result['target']}: {result['outcome']}: {result['why']}", flush=True)
        if done % 1000 == 0:
            print(f"{done} of {options.count}", file=sys.stderr, flush=True)

    results = sweep(options.count, options.seed, options.only, options.first, say)
    print(table(results))
    return 1 if failed(results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
