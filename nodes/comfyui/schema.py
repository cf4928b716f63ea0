"""ComfyUI's V3 node API as this pack uses it, on every supported version."""

import inspect

from comfy_api.latest import ComfyExtension, io

CATEGORY = "audio/stable audio 3"
SEED = {"min": 0, "max": 2**64 - 1, "control_after_generate": True}

__all__ = ["CATEGORY", "SEED", "ComfyExtension", "io", "schema"]


def schema(node_id: str, **options) -> io.Schema:
    """An io.Schema in the pack's category. Options that this version of ComfyUI does not know are omitted."""
    for output in options.get("outputs", ()):
        output.display_name = output.display_name or output.id  # ComfyUI would show the type
    options = {"category": CATEGORY, "search_aliases": ["stable audio", "sa3"], **options}
    known = inspect.signature(io.Schema).parameters
    return io.Schema(node_id=node_id, **{name: value for name, value in options.items() if name in known})
