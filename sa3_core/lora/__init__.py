"""LoRA adapters: algebra, file formats, stacks on a model."""

from .algebra import apply

__all__ = ["apply"]
