"""Trains the demo model, assets/demo, from nothing: a synthetic corpus, a small SAME, a small transformer with its own text encoder.

    python assets/make_demo.py --work FOLDER              # all stages; about three hours on two CPU cores
    python assets/make_demo.py --work FOLDER --stage pack  # one stage: autoencoder, latents, transformer, pack

Every stage resumes from what FOLDER holds. Same machine, threads and versions: same bytes. --compile needs a C++ compiler and makes
the transformer's stage about twice as fast; its rounding differs from the run without it.
"""

import argparse
import concurrent.futures
import functools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import sa3_core  # noqa: E402
from sa3_core import build  # noqa: E402
from sa3_core.conditioning import Condition  # noqa: E402
from sa3_core.config import parse  # noqa: E402
from sa3_core.network import Generator  # noqa: E402
from sa3_core.same import SAME  # noqa: E402
from sa3_core.text_encoder import config_from  # noqa: E402
from sa3_core.training import autoencoder, corpus, flow  # noqa: E402
from sa3_core.training.loop import Settings, Trainer  # noqa: E402

LATENTS, WIDTH, PATCH, STRIDE = 128, 192, 1024, 2
FRAME = PATCH * STRIDE
COND, TOKENS = 64, 32
SIDE = {
    "channels": WIDTH, "c_mults": [1], "strides": [STRIDE], "latent_dim": LATENTS, "transformer_depths": [1], "differential": True,
    "dim_heads": LATENTS // STRIDE, "variable_stride": True, "dyt": True, "chunk_size": 32, "chunk_midpoint_shift": True,
}  # fmt: skip
CONFIG = {
    "model_type": "diffusion_cond_inpaint", "sample_size": 5292032, "sample_rate": 44100, "audio_channels": 2,
    "model": {
        "pretransform": {"type": "autoencoder", "config": {
            "pretransform": {"type": "patched", "config": {"patch_size": PATCH, "channels": 2}},
            "encoder": {"type": "taae_v2", "config": {**SIDE, "in_channels": 2 * PATCH, "mask_noise": 0.0}},
            "decoder": {"type": "taae_v2", "config": {
                **SIDE, "transformer_depths": [2], "out_channels": 2 * PATCH, "conv_mapping": True, "mask_noise": 0.01}},
            "bottleneck": {"type": "softnorm", "config": {"dim": LATENTS, "noise_regularize": True, "auto_scale": True, "freeze": True}},
            "latent_dim": LATENTS, "downsampling_ratio": FRAME, "io_channels": 2,
        }},
        "conditioning": {"cond_dim": COND, "configs": [
            {"id": "prompt", "type": "t5gemma", "config": {
                "max_length": TOKENS, "padding_mode": "learned", "repo_id": "demo", "subfolder": "t5gemma-b-b-ul2"}},
            {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"}},
        ]},
        "diffusion": {
            "type": "dit", "diffusion_objective": "rectified_flow", "cross_attention_cond_ids": ["prompt", "seconds_total"],
            "global_cond_ids": ["seconds_total"], "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
            "use_effective_length_for_schedule": True, "mask_padding_attention": True,
            "config": {
                "io_channels": LATENTS, "embed_dim": WIDTH, "depth": 6, "num_heads": 6, "cond_token_dim": COND, "global_cond_dim": COND,
                "local_add_cond_dim": LATENTS + 1, "global_cond_type": "adaLN", "timestep_features_type": "expo",
                "attn_kwargs": {"qk_norm": "rms"}, "norm_type": "rms_norm", "norm_kwargs": {"force_fp32": True},
                "ff_kwargs": {"mult": 2.0}, "num_memory_tokens": 8},
        },
        "io_channels": LATENTS,
    },
}  # fmt: skip
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]
VOCABULARY = [*SPECIALS, *corpus.vocabulary()]
ENCODER = {
    "hidden_size": COND, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 128, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6, "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size": len(VOCABULARY), "max_position_embeddings": 512, "pad_token_id": 0, "model_type": "t5_gemma_module",
    "dropout_rate": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
TEXT = {"model_type": "t5gemma", "is_encoder_decoder": True, "vocab_size": len(VOCABULARY), "encoder": ENCODER, "decoder": ENCODER}

SEED = 0
CLIPS = 6000  # of 2.2 s, for the autoencoder
CROP = 16 * FRAME  # samples; what the chunked attention of this SAME sees at once
# The waveform first; then, for a shorter time, textures: what cannot be coded is made up with the right spectrum.
WAVEFORM = Settings(steps=9_000, lr=1.5e-3, warmup=200), autoencoder.Weights()
TEXTURE = Settings(steps=2_500, lr=6e-4, warmup=100), autoencoder.Weights(spectral=0.5, spectral_from=-1, spectral_full=0, saturating=True)
# Each phase of the transformer draws its batches from the windows with these chances; the second hears rhythms and beeps more often.
TRANSFORMER = Settings(steps=5_500, lr=1e-3, warmup=200), {"short": 0.75, "long": 0.25}
RHYTHM = Settings(steps=9_000, lr=8e-4, warmup=200), {"short": 0.3, "long": 0.15, "beats": 0.55}
FLOW = flow.FlowSettings(masks=(0.15, 0.65, 0.2))
UNKNOWN = 0.02  # of the words are hidden in training, so that a word outside the vocabulary changes little


@dataclass(frozen=True)
class Window:
    """Clips of one length of window. seconds: shortest and longest; batch: items a step; kinds: of the clips, by turns, None = any
    scene; rhythmic: chance of a steady rhythm where a sound can be one."""

    frames: int
    seconds: tuple[float, float]
    clips: int
    batch: int
    kinds: tuple[str | None, ...] = (None,)
    rhythmic: float = 0.4


BEATS = ("kick", "beep", "kick", "snare", "kick", "beep", "kick", "bell", "kick", "pluck", "kick", "hat", "click")
WINDOWS = {
    "short": Window(96, (1.5, 4.0), 11_000, 16),
    "long": Window(208, (3.0, 9.0), 5_000, 8),
    "beats": Window(96, (2.0, 4.0), 11_000, 16, BEATS, 0.8),
}


def tokenizer() -> dict:
    """Words as tokens, in lower case; commas stand alone."""
    special = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, name in enumerate(SPECIALS)
    ]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(VOCABULARY)}, "unk_token": "<unk>"},
    }  # fmt: skip


def train_autoencoder(work: Path, before: sa3_core.Model | None = None) -> SAME:
    """Two phases over 8 crops of 0.74 s a step. before: the model whose weights are trained on."""
    same, bank = build(autoencoder_config(), device="cpu", dtype=torch.float32), None
    for phase, (settings, weights) in {"waveform": WAVEFORM, "texture": TEXTURE}.items():
        trainer = Trainer(dict(same.named_parameters()), settings, work / phase)
        if trainer.step < settings.steps:
            bank = torch.stack([corpus.clip(SEED, i, 2.2).audio.half() for i in range(CLIPS)]) if bank is None else bank
            if trainer.step == 0 and phase == "waveform":
                if before is None:
                    autoencoder.block_pca_start(same, bank[:500].float(), torch.Generator().manual_seed(SEED))
                else:
                    same.load_state_dict(before.autoencoder.state_dict())
                trainer.restart_average()
            trainer.run(autoencoder.loss(same, functools.partial(crops, bank), settings.steps, weights), report(phase))
        same.load_state_dict(trainer.averaged(), strict=False)
    same.requires_grad_(False)
    autoencoder.measure_scale(same, [corpus.clip(SEED, i, CROP / corpus.RATE).audio[None] for i in range(200)])
    return same


def crops(bank: Tensor, generator: torch.Generator) -> Tensor:
    """Eight random stretches (8, 2, CROP) of the clips (n, 2, N), at random levels."""
    items = torch.randint(len(bank), (8,), generator=generator)
    starts = torch.randint(bank.shape[-1] - CROP, (8,), generator=generator)
    gain = 0.6 + 0.6 * torch.rand(8, 1, 1, generator=generator)
    return gain * torch.stack([bank[i, :, s : s + CROP] for i, s in zip(items, starts, strict=True)]).float()


def autoencoder_config() -> dict:
    inner = CONFIG["model"]["pretransform"]["config"]
    return {"model_type": "autoencoder", "sample_rate": CONFIG["sample_rate"], "audio_channels": 2, "model": inner}


def encode_corpus(work: Path, same: SAME) -> None:
    """The clips of the transformer's training as latents, silence behind each up to the window's end."""
    for number, (name, window) in enumerate(WINDOWS.items()):
        path = work / f"latents-{name}.safetensors"
        if path.is_file():
            continue

        def one(i: int, number=number, window=window) -> tuple[Tensor, str, float]:
            seconds = corpus.Draw(SEED, -1 - 100_000 * number - i).uniform(*window.seconds)
            seconds = round(seconds) if i % 2 else seconds  # whole seconds are asked for most
            kind = window.kinds[i % len(window.kinds)]
            clip = corpus.clip(SEED + 2 + 2 * number, i, seconds, kind, window.rhythmic)
            padded = torch.nn.functional.pad(clip.audio, (0, window.frames * FRAME - clip.audio.shape[-1]))
            with torch.no_grad():
                return same.encode(padded[None])[0].half(), clip.caption, clip.seconds

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            done = list(pool.map(one, range(window.clips)))
        torch.set_num_threads(threads)
        tensors = {"latents": torch.stack([z for z, _, _ in done]), "seconds": torch.tensor([s for _, _, s in done])}
        save_file(tensors, path, {"captions": json.dumps([caption for _, caption, _ in done])})
        print(f"latents {name}: {window.clips} clips", flush=True)


class Corpus:
    """Batches of encoded clips with their conditions, for `flow.loss`. chances: of each window."""

    def __init__(self, work: Path, net: Generator, text: torch.nn.Module, chances: dict[str, float]):
        self.net, self.text, self.windows = net, text, {}
        self.chances = torch.tensor(list(chances.values()))
        words = {word: i for i, word in enumerate(VOCABULARY)}
        for window in chances:
            with safe_open(work / f"latents-{window}.safetensors", "pt") as file:
                captions = json.loads(file.metadata()["captions"])
                rows = [[words[word] for word in caption.replace(",", " ,").split()] for caption in captions]
                self.windows[window] = file.get_tensor("latents"), file.get_tensor("seconds"), rows

    def __call__(self, generator: torch.Generator) -> flow.Batch:
        window = list(self.windows)[int(torch.multinomial(self.chances, 1, generator=generator))]
        latents, seconds, rows = self.windows[window]
        items = torch.randint(len(rows), (WINDOWS[window].batch,), generator=generator).tolist()
        durations = [float(seconds[i]) for i in items]
        lengths = [-(-round(s * corpus.RATE) // FRAME) for s in durations]
        return flow.Batch(latents[items].float(), lengths, self.condition([rows[i] for i in items], durations, generator))

    def condition(self, rows: list[list[int]], seconds: list[float], generator: torch.Generator) -> Condition:
        n = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), n, dtype=torch.long), torch.zeros(len(rows), n, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        hidden = torch.rand(ids.shape, generator=generator) < UNKNOWN
        ids = torch.where(hidden & mask, SPECIALS.index("<unk>"), ids)
        embeddings = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self.net.conditioner(embeddings, mask, seconds)


def train_transformer(work: Path, compiled: bool, before: sa3_core.Model | None = None) -> tuple[Generator, torch.nn.Module]:
    """Transformer, conditioner and text encoder together, in two phases."""
    from transformers import T5GemmaEncoderModel

    torch.manual_seed(SEED)
    net = Generator(parse(CONFIG), device="cpu", dtype=torch.float32)
    text = T5GemmaEncoderModel(config_from(TEXT)).train()
    if before is None:
        start(net)
    else:
        net.load_state_dict(before.module.state_dict(), strict=False)  # beside it the autoencoder's
        text.load_state_dict(before.text_encoder.model.state_dict())
    parameters = dict(net.named_parameters()) | {f"text.{name}": p for name, p in text.named_parameters()}
    if compiled:
        for layer in net.dit.transformer.layers:
            layer.compile(dynamic=False)
    for name, (settings, chances) in {"transformer": TRANSFORMER, "rhythm": RHYTHM}.items():
        trainer = Trainer(parameters, settings, work / name)
        if trainer.step < settings.steps:
            trainer.run(flow.loss(net, Corpus(work, net, text, chances), FLOW, corpus.RATE / FRAME), report(name))
        with torch.no_grad():
            for key, mean in trainer.averaged().items():
                parameters[key].copy_(mean)
    return net, text


@torch.no_grad()
def start(net: Generator) -> None:
    """Layers that begin as the identity: what they add starts at zero, as do the outer convolutions and the output."""
    torch.nn.init.normal_(net.dit.transformer.memory_tokens, std=0.02)
    net.conditioner.conditioners["prompt"].padding_embedding.normal_(std=0.1)
    for name, p in net.named_parameters():
        if name.endswith(
            ("to_out.weight", "ff.ff.2.weight", "ff.ff.2.bias", "process_conv.weight", "project_out.weight", "to_local_embed.2.weight")
        ):
            p.zero_()


def pack(work: Path, demo: Path, same: SAME, net: Generator, text: torch.nn.Module) -> None:
    """The released layout in the folder `demo`, 16-bit, and the curves."""
    folder = demo / "t5gemma-b-b-ul2"
    folder.mkdir(parents=True, exist_ok=True)
    weights = net.state_dict() | {f"pretransform.model.{name}": t for name, t in same.state_dict().items()}
    save_file(stored(weights), demo / "model.safetensors", {"format": "pt"})
    save_file(stored({f"model.{name}": t for name, t in text.state_dict().items()}), folder / "model.safetensors", {"format": "pt"})
    for path, values in ((demo / "model_config.json", CONFIG), (folder / "config.json", TEXT), (folder / "tokenizer.json", tokenizer())):
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for stage in ("waveform", "texture", "transformer", "rhythm"):
        (demo / f"{stage}.png").write_bytes((work / stage / "losses.png").read_bytes())


def stored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to(torch.float16).contiguous() for name, t in sorted(weights.items())}


def report(stage: str):
    begin = time.monotonic()

    def say(step: int, means: dict[str, float]) -> None:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        print(f"{stage} {step} ({time.monotonic() - begin:.0f} s): {terms}", flush=True)

    return say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for states, encoded clips and curves")
    parser.add_argument("--stage", choices=("autoencoder", "latents", "transformer", "pack"), help="one stage only; all when left out")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's layers (needs a C++ compiler)")
    parser.add_argument("--start", metavar="MODEL", help="go on from the weights of a demo made before (a folder, or: demo)")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "demo", help="where the model goes")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    before = sa3_core.load(given.start) if given.start else None
    same = train_autoencoder(given.work, before)
    if given.stage in (None, "latents"):
        encode_corpus(given.work, same)
    if given.stage in (None, "transformer", "pack"):
        net, text = train_transformer(given.work, given.compile, before)
        if given.stage != "transformer":
            pack(given.work, given.out, same, net, text)


if __name__ == "__main__":
    main()
