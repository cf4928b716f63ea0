"""Train the demo models on a synthetic corpus.

    python tools/demo/make_demo.py --work FOLDER                            # both shipped models; about six hours on two CPU cores
    python tools/demo/make_demo.py --work FOLDER --model demo --stage pack  # one stage of one model

demo: small family. demo-medium: medium family, initialised from demo. demo-post-trained: demo distilled to 8 sampling steps; not shipped,
because its rhythms and continuations are less often in time than those of its base.
Every stage resumes from FOLDER. Same machine, threads and versions: same bytes.
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
from sa3_core.models.release import ConditionedDiT
from sa3_core.models.same import SAME
from sa3_core.models.t5gemma import config_from
from sa3_core.sampling.guidance import Guidance
from sa3_core.training import flow
from tools.demo import autoencoder, corpus, demo_config, distil, metrics
from tools.demo.demo_config import FRAME, SPECIALS, VOCABULARY
from tools.demo.trainer import EMATrainer, Settings

SEED = 0
CLIPS = 6000  # clips of 2.2 s for the autoencoder
CROP = 16 * FRAME  # samples; the attention chunk of this SAME
MASKS = (0.15, 0.65, 0.2)  # see `flow.MASKS`
UNKNOWN = 0.02  # probability of replacing a word by <unk>, so that words outside the vocabulary have little effect


@dataclass(frozen=True)
class Window:
    """Clips padded to the same number of frames. seconds: shortest and longest clip. clips: their number. batch: items per step.
    kinds: classes of sound in turn, None = any scene. rhythmic: probability of a steady rhythm."""

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
    """The training phases of a base model by name, with their settings. initial: the demo that provides initial weights, None = random.

    same: the waveform phase, then a shorter texture phase that synthesises what cannot be coded with the correct spectrum. transformer:
    settings and probabilities of the windows; the later phases contain more rhythms and beeps.
    """

    family: str
    initial: str | None
    same: dict[str, tuple[Settings, autoencoder.Weights]]
    transformer: dict[str, tuple[Settings, dict[str, float]]]


DECODER = "decoder"  # the phase that freezes the encoder, and so the latents
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
    # The two autoencoders share their latents, like the released SAME-L and SAME-S.
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
    """Distillation of a base to few sampling steps. paths: number of teacher paths per window, sampled in `steps` with `guidance`."""

    base: str
    paths: dict[str, int]
    steps: int
    guidance: Guidance
    settings: Settings


POST_TRAINED = {
    "demo-post-trained": PostTraining(
        "demo", {"short": 480, "beats": 640, "long": 128}, 20, Guidance(cfg=7.0, apg=0.0), Settings(steps=1_200, lr=4e-4, warmup=100)
    )
}


def train_autoencoder(work: Path, recipe: Base, initial: sa3_core.Model | None) -> SAME:
    """Train the autoencoder on 8 crops of 0.74 s per step. initial: provides initial weights and the latents to match."""
    same, bank, teacher = build(demo_config.autoencoder(recipe.family), device="cpu", dtype=torch.float32), None, None
    if initial is not None:
        teacher = initial.autoencoder.requires_grad_(False)
        inherit(same, teacher.state_dict())
    for phase, (settings, weights) in recipe.same.items():
        for part in (same.encoder, same.bottleneck):
            part.requires_grad_(phase != DECODER)
        trainer = EMATrainer({name: p for name, p in same.named_parameters() if p.requires_grad}, settings, work / phase)
        if trainer.step < settings.steps:
            bank = torch.stack([corpus.clip(SEED, i, 2.2).audio.half() for i in range(CLIPS)]) if bank is None else bank
            if trainer.step == 0:
                if initial is None and phase == next(iter(recipe.same)):
                    autoencoder.init_block_pca(same, bank[:500].float(), torch.Generator().manual_seed(SEED))
                trainer.reset_average()
            loss = autoencoder.training_loss(
                same, functools.partial(crops, bank), settings.steps, weights, teacher if weights.latent else None
            )
            trainer.run(loss, report(phase))
        trainer.copy_average()
    same.requires_grad_(False)
    autoencoder.measure_scale(same, [corpus.clip(SEED, i, CROP / corpus.RATE).audio[None] for i in range(200)])
    return same


@torch.no_grad()
def inherit(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy the weights of a model of the other family where the shapes allow it.

    A convolution over three patches keeps its middle tap; the second attention of a differential pair keeps its initial weights.
    """
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
            keys, values = old.chunk(2)  # the parameter has keys, second keys, values
            parameter[: len(keys)], parameter[-len(values) :] = keys, values
            continue
        parameter[: len(old)] = old


def crops(bank: Tensor, generator: torch.Generator) -> Tensor:
    """Eight random crops (8, 2, CROP) of the clips (n, 2, N) at random levels."""
    items = torch.randint(len(bank), (8,), generator=generator)
    starts = torch.randint(bank.shape[-1] - CROP, (8,), generator=generator)
    gain = 0.6 + 0.6 * torch.rand(8, 1, 1, generator=generator)
    return gain * torch.stack([bank[i, :, s : s + CROP] for i, s in zip(items, starts, strict=True)]).float()


def encode_corpus(work: Path, same: SAME) -> None:
    """Encode the clips of the transformer's training, padded with silence to the length of their window."""
    for number, (name, window) in enumerate(WINDOWS.items()):
        path = work / f"latents-{name}.safetensors"
        if path.is_file():
            continue

        def encode(i: int, number=number, window=window) -> tuple[Tensor, str, float]:
            seconds = corpus.Random(SEED, -1 - 100_000 * number - i).uniform(*window.seconds)
            seconds = round(seconds) if i % 2 else seconds  # prompts mostly request whole seconds
            kind = window.kinds[i % len(window.kinds)]
            clip = corpus.clip(SEED + 2 + 2 * number, i, seconds, kind, window.rhythmic)
            padded = torch.nn.functional.pad(clip.audio, (0, window.frames * FRAME - clip.audio.shape[-1]))
            with torch.no_grad():
                return same.encode(padded[None])[0].half(), clip.caption, clip.seconds

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            encoded = list(pool.map(encode, range(window.clips)))
        torch.set_num_threads(threads)
        tensors = {"latents": torch.stack([z for z, _, _ in encoded]), "seconds": torch.tensor([s for _, _, s in encoded])}
        save_file(tensors, path, {"captions": json.dumps([caption for _, caption, _ in encoded])})
        print(f"latents {name}: {window.clips} clips", flush=True)


class Corpus:
    """Batches of encoded clips with their conditions, for `flow.training_loss`. chances: probability of each window."""

    def __init__(self, work: Path, net: ConditionedDiT, text: torch.nn.Module, chances: dict[str, float]):
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
        """The condition of captions given as token ids, with random unknown words."""
        n = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), n, dtype=torch.long), torch.zeros(len(rows), n, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        hidden = torch.rand(ids.shape, generator=generator) < UNKNOWN
        ids = torch.where(hidden & mask, SPECIALS.index("<unk>"), ids)
        embeddings = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self.net.conditioner(embeddings, mask, seconds)


def train_transformer(work: Path, recipe: Base, initial: sa3_core.Model | None) -> tuple[ConditionedDiT, torch.nn.Module]:
    """Train transformer and conditioner together with the text encoder; returns both."""
    from transformers import T5GemmaEncoderModel

    torch.manual_seed(SEED)
    net = ConditionedDiT(parse(demo_config.model(recipe.family, "rectified_flow")), device="cpu", dtype=torch.float32)
    text = T5GemmaEncoderModel(config_from(demo_config.TEXT)).train()
    if initial is None:
        init_identity(net)
    else:
        inherit(net, initial.module.state_dict())
        text.load_state_dict(initial.text_encoder.model.state_dict())
    parameters = dict(net.named_parameters()) | {f"text.{name}": p for name, p in text.named_parameters()}
    for name, (settings, chances) in recipe.transformer.items():
        trainer = EMATrainer(parameters, settings, work / name)
        if trainer.step < settings.steps:
            batches = Corpus(work, net, text, chances)
            trainer.run(flow.training_loss(net, batches, corpus.RATE / FRAME, masks=MASKS, pairing=False), report(name))
        trainer.copy_average()
    return net, text


@torch.no_grad()
def init_identity(net: ConditionedDiT) -> None:
    """Initialise the layers to the identity: the output projections of all residual branches and of the network are zero."""
    torch.nn.init.normal_(net.dit.transformer.memory_tokens, std=0.02)
    net.conditioner.conditioners["prompt"].padding_embedding.normal_(std=0.1)
    zero = ("to_out.weight", "ff.ff.2.weight", "ff.ff.2.bias", "process_conv.weight", "project_out.weight", "to_local_embed.2.weight")
    for name, p in net.named_parameters():
        if name.endswith(zero):
            p.zero_()


def post_train(work: Path, recipe: PostTraining, base: sa3_core.Model, latents: Path) -> ConditionedDiT:
    """A copy of the base's transformer distilled to few sampling steps. latents: folder of the base's encoded clips."""
    teacher, text = base.module.requires_grad_(False), base.text_encoder.model
    student = ConditionedDiT(base.config, device="cpu", dtype=torch.float32)
    student.load_state_dict(teacher.state_dict(), strict=False)
    student.conditioner.requires_grad_(False)
    banks = {}
    for window in recipe.paths:
        banks[window] = teacher_paths(work, recipe, window, Corpus(latents, teacher, text, {window: 1.0}), base.autoencoder)
    chances = torch.tensor([float(len(paths)) for paths in banks.values()])

    def draw(generator: torch.Generator) -> tuple[distil.Paths, int]:
        window = list(banks)[int(torch.multinomial(chances, 1, generator=generator))]
        return banks[window], WINDOWS[window].batch

    trainer = EMATrainer(dict(student.dit.named_parameters()), recipe.settings, work / "distil")
    if trainer.step < recipe.settings.steps:
        trainer.run(distil.training_loss(student, draw), report("distil"))
    trainer.copy_average()
    return student


def teacher_paths(work: Path, recipe: PostTraining, window: str, batches: Corpus, same: SAME) -> distil.Paths:
    """The teacher's paths for one window, cached in a file. Rhythms that are not in time are discarded."""
    path = work / f"paths-{window}.safetensors"
    if path.is_file():
        return distil.Paths(**load_file(path))
    parts, generator, tried = [], torch.Generator().manual_seed(SEED), 0
    while sum(map(len, parts)) < recipe.paths[window]:
        with torch.no_grad():
            batch, captions, seconds = batches.draw(generator)
        frames = batch.latents.shape[-1]
        lengths = flow.extend_lengths(batch.lengths, flow.SILENCE * corpus.RATE / FRAME, frames, generator)
        given = flow.draw_masks(lengths, frames, MASKS, generator)
        part = distil.sample_paths(batches.net, batch, lengths, given, recipe.guidance, recipe.steps, generator)
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
    """Whether a clip (2, N) has the rhythm of its caption; True when the caption has none or the clip is too short to measure it."""
    spacing = corpus.stated_spacing(caption)
    if spacing is None or seconds < 2.5 * spacing:
        return True
    return metrics.keeps_time(metrics.mono(audio[:, : round(seconds * corpus.RATE)]), spacing)


def pack(folder: Path, config: dict, work: Path, phases: Iterable[str], same: SAME, net: ConditionedDiT, text: torch.nn.Module) -> None:
    """Write a model in the layout of a release, in float16, and the loss curves of its phases."""
    encoder = folder / "t5gemma-b-b-ul2"
    encoder.mkdir(parents=True, exist_ok=True)
    weights = net.state_dict() | {f"pretransform.model.{name}": t for name, t in same.state_dict().items()}
    save_file(half(weights), folder / "model.safetensors", {"format": "pt"})
    save_file(half({f"model.{name}": t for name, t in text.state_dict().items()}), encoder / "model.safetensors", {"format": "pt"})
    files = {folder / "model_config.json": config, encoder / "config.json": demo_config.TEXT}
    for path, values in {**files, encoder / "tokenizer.json": demo_config.tokenizer()}.items():
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for phase in phases:
        (folder / f"{phase}.png").write_bytes((work / phase / "losses.png").read_bytes())


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to(torch.float16).contiguous() for name, t in sorted(weights.items())}


def report(stage: str):
    """A function (step, means) that prints a record."""
    begin = time.monotonic()

    def print_record(step: int, means: dict[str, float]) -> None:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        print(f"{stage} {step} ({time.monotonic() - begin:.0f} s): {terms}", flush=True)

    return print_record


def make_base(name: str, options: argparse.Namespace) -> None:
    """Train a base model and write it to the output folder."""
    recipe, work = BASES[name], options.work / name
    start = options.start or (recipe.initial and str(options.out / recipe.initial))
    initial = sa3_core.load(start) if start else None
    same = train_autoencoder(work, recipe, initial)
    if options.stage in (None, "latents"):
        encode_corpus(work, same)
    if options.stage in (None, "transformer", "pack"):
        net, text = train_transformer(work, recipe, initial)
        if options.stage != "transformer":
            config = demo_config.model(recipe.family, "rectified_flow")
            pack(options.out / name, config, work, [*recipe.same, *recipe.transformer], same, net, text)


def make_post_trained(name: str, options: argparse.Namespace) -> None:
    """Distil a base model and write the result to the output folder."""
    recipe = POST_TRAINED[name]
    base = sa3_core.load(str(options.out / recipe.base))
    student = post_train(options.work / name, recipe, base, options.work / recipe.base)
    config = demo_config.model(BASES[recipe.base].family, "rf_denoiser")
    pack(options.out / name, config, options.work / name, ["distil"], base.autoencoder, student, base.text_encoder.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of states, encoded clips and curves")
    parser.add_argument("--model", choices=(*BASES, *POST_TRAINED), help="default: all shipped models")
    parser.add_argument("--stage", choices=("autoencoder", "latents", "transformer", "pack"), help="one stage of a base; default: all")
    parser.add_argument("--start", metavar="MODEL", help="model with the initial weights (a folder, or: demo)")
    parser.add_argument("--out", type=Path, default=ROOT / "assets", help="folder of the models' folders")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in [options.model] if options.model else BASES:
        (make_base if name in BASES else make_post_trained)(name, options)


if __name__ == "__main__":
    main()
