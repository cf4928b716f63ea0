"""Stable Audio 3 for ComfyUI. Nothing is imported before ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point."""
    from .nodes import Extension

    return Extension()
