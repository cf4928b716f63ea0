"""Stable Audio 3 kernels: torch only, no ComfyUI. `load`, `build` and the modules below are the public surface."""

import importlib

from .errors import SA3Error

__version__ = "0.1.0"
__all__ = ["DEMOS", "Model", "Result", "SA3Error", "build", "load", "lora", "samplers", "schedule", "timeline"]
_LAZY = {"DEMOS": "pipeline", "Model": "pipeline", "Result": "pipeline", "build": "network", "load": "pipeline"}


def __getattr__(name: str):
    """Import on first use, so that importing the package costs nothing."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
