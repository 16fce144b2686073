"""How sure means over prompts are: intervals by the bootstrap over prompts, alone, in groups, and of two models.

`significance` says how likely a difference is by chance; `studies/report` has intervals over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ts2_lightning.ranges import COUNT, SEED, Range, check_number
from ts2_lightning.types import UserError

_BLOCK = 4_000_000  # numbers that a bootstrap holds at once
_SHOWN = 3
_LEVEL = Range(above=0, below=1)


class Interval(NamedTuple):
    """A mean over prompts with its interval.

    Attributes:
        mean: mean over the prompts.
        low: lower end; nan if there is no interval.
        high: upper end; nan if there is no interval.
        prompts: number of prompts.
        note: empty, or why the interval says little.
    """

    mean: float
    low: float
    high: float
    prompts: int
    note: str = ""


def bootstrap(values: ArrayLike, draws: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over prompts with the percentile interval of the bootstrap over prompts.

    It does not depend on the order of the prompts.

    Args:
        values: value of each prompt, [P].
        draws: number of resamples.
        seed: seed of the resamples.
        level: share of the resamples within the interval.

    Raises:
        UserError: no prompt, a value that is not finite, or a number out of its range.

    Example:
        >>> interval = bootstrap([0.0, 1.0, 1.0, 1.0] * 25)
        >>> round(interval.mean, 3), round(interval.low, 2), round(interval.high, 2), interval.prompts
        (0.75, 0.66, 0.83, 100)
        >>> bootstrap([1.0]).note
        'one prompt: no interval'
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if not numbers.size:
        raise UserError("values: there is no prompt to take a mean of")
    if not np.isfinite(numbers).all():
        raise UserError(f"values: must be finite, got {(~np.isfinite(numbers)).sum()} of {numbers.size} that are not")
    mean = math.fsum(numbers) / numbers.size
    if numbers.size == 1:
        return Interval(mean, math.nan, math.nan, 1, "one prompt: no interval")
    means = _resampled_means(numbers, draws, seed)
    check_number("level", level, _LEVEL)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    note = "all prompts have the same value: the interval has no width" if np.ptp(numbers) == 0 else ""
    return Interval(mean, float(low), float(high), numbers.size, note)


def bootstrap_of_groups(
    groups: Sequence[ArrayLike], draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The mean of the means of groups, such as tasks, with the percentile interval of the bootstrap within each.

    Every group counts the same, however many prompts it has. The groups themselves are given: no other ones could have
    come. One of a single prompt adds nothing to the width.

    Args:
        groups: values of the prompts of each group, [G] times [P_g].
        draws: number of resamples.
        seed: seed of the resamples.
        level: share of the resamples within the interval.

    Raises:
        UserError: no group, a group without prompts, a value that is not finite, or a number out of its range.

    Example:
        >>> interval = bootstrap_of_groups([[1.0, 3.0] * 50, [10.0]])
        >>> interval.mean, round(interval.low, 1), round(interval.high, 1), interval.prompts
        (6.0, 5.9, 6.1, 101)
    """
    if not groups:
        raise UserError("groups: there is none to take a mean of")
    each = [bootstrap(group, 1, seed, level) for group in groups]  # which looks at the values
    mean, prompts = math.fsum(one.mean for one in each) / len(each), sum(one.prompts for one in each)
    means = sum(
        _resampled_means(np.asarray(group, dtype=np.float64).ravel(), draws, seed + number)
        for number, group in enumerate(groups)
    )
    low, high = np.quantile(means / len(groups), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), prompts)


def _resampled_means(numbers: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Means of resamples, [draws]. What is drawn is how often each different value comes, as most come many times."""
    check_number("draws", draws, COUNT)
    check_number("seed", seed, SEED)
    different, counts = np.unique(numbers, return_counts=True)
    if different.size == 1:
        return np.full(draws, different[0])
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, block := max(1, _BLOCK // different.size)):
        drawn = random.multinomial(numbers.size, counts / numbers.size, size=min(block, draws - start))
        means.append(drawn @ different / numbers.size)
    return np.concatenate(means)


class Difference(NamedTuple):
    """How a second run differs from a first one on the same prompts.

    Attributes:
        interval: mean of second minus first, with the interval of the bootstrap over prompts.
        better: number of prompts at which the second has more.
        worse: number of prompts at which it has less.
        sure: whether the interval does not contain 0.
    """

    interval: Interval
    better: int
    worse: int
    sure: bool


def paired(
    first: Mapping[str, float], second: Mapping[str, float], draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Compares two runs prompt by prompt, which is far sharper than two intervals side by side.

    Args:
        first: value of each prompt by its id.
        second: the same of the other run.
        draws: number of resamples.
        seed: seed of the resamples.
        level: share of the resamples within the interval.

    Raises:
        UserError: the runs have other prompts, none at all, or a value that is not finite.

    Example:
        >>> difference = paired({"a": 0.0, "b": 1.0, "c": 0.0}, {"a": 1.0, "b": 1.0, "c": 1.0})
        >>> round(difference.interval.mean, 3), difference.better, difference.worse
        (0.667, 2, 0)
    """
    absent, added = [name for name in first if name not in second], [name for name in second if name not in first]
    if absent or added:
        shown = [*absent, *added]
        names = ", ".join(map(str, shown[:_SHOWN])) + (" ..." if len(shown) > _SHOWN else "")
        raise UserError(
            f"not the same prompts: {len(absent)} of {len(first)} of the first run are not in the second, "
            f"{len(added)} of {len(second)} of the second are not in the first ({names})"
        )
    differences = np.array([second[name] - first[name] for name in first], dtype=np.float64)
    interval = bootstrap(differences, draws, seed, level)
    sure = bool(interval.low > 0 or interval.high < 0)
    return Difference(interval, int((differences > 0).sum()), int((differences < 0).sum()), sure)
