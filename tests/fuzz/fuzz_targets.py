"""What is fed with damaged files: good files to start from, and every loader of the pack with what a run does next."""

import contextlib
import functools
import json
import os
import pickle
import random
import shutil
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.extend(str(path) for path in (ROOT, ROOT / "tests" / "core") if str(path) not in sys.path)

import torch
from core_support import DATA, TEXT_ENCODER, lay_out
from fuzz_mutations import damage_bytes, damage_json, damage_safetensors, damage_value, mutate, nested, text
from lora_support import KINDS, write_lora, write_products
from safetensors.torch import load_file, save_file

import sa3_core
from sa3_core import run_record
from sa3_core.audio import checks, waveform
from sa3_core.audio import files as audio_files
from sa3_core.checkpoints import checkpoint, detect, download, latent_files
from sa3_core.lora import convert as lora_convert
from sa3_core.lora.algebra import apply_stack
from sa3_core.lora.fit import fit_lora, open_lora
from sa3_core.lora.formats import read_bases, read_lora
from sa3_core.lora.stack import Stack, targets
from sa3_core.sampling import prompting
from sa3_core.timeline import (
    regions,
    splicing,
)
from tools.launcher import job

ENCODER_PART = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 64, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
BOMB = b"cposix\nsystem\n(S'touch escaped'\ntR."  # a pickle that runs a command


class Evil:
    """Pickles to a call."""

    def __reduce__(self):
        return (print, ("a pickle ran code",))


class Corpus:
    """Good files, made once per process in `folder`; the model on which LoRAs are tried."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.release = lay_out(folder / "release", "small")
        self.other = lay_out(folder / "other", "medium")
        shutil.copyfile(self.release / "model.safetensors", folder / "single_base.safetensors")
        same = {
            n.removeprefix("pretransform.model."): t
            for n, t in load_file(self.other / "model.safetensors").items()
            if n.startswith("pretransform.")
        }
        save_file(same, folder / "same.safetensors")

    @functools.cached_property
    def model(self) -> "sa3_core.Model":
        return sa3_core.load(self.release)

    @functools.cached_property
    def loras(self) -> list[Path]:
        made = [write_lora(self.folder / f"{kind}.safetensors", self.model.module, kind, 2, 4.0) for kind in KINDS]
        made += [
            lora_convert.convert(made[0], self.folder / "comfyui.safetensors", "comfyui"),
            lora_convert.convert(made[0], self.folder / "peft", "peft").parent,
        ]
        kohya = {
            f"lora_unet_{n.removeprefix('diffusion_model.').replace('.', '_', n.count('.') - 2)}": t for n, t in load_file(made[-2]).items()
        }
        save_file(kohya, self.folder / "kohya.safetensors")
        module = self.model.module
        products = [
            write_products(self.folder / "loha.safetensors", module, "loha", 2, 4, magnitudes="cols"),
            write_products(self.folder / "lokr.safetensors", module, "lokr 2", 2, 4, magnitudes="rows"),
            write_products(self.folder / "lokr_whole.safetensors", module, "lokr"),
        ]
        return [*made, self.folder / "kohya.safetensors", *products]

    @functools.cached_property
    def spiece(self) -> Path | None:
        """The repackaged text encoder; None without sentencepiece."""
        try:
            from sentencepiece import SentencePieceTrainer
        except ImportError:
            return None
        from sa3_core.models.t5gemma import config_from, empty_model

        (self.folder / "words.txt").write_text("\n".join(f"rain on a tin roof {i} warm drums {i * 7}" for i in range(200)))
        SentencePieceTrainer.train(
            input=str(self.folder / "words.txt"), model_prefix=str(self.folder / "m"), vocab_size=320, model_type="bpe", byte_fallback=True,
            pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
        values = {"model_type": "t5gemma", "encoder": dict(ENCODER_PART), "decoder": dict(ENCODER_PART), "is_encoder_decoder": True}
        generator = torch.Generator().manual_seed(0)
        tensors = {
            f"model.{n}": torch.randn(t.shape, generator=generator).mul(0.2).bfloat16()
            for n, t in empty_model(config_from(values)).state_dict().items()
        }
        model = bytearray((self.folder / "m.model").read_bytes())
        save_file({**tensors, "spiece_model": torch.frombuffer(model, dtype=torch.uint8)}, self.folder / "t5gemma.safetensors")
        return self.folder / "t5gemma.safetensors"


def use(model) -> None:
    """What a user does next: a prompt, and the shortest run."""
    if model.text_encoder is not None:
        model.encode_text(["", "rain on <bos> a tin roof ☂"])
        model.generate("rain", 0.05, steps=1, cfg=1.0, padding=0.0)


def changed(rng: random.Random, path: Path, damage) -> None:
    path.write_bytes(mutate(rng, path.read_bytes(), damage))


# A target: (corpus, rng, empty folder) -> a function that runs the loaders. Only `out` in the folder may be written to by then.
Target = Callable[[Corpus, random.Random, Path], Callable[[], object]]


def weights(corpus: Corpus, rng: random.Random, folder: Path):
    target = folder / "release"
    shutil.copytree(rng.choice([corpus.release, corpus.other]), target, copy_function=shutil.copyfile)
    changed(rng, target / "model.safetensors", damage_safetensors)
    return lambda: use(sa3_core.load(target))


def single_file(corpus: Corpus, rng: random.Random, folder: Path):
    source = rng.choice([corpus.folder / "single_base.safetensors", corpus.folder / "same.safetensors"])
    path, autoencoder, objective = folder / source.name, rng.random() < 0.3, rng.choice(["auto", "base"])
    path.write_bytes(mutate(rng, source.read_bytes(), damage_safetensors))

    def run():
        detect.read_header(path)
        model = sa3_core.load(path, text_encoder=corpus.release / TEXT_ENCODER, objective=objective, autoencoder=autoencoder)
        model.decode(torch.zeros(1, model.config.same.latent_dim, 2))

    return run


def listed(corpus: Corpus, rng: random.Random, folder: Path):
    """Reading the header of any file must never raise: the lists of all nodes are made of them."""
    path = folder / "x.safetensors"
    path.write_bytes(
        mutate(
            rng, rng.choice([corpus.folder / "single_base.safetensors", corpus.spiece or corpus.loras[0]]).read_bytes(), damage_safetensors
        )
    )
    return lambda: detect.read_header(path)


def config(corpus: Corpus, rng: random.Random, folder: Path):
    target = folder / "release"
    shutil.copytree(rng.choice([corpus.release, corpus.other]), target, copy_function=shutil.copyfile)
    name = rng.choice(["model_config.json"] * 6 + ["sa3_download.json"])
    if name == "sa3_download.json":
        (target / name).write_text(json.dumps({"repository": "a/b", "revision": "0" * 40, "sha256": "0" * 64, "variant": "small-music"}))
    changed(rng, target / name, damage_json)
    return lambda: use(sa3_core.load(target))


def network(corpus: Corpus, rng: random.Random, folder: Path):
    """The config of a real release, changed, as a network without weights."""
    values = json.loads((DATA / "releases" / f"{rng.choice(['small-music', 'medium-base', 'SAME-L', 'SAME-S'])}.json").read_text())
    for _ in range(rng.choice([1, 1, 2, 4])):
        values = damage_value(rng, values)
    return lambda: sa3_core.build(values)


def text_encoder(corpus: Corpus, rng: random.Random, folder: Path):
    target = folder / TEXT_ENCODER
    shutil.copytree(corpus.release / TEXT_ENCODER, target, copy_function=shutil.copyfile)
    name = rng.choice(["config.json", "config.json", "tokenizer.json", "tokenizer.json", "model.safetensors"])
    changed(rng, target / name, damage_safetensors if name == "model.safetensors" else damage_json)

    def run():
        encoder = checkpoint.load_text_encoder(target, width=64)
        encoder(encoder.tokenize(["", "rain on <bos> a tin roof ☂", "a" * 600], 32))

    return run


def spiece_file(corpus: Corpus, rng: random.Random, folder: Path):
    path = folder / "t5gemma_b_b_ul2.safetensors"
    data = corpus.spiece.read_bytes()
    if rng.random() < 0.4:  # into the SentencePiece model, which lies last
        start = data.rfind(b"\n\x0c\n\x05<pad>")
        data = data[:start] + mutate(rng, data[start:], damage_bytes).ljust(len(data) - start, b"\0")[: len(data) - start]
    else:
        data = mutate(rng, data, damage_safetensors)
    path.write_bytes(data)

    def run():
        encoder = checkpoint.load_text_encoder(path, width=64)
        encoder(encoder.tokenize(["", "rain on <bos> a tin roof ☂", "a" * 600], 32))

    return run


def lora(corpus: Corpus, rng: random.Random, folder: Path):
    source = rng.choice(corpus.loras)
    path, layout = folder / source.name, rng.choice(lora_convert.LAYOUTS)
    skip, scheduled = (text(rng) if rng.random() < 0.2 else ""), rng.random() < 0.3
    if source.is_dir():
        shutil.copytree(source, path, copy_function=shutil.copyfile)
        name = rng.choice(["adapter_model.safetensors", "adapter_config.json"])
        changed(rng, path / name, damage_safetensors if name.endswith("safetensors") else damage_json)
    else:
        path.write_bytes(mutate(rng, source.read_bytes(), damage_safetensors))
    module = corpus.model.module

    def run():
        read_lora(path).details()
        opened = open_lora(path, module, "small-music", corpus.release)
        lora = fit_lora(opened, module, "small-music", skip_layers=skip, interval=(0.2, 1) if scheduled else (0, 1))
        stack = Stack().with_lora(lora)
        stack.describe(), stack.record()
        known = targets(module)
        for name, entries in list(stack.patches().items())[:3]:
            apply_stack(known[name].weight, entries)
        lora_convert.convert(path, folder / "out" / ("x" if layout == "peft" else "x.safetensors"), layout)

    return run


def pickled(corpus: Corpus, rng: random.Random, folder: Path):
    """Old LoRA files and bases: nothing in them may run."""
    path, good = folder / "old.ckpt", load_file(corpus.loras[0])
    content = rng.choice([{"state_dict": good, "lora_config": {"alpha": 4}}, good, {"w": {"U": torch.ones(4, 2), "V": torch.ones(4, 2)}}])
    torch.save(content, path)
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(rng.choice([BOMB, pickle.dumps(Evil()), pickle.dumps({"state_dict": Evil()})]))
    elif kind == 1:
        torch.save(
            rng.choice(
                [{"state_dict": Evil()}, {"state_dict": {"a": 1}}, nested(rng, 30), {"state_dict": good, "lora_config": nested(rng, 9)}]
            ),
            path,
        )
    else:
        changed(rng, path, damage_bytes)
    bases = rng.random() < 0.3

    def run():
        if bases:
            lora_convert.convert_bases(path, folder / "out" / "bases.safetensors")
        lora_convert.convert(path, folder / "out" / "x.safetensors")

    return run


def bases(corpus: Corpus, rng: random.Random, folder: Path):
    path = folder / "svd_bases.safetensors"
    save_file({f"model.{n}.weight.{part}": torch.ones(4, 4) for n in ("transformer.layers.0.ff.ff.2",) for part in "UV"}, path)
    changed(rng, path, damage_safetensors)
    return lambda: read_bases(path)("transformer.layers.0.ff.ff.2", 2)


def verify(corpus: Corpus, rng: random.Random, folder: Path):
    path = folder / rng.choice(["model.safetensors", "x.ckpt", "x.onnx"])
    path.write_bytes(mutate(rng, (corpus.folder / "same.safetensors").read_bytes(), damage_safetensors))
    return lambda: download.verify(path, rng.choice([None, "medium", "optimized", "../x"]))


def latents(corpus: Corpus, rng: random.Random, folder: Path):
    """Latents on disk: safetensors files, and pairs of .npy and .json."""
    samples, path = torch.ones(2, 8, 20), folder / "sa3_00001_.latent"
    if rng.random() < 0.4:
        values = {"sa3_seconds": [1.0, 1.5], "sa3_padding": 6.0, "sa3_regions": [[0.5, 1.0]], "batch_index": [0, 1]}
        latent_files.write(folder, "sa3", 1, latent_files.LatentFile(samples, torch.ones(2, 1, 20), values, texts={"sa3": "{}"}))
        changed(rng, path, damage_safetensors)
    else:
        record, path = latent_files.write_pair(folder, "sa3", 1, samples[0], 17, 1.5)
        changed(rng, *rng.choice([(path, damage_bytes), (record, damage_json)]))
    return lambda: latent_files.read(path)


def workflow(corpus: Corpus, rng: random.Random, folder: Path):
    """run.py's reader of workflows."""
    path = folder / "graph.json"
    path.write_bytes(mutate(rng, rng.choice(sorted((ROOT / "workflows").rglob("*.json"))).read_bytes(), damage_json))
    options = {
        "prompt": text(rng),
        "seed": rng.choice([None, -1, 2**70]),
        "steps": rng.choice([None, 0]),
        "duration": rng.choice([None, float("nan")]),
    }

    def run():
        graph = job.fill(job.read_graph(path), options)
        json.dumps(graph)
        job.Progress(graph, open("/dev/null", "w"))  # noqa: SIM115

    return run


def words(corpus: Corpus, rng: random.Random, folder: Path):
    """The small languages: regions, patterns of layers, answers of language models, prompts."""
    line, prompt = text(rng), text(rng)

    known = [
        lambda: prompting.clean(line),
        lambda: prompting.write("instrument loop", line, line, line, rng.choice([0.0, 120.0]), line, 8.0, line),
        lambda: prompting.estimated_tokens(line),
        lambda: corpus.model.text_encoder.tokenize([prompt], 32),
        lambda: fit_lora(read_lora(corpus.loras[0]), corpus.model.module, "small-music", skip_layers=line),
        lambda: checks.parse_items(line, 8),
        lambda: run_record.item_records([line, prompt]),
        lambda: regions.format_regions(regions.merge_regions(regions.parse_regions(line), 100.0)),
    ]

    def run():
        for parse in known[:-1]:
            with contextlib.suppress(sa3_core.SA3Error):
                parse()
        known[-1]()

    return run


def clip(corpus: Corpus, rng: random.Random, folder: Path):
    """AUDIO of other nodes, into the model and into files."""
    rate = rng.choice([44100, 48000, 44101, 1, 7, 96000, 192000, 767999, 10**6 + 3, 2**31 - 1, 2**40, 0, -1, 44100.0, True, None, "44100"])
    shape = rng.choice(
        [
            (1, 2, 4000),
            (2, 4000),
            (1, 1, 4000),
            (1, 6, 4000),
            (1, 0, 4000),
            (1, 2, 0),
            (0, 2, 4000),
            (1, 2, 3),
            (4000,),
            (),
            (1, 1, 2, 4000),
        ]
    )
    clip = torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(99))) * rng.choice([0.1, 0.1, 1e30, 0.0])
    if clip.numel() and rng.random() < 0.2:
        clip.view(-1)[0] = rng.choice([float("nan"), float("inf"), -float("inf")])
    clip = clip.to(rng.choice([torch.float32] * 4 + [torch.float16, torch.float64, torch.int16, torch.complex64, torch.bool]))
    kind, name = rng.choice([*audio_files.FORMATS, "aiff", "../x"]), rng.choice(["x", "x", "a.b", "n" * 100])
    metadata, spans = {"prompt": text(rng), "sa3": text(rng)}, rng.choice(["", "0.01-0.02", text(rng)])

    def run():
        (folder / "out").mkdir(exist_ok=True)
        waveform.to_model("The AUDIO", rate, clip, 44100, 2)
        batch = clip if clip.dim() == 3 else clip[None]
        splicing.splice(batch, torch.zeros(1, 2, 4000), regions.parse_regions(spans), rate, 44100)
        audio_files.write_next(folder / "out", name, 1, batch[0], rate, kind, metadata)

    return run


def remote(corpus: Corpus, rng: random.Random, folder: Path):
    """File names that a repository might list: what is taken stays inside the model's folder."""
    name = rng.choice(["", f"{TEXT_ENCODER}/", "LICENSE", "NOTICE", "model.safetensors/"]) + rng.choice(
        ["..", "../x", "/etc/x", "x", "a/b", "..\\x", ".", "", "\0", "x\ny"]
    )

    def run():
        if download._is_licence(name) or download._is_model_file(name):
            assert "\0" not in name and (folder / name).resolve().is_relative_to(folder.resolve()), f"{name!r} leaves the folder"

    return run


def command(corpus: Corpus, rng: random.Random, folder: Path):
    """Values of run.py's options inside a graph that is sent as JSON."""
    options = {"prompt": text(rng), "model": text(rng)}
    graph = json.loads((ROOT / "workflows" / "api" / "text_to_audio.json").read_text())
    return lambda: json.dumps(job.fill(graph, vars(Namespace(**options))))


FAULTS = {"raises": "escaped", "hoards": "memory", "writes": "trespassed", "connects": "trespassed", "dies": "died", "hangs": "hung"}


def fault(kind: str, folder: Path):
    """A loader as it must not be, to see that it is noticed."""

    def run():
        if kind == "raises":
            raise KeyError("x")
        if kind == "hangs":
            while True:
                pass
        if kind == "dies":
            os.abort()
        if kind == "hoards":
            torch.ones(100 << 20)
        if kind == "writes":
            (folder / "elsewhere").write_text("x")
        if kind == "connects":
            socket.create_connection(("127.0.0.1", 9))

    return run


TARGETS: dict[str, tuple[int, Target]] = {  # name -> (share, target)
    "weights": (14, weights), "single file": (14, single_file), "listed": (6, listed), "config": (12, config), "network": (8, network),
    "text encoder": (12, text_encoder), "repackaged text encoder": (8, spiece_file), "LoRA": (16, lora), "pickled LoRA": (6, pickled),
    "SVD bases": (3, bases), "verify": (2, verify), "workflow": (6, workflow), "words": (8, words), "waveform": (10, clip),
    "remote names": (2, remote), "options": (2, command), "latents": (6, latents),
}  # fmt: skip


def make(corpus: Corpus, seed: int, number: int, folder: Path, only: str | None = None) -> tuple[str, Callable[[], object]]:
    """A case's damaged files in its folder -> (target, the function that loads them)."""
    rng = random.Random(f"{seed}/{number}")
    name = only or rng.choices(list(TARGETS), [share for share, _ in TARGETS.values()])[0]
    if name == "faults":
        kind = list(FAULTS)[number % len(FAULTS)]
        return kind, fault(kind, folder)
    return name, TARGETS[name][1](corpus, rng, folder)
