"""Measure a step of a real-size model with and without a LoRA, and the time to apply and remove one.

    python benchmarks/lora.py [--family small] [--rank 16] [--kind lora] [--frames 388] [--rounds 7] [--device cpu] [--dtype fp32]

Weights are random and made in memory. All variants take turns in one process, so that a noisy machine slows them alike; the table
gives the median of each and of its ratio to the plain step of the same round.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import json

from sa3_core.checkpoints.tensors import DTYPES
from sa3_core.lora.algebra import TYPES, Adapter, LowRank, apply_stack
from sa3_core.lora.formats import SECONDS, LoRA
from sa3_core.lora.stack import Stack, StackedLoRA, targets
from sa3_core.models.release import build

RELEASES = {"small": "small-music", "medium": "medium"}


def random_release(family: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
    config = json.loads((ROOT / "tests" / "data" / "releases" / f"{RELEASES[family]}.json").read_text())
    module = build(config)
    del module.pretransform  # the autoencoder takes no part
    module.to_empty(device=device).to(dtype).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith(".gamma"):
            parameter.fill_(1)
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return module.eval()


def random_lora(module, kind: str, rank: int, **schedule) -> StackedLoRA:
    layers, axes = {}, TYPES[kind]
    for name, layer in targets(module).items():
        weight = layer.weight.flatten(1).float()
        up, down = (torch.randn(*shape) * 0.02 for shape in ((weight.shape[0], rank), (rank, weight.shape[1])))
        rows, cols = (weight.norm(dim=dim).cpu() if axis in axes else None for axis, dim in (("r", 1), ("c", 0)))
        layers[name] = Adapter(LowRank(up, down), 1.0, rows, cols)
    return StackedLoRA(LoRA(Path("random"), "native", kind, layers), layers, seconds_strength=0.0, **schedule)


def clock(function, device: str) -> tuple[float, float]:
    """Seconds on the wall, and of this process on all its cores: the latter says more where others use the machine too."""
    if device != "cpu":
        torch.cuda.synchronize()
    start, used = time.perf_counter(), time.process_time()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - used


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(RELEASES), default="small")
    parser.add_argument("--kind", choices=[kind for kind in TYPES if not kind.endswith("-xs")], default="lora")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--frames", type=int, default=388)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    module = random_release(options.family, options.device, DTYPES[options.dtype])
    dit, config = module.dit, module.config.dit
    stack = Stack((random_lora(module, options.kind, options.rank, curve=(1.0, 1.0)),))
    like = {"device": options.device, "dtype": DTYPES[options.dtype]}
    inputs = dit.prepare(
        torch.randn(1, 257, config.cond_dim, **like), torch.randn(1, config.global_dim, **like),
        torch.zeros(1, config.local_dim, options.frames, **like), options.frames,
    )  # fmt: skip
    x, t = torch.randn(1, config.io_channels, options.frames, device=options.device), torch.tensor([0.5])
    constant = {name: [(adapter, 1.0, "chain")] for name, adapter in stack.loras[0].layers.items() if name != SECONDS}
    layers = targets(module)

    def first_step() -> None:  # the state's forms and constants are made anew
        inputs.cache.adapted.clear()
        stack.velocity(dit, x, t, inputs)

    def rewrite() -> None:
        for name, entries in constant.items():
            apply_stack(layers[name].weight, entries)

    cases = {
        "plain step": lambda: dit(x, t, inputs),
        "scheduled, state kept": lambda: stack.velocity(dit, x, t, inputs),
        "scheduled, new state": first_step,
        "weights rewritten (constant)": rewrite,
    }
    for function in list(cases.values())[:2]:
        function()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, function in cases.items():
            times[name].append(clock(function, options.device))
    plain = times["plain step"]
    print(f"{options.family}, {options.kind} rank {options.rank}, {len(constant)} layers, {options.frames} frames, {options.dtype}, "
          f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    for name, values in times.items():
        ratios = [statistics.median(value[k] / base[k] for value, base in zip(values, plain, strict=True)) for k in (0, 1)]
        wall = statistics.median(value[0] for value in values)
        print(f"  {name:30} {wall * 1000:8.1f} ms   {ratios[0]:5.2f} x plain ({ratios[1]:.2f} in processor time)")


if __name__ == "__main__":
    main()
