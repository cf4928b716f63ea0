"""ComfyUI's V3 node API as this pack uses it, on every supported version."""

import inspect

from comfy_api.latest import ComfyExtension, io

CATEGORY = "audio/stable audio 3"
SEED = {"min": 0, "max": 2**64 - 1, "control_after_generate": True}

__all__ = ["CATEGORY", "SEED", "ComfyExtension", "io", "schema"]


def schema(node_id: str, **keywords) -> io.Schema:
    """io.Schema with the pack's category; keywords that this ComfyUI does not know yet are left out."""
    known = inspect.signature(io.Schema).parameters
    for output in keywords.get("outputs", ()):
        output.display_name = output.display_name or output.id  # ComfyUI shows the mere type otherwise
    values = {"category": CATEGORY, "search_aliases": ["stable audio", "sa3"], **keywords}
    return io.Schema(node_id=node_id, **{key: value for key, value in values.items() if key in known})
