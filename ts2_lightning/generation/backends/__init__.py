"""Backends: what makes responses. All take the same requests; which one made a response is not part of its name."""

from ts2_lightning.generation.backends.base import Backend

__all__ = ["Backend"]
