"""Compare the speed of torch's own matrix products (MKL in float32) with oneDNN's on this processor.

    python benchmarks/products.py [--threads 2] [--repeat 12]

torch calls MKL in float32 and oneDNN in bfloat16. The sizes are those of a layer: small's transformer with the 456 rows of 30 s, SAME-S's
blocks with a group of rows; all with a bias. Eight weights of each size take turns. Caches are warmer than in a model, where a step reads
each weight once. Linux only.
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

from benchmarks.measure import hardware, table, timed
from sa3_core.backends.cpu import onednn_linear, prefers_onednn
from sa3_core.checkpoints.tensors import DTYPES

SIZES = {  # what, rows, inputs, outputs
    "transformer, queries, keys and values": (456, 1024, 3072),
    "transformer, out of attention": (456, 1024, 1024),
    "transformer, value and gate": (456, 1024, 8192),
    "transformer, out of the feed-forward": (456, 4096, 1024),
    "SAME-S, queries, keys and values": (510, 768, 3840),
    "SAME-S, value and gate": (510, 768, 4608),
}
WEIGHTS = 8


def ways(weights: list[Tensor], bias: Tensor) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Name -> product of an input with the weight of that index."""
    return {"torch": lambda x, i: F.linear(x, weights[i], bias), "oneDNN": lambda x, i: onednn_linear(x, weights[i], bias)}


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor compute products by oneDNN in a number format."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def chosen(dtype: torch.dtype) -> str:
    """What `operations.Linear` computes with."""
    return "oneDNN" if prefers_onednn(torch.zeros(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)) else "torch"


@torch.inference_mode()
def speeds(dtype: torch.dtype, rows: int, inputs: int, outputs: int, repeat: int) -> dict[str, float]:
    """GFLOP/s of each way, by the median of `repeat` rounds in turns."""
    weights = [torch.empty(outputs, inputs).uniform_(-0.03, 0.03).to(dtype) for _ in range(WEIGHTS)]
    x = torch.randn(rows, inputs).to(dtype)
    products = ways(weights, torch.randn(outputs).to(dtype))
    times: dict[str, list[float]] = {name: [] for name in products}
    for _ in range(repeat):
        for name, product in products.items():
            times[name].append(timed(lambda product=product: [product(x, i) for i in range(WEIGHTS)]))
    return {name: 2e-9 * rows * inputs * outputs * WEIGHTS / statistics.median(seconds) for name, seconds in times.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=12, help="rounds; the median is reported")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(hardware(), f"{options.threads} threads; GFLOP/s", sep="\n")
    for name in ("fp32", "bf16"):
        if not has_onednn(DTYPES[name]):
            print(f"\n{name}: only torch's own product here")
            continue
        rows = [(what, speeds(DTYPES[name], *size, options.repeat)) for what, size in SIZES.items()]
        columns = list(rows[0][1])
        print("\n" + table([name, *columns], [[what, *(f"{found[column]:.0f}" for column in columns)] for what, found in rows]))
        print(f"\nchosen on this processor: {chosen(DTYPES[name])}")


if __name__ == "__main__":
    main(sys.argv[1:])
