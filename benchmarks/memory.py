"""Measure memory and time of encoding and decoding a long clip, at real size with random weights (Linux).

    python benchmarks/memory.py SAME-S --seconds 380 --against 95

--against adds the ratios to a clip of that many seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.measure import Peak, hardware, table, timed
from sa3_core import build
from sa3_core.checkpoints.tensors import DTYPES
from sa3_core.models.same import SAME

CONFIGS = ROOT / "tests" / "data" / "releases"


def random_same(name: str, dtype: torch.dtype) -> SAME:
    torch.manual_seed(0)
    same = build(json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")), device="cpu")
    for parameter in same.parameters():
        if parameter.dim() > 1 and parameter.numel():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return same.to(dtype).eval()


def measure(job: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and bytes at the peak. What earlier jobs left in the allocator is given back first, or it would hide what this one takes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with Peak() as peak:
        seconds = timed(job)
    return seconds, peak.extra


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoder", choices=["SAME-S", "SAME-L"])
    parser.add_argument("--seconds", type=float, default=380.0)
    parser.add_argument("--against", type=float, help="seconds of a shorter clip, measured in turns with the long one")
    parser.add_argument("--work", choices=["encode", "decode", "both"], default="both")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(hardware())
    same = random_same(options.autoencoder, DTYPES[options.dtype])
    config, lengths = same.config, [options.seconds, *([options.against] if options.against else [])]
    job = f"{options.autoencoder}, {options.dtype}, {options.threads} threads, torch {torch.__version__}"
    print(f"{job}; chunks of 128 frames with an overlap of 32; median of {options.repeat}\n")

    def work(name: str, frames: int) -> Callable[[], object]:
        shape = (1, config.audio_channels, frames * config.samples_per_frame) if name == "encode" else (1, config.latent_dim, frames)
        given = (torch.randn(shape) * (0.1 if name == "encode" else 1)).to(DTYPES[options.dtype])
        return lambda: getattr(same, name)(given, 128, 32)

    rows = []
    work("decode", 32)()
    for name in ("encode", "decode") if options.work == "both" else (options.work,):
        jobs = {seconds: work(name, int(seconds * 44100) // config.samples_per_frame) for seconds in lengths}
        found = {seconds: [] for seconds in lengths}
        for _ in range(options.repeat):
            for seconds, one in jobs.items():
                found[seconds].append(measure(one))
        medians = [(statistics.median(t for t, _ in runs), max(extra for _, extra in runs)) for runs in found.values()]
        for seconds, (taken, extra) in zip(lengths, medians, strict=True):
            rows.append([f"{name}, {seconds:g} s", f"{taken:.1f} s", f"{extra / 1e6:,.0f} MB"])
        if options.against:
            (long, long_extra), (short, short_extra) = medians
            rows.append([f"{name}, ratio", f"{long / short:.2f}", f"{long_extra / max(short_extra, 1):.2f}"])
    print(table(["", "time", "memory at peak beyond weights and input"], rows))


if __name__ == "__main__":
    main()
