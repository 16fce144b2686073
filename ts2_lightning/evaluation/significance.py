"""How likely differences between two models are by chance, and what many of them are worth together."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ts2_lightning.ranges import COUNT, SEED, check_number
from ts2_lightning.types import UserError

DRAWS = 20_000
"""Draws of signs where there are too many to go through."""

_OUTCOMES = 2**18
"""Different ways to draw the signs that are gone through one by one, at most."""
_BLOCK = 4_000_000  # numbers of draws that are held at once


class SignFlips(NamedTuple):
    """The outcome of a sign-flip test.

    Attributes:
        p: probability of a mean at least as far from 0, if for each question either model were as likely to be ahead;
            nan where there is no question.
        exact: whether all signs were gone through, and not some of them drawn.
    """

    p: float
    exact: bool


def sign_flip(differences: ArrayLike, draws: int = DRAWS, seed: int = 0, digits: int = 6) -> SignFlips:
    """Whether the mean of paired differences may be 0: the two-sided sign-flip permutation test.

    If two models are equally good, the difference at each question might as well have had the other sign. Hence the
    test asks how many of the 2^n ways to choose the signs have a sum at least as far from 0. Unlike the bootstrap it
    keeps its level for a handful of questions: of n that differ no p is below 2^(1 - n). For right and wrong answers it
    is McNemar's exact test. Questions of one difference are drawn together, as a binomial number of signs; if there
    are at most 2^18 outcomes then, all are counted. Else signs are drawn, and p = (1 + hits) / (1 + draws) is never 0.

    Args:
        differences: difference at each question, [P].
        draws: number of draws where there are too many signs to go through.
        seed: seed of the draws.
        digits: decimals in which values are there; sums that differ by less than their rounding are equal.

    Raises:
        UserError: a difference that is not finite, or a number out of its range.

    Source: Fisher, The Design of Experiments (1935), section 21; Noreen, Computer-Intensive Methods for Testing
        Hypotheses (1989).

    Example:
        >>> sign_flip([1, 1, 1, 1, 0]), sign_flip([1, -1]).p, sign_flip([0, 0]).p
        (SignFlips(p=0.125, exact=True), 1.0, 1.0)
    """
    check_number("draws", draws, COUNT)
    check_number("seed", seed, SEED)
    numbers = np.asarray(differences, dtype=np.float64).ravel()
    if not np.isfinite(numbers).all():
        raise UserError(f"differences: {(~np.isfinite(numbers)).sum()} of {numbers.size} are not finite")
    if not numbers.size:
        return SignFlips(math.nan, True)
    steps = np.rint(numbers * 10**digits)  # whole numbers, whose sums are exact
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    least = abs(steps.sum()) - steps.size
    if np.log2(counts + 1).sum() <= math.log2(_OUTCOMES):
        return SignFlips(_counted(sizes, counts, least), True)
    return SignFlips(_drawn(sizes, counts, least, draws, seed), False)


def _counted(sizes: np.ndarray, counts: np.ndarray, least: float) -> float:
    """The probability of a sum at least so far from 0, over all signs."""
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        positive = np.arange(count + 1)
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(count, 0, -1) / np.arange(1, count + 1)))])
        sums = np.add.outer(sums, (2 * positive - count) * size).ravel()
        chances = np.multiply.outer(chances, np.exp(logs - count * math.log(2))).ravel()
    return min(1.0, math.fsum(chances[np.abs(sums) >= least]))


def _drawn(sizes: np.ndarray, counts: np.ndarray, least: float, draws: int, seed: int) -> float:
    """The same, over signs that are drawn."""
    random, hits = np.random.default_rng(seed), 0
    for start in range(0, draws, block := max(1, _BLOCK // sizes.size)):
        positive = random.binomial(counts, 0.5, size=(min(block, draws - start), sizes.size))
        hits += int((np.abs((2 * positive - counts) @ sizes) >= least).sum())
    return (1 + hits) / (1 + draws)


def holm(p_values: ArrayLike) -> np.ndarray:
    """p values corrected for their number, by Holm's step-down method.

    The probability that any of those below a level is so by chance is at most that level, however they hang together.
    Sorted p_1 <= ... <= p_m become the largest of (m - i + 1) p_i up to each, at most 1.

    Args:
        p_values: p values, [M]; those that are nan, of what was not tested, stay so and do not count.

    Returns:
        Corrected p values in the same order, [M] in float64.

    Raises:
        UserError: a number below 0 or above 1.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(6).tolist(), holm([]).tolist()
        ([0.03, 0.06, 0.06], [])
    """
    numbers = np.asarray(p_values, dtype=np.float64).ravel()
    tested = np.flatnonzero(~np.isnan(numbers))
    if ((numbers[tested] < 0) | (numbers[tested] > 1)).any():
        raise UserError(f"p_values: must be from 0 to 1, got {numbers[tested].min():g} to {numbers[tested].max():g}")
    corrected = np.full(numbers.shape, math.nan)
    rising = tested[np.argsort(numbers[tested], kind="stable")]
    factors = np.arange(rising.size, 0, -1)
    corrected[rising] = np.minimum(1.0, np.maximum.accumulate(factors * numbers[rising]))
    return corrected
