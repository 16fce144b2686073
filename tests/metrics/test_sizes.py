"""Counts of sizes and their quantiles, against numpy."""

import math

import numpy as np
import pytest
import torch

from ts2_lightning.metrics import functional as f
from ts2_lightning.types import UserError

SHARES = [0.0, 0.07, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0]


@pytest.mark.parametrize("n", [1, 2, 10, 99, 100, 1000])
def test_quantiles(n: int) -> None:
    sizes = torch.randint(1, 40, (n,), generator=torch.Generator().manual_seed(n))
    actual = f.quantiles_of_counts(f.count_sizes(sizes.float()), SHARES)
    assert actual.tolist() == np.quantile(sizes.numpy(), SHARES, method="inverted_cdf").tolist()


def test_a_share_that_is_a_hair_too_large() -> None:
    """In floating point 0.07 * 100 is above 7, and 0.55 * 100 above 55: the 7th and the 55th are meant."""
    assert f.quantiles_of_counts(f.count_sizes(torch.arange(1, 101)), [0.07, 0.55]).tolist() == [7, 55]


def test_counts_add_up() -> None:
    """Pieces on several ranks give what all tokens together give."""
    a, b = torch.randint(1, 9, (50,)), torch.randint(1, 30, (7,))
    assert torch.equal(f.count_sizes(a) + f.count_sizes(b), f.count_sizes(torch.cat([a, b])))


def test_rows_are_counted_each_by_itself() -> None:
    sizes = torch.tensor([[1.0, 5.0, math.nan, 0.0], [6.0, -1.0, 2.0, 2.0]])
    assert f.count_sizes_of_rows(sizes, largest=5).tolist() == [[1, 1, 0, 0, 0, 1, 1], [0, 0, 2, 0, 0, 0, 2]]
    assert f.count_sizes_of_rows(torch.zeros(2, 0), largest=3).tolist() == [[0] * 5] * 2


def test_beyond_the_largest() -> None:
    counts = f.count_sizes(torch.tensor([[1.0, 5.0], [6.0, math.nan]]), largest=5)
    assert counts.tolist() == [0, 1, 0, 0, 0, 1, 2]
    assert f.quantiles_of_counts(counts, [0.25, 0.5, 0.75]).tolist() == [1, 5, math.inf]


def test_several_counts_at_once_are_each_by_itself() -> None:
    rows = [torch.tensor([1, 1, 2, 5]), torch.zeros(0), torch.tensor([7, 300])]
    counts = torch.stack([f.count_sizes(row, largest=20) for row in rows])
    together = f.quantiles_of_counts(counts.reshape(3, 1, -1), [0.5, 0.9])
    alone = torch.stack([f.quantiles_of_counts(one, [0.5, 0.9]) for one in counts])
    torch.testing.assert_close(together, alone[:, None], rtol=0, atol=0, equal_nan=True)
    assert together[0, 0].tolist() == [1, 5]
    assert together[2, 0].tolist() == [7, math.inf]


def test_nothing() -> None:
    counts = f.count_sizes(torch.zeros(0))
    assert counts.sum() == 0
    assert f.quantiles_of_counts(counts, [0.5, 1.0]).isnan().all()


def test_shares_out_of_range() -> None:
    with pytest.raises(UserError, match=r"quantiles\[1\] must be a finite number of at least 0 and at most 1, got 90"):
        f.quantiles_of_counts(f.count_sizes(torch.ones(3)), [0.5, 90])
