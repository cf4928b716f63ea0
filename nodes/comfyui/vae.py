"""The VAE socket: SAME behind the interface of ComfyUI's VAE class."""

from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ...sa3_core.checkpoints import checkpoint
from ...sa3_core.checkpoints.checkpoint import Checkpoint
from ...sa3_core.config import ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.models.same import SAME, Noise
from ...sa3_core.sampling.finite import finite
from .operations import Operations
from .out_of_memory import halvings, retry_smaller
from .patchers import patcher_over
from .progress import Progress, show_loading, warn

CHUNK, OVERLAP = 128, 32  # latent frames, as the public tools decode
LEAST_CHUNK = 16
ADVICE = "Shorten the clip, make the batch smaller, or close what else uses the device."


class SA3VAE(comfy.sd.VAE):
    """A VAE made of a loaded SAME. Core's audio nodes call encode, decode and decode_tiled with channels last."""

    def __init__(self, config: ModelConfig, same: SAME, dtype: torch.dtype, name: str, reload: tuple, disable_dynamic: bool = False):
        # comfy.sd.VAE builds itself from a state dict it recognises; this one is already built.
        self.first_stage_model, self.sa3_config, self.sa3_name, self.vae_dtype = same, config, name, dtype
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = patcher_over(same, self.device, comfy.model_management.vae_offload_device(), reload, disable_dynamic)
        self.latent_dim, self.latent_channels, self.output_channels = 1, config.same.latent_dim, config.same.audio_channels
        self.downscale_ratio = self.upscale_ratio = config.same.samples_per_frame
        self.audio_sample_rate = config.sample_rate
        self.disable_offload, self.size, self.not_video = False, None, False

    def throw_exception_if_invalid(self) -> None:
        pass

    def model_size(self) -> int:
        return comfy.model_management.module_size(self.first_stage_model)

    def get_sd(self) -> dict:
        return self.first_stage_model.state_dict()

    def spacial_compression_encode(self) -> int:
        return self.downscale_ratio

    def spacial_compression_decode(self) -> int:
        return self.upscale_ratio

    def temporal_compression_decode(self) -> int:
        return self.upscale_ratio

    def _load(self, batch: int, frames: int, chunk: int) -> None:
        memory = batch * self.first_stage_model.activations(min(frames, chunk), self.vae_dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)

    def items_at_once(self, frames: int, chunk: int) -> int:
        """Items of so many frames that are decoded as one batch: as many as fit. A CPU computes one no slower than its share of many."""
        free = self._free()
        each = self.first_stage_model.activations(min(frames, chunk), self.vae_dtype)
        return 1 if free is None else max(1, int(0.5 * free / each))

    def _free(self) -> int | None:
        """Bytes for activations once the weights are on the device; None on a CPU."""
        if comfy.model_management.is_device_cpu(self.device):
            return None
        missing = self.model_size() - self.patcher.loaded_size()
        return max(0, comfy.model_management.get_free_memory(self.device) - missing)

    def _chunks(self, chunk: int, overlap: int, frames: int) -> list[int]:
        """Chunk sizes to try: the asked one, then ever smaller ones whose joins stay as they are."""
        align = self.sa3_config.same.decoder.align
        smaller = halvings(min(chunk, -(-frames // align) * align), max(2 * overlap, LEAST_CHUNK), align)[1:]
        return [chunk, *smaller] if smaller[0] > overlap else [chunk, chunk]

    @torch.inference_mode()
    def decode_latents(
        self, z: Tensor, chunk_size: int = CHUNK, overlap: int = OVERLAP, noise: Noise | None = None, progress=None, remark=warn
    ) -> Tensor:
        """(B, D, T) -> float32 (B, C, N) where ComfyUI keeps results. progress(done, total), the node's own bar when None.

        remark(sentence): called when 16 bits were not enough and float32 was used.
        """
        bar = progress or Progress(1, "decoding chunk")
        show_loading(self.patcher, "the autoencoder")

        def decode(chunk: int) -> Tensor:
            self._load(z.shape[0], z.shape[-1], chunk)

            def compute(dtype: torch.dtype) -> Tensor:
                at_once = self.first_stage_model.chunks_at_once(chunk, len(z), dtype, self._free())
                audio = self.first_stage_model.decode(z.to(self.device, dtype), chunk, overlap, noise, bar, at_once)
                return audio.float().to(self.output_device)

            return finite("The decoded samples", self.vae_dtype, compute, remark)

        audio = retry_smaller("decoding", "frames", ADVICE, self._chunks(chunk_size, overlap, z.shape[-1]), decode)
        if progress is None:
            bar.finish()
        return audio

    @torch.inference_mode()
    def encode_audio(self, audio: Tensor, chunk_size: int = CHUNK, overlap: int = OVERLAP, progress=None, remark=warn) -> Tensor:
        """(B, C, N) at the model's rate -> float32 (B, D, T). remark: as `decode_latents` has it."""
        show_loading(self.patcher, "the autoencoder")
        bar, frames = progress or Progress(1, "encoding chunk"), -(-audio.shape[-1] // self.downscale_ratio)

        def encode(chunk: int) -> Tensor:
            self._load(audio.shape[0], frames, chunk)

            def compute(dtype: torch.dtype) -> Tensor:
                z = self.first_stage_model.encode(audio.to(self.device, dtype), chunk, overlap, None, bar)
                return z.float().to(self.output_device)

            return finite("The encoded latents", self.vae_dtype, compute, remark)

        z = retry_smaller("encoding audio", "frames", ADVICE, self._chunks(chunk_size, overlap, frames), encode)
        if progress is None:
            bar.finish()
        return z

    def decode(self, samples_in: Tensor, vae_options: dict | None = None, **kwargs) -> Tensor:
        return self.decode_latents(samples_in).movedim(1, -1)

    def decode_tiled(self, samples: Tensor, tile_x=None, tile_y=None, overlap=None, **kwargs) -> Tensor:
        """Tiles in frames, rounded to what the autoencoder's chunks allow; the overlap stays wide enough for a seamless join."""
        align = self.sa3_config.same.decoder.align
        overlap = max(OVERLAP, (OVERLAP if overlap is None else int(overlap)) // align * align)
        tile = max(2 * overlap, (CHUNK if tile_x is None else int(tile_x)) // align * align)
        return self.decode_latents(samples, tile, overlap).movedim(1, -1)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        audio = pixel_samples.movedim(-1, 1)
        if audio.shape[1] == 1:
            audio = audio.expand(-1, self.output_channels, -1)
        return self.encode_audio(audio)

    def encode_tiled(self, pixel_samples: Tensor, **kwargs) -> Tensor:
        return self.encode(pixel_samples)


def load_vae(opened: Checkpoint, dtype: torch.dtype | None, disable_dynamic: bool = False) -> SA3VAE:
    """SAME of a release. dtype None = auto: float16 products on a device that is fast in them, else float32.

    Whatever the type, SAME keeps its residual stream and its attention in float32.
    """
    dtype = dtype or comfy.model_management.vae_dtype(comfy.model_management.vae_device(), [torch.float16])
    offload = comfy.model_management.vae_offload_device()
    names = SAME(opened.config.same, device="meta").state_dict()  # ComfyUI's layers may have no weights yet
    same = SAME(opened.config.same, Operations, "meta", dtype)
    checkpoint.load_into(same, opened.tensors, opened.same_prefix, dtype, offload, names)
    return SA3VAE(opened.config, same, dtype, opened.name, (reload_vae, (opened.path, opened.objective, dtype)), disable_dynamic)


def reload_vae(path: Path, objective: str, dtype: torch.dtype, disable_dynamic: bool = False):
    """The patcher of the same autoencoder from its file, for a clone with weights of its own."""
    return load_vae(checkpoint.open_checkpoint(path, objective, autoencoder=True), dtype, disable_dynamic).patcher


def require(vae) -> SA3VAE:
    if not isinstance(vae, SA3VAE):
        raise SA3Error(f"The VAE is {type(getattr(vae, 'first_stage_model', vae)).__name__}, not SAME; connect the VAE of SA3_ModelLoader.")
    return vae
