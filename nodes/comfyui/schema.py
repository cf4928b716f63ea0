"""ComfyUI's V3 node API as this pack uses it, on every supported version."""

import functools
import inspect
import json
import numbers
from pathlib import Path

import comfy.model_management
import numpy
from comfy_api.latest import ComfyExtension, io

from ...sa3_core.errors import SA3Error
from .core_models import adopt_model, adopt_vae
from .progress import show_stop

CATEGORY = "audio/stable audio 3"
SEARCH_WORDS = json.loads((Path(__file__).parents[2] / "web" / "search_words.json").read_text(encoding="utf-8"))
SEED = {"min": 0, "max": 2**64 - 1, "control_after_generate": True}

FILES = {"autoencoder", "file", "lora", "model", "text_encoder"}  # choices of files: the loaders say which exist

__all__ = ["CATEGORY", "SEED", "ComfyExtension", "checked", "io", "schema"]


def schema(node_id: str, *, advanced: str = "", **options) -> io.Schema:
    """An io.Schema in the pack's category, found by its search words. Options that this version of ComfyUI does not know are omitted.

    advanced: ids of the inputs that the editor's second renderer folds away, separated by spaces.
    """
    inputs = {one.id: one for one in options.get("inputs", ())}
    for name in advanced.split():
        inputs[name].advanced = True  # older versions ignore the attribute
    for output in options.get("outputs", ()):
        output.display_name = output.display_name or output.id  # ComfyUI would show the type
    options = {"category": CATEGORY, "search_aliases": SEARCH_WORDS.get(node_id, []), **options}
    known = inspect.signature(io.Schema).parameters
    return io.Schema(node_id=node_id, **{name: value for name, value in options.items() if name in known})


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node; its numbers, texts and choices are checked before it executes, and core's MODEL and VAE become this pack's.

    ComfyUI does not check values of links, nor NaN. An interrupted node shows where it was stopped.
    """
    execute = node.execute.__func__
    definition_of = functools.cache(node.define_schema)  # its lists of files are of no use here, see FILES

    @functools.wraps(execute)
    def check_and_execute(cls, *args, **values):
        definition = definition_of()
        for item in definition.inputs:
            if item.id not in values:
                continue
            value = values[item.id]
            if definition.is_input_list and isinstance(value, list):
                if not value:
                    raise SA3Error(f"{item.id} is an empty list; expected at least one value.")
                values[item.id] = [_read(item, one) for one in value]
            else:
                values[item.id] = _read(item, value)
        try:
            return execute(cls, *args, **values)
        except comfy.model_management.InterruptProcessingException:
            show_stop()
            raise

    node.execute = classmethod(check_and_execute)
    return node


def _read(item, value):
    """The value of an input; a number as Python's own, a model as this pack's. Raises SA3Error for another type, choice or range."""
    if value is None and item.optional:
        return None
    if isinstance(item, io.Model.Input):
        return adopt_model(value)
    if isinstance(item, io.Vae.Input):
        return adopt_vae(value)
    expected = ""
    if isinstance(item, (io.Float.Input, io.Int.Input)):
        whole = isinstance(item, io.Int.Input)
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if real and item.min <= value <= item.max and not (whole and value != int(value)):  # NaN is in no range
            return int(value) if whole else float(value)
        expected = f"a {'whole ' * whole}number from {item.min} to {item.max}"
        if item.id == "seconds" and real and value > item.max:
            expected += "; for longer audio use SA3_Extend"
    elif isinstance(item, io.Combo.Input):
        if not isinstance(value, str) or (item.id not in FILES and value not in item.options):
            expected = "one of " + ", ".join(map(str, item.options))
    elif isinstance(item, io.String.Input):
        expected = "" if isinstance(value, str) else "text"
    elif isinstance(item, io.Boolean.Input):
        if isinstance(value, (bool, numpy.bool_)) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
        expected = "true or false"
    if expected:
        raise SA3Error(f"{item.id} is {str(value)[:80]!r}; expected {expected}.")
    return value
