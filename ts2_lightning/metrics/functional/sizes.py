"""Counts of whole numbers, such as support sizes, and their quantiles: counts of pieces and of ranks simply add up."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ts2_lightning.ops import widest_float
from ts2_lightning.ranges import SHARE, check_number


def count_sizes(sizes: Tensor, largest: int = 1024) -> Tensor:
    """The number of times that each size occurs. Nothing waits for the device.

    Args:
        sizes: [...] whole numbers from 0, of any dtype.
        largest: largest size with a count of its own.

    Returns:
        [largest + 2] int64: at i the sizes i, at the end those above `largest` (and what is not a number).

    Example:
        >>> count_sizes(torch.tensor([1.0, 3.0, 1.0, 9.0]), largest=3).tolist()
        [0, 2, 0, 1, 1]
    """
    return count_sizes_of_rows(sizes.reshape(1, -1), largest)[0]


def count_sizes_of_rows(sizes: Tensor, largest: int = 1024) -> Tensor:
    """`count_sizes` of several rows at once. Nothing waits for the device.

    Args:
        sizes: [R, N] whole numbers from 0, of any dtype.
        largest: largest size with a count of its own.

    Returns:
        [R, largest + 2] int64.

    Example:
        >>> count_sizes_of_rows(torch.tensor([[1.0, 1.0], [0.0, 9.0]]), largest=2).tolist()
        [[0, 2, 0, 0], [1, 0, 0, 1]]
    """
    slots = torch.where((sizes >= 0) & (sizes <= largest), sizes, largest + 1).long()
    counts = torch.zeros(len(sizes), largest + 2, dtype=torch.long, device=sizes.device)
    return counts.scatter_add_(1, slots, torch.ones_like(slots))


def quantiles_of_counts(counts: Tensor, quantiles: Sequence[float]) -> Tensor:
    """The smallest size that at least a share q of all does not exceed, exactly (numpy's `inverted_cdf`).

    Args:
        counts: [..., s] counts from `count_sizes`, possibly summed over pieces.
        quantiles: shares q, each from 0 to 1.

    Returns:
        [..., len(quantiles)] float64; inf where the answer is above `largest`, NaN where nothing was counted.

    Raises:
        UserError: if a share is not from 0 to 1.

    Example:
        >>> quantiles_of_counts(count_sizes(torch.tensor([1, 1, 2, 5])), [0.5, 0.75, 0.9]).tolist()
        [1.0, 2.0, 5.0]
    """
    check_shares(quantiles)
    dtype = widest_float(counts.device)
    at_most = counts.cumsum(-1)
    total = at_most[..., -1:]
    ranks = torch.tensor(list(quantiles), dtype=dtype, device=counts.device) * total
    ranks = (ranks * (1 - 1e-12)).ceil().clamp(min=1).long()  # 0.07 * 100 is a hair above 7; the first is the 1st
    slots = torch.searchsorted(at_most, ranks).to(dtype)
    beyond = slots >= counts.shape[-1] - 1
    return slots.masked_fill(beyond, torch.inf).masked_fill(total == 0, torch.nan)


def check_shares(quantiles: Sequence[float]) -> tuple[float, ...]:
    """The shares as a tuple. Raises UserError if one is not from 0 to 1."""
    for place, share in enumerate(quantiles):
        check_number(f"quantiles[{place}]", share, SHARE)
    return tuple(quantiles)
