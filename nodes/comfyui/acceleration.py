"""CUDA graphs on a MODEL, for this pack's sampler and core's."""

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...sa3_core.backends.graphs import Graphs
from . import model as host_model
from . import run_options
from .patchers import resident_clone

KEY = "sa3_graphs"
WEIGHTS_CAST = "its weights are moved or converted in every step (choose another dtype in the loader, or a smaller model)"
REMOVED = "torch.compile was removed from SA3 Compile; choose auto, or compile with ComfyUI's node TorchCompileModel"


def graphs_model(model):
    """A clone of a MODEL with resident weights whose steps are recorded as CUDA graphs; discarded when the weights leave the device."""
    inner, clone = host_model.sa3_model(model), resident_clone(model)
    if clone.model is not inner:  # a copy, which lacks what the loader attached
        clone.model.sa3_vae, clone.model.sa3_loaded = getattr(inner, "sa3_vae", None), inner.sa3_loaded
    graphs = Graphs(lambda dit: WEIGHTS_CAST if casts_weights(dit) else "")
    clone.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, lambda *args: graphs.clear())
    return _with_graphs(clone, graphs)


def eager_model(model):
    """A clone of a MODEL for saved workflows that request torch.compile: it runs eagerly and reports why."""
    host_model.sa3_model(model)
    return _with_graphs(model.clone(), Graphs(lambda dit: REMOVED))


def casts_weights(module: torch.nn.Module) -> bool:
    """Whether layers move, patch or cast weights at each use: the model did not fit, or its weights have another dtype."""
    return any(getattr(layer, "comfy_cast_weights", False) or getattr(layer, "weight_function", None) for layer in module.modules())


def _with_graphs(clone, graphs: Graphs):
    """The clone; each sampling call on it is one run of `graphs`."""

    def sample(execute, *args, **kwargs):
        with graphs.run():
            return execute(*args, **kwargs)

    clone.model_options = run_options.updated(clone.model_options, graphs=graphs)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)
    return clone
