"""Means, spreads, intervals and marks, against scipy, numpy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from ts2_lightning.studies.report.results import Results, Row, Run
from ts2_lightning.studies.report.statistics import paired_difference, summarise
from ts2_lightning.studies.report.tables import marks_of

VALIDITY, TAIL = "toyworld/seen/validity_t1", "toyworld/seen/tail_mass"
OUTSIDE = "toyworld/seen/outside_plausible"


def row(label: str, values: list[float], name: str = VALIDITY, is_base: bool = False) -> Row:
    runs = tuple(Run(f"{label}-{i}", None, i, {name: value}) for i, value in enumerate(values))  # type: ignore[arg-type]
    return Row(label, {}, runs, is_base)


def marks(rows: list[Row], name: str) -> dict[str, str]:
    return dict(marks_of(Results("", "", (), tuple(rows), {}), name))


@pytest.mark.parametrize("n", [2, 3, 7, 40])
@pytest.mark.parametrize("shift", [0.0, 1e6, -3.25])
def test_means_and_deviations(n: int, shift: float) -> None:
    values = np.random.default_rng(n).normal(size=n) + shift
    found = summarise(list(values))
    assert found.n == n
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.sd == pytest.approx(values.std(ddof=1), rel=1e-6)


def test_too_few_values_have_no_deviation() -> None:
    assert math.isnan(summarise([]).mean)
    one = summarise([0.5])
    assert (one.n, one.mean) == (1, 0.5)
    assert math.isnan(one.sd)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_defined_leaves_no_mean_of_the_others(bad: float) -> None:
    found = summarise([0.5, bad, 0.7])
    assert found.n == 3
    assert math.isnan(found.mean)
    assert math.isnan(found.sd)


@pytest.mark.parametrize("n", [2, 3, 5, 21])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_paired_intervals_are_those_of_scipy(n: int, confidence: float) -> None:
    random = np.random.default_rng(n)
    values, baseline = random.normal(size=n), random.normal(1.0, 2.0, size=n)
    seeds = random.permutation(100)[:n].tolist()
    found = paired_difference(
        dict(zip(seeds, values, strict=True)),
        dict(reversed(list(zip(seeds, baseline, strict=True)))),  # seeds pair, places do not
        confidence,
    )
    reference = stats.ttest_rel(values, baseline)
    interval = reference.confidence_interval(confidence)
    assert found.n == n
    assert found.mean == pytest.approx((values - baseline).mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.excludes_zero == (reference.pvalue < 1 - confidence)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 2: 9.0, 5: 0.0}, {5: 4.0, 1: 1.0, 7: 0.0, 0: 1.0})
    assert found.n == 3
    assert found.mean == pytest.approx((0.0 + 1.0 - 4.0) / 3)


@pytest.mark.parametrize("baseline", [{}, {3: 1.0}, {0: 0.25}])
def test_fewer_than_two_pairs_have_no_interval(baseline: dict[int | None, float]) -> None:
    found = paired_difference({0: 1.0, 1: 2.0}, baseline)
    assert found.n == len({0, 1} & baseline.keys())
    assert not found.has_interval
    assert not found.excludes_zero


def test_equal_differences_have_an_interval_without_width() -> None:
    found = paired_difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0})
    assert (found.low, found.high) == (0.5, 0.5)
    assert found.excludes_zero
    none = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert none.has_interval
    assert not none.excludes_zero


def test_of_a_hundred_intervals_ninety_five_hold_the_truth() -> None:
    """The seeds' own effect, far larger than the noise, must not widen what is paired."""
    random = np.random.default_rng(0)
    trials, n, truth = 2000, 4, 0.3
    held, widths = 0, []
    for _ in range(trials):
        of_seed = random.normal(0, 50, size=n)
        baseline = of_seed + random.normal(size=n)
        values = of_seed + truth + random.normal(size=n)
        found = paired_difference(dict(enumerate(values)), dict(enumerate(baseline)))
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert held / trials == pytest.approx(0.95, abs=0.015)
    assert np.mean(widths) < 10


def brute_force(rows: dict[str, list[float]], higher: bool, digits: int) -> dict[str, str]:
    """The marks again, by scipy's test and by hand."""
    means = {label: float(np.mean(values)) for label, values in rows.items()}
    best = sorted(means, key=lambda label: -means[label] if higher else means[label])[0]
    found = {}
    for label, values in rows.items():
        if f"{means[label]:.{digits}f}" == f"{means[best]:.{digits}f}":
            found[label] = "best"
        elif len(values) > 1 and stats.ttest_rel(values, rows[best]).pvalue >= 0.05:
            found[label] = "near"
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("name", "higher"), [(VALIDITY, True), (OUTSIDE, False)])
def test_marks(seed: int, name: str, higher: bool) -> None:
    random = np.random.default_rng(seed)
    values = {f"row {i}": (0.9 + 0.004 * i + random.normal(0, 0.004, size=3)).tolist() for i in range(6)}
    found = marks([row(label, of_row, name) for label, of_row in values.items()], name)
    assert found == brute_force(values, higher, 3)
    assert "best" in found.values()


def test_rows_that_are_printed_alike_are_all_the_best() -> None:
    rows = [row("a", [0.50001]), row("b", [0.50004]), row("c", [0.4])]
    assert marks(rows, VALIDITY) == {"a": "best", "b": "best"}


def test_one_seed_cannot_tell_what_is_near() -> None:
    assert marks([row("a", [0.9]), row("b", [0.899])], VALIDITY) == {"a": "best"}


def test_nothing_is_marked_where_nothing_is_better() -> None:
    assert marks([row("a", [0.9], TAIL), row("b", [0.1], TAIL)], TAIL) == {}
    assert marks([row("a", [0.9, 0.8]), row("b", [0.8, 0.9])], VALIDITY) == {}, "all are equal"
    assert marks([row("a", [0.9])], VALIDITY) == {}, "there is nothing to be better than"


def test_a_row_without_a_mean_is_not_marked() -> None:
    rows = [row("a", [0.9, math.nan]), row("b", [0.8, 0.7]), row("c", [0.1, 0.2]), row("d", [0.1, 0.2], TAIL)]
    assert marks(rows, VALIDITY)["b"] == "best"
    assert not {"a", "d"} & marks(rows, VALIDITY).keys()
