"""Fronts, and diversity at a given quality: pure functions of points, one for each setting of the dials."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Setting = tuple[str, ...]
"""Choices of the dials, in their order."""

Outcome = Literal["reached", "better", "worse", "gap", "none"]
"""`reached`: diversity at the quality is known; `better`, `worse`: every measured quality is better or worse than it;
`gap`: between settings that are no neighbours, or of which one is not measured; `none`: nothing is measured."""


class Point(NamedTuple):
    """Quality and diversity at a setting; nan where one is not measured or not defined."""

    quality: float
    diversity: float

    @property
    def is_defined(self) -> bool:
        """Whether both are finite numbers."""
        return math.isfinite(self.quality) and math.isfinite(self.diversity)


@dataclass(frozen=True)
class Match:
    """Diversity at a quality.

    Attributes:
        outcome: whether the curve reaches the quality.
        diversity: nan where it does not.
        between: the two neighbouring settings between which it was interpolated, equal where one has the quality.
    """

    outcome: Outcome
    diversity: float = math.nan
    between: tuple[Setting, Setting] | None = None


def is_better(one: float, other: float, better: str) -> bool:
    """Whether a number is better than another.

    Args:
        one: number.
        other: another.
        better: direction that is better, `higher` or `lower`.

    Example:
        >>> is_better(0.5, 0.25, "higher"), is_better(0.5, 0.25, "lower")
        (True, False)
    """
    return one > other if better == "higher" else one < other


def pareto_front(points: Sequence[Point], quality: str, diversity: str) -> list[bool]:
    """Which points no other point dominates: one that is as good in both, and better in one. Undefined points are none.

    Args:
        points: points; of equal ones all are on the front, or none.
        quality: direction in which the quality is better.
        diversity: direction in which the diversity is better.

    Example:
        >>> pareto_front([Point(0.9, 2.0), Point(0.8, 3.0), Point(0.8, 2.5)], "higher", "higher")
        [True, True, False]
    """

    def dominates(one: Point, other: Point) -> bool:
        worse = is_better(other.quality, one.quality, quality) or is_better(other.diversity, one.diversity, diversity)
        return not worse and one != other

    defined = [point for point in points if point.is_defined]
    return [point.is_defined and not any(dominates(other, point) for other in defined) for point in points]


def lines_of(settings: Iterable[Setting], orders: Sequence[Sequence[str]]) -> list[list[Setting]]:
    """Settings along each dial, the other dials held; neighbours in a line are one step of its dial apart.

    Args:
        settings: settings that there are.
        orders: choices of each dial in their order.

    Returns:
        Lines of all dials; a setting is in as many as there are dials.

    Example:
        >>> lines_of([("1", "a"), ("2", "a"), ("2", "b")], [["1", "2"], ["a", "b"]])
        [[('1', 'a'), ('2', 'a')], [('2', 'b')], [('1', 'a')], [('2', 'a'), ('2', 'b')]]
    """
    lines: list[list[Setting]] = []
    there = list(settings)
    for dial, order in enumerate(orders):
        along: dict[Setting, list[Setting]] = {}
        for setting in sorted(there, key=lambda setting: order.index(setting[dial])):
            along.setdefault(setting[:dial] + setting[dial + 1 :], []).append(setting)
        lines += along.values()
    return lines


def diversity_at(
    target: float,
    points: Mapping[Setting, Point],
    lines: Sequence[Sequence[Setting]],
    quality: str,
    diversity: str,
) -> Match:
    """The best diversity at which the curves have a quality; never extrapolated.

    Between two neighbouring settings the diversity is linear in the quality. Where several settings, or pairs of
    neighbours, have the quality between them, the best diversity counts; of equal ones, the first.

    Args:
        target: quality.
        points: point of each setting; a setting that is not there, or not defined, cuts the curve.
        lines: settings in order, neighbours beside each other.
        quality: direction in which the quality is better.
        diversity: direction in which the diversity is better.

    Example:
        >>> line = [("1",), ("2",), ("4",)]
        >>> points = dict(zip(line, [Point(0.5, 4.0), Point(0.75, 3.0), Point(1.0, 2.0)]))
        >>> diversity_at(0.625, points, [line], "higher", "higher")
        Match(outcome='reached', diversity=3.5, between=(('1',), ('2',)))
        >>> diversity_at(0.25, points, [line], "higher", "higher").outcome
        'better'
    """
    defined = {setting: point for setting, point in points.items() if point.is_defined}
    if not defined:
        return Match("none")
    crossings = [
        Match("reached", point.diversity, (setting, setting))
        for setting, point in defined.items()
        if point.quality == target
    ]
    for line in lines:
        for first, second in itertools.pairwise(line):
            if first in defined and second in defined:
                crossings += _crossing(target, first, second, defined)
    if crossings:
        choose = max if diversity == "higher" else min
        return choose(crossings, key=lambda match: match.diversity)
    sides = {is_better(point.quality, target, quality) for point in defined.values()}
    return Match("gap" if len(sides) > 1 else "better" if sides == {True} else "worse")


def _crossing(target: float, first: Setting, second: Setting, points: Mapping[Setting, Point]) -> list[Match]:
    """The point strictly between two neighbours that has the quality, if they are on different sides of it."""
    low, high = points[first], points[second]
    if not min(low.quality, high.quality) < target < max(low.quality, high.quality):
        return []
    share = (target - low.quality) / (high.quality - low.quality)
    between = low.diversity + share * (high.diversity - low.diversity)
    return [Match("reached", between, (first, second))]
