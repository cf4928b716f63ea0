"""Measure the deviations from the public code that PARITY.md lists, on the recorded tiny models in float32.

python benchmarks/deviations.py
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests" / "core")]

from recorded_cases import DATA, golden_tensors

import sa3_core
from benchmarks.measure import relative
from sa3_core import timeline
from sa3_core.models import dit
from sa3_core.models.embeddings import expo_features
from sa3_core.sampling import schedule

FAMILIES = ("small", "medium")


def load(family: str) -> sa3_core.Model:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(DATA / family, folder, dirs_exist_ok=True)
        shutil.copytree(DATA / "t5gemma-b-b-ul2", Path(folder) / "t5gemma-b-b-ul2")
        return sa3_core.load(folder)


def key_masking(model: sa3_core.Model, golden: dict[str, Tensor]) -> str:
    """Padded keys out of the softmax, against zeroed values under keys that stay in it."""
    mask = golden["dit.padding_mask"].bool()
    inputs = (golden["dit.x"], golden["dit.t"], golden["dit.cross_attn"], golden["dit.global"], golden["dit.local_add"], mask)
    ours = model.velocity(*inputs)
    attend = dit.attend

    def zero_values(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return attend(q, k, v, bias=bias)
        return attend(q, k, v * (torch.arange(k.shape[2]) < lengths[:, None])[:, None, :, None])

    dit.attend = zero_values
    theirs = model.velocity(*inputs)
    dit.attend = attend
    return f"{relative(theirs, ours):.2g} of the velocity at {int((~mask).sum())} padded of {mask.numel()} frames"


def decoder_noise(model: sa3_core.Model, golden: dict[str, Tensor]) -> str:
    z = golden["same.latents_long"]
    off = model.decode(z)
    error = relative(model.decode(z, noise=1), off)
    return f"{error:.2g} of the audio ({-20 * math.log10(error):.0f} dB below it)"


def odd_starts(model: sa3_core.Model, golden: dict[str, Tensor]) -> str:
    """A chunk decoded from an even and from an odd frame, its edges dropped, against the single pass."""
    z, size, spf = golden["same.latents_long"], 32, 4096
    whole = model.decode(z)
    parts = []
    for start in (8, 9):
        piece = model.decode(z[..., start : start + size])
        inner = slice((start + 8) * spf, (start + size - 8) * spf)
        parts.append(f"{relative(piece[..., 8 * spf : -8 * spf], whole[..., inner]):.2g} from frame {start}")
    return ", ".join(parts)


def fewer_frames(model: sa3_core.Model, golden: dict[str, Tensor]) -> str:
    """Decoding the frames the audio depends on, against decoding the headroom too."""
    seconds = 0.9
    lengths = timeline.lengths(model.config, [seconds])
    z = torch.randn(1, model.config.same.latent_dim, lengths.frames, generator=torch.Generator().manual_seed(0))
    kept, n = timeline.decode_frames(model.config, lengths, 0), lengths.samples[0]
    error = relative(model.decode(z[..., :kept])[..., :n], model.decode(z)[..., :n])
    return f"{error:.2g} ({kept} of {lengths.frames} frames at {seconds} s)"


def rounded_seconds() -> str:
    """Fourier features of the scaled seconds, rounded to bfloat16 before against after."""
    u = torch.arange(1, 381).float() / 384
    error = relative(expo_features(u.bfloat16().float()), expo_features(u))
    return f"{error:.2g} of the features over 1 to 380 s; ours {relative(expo_features(u).bfloat16(), expo_features(u)):.2g}"


def noise_levels() -> str:
    scaled, reference = (schedule.build("logsnr", 8, 0.6, 100, mode) for mode in ("scaled", "reference"))
    return f"second level {float(scaled[1]):.4f}, reference {float(reference[1]):.4f} (asked: at most 0.6)"


def main() -> None:
    torch.set_grad_enabled(False)
    rows = [
        ("noise levels below 1, logSNR, 8 steps", noise_levels()),
        ("seconds rounded before the Fourier features", rounded_seconds()),
    ]
    for family in FAMILIES:
        model, golden = load(family), golden_tensors(family)
        for what, measure in {
            "padded keys kept, values zeroed": key_masking,
            "decoder noise on": decoder_noise,
            "chunk starts": odd_starts,
            "headroom not decoded": fewer_frames,
        }.items():
            rows.append((f"{family}: {what}", measure(model, golden)))
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}))
    for what, size in rows:
        print(f"{what:48} {size}")


if __name__ == "__main__":
    main()
