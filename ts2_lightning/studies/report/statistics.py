"""Means over seeds and paired differences: pure functions of numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

CONFIDENCE = 0.95
"""Confidence of every interval."""


@dataclass(frozen=True)
class Summary:
    """Values of one quantity, one per seed.

    Attributes:
        n: how many.
        mean: nan where a value is not a finite number: a mean of the others would not be one of the same thing.
        sd: standard deviation of a sample (divisor n - 1); nan for fewer than two values.
    """

    n: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and its Student interval.

    Attributes:
        n: pairs.
        mean: mean of the differences; nan where one is not a finite number.
        low: lower end of the interval; nan for fewer than two pairs, which have none.
        high: its upper end.
    """

    n: int
    mean: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there are enough pairs for one."""
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is there and lies on one side of zero."""
        return self.low > 0 or self.high < 0


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard deviation.

    Example:
        >>> summarise([0.25, 0.5, 0.75])
        Summary(n=3, mean=0.5, sd=0.25)
        >>> summarise([0.5])
        Summary(n=1, mean=0.5, sd=nan)
    """
    n = len(values)
    if not n or not all(map(math.isfinite, values)):
        return Summary(n, math.nan, math.nan)
    mean = math.fsum(values) / n
    if n < 2:
        return Summary(n, mean, math.nan)
    return Summary(n, mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)))


def paired_difference(
    values: Mapping[int | None, float], baseline: Mapping[int | None, float], confidence: float = CONFIDENCE
) -> Difference:
    """Values less those of a baseline, seed by seed, over the seeds that both have. None is no seed, and pairs nothing.

    The interval is Student's for the mean of the differences, with n - 1 degrees of freedom.

    Args:
        values: seed -> value.
        baseline: the same of what is compared with.
        confidence: confidence of the interval.

    Example:
        >>> difference = paired_difference({0: 3.0, 1: 5.0, 7: 9.0}, {0: 1.0, 1: 2.0, 2: 0.0})
        >>> difference.n, difference.mean, round(difference.low, 3), round(difference.high, 3)
        (2, 2.5, -3.853, 8.853)
    """
    difference = summarise([values[seed] - baseline[seed] for seed in values if seed is not None and seed in baseline])
    return Difference(difference.n, difference.mean, *student_interval(difference, confidence))


def student_interval(summary: Summary, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Ends of Student's interval for a mean, with n - 1 degrees of freedom; nan where there is no deviation.

    Args:
        summary: summary of the values.
        confidence: confidence of the interval.

    Example:
        >>> low, high = student_interval(Summary(3, 0.5, 0.25))
        >>> round(low, 3), round(high, 3)
        (-0.121, 1.121)
    """
    if math.isnan(summary.sd):
        return math.nan, math.nan
    half = float(student.ppf((1 + confidence) / 2, summary.n - 1)) * summary.sd / math.sqrt(summary.n)
    return summary.mean - half, summary.mean + half
