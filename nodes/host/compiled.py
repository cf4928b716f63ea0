"""A faster way through the layers on a MODEL, under our sampler and core's."""

from functools import partial

import comfy.model_management
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...sa3_core.backends.cuda import Graphs
from ...sa3_core.compiled import Compiled
from ...sa3_core.packed import Packed, PackedAndCompiled
from . import model as host_model
from .patchers import resident_clone
from .progress import tell

KEY = "sa3_compiled"
shared = Compiled(tell)  # one for all models and nodes: a graph that was made once serves them all


def compiled_model(model, wait: bool):
    """A clone of a MODEL whose runs are compiled. wait: the first of a kind waits for the compiler."""
    return _with(model, shared, wait)


def packed_model(model, wait: bool):
    """A clone of a MODEL that keeps packed weights for as long as it lives. A run always waits for them."""
    return _with(model, _packed(), wait)


def packed_and_compiled_model(model, wait: bool):
    """A clone of a MODEL that keeps packed weights, and whose layers are compiled as `compiled_model` has them."""
    return _with(model, PackedAndCompiled(_packed(), shared), wait)


def graphs_model(model, wait: bool):
    """A clone of a MODEL whose steps are recorded as CUDA graphs. They go when its weights leave the device."""
    graphs = Graphs()
    clone = _with(model, graphs, wait)
    clone.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, lambda *args: graphs.clear())
    return clone


def _packed() -> Packed:
    return Packed(partial(comfy.model_management.get_free_memory, torch.device("cpu")))


def _with(model, accelerator, wait: bool):
    accelerator.try_again()
    inner = host_model.require(model)
    clone, begin = resident_clone(model), partial(accelerator.run, wait)
    host_model.same_release(clone.model, inner)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_run, begin))
    options = clone.model_options
    more = {host_model.COMPILED: accelerator, host_model.COMPILED_RUN: begin}
    clone.model_options = {**options, "transformer_options": {**options.get("transformer_options", {}), **more}}
    return clone


def _run(begin, sample, *args, **kwargs):
    with begin():
        return sample(*args, **kwargs)
