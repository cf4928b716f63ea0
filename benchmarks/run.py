"""Time a whole generation stage by stage on a CPU: this pack, the public code and a ComfyUI server, in turns.

    python benchmarks/run.py [--dtype fp32,bf16] [--reference PATH] [--server] [--batch 8]

Without --models the weights are random, made in a temporary folder and deleted afterwards: time and memory do not depend on them.
--reference names a checkout of Stability-AI/stable-audio-3; without it the figures once recorded with it are printed beside ours.
Every column is a process of its own that loads once; a short run warms it up; then they take turns, step by step. Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.engine import Engine, take_turns
from benchmarks.make_release import make_release
from benchmarks.measure import cell, cosine, hardware, relative, snr, table
from benchmarks.reference import ANCHORED, ANCHORS, checkout
from benchmarks.through_server import ServerEngine
from sa3_core.checkpoints.tensors import DTYPES
from tools.launcher.environment import default_comfyui, is_comfyui

STAGES = ["load", "text encode", "step", "decode", "whole run", "first run"]
COMPARED = ["text encode", "step", "decode", "whole run"]
Column = Engine | ServerEngine


def dtypes(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or set(names) - set(DTYPES):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of {', '.join(DTYPES)}")
    return list(dict.fromkeys(names))


def median(column: Column, stage: str) -> float | None:
    return statistics.median(column.stages[stage]) if column.stages.get(stage) else None


def name_of(column: Column) -> str:
    return f"{column.kind} {column.dtype}"


def start(options: argparse.Namespace, models: Path, folder: Path, stack: ExitStack) -> tuple[list[Column], list[Engine]]:
    """The columns of the table, and the products to which their steps are compared."""

    def engine(kind: str, dtype: str) -> Engine:
        return stack.enter_context(Engine(kind, folder, dtype, options.threads, options.reference if kind == "reference" else None))

    columns: list[Column] = [engine("ours", dtype) for dtype in options.dtype]
    if options.reference:
        columns += [engine("reference", dtype) for dtype in options.reference_dtype]
    if options.server:
        server = ServerEngine(options.comfyui, models.absolute(), options.release, options.dtype[0], options.threads)
        columns.append(stack.enter_context(server))
    return columns, [engine("products", dtype) for dtype in options.dtype]


def measure(options: argparse.Namespace, columns: list[Column], products: list[Engine], results: Path) -> dict[str, tuple]:
    """All take turns; what the first round made lies in `results`. -> seconds of a batch and of as many runs, by number format."""
    job = {"seconds": options.seconds, "steps": options.steps}
    servers = [column for column in columns if column.kind == "ComfyUI"]
    everyone = [column for column in (*columns, *products) if column not in servers]
    ours = {column.dtype: column for column in columns if column.kind == "ours"}
    take_turns([column.run(count=False, seed=0, seconds=min(1.0, options.seconds), steps=1) for column in (*everyone, *servers)])
    for seed in range(1, options.repeat + 1):
        print(f"round {seed} of {options.repeat}", file=sys.stderr)
        files = [str(results / f"{i}.safetensors") if seed == 1 else None for i in range(len(everyone))]
        take_turns([column.run(seed=seed, **job, save=file) for column, file in zip(everyone, files, strict=True)])
        for server in servers:
            server.add_core(alone(ours[server.dtype], seed=seed, **job))
            take_turns([server.run(seed=seed, **job)])
    together = {}
    for dtype, column in ours.items() if options.batch > 1 else ():
        single, batch = (alone(column, seed=options.repeat + 1, batch=n, **job)["whole run"][0] for n in (1, options.batch))
        together[dtype] = batch, options.batch * single
    return together


def alone(column: Engine, **job) -> dict[str, list[float]]:
    """The stages of one job that is not interrupted by others, as those of a server and of a batch are not."""
    take_turns([column.run(count=False, **job)])
    return column.last


def print_times(columns: list[Column]) -> None:
    head = ["stage", *map(name_of, columns)]
    rows = [
        [stage, *(cell(column.stages.get(stage, []), column.peaks.get(stage, 0)) for column in columns)]
        for stage in STAGES
        if any(column.stages.get(stage) for column in columns)
    ]
    print("\n" + table(head, rows))


def print_ratios(options: argparse.Namespace, columns: list[Column], products: list[Engine], together: dict[str, tuple]) -> None:
    """What the project's limits are about, a line each."""
    mine, rows = [column for column in columns if column.kind == "ours"], []

    def add(words: str, above: list[float] | None, below: list[float] | None, digits: int = 2) -> None:
        if above and below:
            neighbours = [a / b for a, b in zip(above, below, strict=True)]
            ratios = statistics.median(above) / statistics.median(below), min(above) / min(below), statistics.median(neighbours)
            rows.append([words, *(f"{one:.{digits}f}" for one in ratios)])

    for one in products:
        for column in mine:
            if column.dtype == one.dtype:
                own = f"its own matrix products ({median(one, 'step'):.3f} s)"
                add(f"step, {name_of(column)} over {own}", column.stages.get("step"), one.stages.get("step"))
    for other in (column for column in columns if column.kind == "reference"):
        for one in mine:
            for stage in COMPARED:
                add(f"{name_of(other)} over {name_of(one)}, {stage}", other.stages.get(stage), one.stages.get(stage))
    for server in (column for column in columns if column.kind == "ComfyUI"):
        for stage in COMPARED[1:]:
            add(f"ComfyUI over ours {server.dtype}, {stage}", server.stages.get(stage), server.core.get(stage), 3)
    for dtype, (batch, runs) in together.items():
        add(f"ours {dtype}: {options.batch} items in one batch ({batch:.1f} s) over {options.batch} runs", [batch], [runs])
    print("\n" + table(["ratio", "of medians", "of the fastest", "of neighbours"], rows))


def print_agreement(columns: list[Column], results: Path) -> None:
    """The first round's results against ours in the first number format: same prompt, seed and draws."""
    made = [(column, load_file(results / f"{i}.safetensors")) for i, column in enumerate(columns) if column.kind != "ComfyUI"]
    (first, wanted), rows = made[0], []
    for column, found in made[1:]:
        n, frames = min(wanted["audio"].shape[-1], found["audio"].shape[-1]), min(wanted["latents"].shape[-1], found["latents"].shape[-1])
        pair = found["latents"][..., :frames], wanted["latents"][..., :frames]
        loud = snr(found["audio"][..., :n], wanted["audio"][..., :n])
        rows.append([name_of(column), f"{cosine(*pair):.6f}", f"{relative(*pair):.1e}", f"{loud:.1f} dB"])
    if rows:
        print(
            f"\nLatents and sound of seed 1 against {name_of(first)}. The reference masks padding otherwise, adds noise in its decoder, and"
        )
        print("in 16 bits draws other noise (PARITY.md); random weights are no measure of what trained ones would give.\n")
        print(table(["", "cosine of latents", "relative error", "SNR of the audio"], rows))


def print_anchors(columns: list[Column]) -> None:
    rows = [
        [f"{name}, {stage}", f"{seconds:.2f} s", f"{seconds / median(column, stage):.2f}"]
        for name, stages in ANCHORS.items()
        for stage, seconds in stages.items()
        for column in columns
        if column.kind == "ours" and column.dtype == name and median(column, stage)
    ]
    if rows:
        print(f"\nThe reference, {ANCHORED}: not this run, so only a hint.\n")
        print(table(["recorded", "seconds", "over ours here"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="small-music", help="small-music, small-sfx, medium or one of their -base")
    parser.add_argument("--models", type=Path, help="holds checkpoints/stable-audio-3-RELEASE, as ComfyUI's models folder does")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dtype", type=dtypes, default=["fp32"], help="one number format or several, separated by commas")
    parser.add_argument("--reference", type=checkout, help="a checkout of Stability-AI/stable-audio-3 to compare with")
    parser.add_argument("--reference-dtype", type=dtypes, default=["fp32"], help="the same for it; fp32 is its default on a CPU")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median is reported")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1, help="also this many items in one batch, against as many runs")
    parser.add_argument("--server", action="store_true", help="also through a real ComfyUI, in the first number format")
    parser.add_argument("--comfyui", type=Path, default=default_comfyui(ROOT), help="a ComfyUI tree (else the one of run.py)")
    options = parser.parse_args()
    options.comfyui = options.comfyui.expanduser().absolute()
    if options.server and not is_comfyui(options.comfyui):
        parser.error(f"{options.comfyui} is no ComfyUI; run.py --test makes one, --comfyui names another.")
    print(hardware())
    with ExitStack() as stack:
        models = options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = models / "checkpoints" / f"stable-audio-3-{options.release}"
        if options.models is None:
            make_release(options.release, folder)
        weights = "random weights" if options.models is None else f"weights of {options.models}"
        print(f"{options.threads} threads; torch {torch.__version__}; {options.release}, {weights}")
        print(f"{options.seconds:g} s, {options.steps} steps; median (fastest) of {options.repeat} rounds", end="; ")
        print("memory: peak of anonymous memory above what the process held before")
        columns, products = start(options, models, folder, stack)
        print("text encoder: " + ", ".join(f"{name_of(column)} in {column.text_dtype}" for column in columns))
        together = measure(options, columns, products, results)
        print_times(columns)
        print_ratios(options, columns, products, together)
        print_agreement(columns, results)
    if not options.reference and (options.release, options.seconds) == ("small-music", 30.0):
        print_anchors(columns)


if __name__ == "__main__":
    main()
