"""Generating text: a sampler, and the decoding twins of the losses as logits processors for transformers.

In: model, tokenizer, prompts and a `Decoder`; out: `Sample`s. It may import only `ops` (and what every room may).
Not here: metrics of texts (`metrics`), chat templates (`data`), questions and their answers (`evaluation`).
"""

from ts2_lightning.generation.logits_processors import EntmaxLogitsProcessor, SparsemaxLogitsProcessor
from ts2_lightning.generation.sampling import Decoder, Prompt, Sample, sample

__all__ = ["Decoder", "EntmaxLogitsProcessor", "Prompt", "Sample", "SparsemaxLogitsProcessor", "sample"]
