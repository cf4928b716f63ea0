"""Stable Audio 3 kernels: torch only, no ComfyUI. `load`, `build` and the modules below are the public surface."""

import importlib

from .errors import SA3Error

__version__ = "0.1.0"
__all__ = ["DEMOS", "Model", "Result", "SA3Error", "build", "load", "lora", "samplers", "schedule", "timeline"]
_LAZY = {"DEMOS": "pipeline", "Model": "pipeline", "Result": "pipeline", "build": "models.release", "load": "pipeline"}
_MODULES = {"lora": "lora", "samplers": "sampling.samplers", "schedule": "sampling.schedule", "timeline": "timeline"}


def __getattr__(name: str):
    """Import on first use, so that importing the package costs nothing."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
