"""torch.compile and CUDA graphs on a MODEL, for our sampler and core's."""

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

KEY = "sa3_compiled"
shared = Compiled(show_status)  # one for all models and nodes: a graph compiled once serves them all


def compiled_model(model, wait: bool):
    """A clone of a MODEL with compiled layers. wait: the first run waits for the compiler."""
    return _with(model, shared, wait)


def graphs_model(model, wait: bool):
    """A clone of a MODEL whose steps are recorded as CUDA graphs. They are discarded when its weights leave the device."""
    graphs = Graphs()
    clone = _with(model, graphs, wait)
    clone.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, lambda *args: graphs.clear())
    return clone


def fastest_model(model, wait: bool):
    """CUDA graphs on a GPU that has them, torch.compile elsewhere."""
    device = comfy.model_management.get_torch_device()
    return (graphs_model if device.type == "cuda" else compiled_model)(model, wait)


def _with(model, accelerator: Accelerator, wait: bool):
    accelerator.retry()
    inner, clone = host_model.require(model), resident_clone(model)
    host_model.same_release(clone.model, inner)
    clone.model_options = run_options.changed(clone.model_options, accelerator=accelerator, wait=wait)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_sample, accelerator, wait))
    return clone


def _sample(accelerator: Accelerator, wait: bool, sample, *args, **kwargs):
    """Core's sampling as one run."""
    with accelerator.run(wait):
        return sample(*args, **kwargs)
