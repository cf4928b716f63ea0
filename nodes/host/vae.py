"""The VAE socket: SAME behind the interface of ComfyUI's VAE class."""

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ...sa3_core import checkpoint
from ...sa3_core.checkpoint import Checkpoint
from ...sa3_core.config import ModelConfig
from ...sa3_core.errors import SA3Error
from ...sa3_core.same import SAME, Noise
from .memory import halvings, on_less
from .operations import Operations
from .progress import Progress, tell_loading

CHUNK, OVERLAP = 128, 32  # latent frames, as the public tools decode
LEAST_CHUNK = 16
ADVICE = "Shorten the clip, make the batch smaller, or close what else uses the device."
ROWS_PER_TOKEN = 30  # live activations of a block in rows of `width` per token


class SA3VAE(comfy.sd.VAE):
    """A VAE made of a loaded SAME. Core's audio nodes call encode, decode and decode_tiled with channels last."""

    def __init__(self, config: ModelConfig, same: SAME, dtype: torch.dtype, name: str):
        # comfy.sd.VAE builds itself from a state dict it recognises; this one is already built.
        self.first_stage_model, self.sa3_config, self.sa3_name, self.vae_dtype = same, config, name, dtype
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            same, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
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

    def _load(self, batch: int, frames: int) -> None:
        side = self.sa3_config.same.decoder
        tokens = batch * min(frames, CHUNK) * (side.stride + 1)
        memory = tokens * side.width * ROWS_PER_TOKEN * comfy.model_management.dtype_size(self.vae_dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)

    def _chunks(self, chunk: int, overlap: int, frames: int) -> list[int]:
        """Chunk sizes to try: the asked one, then ever smaller ones whose joins stay as they are."""
        align = self.sa3_config.same.decoder.align
        smaller = halvings(min(chunk, -(-frames // align) * align), max(2 * overlap, LEAST_CHUNK), align)[1:]
        return [chunk, *smaller] if smaller[0] > overlap else [chunk, chunk]

    @torch.inference_mode()
    def decode_latents(
        self, z: Tensor, chunk_size: int = CHUNK, overlap: int = OVERLAP, noise: Noise | None = None, progress=None
    ) -> Tensor:
        """(B, D, T) -> float32 (B, C, N) where ComfyUI keeps results. progress(done, total), the node's own bar when None."""
        bar = progress or Progress(1, "decoding chunk")
        tell_loading(self.patcher, "the autoencoder")

        def decode(chunk: int) -> Tensor:
            self._load(z.shape[0], z.shape[-1])
            audio = self.first_stage_model.decode(z.to(self.device, self.vae_dtype), chunk, overlap, noise, bar)
            return audio.float().to(self.output_device)

        audio = on_less("decoding", "frames", ADVICE, self._chunks(chunk_size, overlap, z.shape[-1]), decode)
        if progress is None:
            bar.finish()
        return audio

    @torch.inference_mode()
    def encode_audio(self, audio: Tensor, chunk_size: int = CHUNK, overlap: int = OVERLAP, progress=None) -> Tensor:
        """(B, C, N) at the model's rate -> float32 (B, D, T)."""
        tell_loading(self.patcher, "the autoencoder")
        bar, frames = progress or Progress(1, "encoding chunk"), -(-audio.shape[-1] // self.downscale_ratio)

        def encode(chunk: int) -> Tensor:
            self._load(audio.shape[0], frames)
            z = self.first_stage_model.encode(audio.to(self.device, self.vae_dtype), chunk, overlap, None, bar)
            return z.float().to(self.output_device)

        z = on_less("encoding audio", "frames", ADVICE, self._chunks(chunk_size, overlap, frames), encode)
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


def load_vae(opened: Checkpoint, dtype: torch.dtype | None) -> SA3VAE:
    """SAME of a release. dtype None = auto: 32 bits wherever the device has no trusted 16-bit path."""
    dtype = dtype or torch.float32
    offload = comfy.model_management.vae_offload_device()
    same = checkpoint.load_into(SAME(opened.config.same, Operations, "meta", dtype), opened.tensors, opened.same_prefix, dtype, offload)
    return SA3VAE(opened.config, same, dtype, opened.name)


def require(vae) -> SA3VAE:
    if not isinstance(vae, SA3VAE):
        raise SA3Error(f"The VAE is {type(getattr(vae, 'first_stage_model', vae)).__name__}, not SAME; connect the VAE of SA3_ModelLoader.")
    return vae
