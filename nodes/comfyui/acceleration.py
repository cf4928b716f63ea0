"""torch.compile and CUDA graphs on a MODEL, for this pack's sampler and core's."""

from functools import partial

import comfy.model_management
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...sa3_core.backends.accelerator import Accelerator
from ...sa3_core.backends.compiled import Compiled
from ...sa3_core.backends.graphs import Graphs
from . import model as host_model
from . import run_options
from .patchers import resident_clone
from .progress import show_status

KEY = "sa3_accelerator"
shared_compiled = Compiled(show_status)  # for all models and nodes, which share compiled graphs


def compiled_model(model, wait: bool):
    """A clone of a MODEL with compiled layers. wait: compile before the first run, not in the background."""
    return _accelerated(model, shared_compiled, wait)


def graphs_model(model, wait: bool):
    """A clone of a MODEL whose steps are recorded as CUDA graphs, which are discarded when its weights leave the device."""
    graphs = Graphs()
    clone = _accelerated(model, graphs, wait)
    clone.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, lambda *args: graphs.clear())
    return clone


def fastest_model(model, wait: bool):
    """`graphs_model` on a CUDA device, `compiled_model` elsewhere."""
    device = comfy.model_management.get_torch_device()
    return (graphs_model if device.type == "cuda" else compiled_model)(model, wait)


def _accelerated(model, accelerator: Accelerator, wait: bool):
    """A clone of a MODEL with resident weights that runs through an accelerator."""
    accelerator.retry()
    inner, clone = host_model.sa3_model(model), resident_clone(model)
    if clone.model is not inner:  # a copy, which lacks what the loader attached
        clone.model.sa3_vae, clone.model.sa3_loaded = getattr(inner, "sa3_vae", None), inner.sa3_loaded
    clone.model_options = run_options.updated(clone.model_options, accelerator=accelerator, wait=wait)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_sample, accelerator, wait))
    return clone


def _sample(accelerator: Accelerator, wait: bool, sample, *args, **kwargs):
    """Core's outer_sample as one run of the accelerator."""
    with accelerator.run(wait):
        return sample(*args, **kwargs)
