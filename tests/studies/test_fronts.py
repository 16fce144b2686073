"""Fronts and diversity at a quality: by hand, and against other ways to compute them."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from ts2_lightning.studies.report.fronts import Match, Point, Setting, diversity_at, lines_of, pareto_front

NAN = math.nan
UP = ("higher", "higher")


def along(points: Sequence[tuple[float, float]]) -> tuple[dict[Setting, Point], list[list[Setting]]]:
    """Points along one dial, called 0, 1, 2, ..."""
    settings = [(str(place),) for place in range(len(points))]
    return dict(zip(settings, (Point(*point) for point in points), strict=True)), [settings]


def match(target: float, points: Sequence[tuple[float, float]], better: tuple[str, str] = UP) -> Match:
    return diversity_at(target, *along(points), *better)


# Along one dial -----------------------------------------------------------------------------------------------------


def test_between_two_settings_it_is_linear_in_the_quality() -> None:
    """By hand: 0.95 is a third of the way from 0.94 to 0.97, so D is a third of the way from 4 to 2.5."""
    found = match(0.95, [(0.94, 4.0), (0.97, 2.5), (0.99, 1.0)])
    assert found.outcome == "reached"
    assert found.diversity == pytest.approx(3.5, rel=1e-12)
    assert found.between == (("0",), ("1",))


def test_of_several_crossings_the_best_diversity_counts() -> None:
    """A curve that comes back: at 0.9 it has D 3, 6 and 5; where less is better, 3."""
    points = [(0.8, 2.0), (1.0, 4.0), (0.8, 8.0), (1.0, 2.0)]
    assert match(0.9, points) == Match("reached", 6.0, (("1",), ("2",)))
    assert match(0.9, points, ("higher", "lower")) == Match("reached", 3.0, (("0",), ("1",)))


@pytest.mark.parametrize(
    ("points", "diversity", "between"),
    [
        ([(0.9, 3.0), (0.9, 5.0), (0.9, 4.0)], 5.0, "1"),  # flat: a setting itself, and none between
        ([(0.8, 1.0), (0.9, 2.0), (1.0, 1.0)], 2.0, "1"),  # met in passing
        ([(0.8, 1.0), (0.9, 3.0), (0.8, 1.0)], 3.0, "1"),  # touched
        ([(0.9, 7.0)], 7.0, "0"),
        ([(0.9, 2.0), (NAN, 9.0), (0.7, 1.0)], 2.0, "0"),
    ],
)
def test_a_setting_that_has_the_quality(points: list[tuple[float, float]], diversity: float, between: str) -> None:
    assert match(0.9, points) == Match("reached", diversity, ((between,), (between,)))


@pytest.mark.parametrize(
    ("points", "better", "outcome"),
    [
        ([(0.96, 3.0), (0.99, 1.0)], UP, "better"),
        ([(0.96, 3.0), (0.99, 1.0)], ("lower", "higher"), "worse"),
        ([(0.5, 3.0), (0.94, 1.0)], UP, "worse"),
        ([(0.94, 3.0), (NAN, 2.0), (0.99, 1.0)], UP, "gap"),
        ([(0.94, 3.0), (0.96, NAN), (0.99, 1.0)], UP, "gap"),
        ([(0.94, 3.0), (math.inf, 2.0)], UP, "worse"),
        ([(NAN, 3.0)], UP, "none"),
        ([], UP, "none"),
    ],
)
def test_nothing_is_extrapolated_nor_drawn_across_a_gap(
    points: list[tuple[float, float]], better: tuple[str, str], outcome: str
) -> None:
    found = match(0.95, points, better)
    assert (found.outcome, found.between) == (outcome, None)
    assert math.isnan(found.diversity)


def brute_force(target: float, points: Sequence[tuple[float, float]]) -> float | None:
    """The largest D of the polygon at the quality, in exact fractions, of all parts one after the other."""
    there: list[Fraction] = []
    exact = [None if math.isnan(q) or math.isnan(d) else (Fraction(q), Fraction(d)) for q, d in points]
    goal = Fraction(target)
    for point in exact:
        if point is not None and point[0] == goal:
            there.append(point[1])
    for one, other in itertools.pairwise(exact):
        if one is not None and other is not None and one[0] != other[0]:
            share = (goal - one[0]) / (other[0] - one[0])
            if 0 <= share <= 1:
                there.append((1 - share) * one[1] + share * other[1])
    return float(max(there)) if there else None


@pytest.mark.parametrize("seed", range(40))
def test_any_curve_against_a_brute_force(seed: int) -> None:
    """With ties (a grid of eighths), gaps, and curves that go forth and back."""
    random = np.random.default_rng(seed)
    reached = 0
    for _ in range(25):
        points = [(q / 8, d / 8) for q, d in random.integers(0, 9, (int(random.integers(1, 8)), 2)).tolist()]
        points = [(NAN if random.random() < 0.1 else q, NAN if random.random() < 0.05 else d) for q, d in points]
        target = float(random.integers(0, 17)) / 16
        expected, found = brute_force(target, points), match(target, points)
        assert (found.outcome == "reached") == (expected is not None)
        if expected is not None:
            reached += 1
            assert found.diversity == pytest.approx(expected, abs=1e-12)
    assert reached > 3


@pytest.mark.parametrize("seed", range(10))
def test_more_settings_of_a_line_change_nothing(seed: int) -> None:
    """Points on the segments themselves are the same curve; so is one that is read backwards."""
    random = np.random.default_rng(seed)
    points = random.random((6, 2))
    target = float(np.median(points[:, 0])) + 1e-3
    halves = [point for pair in itertools.pairwise(points) for point in (pair[0], (pair[0] + pair[1]) / 2)]
    finer = [tuple(map(float, point)) for point in [*halves, points[-1]]]
    whole = [tuple(map(float, point)) for point in points]
    assert match(target, finer).diversity == pytest.approx(match(target, whole).diversity, abs=1e-9)
    assert match(target, whole[::-1]).diversity == pytest.approx(match(target, whole).diversity, abs=1e-9)


# Two dials ----------------------------------------------------------------------------------------------------------


def test_neighbours_differ_in_one_step_of_one_dial() -> None:
    settings = list(itertools.product(["1", "2", "4"], ["a", "b"]))
    lines = lines_of(settings[:-1], [["1", "2", "4"], ["a", "b"]])
    steps = {frozenset(pair) for line in lines for pair in itertools.pairwise(line)}
    assert steps == {
        frozenset({("1", "a"), ("2", "a")}),
        frozenset({("2", "a"), ("4", "a")}),
        frozenset({("1", "b"), ("2", "b")}),
        frozenset({("1", "a"), ("1", "b")}),
        frozenset({("2", "a"), ("2", "b")}),
    }


def test_a_setting_that_the_grid_lacks_is_no_gap() -> None:
    """The order of an axis may have more choices than a cloud: its neighbours are those that it has."""
    assert lines_of([("1",), ("4",)], [["1", "2", "4"]]) == [[("1",), ("4",)]]


def test_the_whole_cloud_is_looked_at() -> None:
    """By hand: along the first dial 0.9 lies at D 3, along the second at D 5; a diagonal would have D 6 and is none."""
    points = {
        ("1", "a"): Point(0.8, 2.0),
        ("2", "a"): Point(1.0, 4.0),
        ("1", "b"): Point(1.0, 8.0),
        ("2", "b"): Point(0.95, 8.0),
    }
    lines = lines_of(points, [["1", "2"], ["a", "b"]])
    assert diversity_at(0.9, points, lines, *UP) == Match("reached", 5.0, (("1", "a"), ("1", "b")))


# Fronts -------------------------------------------------------------------------------------------------------------


def test_a_front_by_hand() -> None:
    points = [(0.9, 2.0), (0.8, 3.0), (0.8, 2.5), (0.7, 3.0), (0.9, 2.0), (NAN, 9.0), (0.6, 4.0)]
    assert pareto_front([Point(*p) for p in points], *UP) == [True, True, False, False, True, False, True]


@pytest.mark.parametrize("better", list(itertools.product(["higher", "lower"], repeat=2)))
@pytest.mark.parametrize("seed", range(8))
def test_fronts_against_a_brute_force(seed: int, better: tuple[str, str]) -> None:
    """A point is on the front if every other is worse in one of both, or the same in both."""
    random = np.random.default_rng(seed)
    points = [Point(*map(float, point)) for point in random.integers(0, 6, (20, 2))]
    points += [Point(NAN, 9.0), Point(9.0, NAN)]
    signs = np.array([1 if way == "higher" else -1 for way in better])
    good = np.array([list(point) for point in points]) * signs
    expected = []
    for i, one in enumerate(good):
        rivals = [other for j, other in enumerate(good) if j != i and not np.isnan(other).any()]
        beaten = any((other >= one).all() and (other > one).any() for other in rivals)
        expected.append(not np.isnan(one).any() and not beaten)
    assert pareto_front(points, *better) == expected
    assert any(expected)
