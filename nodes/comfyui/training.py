"""Training from inside a graph: ComfyUI's folders, its VAE and CLIP for the data, its bar and its interruption."""

import contextlib
import hashlib
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...sa3_core.audio import spectrogram
from ...sa3_core.errors import SA3Error
from ...sa3_core.training import dataset
from ...sa3_core.training.base import Source, digest_of
from ...sa3_core.training.curves import draw_history
from ...sa3_core.training.lora import LoRASettings, Outcome, Watch, train
from . import clip as host_clip
from . import model as host_model
from . import vae as host_vae
from .lora import KEY, stack_of
from .out_of_memory import free_memory, is_out_of_memory
from .output_files import UNSAFE, new_model_file
from .preview import to_pil
from .progress import Progress, check_interrupt, show_status

RUNS = "sa3_training"  # below ComfyUI's output folder
SIZE = (400, 120)  # pixels of a sample's spectrogram, and the width of the curves above it


def data_folder(name: str) -> Path:
    """A folder below ComfyUI's input folder."""
    root = Path(folder_paths.get_input_directory())
    parts = name.strip().replace("\\", "/").split("/")
    if any(not part or part.startswith(".") or UNSAFE.search(part) for part in parts):
        raise SA3Error(f"'{name}' is no folder below ComfyUI's input folder; give a name such as training, or training/drums.")
    folder = root.joinpath(*parts)
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")) if root.is_dir() else ""
        raise SA3Error(f"There is no folder '{name}' in {root}; there are: {there or 'none'}. Put audio and captions there.")
    return folder


def state_of(name: str, lora: str) -> str:
    """Changes with the audio, the captions, and whether the LoRA is still there."""
    folder = data_folder(name)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and dataset.CACHE not in path.relative_to(folder).parts]
    text = repr([(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files])
    return f"{hashlib.sha256(text.encode()).hexdigest()} {new_model_file(KEY, f'{lora}.safetensors').exists()}"


def base_dtype(name: str) -> str:
    """auto: bf16 where the device computes in it, else fp32."""
    if name != "auto":
        return name
    device = comfy.model_management.get_torch_device()
    return "fp32" if comfy.model_management.is_device_cpu(device) or not comfy.model_management.should_use_bf16(device) else "bf16"


class NodeWatch(Watch):
    """The bar, words and pictures of the running node; ComfyUI's interruption stops the run."""

    def __init__(self, steps: int, rate: int):
        self.bar, self.rate, self.begun, self.shown = Progress(steps), rate, 0, None
        self.stage_bar, self.words = None, ""
        self.curves: Tensor | None = None
        self.sound: Tensor | None = None

    def stage(self, done: int, total: int, words: str) -> None:
        if self.words != words.partition(" ")[0] or self.stage_bar is None:
            self.stage_bar, self.words = Progress(total), words.partition(" ")[0]
        self.stage_bar(done, total, f"{words} {done} of {total}" if total > 1 else words)

    def step(self, step: int, steps: int, loss: float) -> None:
        if not self.begun:
            self.begun = step - 1
            self.bar.start()
        shown, self.shown = self.shown, None
        self.bar(step, steps, f"step {step} of {steps}, loss {loss:.3f}", shown, step - self.begun)

    def record(self, history: list[dict]) -> None:
        self.curves = draw_history(history).float() / 255
        self._show()

    def sample(self, step: int, waveform: Tensor, rate: int) -> None:
        self.sound = spectrogram.spectrogram(waveform, rate, *SIZE)
        self._show()

    def _show(self) -> None:
        """Curves, and below them the last sample, with the next step."""
        if self.curves is None:
            return
        planes = self.curves.movedim(-1, 0)[None]
        small = torch.nn.functional.interpolate(planes, size=(SIZE[0] // 2, SIZE[0]), mode="area")[0].movedim(0, -1)
        whole = small if self.sound is None else torch.cat((small, self.sound))
        self.shown = ("JPEG", to_pil(whole), max(whole.shape[:2]))


def train_lora(model, clip, vae, folder: str, name: str, settings: LoRASettings) -> tuple[Outcome, list[str]]:
    """The run of a node: its outcome and sentences of warning. The MODEL is only read for its file; the base is loaded anew.

    An interruption saves first; the same settings go on from there.
    """
    inner, parts = host_model.require(model), host_vae.require(vae)
    out, data = new_model_file(KEY, f"{name}.safetensors"), data_folder(folder)
    device = comfy.model_management.get_torch_device()

    def plain(tensor: Tensor) -> Tensor:
        """Outside of inference mode, as training needs it."""
        return tensor.float().cpu().clone()

    def encode(audio: Tensor) -> Tensor:
        with torch.inference_mode():
            z = parts.encode_audio(audio, dataset.ENCODE_CHUNK, dataset.ENCODE_OVERLAP, lambda done, total: check_interrupt())
        return plain(z)

    def texts(prompts: list[str]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            ((rows, values),) = host_clip.encode_prompts(clip, prompts)
        return plain(rows), values["attention_mask"].cpu().clone()

    def decode(z: Tensor) -> Tensor:
        with torch.inference_mode():
            audio = parts.decode_latents(z, progress=lambda done, total: check_interrupt())
        return plain(audio)

    with training_mode():
        word = digest_of(parts.first_stage_model)
        source = Source(inner.sa3_config, inner.sa3_name, inner.sa3_path, word, lambda: encode, texts, decode, device)
        watch = NodeWatch(settings.steps, inner.sa3_config.sample_rate)
        if not comfy.model_management.is_device_cpu(device):
            free_memory()
        runs = Path(folder_paths.get_output_directory()) / RUNS / name
        try:
            done = train(source, data, out, runs, settings, watch)
        except comfy.model_management.InterruptProcessingException:
            show_status("stopped; queue again to go on from here")
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise SA3Error("Out of memory while training. Fewer seconds, batch 1, dtype bf16, or a smaller rank.") from error
    watch.bar.finish()
    stacked = [row.lora.name for row in stack_of(model).rows]
    warnings = [f"{', '.join(stacked)} on the MODEL took no part: training starts at the base's own file."] if stacked else []
    return done, [*warnings, *(f"Left out: {sentence}" for sentence in done.rejected)]


@contextlib.contextmanager
def training_mode():
    """Gradients, inside a ComfyUI that runs nodes under inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
