"""How far two columns of numbers agree, with intervals over rows."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from ts2_lightning.ranges import COUNT, check_number

DRAWS = 2_000
_LEVEL = 0.95
_BLOCK = 1_000_000  # numbers that are resampled at once
_ROUNDING = 1e-24  # what it leaves of the variance of a constant column
_MOST_UNDEFINED = 0.1
"""Share of resamples without a value from which on there is no interval."""


class Agreed(NamedTuple):
    """A statistic of rows with its interval.

    Attributes:
        value: the statistic over all rows; nan where it is not defined.
        low: lower end of the interval; nan if there is none.
        high: upper end of the interval; nan if there is none.
        rows: number of rows that it is of.
        note: empty, or why there is no value or no interval.
    """

    value: float
    low: float
    high: float
    rows: int
    note: str = ""


Statistic = Callable[[np.ndarray], np.ndarray]
"""Gives the statistic of rows [..., N, C] of numbers, for each of the tables; nan where it is not defined."""


def resampled(rows: ArrayLike, statistic: Statistic, draws: int = DRAWS, seed: int = 0) -> Agreed:
    """A statistic with the 95 % percentile interval of the bootstrap over rows, whatever their order.

    Args:
        rows: numbers of each row, [N, C]; or [N] for one column.
        statistic: function of such rows.
        draws: number of resamples.
        seed: seed of the resamples.

    Raises:
        UserError: no resamples.

    Example:
        >>> rows = [[1, 1], [0, 0], [1, 0], [1, 1]] * 25
        >>> share = resampled(rows, lambda tables: (tables[..., 0] == tables[..., 1]).mean(-1))
        >>> share.value, share.low < 0.75 < share.high, share.rows
        (0.75, True, 100)
    """
    check_number("draws", draws, COUNT)
    table = np.asarray(rows, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if not len(table):
        return Agreed(math.nan, math.nan, math.nan, 0, "no row")
    table = table[np.lexsort(table.T[::-1])]
    value, count = float(statistic(table)), len(table)
    if not math.isfinite(value):
        return Agreed(math.nan, math.nan, math.nan, count, "not defined: all rows have the same number")
    if count == 1:
        return Agreed(value, math.nan, math.nan, 1, "one row: no interval")
    random, block = np.random.default_rng(seed), max(1, _BLOCK // table.size)
    sizes = [min(block, draws - start) for start in range(0, draws, block)]
    drawn = np.concatenate([statistic(table[random.integers(count, size=(size, count))]) for size in sizes])
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - _MOST_UNDEFINED) * draws:
        return Agreed(value, math.nan, math.nan, count, "too few different rows: no interval")
    low, high = np.quantile(defined, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Agreed(value, float(low), float(high), count)


def mean(rows: np.ndarray) -> np.ndarray:
    """The mean of the first column. `rows`: [..., N, C]."""
    return rows[..., 0].mean(-1)


def cohen_kappa(rows: np.ndarray) -> np.ndarray:
    """Cohen's kappa of two columns of categories: agreement beyond what their frequencies alone would give.

    (p_o - p_e) / (1 - p_e), with p_o the share of rows that agree and p_e the sum of p_1(c) p_2(c) over the categories.

    Source: Cohen, A Coefficient of Agreement for Nominal Scales (1960).

    Args:
        rows: categories as numbers, [..., N, 2].

    Returns:
        1 for full agreement, 0 for chance; nan where both columns have one and the same category. [...]

    Example:
        >>> float(cohen_kappa(np.array([[0, 0], [0, 1], [1, 1], [1, 1]])))
        0.5
    """
    first, second = rows[..., 0], rows[..., 1]
    observed = (first == second).mean(-1)
    shares = [(first == one).mean(-1) * (second == one).mean(-1) for one in np.unique(rows[..., :2])]
    expected = np.sum(shares, axis=0)
    return _divided(observed - expected, 1 - expected, 1e-12)


def quadratic_kappa(rows: np.ndarray) -> np.ndarray:
    """Cohen's kappa of two columns of numbers, a disagreement weighing as its square.

    1 - mean((x - y)^2) / (var(x) + var(y) + (mean(x) - mean(y))^2): on whole numbers it is the weighted kappa over
    their categories; on others it needs none, and is Lin's concordance.

    Source: Cohen, Weighted kappa (1968); Lin (1989).

    Args:
        rows: [..., N, 2].

    Returns:
        1 for full agreement, 0 for chance; nan where both columns are one and the same number. [...]

    Example:
        >>> float(quadratic_kappa(np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 3.0], [4.0, 5.0]]))).__round__(4)
        0.8571
    """
    rows = _scaled(rows[..., :2])
    first, second = rows[..., 0], rows[..., 1]
    expected = first.var(-1) + second.var(-1) + (first.mean(-1) - second.mean(-1)) ** 2
    return 1 - _divided(((first - second) ** 2).mean(-1), expected, _ROUNDING)


def pearson(rows: np.ndarray) -> np.ndarray:
    """The correlation of two columns of tables, [..., N, 2]; nan where one is constant. [...]

    >>> float(pearson(np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])))
    1.0
    """
    first, second = (_scaled(rows[..., [column]])[..., 0] for column in (0, 1))
    first, second = (column - column.mean(-1, keepdims=True) for column in (first, second))
    squares = [(column**2).sum(-1) for column in (first, second)]
    product = np.where(np.minimum(*squares) > _ROUNDING * rows.shape[-2], squares[0] * squares[1], 0.0)
    return _divided((first * second).sum(-1), np.sqrt(product), 0.0).clip(-1, 1)


def spearman(rows: np.ndarray) -> np.ndarray:
    """The correlation of the ranks of two columns of tables, [..., N, 2], ties sharing the mean of their ranks. [...]

    >>> float(spearman(np.array([[0.0, 1.0], [1.0, 10.0], [2.0, 100.0]])))
    1.0
    """
    return pearson(rankdata(rows[..., :2], axis=-2))


def partial_spearman(rows: np.ndarray) -> np.ndarray:
    """The correlation of the ranks of two columns among rows of equal third column, [..., N, 3].

    (r_12 - r_13 r_23) / sqrt((1 - r_13^2) (1 - r_23^2)); nan where a column is constant, or follows from the third.
    """
    ranks = rankdata(rows[..., :3], axis=-2)
    both, first, second = (pearson(ranks[..., pair]) for pair in ([0, 1], [0, 2], [1, 2]))
    left = (1 - first**2) * (1 - second**2)
    return _divided(both - first * second, np.sqrt(np.where(left > 1e-12, left, 0.0)), 0.0).clip(-1, 1)


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Tables whose largest number is 1, so that no square overflows or vanishes."""
    largest = np.abs(rows).max(axis=(-1, -2), keepdims=True)
    return rows / np.where(largest > 0, largest, 1.0)


def _divided(above: np.ndarray, below: np.ndarray, least: float) -> np.ndarray:
    """Quotients; nan where what is below is not larger than the least."""
    is_defined = below > least
    return np.where(is_defined, above / np.where(is_defined, below, 1.0), np.nan)
