"""Backends: what makes responses. All take the same requests; which one made a response is not part of its name."""

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.backends.choice import BACKENDS, check_backend, make_backend
from ts2_lightning.generation.backends.transformers import TransformersBackend, end_ids, prompt_ids

__all__ = ["BACKENDS", "Backend", "TransformersBackend", "check_backend", "end_ids", "make_backend", "prompt_ids"]
