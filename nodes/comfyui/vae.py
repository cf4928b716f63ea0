"""The VAE socket: SAME as a ComfyUI VAE."""

import functools
import logging
from collections.abc import Callable
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
from ...sa3_core.sampling.float32_retry import with_float32_retry
from .operations import Operations
from .out_of_memory import halvings, retry_smaller
from .patchers import patcher_over
from .progress import Progress, show_loading, warn

CHUNK, OVERLAP = 128, 32  # latent frames; the defaults of the public tools
MIN_CHUNK = 16
ADVICE = "Shorten the clip, make the batch smaller, or close what else uses the device."


class SA3VAE(comfy.sd.VAE):
    """A VAE over a loaded SAME. ComfyUI's nodes call encode, decode and decode_tiled with channels last."""

    working_dtypes = (torch.float32, torch.float16, torch.bfloat16)
    crop_input = False
    process_input = process_output = staticmethod(lambda audio: audio)

    def __init__(self, config: ModelConfig, same: SAME, dtype: torch.dtype, name: str, reload: tuple, disable_dynamic: bool = False):
        vars(self).update(core_defaults())  # super().__init__() needs a state dict that it recognises
        self.first_stage_model, self.sa3_config, self.sa3_name, self.vae_dtype = same, config, name, dtype
        self.sa3_path: Path = reload[1][0]
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = patcher_over(same, self.device, comfy.model_management.vae_offload_device(), reload, disable_dynamic)
        self.latent_dim, self.latent_channels, self.output_channels = 1, config.same.latent_dim, config.same.audio_channels
        self.downscale_ratio = self.upscale_ratio = config.same.samples_per_frame
        self.audio_sample_rate = config.sample_rate

    def memory_used_encode(self, shape, dtype: torch.dtype) -> int:
        return self._activations(shape[0], -(-shape[-1] // self.downscale_ratio), dtype)

    def memory_used_decode(self, shape, dtype: torch.dtype) -> int:
        return self._activations(shape[0], shape[-1], dtype)

    def decode(self, samples_in: Tensor, vae_options: dict | None = None, **kwargs) -> Tensor:
        return self.decode_latents(samples_in).movedim(1, -1)

    def decode_tiled(self, samples: Tensor, tile_x=None, tile_y=None, overlap=None, **kwargs) -> Tensor:
        """Decode in tiles of frames, rounded to the decoder's alignment, with at least the overlap of a seamless join."""
        align = self.sa3_config.same.decoder.align
        overlap = max(OVERLAP, int(overlap or 0) // align * align)
        tile = max(2 * overlap, (CHUNK if tile_x is None else int(tile_x)) // align * align)
        return self.decode_latents(samples, tile, overlap).movedim(1, -1)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        audio = pixel_samples.movedim(-1, 1)
        return self.encode_audio(audio.expand(-1, self.output_channels, -1) if audio.shape[1] == 1 else audio)

    def encode_tiled(self, pixel_samples: Tensor, **kwargs) -> Tensor:
        return self.encode(pixel_samples)

    @torch.inference_mode()
    def decode_latents(
        self, z: Tensor, chunk_size: int = CHUNK, overlap: int = OVERLAP, noise: Noise | None = None, progress=None, warn=warn
    ) -> Tensor:
        """Latents (B, D, T) -> float32 audio (B, C, N) on ComfyUI's output device.

        chunk_size, overlap: latent frames. progress(done, total): in place of the node's own bar. warn(sentence): called when a 16-bit
        result was not finite and float32 was used.
        """

        def compute(dtype: torch.dtype, chunk: int, at_once: int, progress) -> Tensor:
            return self.first_stage_model.decode(z.to(self.device, dtype), chunk, overlap, noise, progress, at_once)

        return self._run("decoding", "The decoded samples", z.shape, chunk_size, overlap, compute, progress, warn)

    @torch.inference_mode()
    def encode_audio(self, audio: Tensor, chunk_size: int = CHUNK, overlap: int = OVERLAP, progress=None) -> Tensor:
        """Audio (B, C, N) at the model's rate -> float32 latents (B, D, T). Options as of `decode_latents`."""

        def compute(dtype: torch.dtype, chunk: int, at_once: int, progress) -> Tensor:
            return self.first_stage_model.encode(audio.to(self.device, dtype), chunk, overlap, None, progress, at_once)

        shape = len(audio), self.latent_channels, -(-audio.shape[-1] // self.downscale_ratio)
        return self._run("encoding", "The encoded latents", shape, chunk_size, overlap, compute, progress, warn)

    def _run(
        self, stage: str, result: str, shape: tuple[int, int, int], chunk: int, overlap: int, compute: Callable, progress, warn
    ) -> Tensor:
        """compute(dtype, chunk, chunks at once, progress) with the weights loaded: with less at once on lack of memory, in float32 on
        overflow. shape: of the latents."""
        batch, _, frames = shape
        bar = progress or Progress(1, f"{stage} chunk")
        show_loading(self.patcher, "the autoencoder")

        def attempt(size: int) -> Tensor:
            self._load(batch, frames, size)
            at_once = max(1, size // chunk)

            def run(dtype: torch.dtype) -> Tensor:
                return compute(dtype, min(size, chunk), at_once, bar).float().to(self.output_device)

            return with_float32_retry(result, self.vae_dtype, run, warn)

        out = retry_smaller(stage, "frames", ADVICE, self._pass_sizes(chunk, overlap, batch, frames), attempt)
        if progress is None:
            bar.finish()
        return out

    def _load(self, batch: int, frames: int, size: int) -> None:
        memory = self._activations(batch, min(frames, size), self.vae_dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)

    def _activations(self, batch: int, frames: int, dtype: torch.dtype) -> int:
        """Bytes of activations for a pass over latents (B, D, frames)."""
        return batch * self.first_stage_model.activations(frames, dtype)

    def _pass_sizes(self, chunk: int, overlap: int, batch: int, frames: int) -> list[int]:
        """Frames per pass to try: several chunks, one chunk, then halves down to twice the overlap."""
        align = self.sa3_config.same.decoder.align
        smaller = halvings(min(chunk, -(-frames // align) * align), max(2 * overlap, MIN_CHUNK), align)[1:]
        sizes = [chunk, *smaller] if smaller[0] > overlap else [chunk, chunk]
        several = chunk * self.first_stage_model.chunks_at_once(chunk, batch, self.vae_dtype, self._memory())
        return [several, *sizes] if several > chunk and frames > chunk else sizes

    def items_at_once(self, frames: int, chunk: int) -> int:
        """Number of items of this many frames to decode as one batch; 1 on a CPU, where a batch saves no time."""
        return self.first_stage_model.items_at_once(min(frames, chunk), self.vae_dtype, self._memory())

    def _memory(self) -> int | None:
        """Bytes of the device; None for a CPU."""
        return None if comfy.model_management.is_device_cpu(self.device) else comfy.model_management.get_total_memory(self.device)


@functools.cache
def core_defaults() -> dict:
    """The attributes of core's VAE before it has recognised any weights: what nodes of this version may ask a VAE for."""

    def not_core(record: logging.LogRecord) -> bool:
        return record.pathname != comfy.sd.__file__

    logging.getLogger().addFilter(not_core)  # core warns that it found no weights
    try:
        found = vars(comfy.sd.VAE(sd={}))
    finally:
        logging.getLogger().removeFilter(not_core)
    return {name: value for name, value in found.items() if not hasattr(SA3VAE, name)}


def load_vae(opened: Checkpoint, dtype: torch.dtype | None, disable_dynamic: bool = False) -> SA3VAE:
    """The VAE of a checkpoint. dtype None = auto: float16 on a device that is fast in it, else float32.

    SAME keeps its residual stream and its attention in float32 in any case.
    """
    dtype = dtype or comfy.model_management.vae_dtype(comfy.model_management.vae_device(), [torch.float16])
    offload = comfy.model_management.vae_offload_device()
    names = SAME(opened.config.same, device="meta").state_dict()  # ComfyUI's layers may not have created their weights yet
    same = SAME(opened.config.same, Operations, "meta", dtype)
    checkpoint.load_into(same, opened.tensors, opened.same_prefix, dtype, offload, names)
    return SA3VAE(opened.config, same, dtype, opened.name, (reload_vae, (opened.path, opened.objective, dtype)), disable_dynamic)


def reload_vae(path: Path, objective: str, dtype: torch.dtype, disable_dynamic: bool = False):
    """A patcher over the same autoencoder loaded once more, for a clone with weights of its own."""
    return load_vae(checkpoint.open_checkpoint(path, objective, autoencoder=True), dtype, disable_dynamic).patcher


def require(vae) -> SA3VAE:
    """The VAE of a socket. Raises SA3Error when it is another model's."""
    if vae is None:
        raise SA3Error("The VAE is empty: its file holds no autoencoder. Connect SA3_ModelLoader or SA3_AutoencoderLoader.")
    if not isinstance(vae, SA3VAE):
        raise SA3Error(f"The VAE is {type(getattr(vae, 'first_stage_model', vae)).__name__}, not SAME; connect the VAE of SA3_ModelLoader.")
    return vae
