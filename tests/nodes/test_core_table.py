"""Every row of the table of other nodes in docs/api.md: the node of core, or an object like a pack's, runs next to this pack's nodes."""

import asyncio
import functools
import importlib
import logging
import re
import traceback
import wave
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from core_support import randn, rel_error
from lora_support import write_lora
from node_support import same_weights, weights

ROOT = Path(__file__).parents[2]
RATE = 44100
TITLE = "## Nodes of core and of other packs"
ROW = re.compile(r"\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|")
VERSIONS, STAND_IN = ("0.3.75", "0.33"), "stand-in"
MODULES = (  # of core, where nodes are looked up; post_processing and latent import each other
    "nodes", *(f"comfy_extras.nodes_{name}" for name in (
        "audio", "video", "post_processing", "latent", "rebatch", "custom_sampler", "model_advanced", "model_merging", "easycache", "apg",
        "cfg", "pag", "slg", "perpneg", "hooks", "torch_compile", "differential_diffusion", "lora_debug", "multigpu", "textgen",
    )),
)  # fmt: skip
TRIES: dict[str, Callable] = {}
ELSEWHERE = {  # rows that a test in another file tries
    "CheckpointLoaderSimple": "test_core_sa3.py::test_core_s_model_in_our_sampler",
    "UNETLoader": "test_core_sa3.py::test_core_s_unet_loader_needs_the_conditioner",
    "CLIPLoader": "test_core_sa3.py::test_core_s_clip_in_our_text_encode",
    "VAELoader": "test_core_sa3.py::test_a_vae_as_core_wraps_it",
}


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """node id -> where it was tried -> what happens, of the rows in docs/api.md."""
    section = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").split(TITLE)[1].split("\n## ")[0]
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| `"), "a row that ROW does not read"
    found: dict[str, dict[str, str]] = {}
    for node, tried, happens in rows:
        for place in tried.split(", "):
            assert found.setdefault(node, {}).setdefault(place, happens) == happens, f"two rows of {node} on {place}"
    return found


@functools.cache
def core_nodes() -> dict[str, type]:
    """The node classes in MODULES by id."""
    found = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue  # of another version
        if hasattr(module, "comfy_entrypoint"):
            extension = module.comfy_entrypoint()  # a coroutine in most modules
            extension = asyncio.run(extension) if asyncio.iscoroutine(extension) else extension
            found |= {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
        found |= getattr(module, "NODE_CLASS_MAPPINGS", {})
    return found


def tries(*nodes: str):
    """The decorated function tries these nodes; it gets a `Bench`."""

    def register(function):
        assert not TRIES.keys() & set(nodes)
        TRIES.update(dict.fromkeys(nodes, function))
        return function

    return register


class Bench(SimpleNamespace):
    """What a try uses. node: the id of the node to try. said: warnings of this pack, and its refusals. release: a tiny one."""

    def core(self, node: str = "", **inputs) -> tuple:
        """Outputs of one of core's nodes."""
        cls = core_nodes()[node or self.node]
        if hasattr(cls, "define_schema"):
            cls = cls.PREPARE_CLASS_CLONE({})
            with torch.inference_mode():
                return cls.execute(**inputs).args
        with torch.inference_mode():
            found = getattr(cls(), cls.FUNCTION)(**inputs)
        return found.get("result", ()) if isinstance(found, dict) else found

    def sample(self, latent=None, model=None, positive=None, steps=1, **settings) -> torch.Tensor:
        """Samples of SA3_Sampler; what is not given is the release's own."""
        latent, positive = latent or self.latent, positive or self.positive
        return self.sa3.sample(model or self.release.model, positive, latent, seed=3, steps=steps, **settings)[0]["samples"]

    def through_core(self, model=None, positive=None, latent=None, steps=2, cfg=1.0, scheduler="simple") -> torch.Tensor:
        """Samples of core's KSampler with euler."""
        settings = dict(seed=3, steps=steps, cfg=cfg, sampler_name="euler", scheduler=scheduler, denoise=1.0)
        latent = {"latent_image": latent or self.latent}
        return self.core(
            "KSampler", model=model or self.release.model, positive=positive or self.positive, negative=self.negative, **latent, **settings
        )[0]["samples"]

    def encode(self, audio) -> torch.Tensor:
        return self.sa3.run("SA3_SAMEEncode", audio=audio, vae=self.release.vae)[0]["samples"]

    @contextmanager
    def refused(self):
        """The block must raise the pack's error; its sentence counts as said."""
        with pytest.raises(self.sa3.SA3Error) as caught:
            yield
        self.said.append(str(caught.value))


class Said(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def bench(sa3, load, comfy, base_directory, tmp_path):
    """bench(node) -> Bench."""
    release, handler = load("small"), Said()
    logging.getLogger("sa3").addHandler(handler)
    yield lambda node: Bench(
        node=node, sa3=sa3, load=load, release=release, comfy=comfy, base=base_directory, tmp_path=tmp_path, said=handler.messages,
        positive=sa3.prompt(release.clip, "rain"), negative=sa3.prompt(release.clip, "hum"), latent=sa3.empty(0.5),
        audio={"waveform": 0.2 * randn(1, 2, RATE, seed=3), "sample_rate": RATE},
        sound={"samples": randn(1, 32, 24, seed=4), "type": "audio", "sa3_seconds": [1.5], "sa3_padding": 0.5},
    )  # fmt: skip
    logging.getLogger("sa3").removeHandler(handler)


def test_the_table_and_the_tries_name_the_same_nodes():
    assert len(table()) >= 45 and table().keys() == TRIES.keys() | ELSEWHERE.keys() and not TRIES.keys() & ELSEWHERE.keys()
    for node, rows in table().items():
        assert rows.keys() <= {*VERSIONS, STAND_IN}, node
        for happens in rows.values():
            assert re.match(r"(works|refused|fails in core|no effect)\b", happens), node
    for place in ELSEWHERE.values():
        file, name = place.split("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / "nodes" / file).read_text(encoding="utf-8"), place


@pytest.mark.parametrize("node", TRIES)
def test_a_row(bench, node):
    """A row begins with the outcome, and the pack says what it quotes. Rows name the versions that have the node."""
    import comfyui_version

    rows, running = table()[node], comfyui_version.__version__
    place = STAND_IN if STAND_IN in rows else next((name for name in VERSIONS if running.startswith(name)), max(rows))
    if place != STAND_IN:
        assert (node in core_nodes()) == (place in rows), f"whether {running} has {node}"
        if place not in rows:
            return
    one, happens = bench(node), rows[place]
    try:
        TRIES[node](one)
        outcome = ("works", "no effect")
    except one.sa3.SA3Error as error:
        one.said.append(str(error))
        outcome = "refused"
    except Exception as error:
        at = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        inside = any(at.is_relative_to(ROOT / folder) for folder in ("nodes", "sa3_core", "tests"))
        if inside or isinstance(error, AssertionError) or not happens.startswith("fails in core"):
            raise
        outcome = "fails in core"
    assert happens.startswith(outcome), one.said
    for quoted in re.findall('"([^"]+)"', happens):
        assert quoted in "\n".join(one.said), f"not said: {quoted}"


# AUDIO


def write_wav(path: Path, audio: dict) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(audio["sample_rate"])
        file.writeframes((audio["waveform"][0].T * 32767).round().short().numpy().tobytes())


@tries("LoadAudio")
def load_audio(t):
    write_wav(Path(t.comfy.folder_paths.get_input_directory()) / "tried.wav", t.audio)
    (loaded,) = t.core(audio="tried.wav")
    assert rel_error(t.encode(loaded), t.encode(t.audio)) < 1e-2


def on_both_sides(t, expected: torch.Tensor, **inputs):
    """A node that makes one AUDIO of others: our encoder reads it, and it reads what our decoder writes."""
    (made,) = t.core(**inputs)
    assert torch.equal(t.encode(made), t.encode({"waveform": expected, "sample_rate": RATE}))


def decoded(t) -> dict:
    return t.sa3.decode(t.sound, t.release.vae)[0]


@tries("TrimAudioDuration")
def trim_audio(t):
    audio = decoded(t)
    on_both_sides(t, audio["waveform"][..., RATE // 2 : RATE], audio=audio, start_index=0.5, duration=0.5)


@tries("AudioConcat")
def concat_audio(t):
    audio = decoded(t)
    on_both_sides(t, audio["waveform"].repeat(1, 1, 2), audio1=audio, audio2=audio, direction="after")


@tries("AudioMerge")
def merge_audio(t):
    audio = decoded(t)
    quiet = {**audio, "waveform": audio["waveform"] / audio["waveform"].abs().max()}
    on_both_sides(t, quiet["waveform"], audio1=quiet, audio2=quiet, merge_method="mean")


@tries("AudioAdjustVolume")
def adjust_volume(t):
    audio = decoded(t)
    on_both_sides(t, audio["waveform"] * 10 ** (-6 / 20), audio=audio, volume=-6)


@tries("SplitAudioChannels", "JoinAudioChannels")
def audio_channels(t):
    audio = decoded(t)
    left, right = t.core("SplitAudioChannels", audio=audio)
    assert torch.equal(t.encode(left), t.encode({**audio, "waveform": audio["waveform"][:, :1].expand(-1, 2, -1)}))
    if "JoinAudioChannels" in core_nodes():
        (joined,) = t.core("JoinAudioChannels", audio_left=left, audio_right=right)
        assert torch.equal(t.encode(joined), t.encode(audio))


@tries("EmptyAudio")
def empty_audio(t):
    (silent,) = t.core(duration=0.5, sample_rate=RATE, channels=2)
    assert t.encode(silent).isfinite().all()


@tries("AudioEqualizer3Band")
def equalizer(t):
    settings = dict(low_gain_dB=20.0, low_freq=100, mid_gain_dB=0.0, mid_freq=1000, mid_q=0.7, high_gain_dB=-3.0, high_freq=5000)
    (made,) = t.core(audio=decoded(t), **settings)
    assert rel_error(t.encode(made), t.encode(decoded(t))) > 1e-3


@tries("SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "PreviewAudio")
def save_audio(t):
    audio, options = decoded(t), {}
    if t.node != "PreviewAudio":
        options["filename_prefix"] = f"tried/{t.node}"
    if t.node == "SaveAudioAdvanced":
        options["format"] = {"format": "flac"}
    t.core(audio={**audio, "waveform": audio["waveform"] / audio["waveform"].abs().max()}, **options)
    if t.node != "PreviewAudio":
        (path,) = (Path(t.comfy.folder_paths.get_output_directory()) / "tried").glob(f"{t.node}_*")
        waveform, rate = t.comfy.audio.load(str(path))
        assert abs(waveform.shape[-1] / rate - 1.5) < 0.1 and waveform.shape[0] == 2
        path.unlink()
    else:
        assert list(Path(t.comfy.folder_paths.get_temp_directory()).rglob("*.flac"))


@tries("GetVideoComponents")
def video(t):
    from fractions import Fraction

    from comfy_api.latest import InputImpl, Types

    def sound_of(audio):
        parts = Types.VideoComponents(images=torch.zeros(1, 8, 8, 3), frame_rate=Fraction(1), audio=audio)
        return t.core(video=InputImpl.VideoFromComponents(parts))[1]

    assert torch.equal(t.encode(sound_of(t.audio)), t.encode(t.audio))
    with t.refused():
        t.encode(sound_of(None))


@tries("VHS_LoadVideo", "VHS_LoadAudio")
def video_helper_suite(t):
    class Lazy(Mapping):  # the pack's LazyAudioMap
        def __init__(self, read):
            self.read = read

        def __getitem__(self, key):
            return self.read()[key]

        def __iter__(self):
            return iter(("waveform", "sample_rate"))

        def __len__(self):
            return 2

    def without_sound():
        raise RuntimeError("VHS failed to extract audio")

    assert torch.equal(t.encode(Lazy(lambda: t.audio)), t.encode(t.audio))
    with t.refused():
        t.encode(Lazy(without_sound))


# LATENT


@tries("EmptyLatentAudio")
def empty_latent_audio(t):
    (latent,) = t.core(seconds=1.0, batch_size=2)
    seconds = latent["samples"].shape[-1] * 2048 / RATE
    assert torch.equal(t.sample(latent), t.sample(t.sa3.empty(seconds, batch_size=2)))


@tries("VAEEncodeAudio")
def vae_encode_audio(t):
    (latent,) = t.core(audio=t.audio, vae=t.release.vae)
    assert rel_error(t.sample(latent, noise_level=0.01, steps=2), latent["samples"]) < 0.2


@tries("VAEDecodeAudio", "VAEDecodeAudioTiled")
def vae_decode_audio(t):
    whole = {**t.sound, "samples": t.sound["samples"] * 10}
    (audio,) = t.core(samples=whole, vae=t.release.vae, **({"tile_size": 512, "overlap": 64} if t.node.endswith("Tiled") else {}))
    ours = t.sa3.decode(whole, t.release.vae)[0]["waveform"]
    assert audio["waveform"].shape[-1] == 24 * 4096 and ours.shape[-1] == int(1.5 * RATE)
    level = audio["waveform"][..., :RATE].norm() / ours[..., :RATE].norm()
    assert 0 < level <= 1 and rel_error(audio["waveform"][..., :RATE], ours[..., :RATE] * level) < 1e-4


@tries("RepeatLatentBatch")
def repeat_latents(t):
    (latent,) = t.core(samples=t.sa3.empty(1.0, seconds_per_item="0.5, 0.8"), amount=2)
    audio = t.sa3.decode({**latent, "samples": t.sample(latent)}, t.release.vae)
    assert [one["waveform"].shape[-1] for one in audio] == [22050, 35280] * 2


@tries("LatentFromBatch")
def pick_latents(t):
    batch = t.sa3.empty(0.5, batch_size=3)
    (latent,) = t.core(samples=batch, batch_index=2, length=1)
    assert rel_error(t.sample(latent), t.sample(batch)[2:]) < 1e-5


@tries("LatentBatch")
def join_latents(t):
    (latent,) = t.core(samples1=t.sound, samples2={**t.sound, "sa3_seconds": [1.0]})
    (audio,) = t.sa3.decode(latent, t.release.vae)
    assert audio["waveform"].shape == (2, 2, int(1.5 * RATE))


@tries("RebatchLatents")
def rebatch_latents(t):
    both = {**t.sound, "samples": t.sound["samples"].repeat(2, 1, 1)}
    with pytest.raises(IndexError):  # core makes an image's mask
        t.core(latents=[both], batch_size=[1])
    (parts,) = t.core(latents=[{**both, "noise_mask": torch.ones(2, 1, 24)}], batch_size=[1])
    assert len(parts) == 2 and t.sample(parts[1], noise_level=0.1).shape == t.sound["samples"].shape


@tries("LatentBatchSeedBehavior")
def seed_behavior(t):
    for seconds in ("0.5, 0.5", "0.5, 0.8"):
        batch = t.sa3.empty(1.0, seconds_per_item=seconds)
        fixed, random = (t.core(samples=batch, seed_behavior=kind)[0] for kind in ("fixed", "random"))
        assert torch.equal(t.sample(random), t.sample(batch))
        audio = t.sa3.decode({**fixed, "samples": t.sample(fixed)}, t.release.vae)
        lengths = [item.shape[-1] for one in audio for item in one["waveform"]]
        assert lengths == [int(float(value) * RATE) for value in seconds.split(",")]
    both = t.sample(t.core(samples=t.sa3.empty(0.5, batch_size=2), seed_behavior="fixed")[0])
    assert rel_error(both[1:], both[:1]) < 1e-5


@tries("SetLatentNoiseMask")
def noise_mask(t):
    mask = torch.zeros(1, 8, 24)
    mask[..., 8:12] = 1
    (latent,) = t.core(samples=t.sound, mask=mask)
    assert rel_error(t.sample(latent), t.sample(t.sound)) > 1e-3
    assert torch.equal(t.sample(latent), t.sample({**t.sound, "noise_mask": mask[:, :1]}))


@tries("LatentAdd", "LatentSubtract", "LatentMultiply", "LatentInterpolate", "LatentBlend")
def latent_arithmetic(t):
    a, b = t.sound, {**t.sound, "samples": randn(1, 32, 24, seed=5)}
    inputs, wanted = {
        "LatentAdd": ({"samples1": a, "samples2": b}, a["samples"] + b["samples"]),
        "LatentSubtract": ({"samples1": a, "samples2": b}, a["samples"] - b["samples"]),
        "LatentMultiply": ({"samples": a, "multiplier": 0.5}, a["samples"] * 0.5),
        "LatentInterpolate": ({"samples1": a, "samples2": b, "ratio": 1.0}, a["samples"]),
        "LatentBlend": ({"samples1": a, "samples2": b, "blend_factor": 0.25}, a["samples"] * 0.25 + b["samples"] * 0.75),
    }[t.node]
    (latent,) = t.core(**inputs)
    audio, ours = (t.sa3.decode(one, t.release.vae)[0]["waveform"] for one in (latent, {**a, "samples": wanted}))
    assert audio.shape[-1] == int(1.5 * RATE) and rel_error(audio, ours) < 1e-4


@tries("LatentConcat")
def concat_latents(t):
    (latent,) = t.core(samples1=t.sound, samples2=t.sound, dim="x")
    assert latent["samples"].shape[-1] == 48
    assert t.sa3.decode(latent, t.release.vae)[0]["waveform"].shape[-1] == int(1.5 * RATE)


@tries("LatentCut")
def cut_latents(t):
    (latent,) = t.core(samples=t.sound, dim="x", index=0, amount=8)
    t.sa3.decode(latent, t.release.vae)
    raise AssertionError("not refused")


@tries("SaveLatent", "LoadLatent")
def latent_files(t):
    folders = t.comfy.folder_paths
    t.core("SaveLatent", samples=t.sound, filename_prefix="tried/core")
    (path,) = (Path(folders.get_output_directory()) / "tried").glob("core_*.latent")
    path = path.rename(Path(folders.get_input_directory()) / f"tried_{t.node}.latent")
    if t.node == "SaveLatent":
        latent, _ = t.sa3.run("SA3_LoadLatent", file=path.name)
    else:
        (latent,) = t.core(latent=path.name)
        assert t.sample(latent, noise_level=0.1).shape == t.sound["samples"].shape
    assert torch.equal(latent["samples"], t.sound["samples"])
    path.unlink()


# MODEL and sampling


def ours(t, **settings) -> torch.Tensor:
    """Core's KSampler with the schedule `simple`, as SA3_Sampler computes it."""
    (sigmas,) = t.core("BasicScheduler", model=t.release.model, scheduler="simple", steps=2, denoise=1.0)
    return t.sample(t.sound, sigmas=sigmas, sampler="euler", cfg=1.0, **settings)


@tries("KSampler", "KSamplerAdvanced")
def ksampler(t):
    whole = {"samples": torch.zeros(1, 32, 24), "type": "audio"}
    common = dict(model=t.release.model, positive=t.positive, negative=t.negative, latent_image=whole, steps=2, cfg=1.0)
    common |= dict(sampler_name="euler", scheduler="simple")
    if t.node == "KSampler":
        (out,) = t.core(seed=3, denoise=1.0, **common)
    else:
        (out,) = t.core(add_noise="enable", noise_seed=3, start_at_step=0, end_at_step=100, return_with_leftover_noise="disable", **common)
    (sigmas,) = t.core("BasicScheduler", model=t.release.model, scheduler="simple", steps=2, denoise=1.0)
    assert rel_error(out["samples"], t.sample(whole, sigmas=sigmas, sampler="euler", cfg=1.0)) < 1e-4


GUIDERS = ("BasicGuider", "CFGGuider", "DualCFGGuider", "PerpNegGuider")
CUSTOM = ("SamplerCustom", "SamplerCustomAdvanced", "RandomNoise", "KSamplerSelect", "BasicScheduler")


@tries(*CUSTOM, *GUIDERS)
def custom_sampling(t):
    whole, model = {"samples": torch.zeros(1, 32, 24), "type": "audio"}, t.release.model
    (sigmas,) = t.core("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)
    (euler,) = t.core("KSamplerSelect", sampler_name="euler")
    wanted = t.sample(whole, sigmas=sigmas, sampler="euler", cfg=1.0)
    if t.node == "SamplerCustom":
        settings = dict(add_noise=True, noise_seed=3, cfg=1.0, positive=t.positive, negative=t.negative)
        out = t.core(model=model, sampler=euler, sigmas=sigmas, latent_image=whole, **settings)[0]
    else:
        guider = {
            "CFGGuider": dict(positive=t.positive, negative=t.negative, cfg=1.0),
            "DualCFGGuider": dict(
                cond1=t.positive, cond2=t.negative, negative=t.negative, cfg_conds=1.0, cfg_cond2_negative=1.0, style="regular"
            ),
            "PerpNegGuider": dict(positive=t.positive, negative=t.negative, empty_conditioning=t.negative, cfg=1.0, neg_scale=0.0),
        }.get(t.node, dict(conditioning=t.positive))  # fmt: skip
        (guided,) = t.core(t.node if t.node in GUIDERS else "BasicGuider", model=model, **guider)
        (noise,) = t.core("RandomNoise", noise_seed=3)
        out = t.core("SamplerCustomAdvanced", noise=noise, guider=guided, sampler=euler, sigmas=sigmas, latent_image=whole)[0]
    assert rel_error(out["samples"], wanted) < 1e-4


@tries("DisableNoise")
def disable_noise(t):
    (noise,), (guider,) = t.core(), t.core("BasicGuider", model=t.release.model, conditioning=t.positive)
    (euler,) = t.core("KSamplerSelect", sampler_name="euler")
    sigmas, whole = torch.tensor([0.01, 0.0]), {"samples": t.sound["samples"]}
    out = t.core("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=euler, sigmas=sigmas, latent_image=whole)[0]
    assert rel_error(out["samples"], whole["samples"]) < 0.1


@tries("BetaSamplingScheduler", "SplitSigmas", "SplitSigmasDenoise", "FlipSigmas", "ManualSigmas")
def schedulers(t):
    if t.node == "BetaSamplingScheduler":
        (sigmas,) = t.core(model=t.release.model, steps=3, alpha=0.6, beta=0.6)
    elif t.node == "ManualSigmas":
        (sigmas,) = t.core(sigmas="1.0, 0.6, 0.0")
    else:
        (levels,) = t.sa3.run("SA3_Schedule", model=t.release.model, steps=4)
        if t.node == "FlipSigmas":
            (sigmas,) = t.core(sigmas=levels)
        else:
            sigmas = t.core(sigmas=levels, **({"step": 2} if t.node == "SplitSigmas" else {"denoise": 0.5}))[1]
            assert torch.equal(sigmas, levels[2:])
    noisy = t.sample(t.sound, sigmas=sigmas)
    assert noisy.shape == t.sound["samples"].shape and noisy.isfinite().all()


@tries("ModelSamplingSD3", "ModelSamplingAuraFlow")
def model_sampling(t):
    (model,) = t.core(model=t.release.model, shift=3.0)
    (levels,) = t.core("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)
    shifted = torch.tensor([1.0, 0.75, 0.0])
    assert rel_error(levels, shifted) < 1e-3
    whole = {"samples": torch.zeros(1, 32, 24), "type": "audio"}
    assert rel_error(t.through_core(model, latent=whole), t.sample(whole, sigmas=levels, sampler="euler", cfg=1.0)) < 1e-4
    assert torch.equal(t.sample(model=model, steps=2), t.sample(steps=2))


def lora_files(t) -> tuple[str, str]:
    """(native, for ComfyUI) names of the same LoRA."""
    folder, names = t.base / "models" / "loras", ("tried.safetensors", "tried_comfyui.safetensors")
    if not (folder / names[0]).exists():
        write_lora(folder / names[0], t.release.model.model, seed=5, only=lambda layer: not layer.startswith("conditioners."))
        t.comfy.folder_paths.filename_list_cache.clear()
        t.sa3.run("SA3_LoRAConvert", lora=names[0], format="comfyui", name="tried_comfyui")
    t.comfy.folder_paths.filename_list_cache.clear()
    return names


@tries("LoraLoader", "LoraLoaderModelOnly", "LoraLoaderBypass", "LoraLoaderBypassModelOnly")
def lora_loaders(t):
    native, file = lora_files(t)
    (stacked, _) = t.sa3.run("SA3_LoRAStack", model=t.release.model, lora=native)

    def loaded(name):
        clip = {} if t.node.endswith("Only") else {"clip": t.release.clip, "strength_clip": 1.0}
        return t.core(model=t.release.model, lora_name=name, strength_model=1.0, **clip)[0]

    assert rel_error(t.sample(model=loaded(file), steps=2), t.sample(model=stacked, steps=2)) < 1e-5
    assert rel_error(t.sample(model=stacked, steps=2), t.sample(steps=2)) > 1e-3
    assert "changed no layer" not in "".join(t.said)
    assert torch.equal(t.sample(model=loaded(native), steps=2), t.sample(steps=2))
    if "Bypass" not in t.node:
        inputs = dict(model=loaded(native), vae=t.release.vae, positive=t.positive, audio=t.audio, seconds=0.2, context=0.2, steps=1)
        t.sa3.run("SA3_Extend", **inputs)
        assert len([sentence for sentence in t.said if "changed no layer" in sentence]) == 2


@tries("CreateHookLora", "ConditioningSetProperties", "SetHookKeyframes")
def lora_hooks(t):
    native, file = lora_files(t)
    (stacked, _) = t.sa3.run("SA3_LoRAStack", model=t.release.model, lora=native)
    (hooks,) = t.core("CreateHookLora", lora_name=file, strength_model=1.0, strength_clip=0.0)
    (positive,) = t.core("ConditioningSetProperties", cond_NEW=t.positive, strength=1.0, set_cond_area="default", hooks=hooks)
    for settings in ({"cfg": 1.0}, {"cfg": 1.0, "batch": 2}):
        latent = t.sa3.empty(0.5, batch_size=settings.pop("batch", 1))
        hooked, wanted = t.sample(latent, positive=positive, steps=2, **settings), t.sample(latent, model=stacked, steps=2, **settings)
        assert rel_error(hooked, wanted) < 1e-4
    assert rel_error(hooked, t.sample(latent, cfg=1.0, steps=2)) > 1e-3
    mixed = t.sample(positive=positive, negative=t.negative, cfg=2.0, steps=2)
    assert rel_error(mixed, t.sample(model=stacked, negative=t.negative, cfg=2.0, steps=2)) > 1e-3  # no hook on the negative
    if t.node == "SetHookKeyframes":
        (first,) = t.core("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
        (both,) = t.core("CreateHookKeyframe", strength_mult=0.0, start_percent=0.5, prev_hook_kf=first)
        (scheduled,) = t.core("SetHookKeyframes", hooks=hooks, hook_kf=both)
        (positive,) = t.core("ConditioningSetProperties", cond_NEW=t.positive, strength=1.0, set_cond_area="default", hooks=scheduled)
        t.sample(positive=positive, steps=2)


@tries("ModelMergeSimple")
def merge_models(t):
    other, _ = t.sa3.run("SA3_LoRAStack", model=t.release.model, lora=lora_files(t)[0])
    results = [t.sample(model=t.core(model1=t.release.model, model2=other, ratio=ratio)[0], steps=2) for ratio in (1.0, 0.5, 0.0)]
    wanted = [t.sample(model=model, steps=2) for model in (t.release.model, other)]
    assert rel_error(results[0], wanted[0]) < 1e-5 and rel_error(results[2], wanted[1]) < 1e-4
    assert all(rel_error(results[1], one) > 1e-3 for one in wanted)


@tries("CheckpointSave", "ModelSave")
def save_checkpoint(t):
    parts = {"clip": t.release.clip, "vae": t.release.vae} if t.node == "CheckpointSave" else {}
    native, _ = lora_files(t)
    model, _ = t.sa3.run("SA3_LoRAStack", model=t.release.model, lora=native)
    t.core(model=model, filename_prefix=f"tried/{t.node}", **parts)
    (path,) = (Path(t.comfy.folder_paths.get_output_directory()) / "tried").glob(f"{t.node}_*.safetensors")
    opened = t.sa3.core.checkpoint.open_checkpoint(path)
    saved, vae = t.sa3.host.model.load_model(opened, None), t.sa3.host.vae.load_vae(opened, None)
    t.comfy.management.load_models_gpu([model])  # applies the LoRA
    assert same_weights(saved.model, weights(model.model))
    assert same_weights(vae.first_stage_model, weights(t.release.vae.first_stage_model))
    t.comfy.management.load_models_gpu([t.release.model])
    assert not same_weights(saved.model, weights(t.release.model.model))
    scheduled, _ = t.sa3.run("SA3_LoRAStack", model=t.release.model, lora=native, end=0.5)
    t.core(model=scheduled, filename_prefix=f"tried/scheduled_{t.node}", **parts)
    (path,) = path.parent.glob(f"scheduled_{t.node}_*.safetensors")
    saved = t.sa3.host.model.load_model(t.sa3.core.checkpoint.open_checkpoint(path), None)
    assert same_weights(saved.model, weights(t.release.model.model))


@tries("TorchCompileModel")
def torch_compile(t):
    calls = []

    class Compiled(torch.nn.Module):
        def __init__(self, model, **options):
            super().__init__()
            self.network, self.dtype = [model], model.dtype

        def forward(self, *args, **named):
            calls.append(self.network[0])
            return self.network[0](*args, **named)

    with pytest.MonkeyPatch.context() as patch:  # the compiler takes seconds
        patch.setattr(torch, "compile", Compiled)
        (model,) = t.core(model=t.release.model, backend="inductor")
    assert torch.equal(t.sample(model=model, steps=2), t.sample(steps=2)) and calls == [t.release.model.model.diffusion_model] * 2


@tries("EasyCache")
def easy_cache(t):
    (model,) = t.core(model=t.release.model, reuse_threshold=1e6, start_percent=0.0, end_percent=1.0, verbose=False)
    settings = dict(steps=6, sampler="euler")
    assert rel_error(t.sample(model=model, **settings), t.sample(**settings)) > 1e-3


ATTENTION = ("PerturbedAttentionGuidance", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple")


@tries("RescaleCFG", "APG", "CFGNorm", "CFGZeroStar", *ATTENTION)
def guidance_patches(t):
    inputs = {
        "RescaleCFG": {"multiplier": 0.7},
        "APG": {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.0},
        "CFGNorm": {"strength": 0.9},
        "PerturbedAttentionGuidance": {"scale": 3.0},
        "CFGZeroStar": {},
    }.get(t.node, {"double_layers": "0, 1", "single_layers": "0, 1", "start_percent": 0.0, "end_percent": 1.0})
    if t.node == "SkipLayerGuidanceDiT":
        inputs |= {"scale": 3.0, "rescaling_scale": 0.0}
    (model,) = t.core(model=t.release.model, **inputs)
    settings = dict(steps=2, cfg=4.0, negative=t.negative)
    change = rel_error(t.sample(model=model, **settings), t.sample(**settings))
    assert change < 1e-5 if t.node in ATTENTION else change > 1e-3


@tries("DifferentialDiffusion")
def differential_diffusion(t):
    (model,) = t.core(model=t.release.model)
    marked = t.sa3.run("SA3_InpaintMask", latent=t.sound, regions="0.2-0.6")[0]
    assert torch.equal(t.sample(marked, model=model, steps=2), t.sample(marked, steps=2))


@tries("SelectModelDevice", "SelectCLIPDevice", "SelectVAEDevice")
def select_device(t):
    kind = {"SelectModelDevice": "model", "SelectCLIPDevice": "clip", "SelectVAEDevice": "vae"}[t.node]
    parts = SimpleNamespace(**vars(t.release))
    setattr(parts, kind, t.core(**{kind: getattr(t.release, kind)}, device="cpu")[0])
    found = [
        t.sa3.decode({**t.latent, "samples": t.sample(model=one.model, positive=t.sa3.prompt(one.clip, "rain"))}, one.vae)[0]["waveform"]
        for one in (parts, t.release)
    ]
    assert torch.equal(*found)


# CONDITIONING


@tries("CLIPTextEncode")
def clip_text_encode(t):
    (positive,) = t.core(clip=t.release.clip, text="rain")
    assert torch.equal(t.sample(positive=positive), t.sample())


@tries("ConditioningCombine")
def combine(t):
    (both,) = t.core(conditioning_1=t.positive, conditioning_2=t.negative)
    mean = (t.sample(sampler="euler") + t.sample(positive=t.negative, sampler="euler")) / 2
    assert rel_error(t.sample(positive=both, sampler="euler"), mean) < 1e-5


@tries("ConditioningAverage")
def average(t):
    (mixed,) = t.core(conditioning_to=t.positive, conditioning_from=t.negative, conditioning_to_strength=0.5)
    (same,) = t.core(conditioning_to=t.positive, conditioning_from=t.negative, conditioning_to_strength=1.0)
    assert rel_error(t.sample(positive=mixed), t.sample()) > 1e-3 and rel_error(t.sample(positive=same), t.sample()) < 1e-6


@tries("ConditioningConcat")
def concat(t):
    (joined,) = t.core(conditioning_to=t.positive, conditioning_from=t.negative)
    assert rel_error(t.sample(positive=joined), t.sample()) > 1e-3


@tries("ConditioningZeroOut")
def zero_out(t):
    (zero,) = t.core(conditioning=t.positive)
    assert torch.equal(t.sample(cfg=3.0, negative=zero), t.sample(cfg=3.0))


@tries("ConditioningSetTimestepRange")
def timestep_range(t):
    (early,) = t.core(conditioning=t.positive, start=0.0, end=0.5)
    (late,) = t.core(conditioning=t.negative, start=0.5, end=1.0)
    for level, active in ((0.9, t.positive), (0.4, t.negative)):
        sigmas = torch.tensor([level, 0.0])
        assert rel_error(t.sample(t.sound, positive=early + late, sigmas=sigmas), t.sample(t.sound, positive=active, sigmas=sigmas)) < 1e-6
    sigmas = torch.tensor([0.9, 0.4, 0.0])
    both = t.sample(t.sound, positive=early + late, sigmas=sigmas)
    assert all(rel_error(both, t.sample(t.sound, positive=alone, sigmas=sigmas)) > 1e-3 for alone in (t.positive, t.negative))


@tries("ConditioningStableAudio")
def stable_audio(t):
    positive, negative = t.core(positive=t.positive, negative=t.negative, seconds_start=0.0, seconds_total=47.0)
    assert torch.equal(t.sample(positive=positive, negative=negative, cfg=2.0), t.sample(negative=t.negative, cfg=2.0))
    assert rel_error(t.through_core(positive=positive), t.through_core()) > 1e-4


@tries("ConditioningSetArea")
def set_area(t):
    t.sample(positive=t.core(conditioning=t.positive, width=64, height=64, x=0, y=0, strength=1.0)[0])


@tries("ConditioningSetMask")
def set_mask(t):
    t.sample(positive=t.core(conditioning=t.positive, mask=torch.ones(8, 8), strength=1.0, set_cond_area="default")[0])


@tries("CLIPSetLastLayer")
def last_layer(t):
    (clip,) = t.core(clip=t.release.clip, stop_at_clip_layer=-2)
    assert torch.equal(t.sa3.prompt(clip, "rain")[0][0], t.positive[0][0])


@tries("TextGenerate")
def text_generate(t):
    t.core(clip=t.release.clip, prompt="rain", max_length=8, sampling_mode={"sampling_mode": "off"})
