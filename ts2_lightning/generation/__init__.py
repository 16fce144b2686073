"""Generating text: decoding twins of the losses, as logits processors for transformers, and a sampler."""

from ts2_lightning.generation.logits_processors import EntmaxLogitsProcessor, SparsemaxLogitsProcessor
from ts2_lightning.generation.sampling import Decoder, Prompt, Sample, sample

__all__ = ["Decoder", "EntmaxLogitsProcessor", "Prompt", "Sample", "SparsemaxLogitsProcessor", "sample"]
