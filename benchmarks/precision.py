"""Measure the error of fp16 and bf16 against float32: each part of a model, and whole runs.

    python benchmarks/precision.py [small] [medium] [demo] [--seconds 30] [--steps 8]

Seed, draws and inputs are the same in all number formats. small: real size with random weights. medium: the tiny recorded model of the
differential family, random weights too. demo: the embedded trained model with its own cfg. Random weights make activations of other sizes
than trained ones, and nothing in a random network averages errors out, so their figures show which part is delicate rather than what a
release gives.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import sa3_core
from benchmarks.make_release import make_release
from benchmarks.measure import cosine, hardware, relative, snr, table
from sa3_core.checkpoints.tensors import DTYPES
from sa3_core.models.text_encoder import Text
from sa3_core.timeline import PADDING_SECONDS

PROMPTS = {"demo": "a low tone, then a kick every half second"}
PROMPT = "Warm analogue pads over a slow four to the floor beat, 100 BPM"
WHAT = {"small": "small, real size, random weights", "medium": "medium, tiny, random weights", "demo": "demo, trained"}
TIMES = (0.9, 0.5, 0.1)  # noise levels of the single forwards


@dataclass(frozen=True)
class Job:
    prompt: str
    seconds: float
    steps: int
    seed: int = 7
    padding: float = PADDING_SECONDS


def folder_of(name: str, models: Path | None, stack: ExitStack) -> Path | str:
    if name == "demo":
        return "demo"
    if models is not None and name == "small":
        return models / "checkpoints" / "stable-audio-3-small-music"
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if name == "small":
        return make_release("small-music", folder / "small")
    for part in ("medium", "t5gemma-b-b-ul2"):
        shutil.copytree(ROOT / "tests" / "data" / part, folder / ("" if part == "medium" else part), dirs_exist_ok=True)
    return folder


def rows_of(model: sa3_core.Model, prompt: str) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the real tokens (1, n, dim), their mask (1, n) and ids (1, n)."""
    tokens = model.text_encoder.tokenize([prompt], model.config.conditioning.max_tokens)
    n = int(tokens.mask.sum())
    return model.text_encoder(tokens), tokens.mask[:, :n], tokens.ids[:, :n]


def run(model: sa3_core.Model, job: Job, rows: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    """Latents of a run on embeddings that may come from another text encoder."""
    text = Text(rows.to(model.dtype), mask, ids)  # the conditioner pads
    model.encode_text = lambda prompts: text
    latents = model.generate(job.prompt, job.seconds, steps=job.steps, seed=job.seed, padding=job.padding, return_latents=True).latents
    del model.encode_text
    return latents.float()


def velocities(model: sa3_core.Model, x: Tensor, rows: Tensor, mask: Tensor, seconds: float) -> Tensor:
    """One forward at each of TIMES on the same noise."""
    condition = model.module.conditioner(rows.to(model.dtype), mask, [seconds])
    inputs = model.dit.prepare(condition.cross_attn, condition.global_cond, None, x.shape[-1])
    return torch.stack([model.dit(x, torch.tensor([time]), inputs).float() for time in TIMES])


def both(found: Tensor, wanted: Tensor) -> str:
    return f"{relative(found, wanted):.1e} ({cosine(found, wanted):.6f})"


def measure(exact: sa3_core.Model, dtype: str, path: Path | str, job: Job, wanted: dict) -> dict[str, str]:
    """Every part of the model in `dtype`, the others in float32 or their results taken from there."""
    model = sa3_core.load(path, dtype=DTYPES[dtype])
    rows, mask, ids = wanted["rows"]
    own = rows_of(model, job.prompt)[0].float()
    latents = wanted["latents"]
    frames = latents.shape[-1]
    with_text, with_dit, all_parts = run(exact, job, own, mask, ids), run(model, job, rows, mask, ids), run(model, job, own, mask, ids)

    def decode(same: sa3_core.Model, z: Tensor) -> Tensor:
        return same.decode(z, min(128, frames) // 2 * 2).float()

    audio = decode(exact, latents)
    sound = audio[..., : int(job.seconds * 44100)]
    return {
        "text encoder: embeddings": both(own, rows),
        "transformer: one forward": both(velocities(model, wanted["x"], rows, mask, job.seconds), wanted["velocities"]),
        "SAME: encode": both(model.encode(sound / sound.abs().max(), 128).float(), exact.encode(sound / sound.abs().max(), 128)),
        "SAME: decode of the same latents": f"{snr(decode(model, latents), audio):.1f} dB",
        "run, only the text encoder in 16 bits: latents": both(with_text, latents),
        "run, only the transformer in 16 bits: latents": both(with_dit, latents),
        "run, all in 16 bits: latents": both(all_parts, latents),
        "run, only the transformer in 16 bits: sound": f"{snr(decode(exact, with_dit), audio):.1f} dB",
        "run, text encoder and transformer in 16 bits: sound": f"{snr(decode(exact, all_parts), audio):.1f} dB",
        "run, all in 16 bits: sound": f"{snr(decode(model, all_parts), audio):.1f} dB",
    }


@torch.inference_mode()
def compare(name: str, path: Path | str, job: Job, dtypes: list[str]) -> None:
    exact = sa3_core.load(path)
    rows, mask, ids = rows_of(exact, job.prompt)
    latents = run(exact, job, rows, mask, ids)
    x = torch.randn(latents.shape, generator=torch.Generator().manual_seed(job.seed))
    wanted = {"rows": (rows, mask, ids), "latents": latents, "x": x, "velocities": velocities(exact, x, rows, mask, job.seconds)}
    columns = {dtype: measure(exact, dtype, path, job, wanted) for dtype in dtypes}
    guidance = f"cfg {exact.config.default_cfg:g}"
    print(f"\n{WHAT[name]}: {job.seconds:g} s, {job.steps} steps, {guidance}, against float32: relative error (cosine), or SNR\n")
    print(table(["", *columns], [[row, *(column[row] for column in columns.values())] for row in columns[dtypes[0]]]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="small|medium|demo", help="which models; all when none is named")
    parser.add_argument("--seconds", type=float, default=30.0, help="of small; medium and demo make at most 1.5 and 4 s")
    parser.add_argument("--steps", type=int, default=8, help="of small and medium; the demo has its own 50")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["fp16", "bf16"])
    parser.add_argument("--models", type=Path, help="holds checkpoints/stable-audio-3-small-music, else one is made and deleted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if set(options.names) - set(WHAT):
        parser.error(f"there are {', '.join(WHAT)}")
    torch.set_num_threads(options.threads)
    print(f"{hardware()}; {options.threads} threads; torch {torch.__version__}")
    for name in options.names or WHAT:
        with ExitStack() as stack:
            path = folder_of(name, options.models, stack)
            seconds = min(options.seconds, {"medium": 1.5, "demo": 4.0}.get(name, options.seconds))
            job = Job(PROMPTS.get(name, PROMPT), seconds, 50 if name == "demo" else options.steps)
            compare(name, path, job, options.dtype)


if __name__ == "__main__":
    main()
