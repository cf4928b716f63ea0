"""Adapters between ComfyUI and sa3_core; no other package imports comfy."""
