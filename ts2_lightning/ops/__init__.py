"""Pure tensor functions: simplex projections, rows of logits, statistics. They know nothing of models."""

from ts2_lightning.ops.entmax import Entmax, entmax, entmax_probabilities
from ts2_lightning.ops.precision import widest_float
from ts2_lightning.ops.rows import LogitRows, Mass, Workspace
from ts2_lightning.ops.sparse import Entries, Listed, Masked
from ts2_lightning.ops.statistics import token_statistics

__all__ = [
    "Entmax",
    "Entries",
    "Listed",
    "LogitRows",
    "Masked",
    "Mass",
    "Workspace",
    "entmax",
    "entmax_probabilities",
    "token_statistics",
    "widest_float",
]
