"""Stable Audio 3 in torch, without ComfyUI. `__all__` is the public surface, imported on first use."""

import importlib

from .errors import SA3Error

__version__ = "0.1.0"
__all__ = ["DEMOS", "Model", "Result", "SA3Error", "build", "load", "lora", "samplers", "schedule", "timeline"]
_MODULES = {
    "DEMOS": "pipeline", "Model": "pipeline", "Result": "pipeline", "build": "models.release", "load": "pipeline", "lora": "lora",
    "samplers": "sampling.samplers", "schedule": "sampling.schedule", "timeline": "timeline",
}  # fmt: skip


def __getattr__(name: str):
    """Import a name of `__all__` on first use, so that importing the package costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        raise SA3Error(
            f"sa3_core needs the package {error.name}, which this Python does not have: python -m pip install {error.name}."
        ) from error
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)
