"""Pure tensor functions: simplex projections, rows of logits, statistics. They know nothing of models."""

from ts2_lightning.ops.rows import LogitRows, Mass
from ts2_lightning.ops.sparse import Entries
from ts2_lightning.ops.sparsemax import Sparsemax, sparsemax
from ts2_lightning.ops.statistics import token_statistics

__all__ = ["Entries", "LogitRows", "Mass", "Sparsemax", "sparsemax", "token_statistics"]
