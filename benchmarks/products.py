"""Whose matrix products are the fastest on this processor: torch's own, oneDNN's, MKL's, with weights as they are or packed?

    python benchmarks/products.py [--threads 2] [--repeat 12]

torch asks MKL in float32 and oneDNN in bfloat16. The sizes are those of a layer: small's transformer with the 456 rows of 30 s, SAME-S's
blocks with a group of rows; all with a bias. Eight weights of each size take turns, which is warmer than a model, where a step reads every
weight once: there packed ones gain more. Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.measure import DTYPES, hardware, table, timed  # noqa: E402
from sa3_core import operations  # noqa: E402

SIZES = {  # what, rows, inputs, outputs
    "transformer, queries, keys and values": (456, 1024, 3072),
    "transformer, out of attention": (456, 1024, 1024),
    "transformer, value and gate": (456, 1024, 8192),
    "transformer, out of the feed-forward": (456, 4096, 1024),
    "SAME-S, queries, keys and values": (510, 768, 3840),
    "SAME-S, value and gate": (510, 768, 4608),
}
WEIGHTS = 8


def ways(dtype: torch.dtype, rows: int, weights: list[Tensor], bias: Tensor) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Name -> product of an input with the weight of that number."""
    onednn = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]
    found = {
        "torch": lambda x, i: F.linear(x, weights[i], bias),
        "oneDNN": lambda x, i: operations.linear(x, weights[i], bias),
        "oneDNN, packed": lambda x, i: operations.linear(x, onednn[i], bias),
    }
    if dtype == torch.float32 and hasattr(torch.ops.mkl, "_mkl_linear"):
        mkl = [torch.ops.mkl._mkl_reorder_linear_weight(weight, rows) for weight in weights]
        found["MKL, packed"] = lambda x, i: torch.ops.mkl._mkl_linear(x, mkl[i], weights[i], bias, rows)
    return found


@torch.inference_mode()
def speeds(dtype: torch.dtype, rows: int, inputs: int, outputs: int, repeat: int) -> dict[str, float]:
    """GFLOP/s of each way, by the median of `repeat` rounds in turns."""
    weights = [torch.empty(outputs, inputs).uniform_(-0.03, 0.03).to(dtype) for _ in range(WEIGHTS)]
    x = torch.randn(rows, inputs).to(dtype)
    products = ways(dtype, rows, weights, torch.randn(outputs).to(dtype))
    times: dict[str, list[float]] = {name: [] for name in products}
    for _ in range(repeat):
        for name, product in products.items():
            times[name].append(timed(lambda product=product: [product(x, i) for i in range(WEIGHTS)]))
    return {name: 2e-9 * rows * inputs * outputs * WEIGHTS / statistics.median(seconds) for name, seconds in times.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=12, help="rounds of which the median is told")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(hardware(), f"{options.threads} threads; GFLOP/s", sep="\n")
    makers = {name: operations.maker(torch.zeros(1, dtype=DTYPES[name])) for name in ("fp32", "bf16")}
    for name, maker in makers.items():
        if not maker:
            print(f"\n{name}: nobody but torch here")
            continue
        rows = [(what, speeds(DTYPES[name], *size, options.repeat)) for what, size in SIZES.items()]
        columns = list(rows[0][1])
        print("\n" + table([name, *columns], [[what, *(f"{found[column]:.0f}" for column in columns)] for what, found in rows]))
        print(f"\nchosen on this processor: {maker}")


if __name__ == "__main__":
    main(sys.argv[1:])
