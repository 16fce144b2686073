"""The exact sparsemax of wide rows, without a sort and mostly without touching the row twice.

Sparsemax (Martins and Astudillo, 2016) is the Euclidean projection onto the simplex,
max(z - tau, 0), with tau such that it sums to one. Only entries above max(z) - 1 can be in its support,
which in a vocabulary of 128k is a handful of tokens. The maxima of blocks of columns find them: Michelot's
iteration on the maxima, a subset of the row, bounds tau from below, and only blocks whose maximum
exceeds that bound can hold support.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ts2_lightning.ops.sparse import Entries

BLOCK = 256
"""Columns per block: 501 blocks for a vocabulary of 128,256."""

DENSE_SHARE = 1 / 16
"""Above this share of blocks that may hold support, iterating over the full width is cheaper than a gather."""

MAX_STEPS = 50
"""Michelot steps towards a lower bound; they stop by themselves, mostly after 5. Any number gives a valid bound."""

MARGIN = 1e-5
"""How much a bound is lowered, so that rounding in float32 can never cut an entry of the support."""


class Sparsemax(NamedTuple):
    """sparsemax(z) of n rows of logits.

    Attributes:
        support: the entries with positive probability.
        probabilities: [s] sparsemax(z) at those entries.
        threshold: [n] tau(z) - max(z), in [-1, 0).
        size: [n] int64, number of entries in the support.
    """

    support: Entries
    probabilities: Tensor
    threshold: Tensor
    size: Tensor


def block_maxima(logits: Tensor, block: int = BLOCK) -> Tensor:
    """Maxima of consecutive blocks of columns, the last block possibly shorter.

    Args:
        logits: [n, K], contiguous.
        block: columns per block.

    Returns:
        [n, ceil(K / block)].
    """
    n, K = logits.shape
    whole = K - K % block
    maxima = logits[:, :whole].reshape(n, whole // block, block).amax(-1)
    if whole == K:
        return maxima
    return torch.cat([maxima, logits[:, whole:].amax(-1, keepdim=True)], dim=-1)


def block_entries(logits: Tensor, hit: Tensor, block: int = BLOCK) -> Entries:
    """All entries of the blocks marked in `hit` ([n, ceil(K / block)] bool)."""
    K = logits.shape[-1]
    rows, blocks = hit.nonzero(as_tuple=True)
    columns = blocks[:, None] * block + torch.arange(block, device=logits.device)
    rows = rows[:, None].expand_as(columns)
    inside = columns < K
    if K % block == 0:
        return Entries(rows.reshape(-1), columns.reshape(-1))
    return Entries(rows[inside], columns[inside])


def sparsemax(logits: Tensor, maxima: Tensor | None = None) -> Sparsemax:
    """Exact sparsemax of every row (Martins and Astudillo, 2016, algorithm 1; TS2, section 3).

    Not differentiable: losses bring their own closed-form gradients. The threshold is found in float64
    whatever the dtype, on logits from which the row maximum has been taken.

    Args:
        logits: [n, K] float32 or float64. Entries may be -inf, but no row all of them.
        maxima: [n, ceil(K / BLOCK)] the `block_maxima`, when they are at hand.

    Returns:
        The support, the probabilities on it, the threshold and the size, see `Sparsemax`.

    Example:
        >>> result = sparsemax(torch.tensor([[1.0, 0.6, -3.0]]))
        >>> result.support.columns.tolist(), [round(p, 2) for p in result.probabilities.tolist()]
        ([0, 1], [0.7, 0.3])
    """
    if maxima is None:
        maxima = block_maxima(logits)
    top = maxima.amax(-1, keepdim=True)
    maxima = maxima - top
    bound = _lower_bound(maxima)
    hit = maxima > bound
    if hit.sum() > DENSE_SHARE * hit.numel():
        shifted = logits - top
        bound = _lower_bound(shifted)
        entries = Entries(*(shifted > bound).nonzero(as_tuple=True))
    else:
        entries = block_entries(logits, hit)
    # The bound has found a few candidates; the threshold itself is exact.
    values = logits[entries.index].double() - top[entries.rows, 0].double()
    entries, values, threshold = _michelot(entries, values, bound[:, 0].double())
    probabilities = values - threshold[entries.rows]
    size = entries.count(len(logits))
    return Sparsemax(entries, probabilities.to(logits.dtype), threshold.to(logits.dtype), size)


def _lower_bound(shifted: Tensor) -> Tensor:
    """A lower bound [n, 1] of tau(z) - max(z), by Michelot's iteration from below on a subset of each row.

    Args:
        shifted: [n, k] entries of z - max(z), the maximum among them.
    """
    bound, previous = torch.full_like(shifted[:, :1], -1.0), None
    for _ in range(MAX_STEPS):
        above = shifted > bound
        count = above.sum(-1, keepdim=True)
        if previous is not None and torch.equal(count, previous):
            break
        bound, previous = (torch.where(above, shifted, 0.0).sum(-1, keepdim=True) - 1) / count, count
    return bound - MARGIN


def _michelot(entries: Entries, shifted: Tensor, bound: Tensor) -> tuple[Entries, Tensor, Tensor]:
    """Michelot's iteration on listed entries that hold the support. Returns it, its logits, the threshold [n]."""
    threshold = bound
    while True:
        keep = shifted > threshold[entries.rows]
        if threshold is not bound and keep.all():
            return entries, shifted, threshold
        entries, shifted = Entries(entries.rows[keep], entries.columns[keep]), shifted[keep]
        n = len(bound)
        threshold = (entries.sum(shifted, n) - 1) / entries.count(n)
