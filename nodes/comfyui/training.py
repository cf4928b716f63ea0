"""LoRA training inside a graph: ComfyUI's folders, VAE and CLIP for the data, its progress bar and its interruption."""

import shutil
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...sa3_core.audio import spectrogram
from ...sa3_core.errors import SA3Error
from ...sa3_core.training import dataset
from ...sa3_core.training.base import BaseModel, fingerprint
from ...sa3_core.training.curves import draw_history
from ...sa3_core.training.lora import Callbacks, TrainingResult, train
from ...sa3_core.training.settings import LoRASettings
from . import clip as host_clip
from . import folders
from . import model as host_model
from . import vae as host_vae
from .lora import KEY, stack_of
from .out_of_memory import free_memory, is_out_of_memory
from .output_files import UNSAFE, new_model_file
from .preview import to_pil
from .progress import Progress, check_interrupt

RUNS = "sa3_training"  # sub-folder of ComfyUI's output folder
SIZE = (400, 120)  # pixels of a sample's spectrogram; the loss curves above it have its width


def data_folder(name: str) -> Path:
    """A sub-folder of ComfyUI's input folder, else of the pack's examples. Raises SA3Error when it does not exist or lies elsewhere."""
    root = Path(folder_paths.get_input_directory())
    parts = name.strip().replace("\\", "/").split("/")
    if any(not part or part.startswith(".") or UNSAFE.search(part) for part in parts):
        raise SA3Error(f"'{name}' is not a folder below ComfyUI's input folder; use a name such as training or training/drums.")
    folder = next((path for path in (root.joinpath(*parts), folders.EXAMPLES.joinpath(*parts)) if path.is_dir()), None)
    if folder is None:
        found = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")) if root.is_dir() else ""
        raise SA3Error(f"There is no folder '{name}' in {root}, only: {found or 'none'}. Create it with audio files and captions.")
    return folder


def data_fingerprint(name: str, lora: str) -> str:
    """A text that changes with the audio and the captions of a folder, and when the LoRA is created or deleted."""
    folder = data_folder(name)
    files = [path for path in folder.rglob("*") if path.is_file() and dataset.CACHE not in path.relative_to(folder).parts]
    return f"{folders.fingerprint(*files)} {new_model_file(KEY, f'{lora}.safetensors').exists()}"


def base_dtype(name: str) -> str:
    """The type of the frozen base. auto: bf16 where the device computes in it, else fp32."""
    if name != "auto":
        return name
    device = comfy.model_management.get_torch_device()
    return "fp32" if comfy.model_management.is_device_cpu(device) or not comfy.model_management.should_use_bf16(device) else "bf16"


class NodeCallbacks(Callbacks):
    """Shows a run on the running node: progress bar, status line, and the loss curves above the spectrogram of the last sample.

    ComfyUI's interruption stops the run.
    """

    def __init__(self, steps: int):
        self.bar = Progress(steps, resumes=True)
        self.stage_bar, self.stage_name = None, ""
        self.curves: Tensor | None = None  # (H, W, 3)
        self.spectrogram: Tensor | None = None  # (H, W, 3)
        self.image: tuple | None = None  # to show with the next step

    def stage(self, done: int, total: int, text: str) -> None:
        name = text.partition(" ")[0]
        if name != self.stage_name:
            self.stage_bar, self.stage_name = Progress(total, resumes=True), name
        self.stage_bar(done, total, f"{text} {done} of {total}" if total > 1 else text)

    def step(self, step: int, steps: int, loss: float) -> None:
        image, self.image = self.image, None
        self.bar(step, steps, f"step {step} of {steps}, loss {loss:.3f}", image)

    def record(self, history: list[dict]) -> None:
        self.curves = draw_history(history)
        self._update_image()

    def sample(self, step: int, waveform: Tensor, rate: int) -> None:
        self.spectrogram = spectrogram.spectrogram(waveform, rate, *SIZE)
        self._update_image()

    def _update_image(self) -> None:
        if self.curves is None:
            return
        planes = self.curves.movedim(-1, 0)[None]
        pixels = torch.nn.functional.interpolate(planes, size=(SIZE[0] // 2, SIZE[0]), mode="area")[0].movedim(0, -1)
        if self.spectrogram is not None:
            pixels = torch.cat((pixels, self.spectrogram))
        self.image = ("JPEG", to_pil(pixels), max(pixels.shape[:2]))


def train_lora(model, clip, vae, folder: str, name: str, settings: LoRASettings) -> tuple[TrainingResult, list[str]]:
    """Train a LoRA on a data folder: the result, and warnings.

    The base is loaded from the MODEL's file. An interruption saves the LoRA, and a call with the same settings resumes.
    """
    inner, same_vae = host_model.sa3_model(model), host_vae.require(vae)
    out, data = new_model_file(KEY, f"{name}.safetensors"), data_folder(folder)
    device = comfy.model_management.get_torch_device()
    if folders.EXAMPLES in data.parents:  # the encoded clips are cached beside the data; nothing is written into the pack
        data = Path(shutil.copytree(data, Path(folder_paths.get_temp_directory()) / data.name, dirs_exist_ok=True))

    def copied(tensor: Tensor) -> Tensor:
        """A float32 copy on the CPU; one made outside of inference mode can take part in training."""
        return tensor.float().cpu().clone()

    def encode(audio: Tensor) -> Tensor:
        return copied(same_vae.encode_audio(audio, dataset.ENCODE_CHUNK, dataset.ENCODE_OVERLAP, check_interrupt))

    def encode_texts(prompts: list[str]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            ((embeddings, values),) = host_clip.encode_prompts(clip, prompts)
        return copied(embeddings), values["attention_mask"].cpu().clone()

    def decode(z: Tensor) -> Tensor:
        return copied(same_vae.decode_latents(z, progress=check_interrupt))

    with torch.inference_mode(False), torch.enable_grad():  # ComfyUI runs nodes in inference mode
        autoencoder = fingerprint(same_vae.first_stage_model)
        base = BaseModel(inner.sa3_config, inner.sa3_name, inner.sa3_path, autoencoder, lambda: encode, encode_texts, decode, device)
        callbacks = NodeCallbacks(settings.steps)
        if not comfy.model_management.is_device_cpu(device):
            free_memory()
        run_folder = Path(folder_paths.get_output_directory()) / RUNS / name
        try:
            result = train(base, data, out, run_folder, settings, callbacks)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise SA3Error("Out of memory while training. Use fewer seconds, batch_size 1, dtype bf16, or a smaller rank.") from error
    callbacks.bar.finish()
    stacked = [stacked.lora.name for stacked in stack_of(model).loras]
    warnings = [f"{', '.join(stacked)} on the MODEL is ignored: training starts from the base's file."] if stacked else []
    return result, [*warnings, *(f"Skipped: {sentence}" for sentence in result.skipped)]
