"""Trains the demo models from nothing but a synthetic corpus, one after the other.

    python tools/demo/make_demo.py --work FOLDER                            # both that are shipped; some six hours of two CPU cores
    python tools/demo/make_demo.py --work FOLDER --model demo --stage pack  # one model, one of its stages

demo: the small family. demo-medium: the medium family, begun from demo. demo-post-trained: demo made to sample in 8 steps; not shipped,
because it keeps time and continues worse than its base.
Every stage resumes from what FOLDER holds. Same machine, threads and versions: same bytes.
"""

import argparse
import concurrent.futures
import functools
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import sa3_core
from sa3_core import build
from sa3_core.config import parse
from sa3_core.models.conditioning import Condition
from sa3_core.models.release import Generator
from sa3_core.models.same import SAME
from sa3_core.models.text_encoder import config_from
from sa3_core.sampling.guidance import Guidance
from sa3_core.training import flow
from tools.demo import autoencoder, corpus, demo_config, distil, metrics
from tools.demo.demo_config import FRAME, SPECIALS, VOCABULARY
from tools.demo.trainer import EMATrainer, Settings

SEED = 0
CLIPS = 6000  # of 2.2 s, for the autoencoder
CROP = 16 * FRAME  # samples; what the chunked attention of this SAME sees at once
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


@dataclass(frozen=True)
class Base:
    """How a base model is trained. before: the demo it begins from, None = from nothing. Phases by name, with the settings of each.

    same: the waveform first; then, for a shorter time, textures: what cannot be coded is made up with the right spectrum. transformer:
    with the chances of the windows from which batches are drawn; the later phases hear rhythms and beeps more often.
    """

    family: str
    before: str | None
    same: dict[str, tuple[Settings, autoencoder.Weights]]
    transformer: dict[str, tuple[Settings, dict[str, float]]]


DECODER = "decoder"  # the phase that leaves the encoder, and so the latents, as they are
TEXTURES = autoencoder.Weights(spectral=0.5, spectral_from=-1, spectral_full=0, saturating=True)
BASES = {
    "demo": Base(
        "small",
        None,
        {"waveform": (Settings(steps=9_000, lr=1.5e-3, warmup=200), autoencoder.Weights()),
         "texture": (Settings(steps=2_500, lr=6e-4, warmup=100), TEXTURES)},
        {"transformer": (Settings(steps=5_500, lr=1e-3, warmup=200), {"short": 0.75, "long": 0.25}),
         "rhythm": (Settings(steps=9_000, lr=8e-4, warmup=200), {"short": 0.3, "long": 0.15, "beats": 0.55}),
         "steady": (Settings(steps=3_700, lr=6e-4, warmup=200), {"short": 0.25, "long": 0.1, "beats": 0.65})},
    ),
    # As the released SAME-L and SAME-S, the two autoencoders share their latents.
    "demo-medium": Base(
        "medium",
        "demo",
        {"waveform": (Settings(steps=3_000, lr=8e-4, warmup=100), autoencoder.Weights(latent=0.3, spectral_from=-1, spectral_full=0)),
         "texture": (Settings(steps=1_500, lr=5e-4, warmup=100), replace(TEXTURES, latent=0.3)),
         DECODER: (Settings(steps=2_000, lr=8e-4, warmup=100), replace(TEXTURES, spectral=0.25))},
        {"transformer": (Settings(steps=2_800, lr=6e-4, warmup=200), {"short": 0.3, "long": 0.15, "beats": 0.55})},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PostTraining:
    """How a base is made to sample in few steps. paths: how many of each window the teacher goes, in `steps` steps under `guidance`."""

    before: str
    paths: dict[str, int]
    steps: int
    guidance: Guidance
    settings: Settings


POST_TRAINED = {
    "demo-post-trained": PostTraining(
        "demo", {"short": 480, "beats": 640, "long": 128}, 20, Guidance(cfg=7.0, apg=0.0), Settings(steps=1_200, lr=4e-4, warmup=100)
    )
}


def train_autoencoder(work: Path, recipe: Base, before: sa3_core.Model | None) -> SAME:
    """The phases of the autoencoder over 8 crops of 0.74 s a step. before: the model whose weights and latents it begins from."""
    same, bank, teacher = build(demo_config.autoencoder(recipe.family), device="cpu", dtype=torch.float32), None, None
    if before is not None:
        teacher = before.autoencoder.requires_grad_(False)
        inherit(same, teacher.state_dict())
    for phase, (settings, weights) in recipe.same.items():
        for part in (same.encoder, same.bottleneck):
            part.requires_grad_(phase != DECODER)
        trainer = EMATrainer({name: p for name, p in same.named_parameters() if p.requires_grad}, settings, work / phase)
        if trainer.step < settings.steps:
            bank = torch.stack([corpus.clip(SEED, i, 2.2).audio.half() for i in range(CLIPS)]) if bank is None else bank
            if trainer.step == 0:
                if before is None and phase == next(iter(recipe.same)):
                    autoencoder.block_pca_start(same, bank[:500].float(), torch.Generator().manual_seed(SEED))
                trainer.reset_average()
            loss = autoencoder.loss(same, functools.partial(crops, bank), settings.steps, weights, teacher if weights.latent else None)
            trainer.run(loss, report(phase))
        trainer.copy_average()
    same.requires_grad_(False)
    autoencoder.measure_scale(same, [corpus.clip(SEED, i, CROP / corpus.RATE).audio[None] for i in range(200)])
    return same


@torch.no_grad()
def inherit(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy the weights of a model of the other family as far as they reach: a convolution over three patches keeps its middle tap, what
    the second attention of a differential pair needs stays as it was made."""
    weights = dict(weights)
    for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
        if name not in weights:
            continue
        old = weights[name]
        if name.endswith("weight_v") and old.shape != parameter.shape:
            gain = name.replace("weight_v", "weight_g")
            kernel = weights[gain] * old / old.flatten(1).norm(dim=1)[:, None, None]
            old = kernel[..., kernel.shape[-1] // 2 : kernel.shape[-1] // 2 + 1]
            module.get_parameter(gain).copy_(old.flatten(1).norm(dim=1)[:, None, None])
        elif name.endswith("cross_attn.to_kv.weight") and old.shape != parameter.shape:
            keys, values = old.chunk(2)  # here: keys, second keys, values
            parameter[: len(keys)], parameter[-len(values) :] = keys, values
            continue
        parameter[: len(old)] = old


def crops(bank: Tensor, generator: torch.Generator) -> Tensor:
    """Eight random stretches (8, 2, CROP) of the clips (n, 2, N), at random levels."""
    items = torch.randint(len(bank), (8,), generator=generator)
    starts = torch.randint(bank.shape[-1] - CROP, (8,), generator=generator)
    gain = 0.6 + 0.6 * torch.rand(8, 1, 1, generator=generator)
    return gain * torch.stack([bank[i, :, s : s + CROP] for i, s in zip(items, starts, strict=True)]).float()


def encode_corpus(work: Path, same: SAME) -> None:
    """The clips of the transformer's training as latents, silence behind each up to the window's end."""
    for number, (name, window) in enumerate(WINDOWS.items()):
        path = work / f"latents-{name}.safetensors"
        if path.is_file():
            continue

        def one(i: int, number=number, window=window) -> tuple[Tensor, str, float]:
            seconds = corpus.Random(SEED, -1 - 100_000 * number - i).uniform(*window.seconds)
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
    """Batches of encoded clips with their conditions, for `flow.training_loss`. chances: of each window."""

    def __init__(self, work: Path, net: Generator, text: torch.nn.Module, chances: dict[str, float]):
        self.net, self.text, self.windows = net, text, {}
        self.chances = torch.tensor(list(chances.values()))
        words = {word: i for i, word in enumerate(VOCABULARY)}
        for window in chances:
            with safe_open(work / f"latents-{window}.safetensors", "pt") as file:
                captions = json.loads(file.metadata()["captions"])
                rows = [[words[word] for word in caption.replace(",", " ,").split()] for caption in captions]
                self.windows[window] = file.get_tensor("latents"), file.get_tensor("seconds"), rows, captions

    def __call__(self, generator: torch.Generator) -> flow.Batch:
        return self.draw(generator)[0]

    def draw(self, generator: torch.Generator) -> tuple[flow.Batch, list[str], list[float]]:
        """A batch, its captions and its durations in seconds."""
        window = list(self.windows)[int(torch.multinomial(self.chances, 1, generator=generator))]
        latents, seconds, rows, captions = self.windows[window]
        items = torch.randint(len(rows), (WINDOWS[window].batch,), generator=generator).tolist()
        durations = [float(seconds[i]) for i in items]
        lengths = [-(-round(s * corpus.RATE) // FRAME) for s in durations]
        condition = self.condition([rows[i] for i in items], durations, generator)
        return flow.Batch(latents[items].float(), lengths, condition), [captions[i] for i in items], durations

    def condition(self, rows: list[list[int]], seconds: list[float], generator: torch.Generator) -> Condition:
        n = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), n, dtype=torch.long), torch.zeros(len(rows), n, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        hidden = torch.rand(ids.shape, generator=generator) < UNKNOWN
        ids = torch.where(hidden & mask, SPECIALS.index("<unk>"), ids)
        embeddings = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self.net.conditioner(embeddings, mask, seconds)


def train_transformer(work: Path, recipe: Base, before: sa3_core.Model | None) -> tuple[Generator, torch.nn.Module]:
    """Transformer, conditioner and text encoder together, in phases."""
    from transformers import T5GemmaEncoderModel

    torch.manual_seed(SEED)
    net = Generator(parse(demo_config.model(recipe.family, "rectified_flow")), device="cpu", dtype=torch.float32)
    text = T5GemmaEncoderModel(config_from(demo_config.TEXT)).train()
    if before is None:
        start(net)
    else:
        inherit(net, before.module.state_dict())
        text.load_state_dict(before.text_encoder.model.state_dict())
    parameters = dict(net.named_parameters()) | {f"text.{name}": p for name, p in text.named_parameters()}
    for name, (settings, chances) in recipe.transformer.items():
        trainer = EMATrainer(parameters, settings, work / name)
        if trainer.step < settings.steps:
            trainer.run(flow.training_loss(net, Corpus(work, net, text, chances), FLOW, corpus.RATE / FRAME), report(name))
        trainer.copy_average()
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


def post_train(work: Path, recipe: PostTraining, before: sa3_core.Model, latents: Path) -> Generator:
    """A copy of the base's transformer that samples in few steps; everything else stays the base's. latents: where the base's clips lie."""
    teacher, text = before.module.requires_grad_(False), before.text_encoder.model
    student = Generator(before.config, device="cpu", dtype=torch.float32)
    student.load_state_dict(teacher.state_dict(), strict=False)
    student.conditioner.requires_grad_(False)
    banks = {}
    for window in recipe.paths:
        banks[window] = teacher_paths(work, recipe, window, Corpus(latents, teacher, text, {window: 1.0}), before.autoencoder)
    chances = torch.tensor([float(len(paths)) for paths in banks.values()])

    def draw(generator: torch.Generator) -> tuple[distil.Paths, int]:
        window = list(banks)[int(torch.multinomial(chances, 1, generator=generator))]
        return banks[window], WINDOWS[window].batch

    trainer = EMATrainer(dict(student.dit.named_parameters()), recipe.settings, work / "distil")
    if trainer.step < recipe.settings.steps:
        trainer.run(distil.loss(student, draw), report("distil"))
    trainer.copy_average()
    return student


def teacher_paths(work: Path, recipe: PostTraining, window: str, batches: Corpus, same: SAME) -> distil.Paths:
    """The teacher's paths over one window, from the file of an earlier run where there is one.

    Of rhythms only those that came out in time: what is told can be measured, so the student need not learn the teacher's misses.
    """
    path = work / f"paths-{window}.safetensors"
    if path.is_file():
        return distil.Paths(**load_file(path))
    parts, generator, tried = [], torch.Generator().manual_seed(SEED), 0
    while sum(map(len, parts)) < recipe.paths[window]:
        with torch.no_grad():
            batch, captions, seconds = batches.draw(generator)
        frames = batch.latents.shape[-1]
        lengths = flow.extend_lengths(batch.lengths, FLOW.silence * corpus.RATE / FRAME, frames, generator)
        given = flow.draw_masks(lengths, frames, FLOW.masks, generator)
        part = distil.follow(batches.net, batch, lengths, given, recipe.guidance, recipe.steps, generator)
        with torch.no_grad():
            audio = same.decode(part.ends)
        kept = [i for i, x in enumerate(audio) if in_time(x, captions[i], seconds[i])]
        parts.append(replace(part, states=part.states.half()).pick(kept))
        tried += len(captions)
    paths = distil.Paths.join(parts)
    work.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in vars(paths).items()}, path)
    print(f"paths {window}: {len(paths)} of {tried}", flush=True)
    return paths


def in_time(audio: Tensor, caption: str, seconds: float) -> bool:
    """Whether a clip (2, N) is the rhythm that its caption states, if it states one and is long enough to tell."""
    spacing = corpus.stated_spacing(caption)
    if spacing is None or seconds < 2.5 * spacing:
        return True
    return metrics.keeps_time(metrics.mono(audio[:, : round(seconds * corpus.RATE)]), spacing)


def pack(folder: Path, config: dict, work: Path, phases: Iterable[str], same: SAME, net: Generator, text: torch.nn.Module) -> None:
    """The released layout in a folder, 16-bit, and the curves of the phases."""
    encoder = folder / "t5gemma-b-b-ul2"
    encoder.mkdir(parents=True, exist_ok=True)
    weights = net.state_dict() | {f"pretransform.model.{name}": t for name, t in same.state_dict().items()}
    save_file(stored(weights), folder / "model.safetensors", {"format": "pt"})
    save_file(stored({f"model.{name}": t for name, t in text.state_dict().items()}), encoder / "model.safetensors", {"format": "pt"})
    files = {folder / "model_config.json": config, encoder / "config.json": demo_config.TEXT}
    for path, values in {**files, encoder / "tokenizer.json": demo_config.tokenizer()}.items():
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for phase in phases:
        (folder / f"{phase}.png").write_bytes((work / phase / "losses.png").read_bytes())


def stored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to(torch.float16).contiguous() for name, t in sorted(weights.items())}


def report(stage: str):
    begin = time.monotonic()

    def say(step: int, means: dict[str, float]) -> None:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        print(f"{stage} {step} ({time.monotonic() - begin:.0f} s): {terms}", flush=True)

    return say


def make_base(name: str, given: argparse.Namespace) -> None:
    recipe, work = BASES[name], given.work / name
    start = given.start or (recipe.before and str(given.out / recipe.before))
    before = sa3_core.load(start) if start else None
    same = train_autoencoder(work, recipe, before)
    if given.stage in (None, "latents"):
        encode_corpus(work, same)
    if given.stage in (None, "transformer", "pack"):
        net, text = train_transformer(work, recipe, before)
        if given.stage != "transformer":
            config = demo_config.model(recipe.family, "rectified_flow")
            pack(given.out / name, config, work, [*recipe.same, *recipe.transformer], same, net, text)


def make_post_trained(name: str, given: argparse.Namespace) -> None:
    recipe = POST_TRAINED[name]
    before = sa3_core.load(str(given.out / recipe.before))
    student = post_train(given.work / name, recipe, before, given.work / recipe.before)
    config = demo_config.model(BASES[recipe.before].family, "rf_denoiser")
    pack(given.out / name, config, given.work / name, ["distil"], before.autoencoder, student, before.text_encoder.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for states, encoded clips and curves")
    parser.add_argument("--model", choices=(*BASES, *POST_TRAINED), help="one model; those that are shipped when left out")
    parser.add_argument("--stage", choices=("autoencoder", "latents", "transformer", "pack"), help="one stage of a base; all when left out")
    parser.add_argument("--start", metavar="MODEL", help="go on from the weights of a model made before (a folder, or: demo)")
    parser.add_argument("--out", type=Path, default=ROOT / "assets", help="the folder in which the models' folders lie")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in [given.model] if given.model else BASES:
        (make_base if name in BASES else make_post_trained)(name, given)


if __name__ == "__main__":
    main()
