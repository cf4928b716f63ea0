"""Install a ComfyUI and generate an audio file, run the tests, or run a benchmark.

    python run.py "a low tone, then a kick every half second" --duration 4 --seed 7
    python run.py --test [pytest arguments ...]
    python run.py --benchmark [name [arguments of benchmarks/name.py ...]]

Needs only Python 3.10 to 3.13. Uses the ComfyUI that contains this folder, the one named with --comfyui, or installs a private one under
.run/ from the package index. The path of the audio file is the last line of stdout.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.path.abspath(__file__)).parent  # not resolved: the pack may be a symbolic link in custom_nodes
sys.path.insert(0, str(ROOT))  # the interpreter of a portable ComfyUI does not add the script's folder

OLDEST_PYTHON = (3, 10)
FOLDERS = [f"tests/{name}" for name in ("browser", "server", "nodes", "core", "fuzz", "launcher", "web")]  # what takes long comes first
PARALLEL = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]  # a file's tests run in one process and share its fixtures
NOT_LAZY = (  # of tests/nodes: what loads no weights, or takes long and moves none
    "bad_input", "compile_node", "core_table", "download", "edit", "folders", "help_pages", "hostile_names", "interrupted", "knobs",
    "latent_files", "live", "neighbours", "node_laws", "out_of_memory", "pack_import", "preview", "prompt_helper", "save_audio",
    "schema_snapshot", "train_node",
)  # fmt: skip
DEFAULT_WORKFLOW = ROOT / "workflows" / "api" / "text_to_audio.json"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", help="description of the audio")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="length of the audio (default: the workflow's)")
    parser.add_argument("--seed", type=int, help="same seed, same audio (default: the workflow's)")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: the workflow's)")
    parser.add_argument("--model", metavar="NAME", help="model to load (default: the workflow's)")
    parser.add_argument("--workflow", type=Path, default=DEFAULT_WORKFLOW, metavar="FILE", help="workflow in API form")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the audio (default: output/ next to run.py)")
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="ComfyUI to use; it is not changed")
    parser.add_argument("--python", type=Path, metavar="PATH", help="Python of that ComfyUI, or base of the private environment")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--test", nargs=argparse.REMAINDER, metavar="ARG", help="run the linter and the tests")
    benchmark = "run benchmarks/NAME.py with the arguments after the name; without a name: list the benchmarks"
    parser.add_argument("--benchmark", nargs=argparse.REMAINDER, metavar="NAME", help=benchmark)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # second stage: the ComfyUI tree found by the first
    options = parser.parse_args(arguments)
    if options.prompt is None and options.test is None and options.benchmark is None:
        parser.error("a prompt is needed (or --test, or --benchmark)")
    for name in ("workflow", "output"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).expanduser().absolute())
    if options.output is not None and not next(path for path in (options.output, *options.output.parents) if path.exists()).is_dir():
        parser.error(f"--output {options.output} is not a folder, and none can be made there")
    return options


def set_up(options: argparse.Namespace):
    """The environment of the options; the private one is installed. Tests and benchmarks use another ComfyUI only with --comfyui."""
    from tools.launcher import environment, private

    if (options.test is not None or options.benchmark is not None) and options.comfyui is None:
        return private.prepare(ROOT, options.python)
    comfyui = environment.find_comfyui(ROOT, options.comfyui)
    if comfyui is None:
        return private.prepare(ROOT, options.python)
    return environment.users_environment(ROOT, comfyui, options.python)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ending this process ends pip or ComfyUI too
    if options.inside:
        return make_audio(options)

    if sys.version_info < OLDEST_PYTHON:
        return fail(f"this is Python {sys.version.split()[0]}; 3.10 to 3.13 is needed")
    from tools.launcher import benchmarks
    from tools.launcher.environment import SetupError, child_environ

    if options.benchmark is not None:
        names = benchmarks.scripts(ROOT)
        if not options.benchmark:
            print(benchmarks.listed(ROOT))
            return 0
        if options.benchmark[0] not in names:
            return fail(f"there is no benchmark '{options.benchmark[0]}'; there are {', '.join(names)}")
    try:
        found = set_up(options)
    except SetupError as error:
        return fail(str(error))
    environ = child_environ(ROOT, found.private)
    if options.test is not None:
        environ["SA3_COMFYUI"] = str(found.comfyui)
        environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are slower with more threads
        return run_tests(found.python, options.test, environ)
    if options.benchmark is not None:
        environ["SA3_COMFYUI"] = str(found.comfyui)
        name, *rest = options.benchmark
        return replace_process([str(found.python), str(ROOT / "benchmarks" / f"{name}.py"), *rest], environ)
    second = [str(found.python), str(ROOT / "run.py"), "--inside", str(found.comfyui), *([] if found.accelerator else ["--cpu"])]
    return replace_process([*second, *arguments], environ)


def replace_process(command: list[str], environ: dict[str, str]) -> int:
    """Replace this process by a command; on Windows, run it as a child that handles Ctrl-C."""
    if os.name != "nt":
        sys.stdout.flush()
        os.execve(command[0], command, environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.call(command, env=environ)


def run_tests(python: Path, arguments: list[str], environ: dict[str, str]) -> int:
    """Run the linter and the tests; 0 when both pass."""
    lint = subprocess.call([str(python), "-m", "ruff", "check", "."], cwd=ROOT, env=environ, stdout=sys.stderr)
    tests = subprocess.call([str(python), "-m", "pytest", *(arguments or [*FOLDERS, *PARALLEL])], cwd=ROOT, env=environ)
    if not arguments:
        without = [f"--ignore=tests/nodes/test_{name}.py" for name in NOT_LAZY]
        # again with lazily created layers, as with dynamic VRAM
        lazy = [str(python), "-m", "pytest", "tests/nodes", *without, *PARALLEL]
        tests = tests or subprocess.call(lazy, cwd=ROOT, env={**environ, "SA3_LAZY_LAYERS": "1"})
    return lint or tests


def make_audio(options: argparse.Namespace) -> int:
    """Second stage, under the environment's Python: generate the audio file."""
    from tools.launcher import job, server
    from tools.launcher.environment import SetupError

    try:
        file = job.run(ROOT, options)
    except (SetupError, server.ServerFailed, server.Interrupted) as error:
        return fail(str(error))
    except (server.PromptRejected, server.ExecutionFailed) as error:
        return fail(f"{error}\n(ComfyUI's log is {ROOT / '.run' / 'home' / 'comfyui.log'})")
    print(file, flush=True)
    return 0


def fail(reason: str) -> int:
    """Print an error and return the exit status 1."""
    print(f"run.py: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("run.py: stopped", file=sys.stderr)
        sys.exit(130)
