"""Pure tensor functions: simplex projections, rows of logits, sets of tokens, statistics of tokens.

In: logits [n, K] and gold tokens [n]; out: values per row. It may import only torch, and what every room may; Triton
in `row_kernels`, which is not imported here.
Not here: anything that knows a model, a batch or a loss.
"""

from ts2_lightning.ops.entmax import ENTMAX_ORDERS, Entmax, entmax, entmax_probabilities
from ts2_lightning.ops.labels import SupervisedTokens, check_gold, check_logits, supervised_tokens
from ts2_lightning.ops.nucleus import top_p
from ts2_lightning.ops.precision import widest_float
from ts2_lightning.ops.row_numbers import row_numbers
from ts2_lightning.ops.rows import LogitRows, Mass, RowMatrix, Workspace, rows_per_block
from ts2_lightning.ops.sparse import Entries, Listed, Masked, Padded
from ts2_lightning.ops.statistics import (
    HeadAndTail,
    checked_statistics,
    divergence,
    gold_rank,
    head_and_tail,
    heads_and_tails,
    summary_request,
    token_statistics,
    top_probabilities,
    tspd_names,
)
from ts2_lightning.ops.summarised_rows import SummarisedRows
from ts2_lightning.ops.summary import SUMMARISED_ORDERS, RowKernels, SummaryRequest

__all__ = [
    "ENTMAX_ORDERS",
    "SUMMARISED_ORDERS",
    "Entmax",
    "Entries",
    "HeadAndTail",
    "Listed",
    "LogitRows",
    "Masked",
    "Mass",
    "Padded",
    "RowKernels",
    "RowMatrix",
    "SummarisedRows",
    "SummaryRequest",
    "SupervisedTokens",
    "Workspace",
    "check_gold",
    "check_logits",
    "checked_statistics",
    "divergence",
    "entmax",
    "entmax_probabilities",
    "gold_rank",
    "head_and_tail",
    "heads_and_tails",
    "row_numbers",
    "rows_per_block",
    "summary_request",
    "supervised_tokens",
    "token_statistics",
    "top_p",
    "top_probabilities",
    "tspd_names",
    "widest_float",
]
