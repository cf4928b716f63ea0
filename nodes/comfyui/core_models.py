"""MODEL and VAE that core's own loaders made of a Stable Audio 3 file, as this pack's: its networks over the same tensors in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import comfy.model_base
import torch
from torch import Tensor

from ...sa3_core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from ...sa3_core.checkpoints.tensors import DTYPES, TensorFile
from ...sa3_core.errors import SA3Error
from .model import CONDITIONER_PREFIX, DIT_PREFIX, load_model
from .progress import warn
from .vae import SA3VAE, load_vae

CORE_MODEL = getattr(comfy.model_base, "StableAudio3", ())  # since ComfyUI 0.22; () is no class's
CORE_VAE = "SA3AudioVAE"
SETTINGS = (  # of a ModelPatcher: what nodes have set on it
    "patches", "patches_uuid", "object_patches", "model_options", "callbacks", "wrappers", "attachments", "hook_patches", "forced_hooks",
)  # fmt: skip
RELEASE_NAMES = {  # beginning of a tensor's name in core's model -> in a release
    "diffusion_model.": DIT_PREFIX,
    "seconds_total_embedder.": f"{CONDITIONER_PREFIX}conditioners.seconds_total.",
    "padding_embedding": f"{CONDITIONER_PREFIX}conditioners.prompt.padding_embedding",
}
ADOPTED = "sa3_adopted"  # attribute of core's network: the pack's object over it


class HeldTensors:
    """Tensors in memory in place of those of the file that they were read from."""

    def __init__(self, held: Mapping[str, Tensor], file: TensorFile):
        self.held, self.path, self.fingerprint = held, file.path, file.fingerprint

    def read(self, name: str, dtype: torch.dtype | None = None, device=None) -> Tensor:
        if name not in self.held:
            raise SA3Error(f"the tensor '{name}' is missing in it.")
        tensor = self.held[name].detach()
        if tensor.dtype not in DTYPES.values():
            raise SA3Error(f"the tensor '{name}' is held as {tensor.dtype}.")
        return tensor.to(device, dtype)


def adopt_model(model):
    """A MODEL of core's loader as one of this pack, with its patches and settings; any other MODEL as it is."""
    core = getattr(model, "model", None)
    if not isinstance(core, CORE_MODEL):
        return model
    if not hasattr(core, ADOPTED):
        setattr(core, ADOPTED, load_model(_opened("MODEL", model), core.get_dtype()))
    adopted, source = getattr(core, ADOPTED).clone(), model.clone()
    for name in SETTINGS:
        setattr(adopted, name, getattr(source, name))
    adopted.load_device, adopted.offload_device = model.load_device, model.offload_device
    if getattr(model, "injections", None):
        warn("A node before this one changes layers of core's MODEL directly, as a bypassed LoRA; that has no effect here.")
    return adopted


def adopt_vae(vae):
    """A VAE of core's loader as one of this pack; any other VAE as it is."""
    core = getattr(vae, "first_stage_model", None)
    if isinstance(vae, SA3VAE) or type(core).__name__ != CORE_VAE:
        return vae
    if not hasattr(core, ADOPTED):
        setattr(core, ADOPTED, load_vae(_opened("VAE", vae.patcher, autoencoder=True), vae.vae_dtype))
    adopted = getattr(core, ADOPTED)
    adopted.device, adopted.patcher.load_device = vae.device, vae.patcher.load_device
    return adopted


def _opened(socket: str, patcher, autoencoder: bool = False) -> Checkpoint:
    """The checkpoint that core loaded, with the tensors that core holds. Raises SA3Error that names this pack's loader."""
    loaded_by = getattr(patcher, "cached_patcher_init", None)
    path = loaded_by[1][0] if loaded_by and loaded_by[1] else None
    try:
        if not isinstance(path, (str, Path)):
            raise SA3Error("its file is not known.")
        opened = open_checkpoint(path, autoencoder=autoencoder)
        names = {"": opened.same_prefix} if autoencoder else RELEASE_NAMES
        held = {}
        for name, tensor in _originals(patcher):
            name = name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")
            held |= {new + name.removeprefix(old): tensor for old, new in names.items() if name.startswith(old)}
        return replace(opened, tensors=HeldTensors(held, opened.tensors))
    except SA3Error as error:
        raise SA3Error(f"The {socket} of core's loader cannot be used here: {error} Load it with SA3_ModelLoader.") from error


def _originals(patcher) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a patcher's model, without patches that core has applied in place."""
    for name, tensor in patcher.model.state_dict().items():
        saved = patcher.backup.get(name)
        yield name, tensor if saved is None else saved.weight
