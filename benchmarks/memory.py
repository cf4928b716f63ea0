"""Memory that encoding and decoding a long clip takes beyond the weights, at real size with random weights (Linux).

python benchmarks/memory.py SAME-S --seconds 380
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sa3_core import build  # noqa: E402

CONFIGS = ROOT / "tests" / "data" / "releases"
INTERVAL = 0.02  # seconds between two looks at the process


def anonymous_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


class Peak:
    """The most anonymous memory while the block runs, above what there was at its start."""

    def __enter__(self) -> Peak:
        self.base, self.most, self.running = anonymous_mb(), 0.0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, anonymous_mb() - self.base)
            time.sleep(INTERVAL)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoder", choices=["SAME-S", "SAME-L"])
    parser.add_argument("--seconds", type=float, default=380.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    same = build(json.loads((CONFIGS / f"{options.autoencoder}.json").read_text(encoding="utf-8")), device="cpu")
    for parameter in same.parameters():
        if parameter.dim() > 1 and parameter.numel():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    spf = same.config.samples_per_frame
    frames = int(options.seconds * 44100) // spf
    audio, latents = torch.randn(1, 2, frames * spf) * 0.1, torch.randn(1, same.config.latent_dim, frames)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; {options.autoencoder}, {options.seconds:g} s")
    for name, work in (("encode", lambda: same.encode(audio, 128, 32)), ("decode", lambda: same.decode(latents, 128, 32))):
        start = time.perf_counter()
        with Peak() as peak:
            result = work()
        print(f"{name}: {time.perf_counter() - start:.1f} s, {peak.most:.0f} MB at peak, result {result.numel() * 4 / 1e6:.0f} MB")
        del result


if __name__ == "__main__":
    main()
