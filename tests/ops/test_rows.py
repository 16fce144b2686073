"""Shared quantities of a row against their definitions, where floating point makes them hard."""

import gc
import math
import weakref

import pytest
import torch

from ts2_lightning.losses import TS2Loss
from ts2_lightning.ops import LogitRows, token_statistics


def rows_of(z: list[list[float]], labels: list[int], dtype: torch.dtype = torch.float32) -> LogitRows:
    return LogitRows(torch.tensor(z, dtype=dtype), torch.tensor(labels))


@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("width", [1, 2, 300, 5000])
def test_top(k: int, width: int) -> None:
    z = torch.randn(6, width)
    values, columns = LogitRows(z, torch.zeros(6, dtype=torch.long)).top(k)
    expected = z.sort(dim=-1, descending=True).values[:, :k]
    assert torch.equal(values, expected)
    assert torch.equal(z.gather(-1, columns), expected)


def test_top_with_ties_lists_each_column_once() -> None:
    _, columns = LogitRows(torch.zeros(2, 5000), torch.zeros(2, dtype=torch.long)).top(10)
    assert all(len(set(row)) == 10 for row in columns.tolist())


def test_small_tails_keep_their_digits() -> None:
    """One minus the inside would be 0 here: the tail is 3e-10 of the mass, float32 resolves 6e-8."""
    rows = rows_of([[22.0, 0.0, -2.0]], [0])
    expected = (math.exp(-22) + math.exp(-24)) / (1 + math.exp(-22) + math.exp(-24))
    kept = rows.with_gold(rows.sparsemax.support)
    assert rows.mass(kept).outside.item() == pytest.approx(expected, rel=1e-6)
    assert token_statistics(rows)["tail_mass"].item() == pytest.approx(expected, rel=1e-6)


def test_mass_leaves_the_row_as_it_was() -> None:
    rows = LogitRows(torch.randn(4, 700), torch.arange(4))
    before = rows.exponentials.clone()
    mass = rows.mass(rows.with_gold(rows.sparsemax.support))
    assert torch.equal(rows.exponentials, before)
    torch.testing.assert_close(mass.inside + mass.outside, torch.ones(4))


def test_gold_outside_the_support_counts_as_tail() -> None:
    statistics = token_statistics(rows_of([[5.0, 0.0, 0.0]], [1]))
    assert statistics["gold_in_support"].item() == 0
    assert statistics["tail_mass"].item() == pytest.approx(2 / (math.exp(5) + 2), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_are_finite(dtype: torch.dtype) -> None:
    rows = rows_of([[0.0, 1e4, -1e4], [1e4, 1e4, 1e4], [0.0, -math.inf, -1e30]], [0, 2, 0], dtype)
    statistics = token_statistics(rows)
    assert all(torch.isfinite(value).all() for value in statistics.values())
    assert statistics["cross_entropy"].tolist() == pytest.approx([1e4, math.log(3), 0.0])
    assert statistics["entropy"].tolist() == pytest.approx([0.0, math.log(3), 0.0], abs=1e-6)
    assert statistics["support_size"].tolist() == [1, 3, 1]


def test_scaled_is_itself_at_one_and_made_once() -> None:
    rows = LogitRows(torch.randn(2, 5), torch.zeros(2, dtype=torch.long))
    assert rows.scaled(1.0) is rows
    assert rows.scaled(2.0) is rows.scaled(2.0)


def test_temporaries_are_freed_at_once() -> None:
    """No reference cycle: rows that wait for the garbage collector hold gigabytes."""
    gc.disable()
    try:
        rows = LogitRows(torch.randn(2, 300), torch.zeros(2, dtype=torch.long))
        token_statistics(rows, logit_scale=2.0)
        TS2Loss().evaluate(rows)
        alive = weakref.ref(rows)
        del rows
        assert alive() is None
    finally:
        gc.enable()
