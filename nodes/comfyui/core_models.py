"""MODEL and VAE that core's own loaders made of a Stable Audio 3 file, as this pack's: its networks over the tensors that core holds.

On a CPU and under dynamic VRAM both share the memory of the weights; without it, what has been on a GPU is a copy.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import comfy.model_base
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...sa3_core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from ...sa3_core.checkpoints.tensors import DTYPES, TensorFile, converted
from ...sa3_core.errors import SA3Error
from .model import CONDITIONER_PREFIX, DIT_PREFIX, load_model
from .patchers import UNMATCHED, add_remark
from .progress import warn
from .vae import SA3VAE, load_vae

CORE_MODEL = getattr(comfy.model_base, "StableAudio3", ())  # since ComfyUI 0.22; () is no class's
CORE_VAE = "SA3AudioVAE"
CORE_NAMES = {  # beginning of a tensor's name in core's MODEL -> in this pack's
    "seconds_total_embedder.": "conditioner.conditioners.seconds_total.",
    "padding_embedding": "conditioner.conditioners.prompt.padding_embedding",
}
RELEASE_NAMES = {"diffusion_model.": DIT_PREFIX, "conditioner.": CONDITIONER_PREFIX}  # in this pack's MODEL -> in a release
COMPILED = "torch.compile"  # key of the wrapper of core's TorchCompileModel
ADOPTED = "sa3_adopted"  # attribute of core's network: the pack's object over it


class HeldTensors:
    """Tensors in memory in place of those of the file that they were read from."""

    def __init__(self, held: Mapping[str, Tensor], file: TensorFile):
        self.held, self.path, self.fingerprint = held, file.path, file.fingerprint

    def read(self, name: str, dtype: torch.dtype | None = None, device=None) -> Tensor:
        if name not in self.held:
            raise SA3Error(f"The tensor '{name}' is missing in it.")
        tensor = self.held[name].detach()
        if tensor.dtype not in DTYPES.values():
            raise SA3Error(f"The tensor '{name}' is held as {tensor.dtype}.")
        return converted(tensor, dtype, name, self.path).to(device)


def adopt_model(model):
    """A MODEL of core's loader as one of this pack, with its patches and settings; any other MODEL as it is."""
    core = getattr(model, "model", None)
    if not isinstance(core, CORE_MODEL):
        return model
    if not hasattr(core, ADOPTED):
        held = {renamed(pack_name(name), RELEASE_NAMES): tensor for name, tensor in _originals(model).items()}
        with _refusing("MODEL", "SA3_ModelLoader"):
            setattr(core, ADOPTED, load_model(_opened(model, held), core.get_dtype()))
    adopted = _clone_over(model, getattr(core, ADOPTED))
    if adopted.get_wrappers(WrappersMP.APPLY_MODEL, COMPILED):  # which calls the compiled network of core
        adopted.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILED)
        add_remark(adopted, "TorchCompileModel has no effect on core's MODEL here; connect it to the MODEL of SA3_ModelLoader.")
    adopted.patches = {pack_name(name): patches for name, patches in adopted.patches.items()}
    adopted.hook_patches = {
        hook: {pack_name(name): patches for name, patches in found.items()} for hook, found in adopted.hook_patches.items()
    }
    if not model.patches and not model.hook_patches and _was_patched(model):
        add_remark(adopted, UNMATCHED)
    if model.injections:
        add_remark(adopted, "A node changes layers of core's MODEL directly, as a bypassed LoRA does; that has no effect here.")
    return adopted


def adopt_vae(vae):
    """A VAE of core's loader as one of this pack; any other VAE as it is."""
    core = getattr(vae, "first_stage_model", None)
    if isinstance(vae, SA3VAE) or type(core).__name__ != CORE_VAE:
        return vae
    if not hasattr(core, ADOPTED):
        with _refusing("VAE", "SA3_AutoencoderLoader"):
            opened = _opened(vae.patcher, _originals(vae.patcher), autoencoder=True)
            setattr(core, ADOPTED, load_vae(opened, vae.vae_dtype))
    if vae.vae_dtype == torch.bfloat16:
        warn(
            "Core's VAE computes in bf16, with about eight times the error of fp16; load it with SA3_ModelLoader or SA3_AutoencoderLoader."
        )
    adopted = copy.copy(getattr(core, ADOPTED))
    adopted.device, adopted.patcher = vae.device, _clone_over(vae.patcher, adopted.patcher)
    return adopted


def _clone_over(patcher, own):
    """A clone of core's patcher, with its settings and device, over the module of one of this pack's patchers."""
    clone = patcher.clone(model_override=own.get_clone_model_override())
    clone.parent, clone.cached_patcher_init, clone.size = own, own.cached_patcher_init, 0
    clone.clone_base_uuid = own.clone_base_uuid
    clone.injections, clone.is_injected = {}, False
    return clone


def _was_patched(patcher) -> bool:
    """Whether a node has added patches to a MODEL, matching or not: each addition gives it a new patches_uuid, which clones keep."""
    root = patcher
    while root.parent is not None:
        root = root.parent
    return patcher.patches_uuid != root.patches_uuid


def pack_name(name: str) -> str:
    """The name in this pack's MODEL of a tensor of core's."""
    return renamed(name, CORE_NAMES)


def renamed(name: str, beginnings: Mapping[str, str]) -> str:
    """A name with the first of these beginnings replaced."""
    old = next((old for old in beginnings if name.startswith(old)), None)
    return name if old is None else beginnings[old] + name.removeprefix(old)


def _originals(patcher) -> dict[str, Tensor]:
    """The tensors of a patcher's model by name, without patches that core has applied in place."""
    state = patcher.model.state_dict()
    return {name: patcher.backup[name].weight if name in patcher.backup else tensor for name, tensor in state.items()}


def _opened(patcher, held: Mapping[str, Tensor], autoencoder: bool = False) -> Checkpoint:
    """The checkpoint that core loaded, with the tensors that core holds."""
    loaded_by = getattr(patcher, "cached_patcher_init", None)
    path = loaded_by[1][0] if loaded_by and loaded_by[1] else None
    if not isinstance(path, (str, Path)):
        raise SA3Error("Its file is not known.")
    opened = open_checkpoint(path, autoencoder=autoencoder)
    if autoencoder:  # core keeps a weight norm as a parametrization
        names = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
        for old, new in names.items():
            held = {name.replace(old, new): tensor for name, tensor in held.items()}
        held = {opened.same_prefix + name: tensor for name, tensor in held.items()}
    return replace(opened, tensors=HeldTensors(held, opened.tensors))


@contextmanager
def _refusing(socket: str, loader: str) -> Iterator[None]:
    """An SA3Error inside gets a sentence that names this pack's loader."""
    try:
        yield
    except SA3Error as error:
        raise SA3Error(f"The {socket} of core's loader cannot be used here. {error} Load it with {loader}.") from error
