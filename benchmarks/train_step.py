"""Measure time and peak memory of a LoRA training step, at real size with random weights (Linux, or a CUDA device).

    python benchmarks/train_step.py [--family small] [--dtype bf16] [--seconds 30] [--kind dora-rows] [--rank 16] [--device cpu]

On the CPU the memory is what the process took beyond what it held with the base loaded, and the base itself; on a GPU the most that torch
held.
"""

import argparse
import functools
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.lora import RELEASES, clock, random_release
from benchmarks.measure import Peak
from sa3_core.checkpoints.tensors import DTYPES
from sa3_core.training import flow
from sa3_core.training.adapters import Adapters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(RELEASES), default="small")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--kind", default="dora-rows")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpointing", action="store_true", help="compute the layers again in the backward pass")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype, device, n = DTYPES[options.dtype], options.device, options.batch
    with torch.no_grad():
        net = random_release(options.family, device, dtype)
    config, frames = net.config, round(options.seconds * 44100 / net.config.same.samples_per_frame)
    base = sum(p.numel() * p.element_size() for p in net.parameters()) / 1e6
    rows = torch.randn(n, 257, config.conditioning.cond_dim).to(device, dtype)
    z = torch.randn(n, config.dit.io_channels, frames, device=device)
    with Peak() as peak:
        adapters = Adapters(net, options.kind, options.rank)
        parameters = list(adapters.trained().values())
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)

        def batch(generator: torch.Generator) -> flow.Batch:
            condition = net.conditioner(rows, torch.ones(rows.shape[:2]).bool(), [options.seconds] * n, adapters=adapters.now())
            return flow.Batch(z, [frames] * n, condition)

        if options.checkpointing:
            net.dit.gradient_checkpointing = True
        loss = flow.training_loss(net, batch, 44100 / config.same.samples_per_frame)

        def train(step: int) -> None:
            value = loss(step, torch.Generator().manual_seed(step))["loss"]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if not bool(torch.isfinite(value)):
                sys.exit(f"the loss became {float(value)}")

        measured = [clock(functools.partial(train, step), device) for step in range(options.steps)]
    times, used = zip(*measured, strict=True)
    trained = sum(p.numel() for p in parameters)
    most = torch.cuda.max_memory_allocated() / 1e6 if device.startswith("cuda") else base + peak.extra / 1e6
    shape = f"{options.kind} rank {options.rank}, {len(adapters.layers)} layers, {trained / 1e6:.1f} M trained"
    shape += ", checkpointing" if options.checkpointing else ""
    print(f"{options.family}-base, {shape}, {options.seconds:g} s, batch {n}, {options.dtype}, {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    print(f"  step {statistics.median(times):.2f} s (fastest {min(times):.2f}), {min(used):.2f} s of processor time; "
          f"memory {most:.0f} MB, including {base:.0f} MB for the base")  # fmt: skip


if __name__ == "__main__":
    main()
