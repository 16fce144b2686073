"""The top-p set of wide rows: exact, and mostly without a sort of the whole row."""

import torch
from torch import Tensor

from ts2_lightning.ops import sparse
from ts2_lightning.ops.precision import widest_float
from ts2_lightning.ops.rows import LogitRows
from ts2_lightning.ops.sparse import Entries, entries_of

CANDIDATES = 128
"""Largest logits of a row that are looked at before the row is sorted, where that may depend on the data."""


def top_p(rows: LogitRows, p: float) -> Entries:
    """The fewest tokens of each row that together have probability p, and any as likely as the last of them.

    So the set follows from the probabilities alone, and not from the order of tokens that are equally likely.

    Source: Holtzman et al. (2020), equation 2.

    Args:
        rows: n rows of logits.
        p: probability, above 0 and below 1.

    Example:
        >>> rows = LogitRows(torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log(), torch.tensor([0]))
        >>> top_p(rows, 0.4).count().tolist(), top_p(rows, 0.6).count().tolist()
        ([1], [3])
    """
    wanted = p * rows.normalizer.to(widest_float(rows.logits.device))
    if not sparse.sizes_may_depend_on_data(rows.logits.device):
        least, _ = _least_logit(rows.logits.sort(-1, descending=True).values, rows.maximum, wanted)
    else:
        least, is_reached = _least_logit(rows.top(CANDIDATES)[0], rows.maximum, wanted)
        flat = (~is_reached).nonzero()[:, 0]
        if len(flat):
            ordered = rows.logits[flat].sort(-1, descending=True).values
            least[flat], _ = _least_logit(ordered, rows.maximum[flat], wanted[flat])
    return entries_of(rows.logits >= least[:, None])


def _least_logit(ordered: Tensor, maximum: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The logit at which the largest ones of a row reach what is wanted of its normaliser, and whether they do.

    Args:
        ordered: [n, k] largest logits of each row, in falling order.
        maximum: [n] the largest.
        wanted: [n].

    Returns:
        [n] the logit, and [n] bool.
    """
    reached = torch.cumsum((ordered - maximum[:, None]).exp_(), -1, dtype=wanted.dtype) >= wanted[:, None]
    place = (~reached).sum(-1, keepdim=True).clamp_(max=ordered.shape[-1] - 1)
    # Never a masked token: where rounding keeps the sum below what is wanted, the place is the last one.
    least = ordered.gather(-1, place)[:, 0].clamp_(min=torch.finfo(ordered.dtype).min)
    return least, reached[:, -1]
