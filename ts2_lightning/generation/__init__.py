"""Generating text: requests, the backends that make responses to them, and responses on disk.

In: requests, which say all that a response follows from; out: responses, in files of their own (`store`). Decoders are
distributions to draw from; the decoding twins of the losses are logits processors for transformers too. It may import
`ops`, and `runs` for locks and files (and what every room may).
Not here: metrics of texts (`metrics`), chat templates (`data`), questions and their answers (`evaluation`).
"""

from ts2_lightning.generation.decoders import DECODING, Decoder
from ts2_lightning.generation.logits_processors import EntmaxLogitsProcessor, SparsemaxLogitsProcessor
from ts2_lightning.generation.requests import Asked, GenerationSettings, Request, Response
from ts2_lightning.generation.sampling import sample

__all__ = [
    "DECODING",
    "Asked",
    "Decoder",
    "EntmaxLogitsProcessor",
    "GenerationSettings",
    "Request",
    "Response",
    "SparsemaxLogitsProcessor",
    "sample",
]
