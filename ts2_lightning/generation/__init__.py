"""Generating text: decoding twins of the losses, as logits processors for transformers."""

from ts2_lightning.generation.logits_processors import EntmaxLogitsProcessor, SparsemaxLogitsProcessor

__all__ = ["EntmaxLogitsProcessor", "SparsemaxLogitsProcessor"]
