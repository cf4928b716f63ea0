"""Adapters: their algebra, the file formats, and stacks of them on a model."""

from .algebra import apply

__all__ = ["apply"]
