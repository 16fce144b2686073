"""The best choice of an axis for each choice of the other axes: chosen on some numbers, reported on others."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ts2_lightning.studies.report.baselines import match_of
from ts2_lightning.studies.report.frontiers import label_without, order_of, rows_of
from ts2_lightning.studies.report.fronts import is_better
from ts2_lightning.studies.report.results import BestSettings, Results, Row
from ts2_lightning.studies.report.statistics import Difference, Summary, paired_difference, summarise
from ts2_lightning.studies.report.tables import Cell, Table, difference_text, mean_text, titled, told_apart_mark


@dataclass(frozen=True)
class Chosen:
    """The best row of those that differ in one axis alone.

    Attributes:
        label: name of what they have in common.
        labels: axis -> choice of that.
        row: row that was chosen; None where none has the value that decides with every seed that decides.
        decided: summary of that value over the seeds that decide.
        at_end: whether it is the first or last choice of the axis there, so that a better one may lie beyond.
        passed_over: choices that lack the value.
    """

    label: str
    labels: Mapping[str, str]
    row: Row | None
    decided: Summary
    at_end: bool
    passed_over: tuple[str, ...]


def values_on(results: Results, row: Row, name: str, seeds: Iterable[int]) -> dict[int | None, float]:
    """Seed -> value of a row, of some seeds; of all where none is named."""
    values, wanted = results.values(row, name), set(seeds)
    return {seed: value for seed, value in values.items() if not wanted or seed in wanted}


def chosen_of(results: Results, best: BestSettings) -> list[Chosen]:
    """The best row for each choice of the other axes, in the order of the rows."""
    groups: dict[frozenset[tuple[str, str]], list[Row]] = {}
    for row in rows_of(results, best):
        if best.axis in row.labels:
            others = frozenset((axis, choice) for axis, choice in row.labels.items() if axis != best.axis)
            groups.setdefault(others, []).append(row)
    return [_chosen(results, best, rows) for rows in groups.values()]


def _chosen(results: Results, best: BestSettings, rows: Sequence[Row]) -> Chosen:
    better = results.describe(best.by).better
    assert better, "complete_settings leaves out values without a direction"
    labels = {axis: choice for axis, choice in rows[0].labels.items() if axis != best.axis}
    label = label_without(results, labels, best.where) or "all rows"
    order = [choice for choice in order_of(results.axes[best.axis]) if any(r.labels[best.axis] == choice for r in rows)]
    top, decided, lacking = None, Summary(0, math.nan, math.nan), []
    for row in sorted(rows, key=lambda row: order.index(row.labels[best.axis])):
        values = values_on(results, row, best.by, best.choose_on)
        summary = summarise(list(values.values()))
        if math.isnan(summary.mean) or not set(best.choose_on) <= values.keys():
            lacking.append(row.labels[best.axis])
        elif top is None or is_better(summary.mean, decided.mean, better):
            top, decided = row, summary
    at_end = top is not None and top.labels[best.axis] in (order[0], order[-1])
    return Chosen(label, labels, top, decided, at_end, tuple(lacking))


# Shown ----------------------------------------------------------------------------------------------------------------


def columns_of(results: Results, best: BestSettings) -> tuple[str, ...]:
    """The values that are reported."""
    return best.columns or results.settings.columns


def best_title(results: Results, best: BestSettings) -> str:
    """The heading of the tables of a best choice."""
    return f"Best {best.axis}, by {results.describe(best.by).title}"


def best_tables(results: Results, best: BestSettings) -> list[Table]:
    """The choices with what they come to; and their differences to the choice of the baseline, if there is one."""
    names, by = columns_of(results, best), results.describe(best.by)
    chosen = chosen_of(results, best)
    seeds = len(best.report_on or results.seeds) or 1
    rows, differences = [], []
    for one in chosen:
        if one.row is None:
            rows.append((Cell(one.label), Cell("none"), *[Cell("")] * (1 + len(names))))
            continue
        choice = f"{one.row.labels[best.axis]}{' (end)' if one.at_end else ''}"
        cells = [
            Cell(mean_text(_summary(results, best, one.row, name), _format(results, name), seeds)) for name in names
        ]
        decided = mean_text(one.decided, by.format, len(best.choose_on or results.seeds) or 1)
        rows.append((Cell(one.label), Cell(choice), Cell(decided), *cells))
        if (base := _baseline(results, one, chosen)) is not None and base.row is not None:
            of_names = [_difference(results, best, one.row, base.row, name) for name in names]
            marked = [
                Cell(difference_text(d, _format(results, name)), told_apart_mark(d, _format(results, name)))
                for d, name in zip(of_names, names, strict=True)
            ]
            differences.append((Cell(f"{one.label} minus {base.label}"), *marked))
    titles = tuple(titled(results.describe(name)) for name in names)
    tables = [Table(("", best.axis, f"{titled(by)} (chosen on)", *titles), tuple(rows))]
    return [*tables, Table(("each at its best", *titles), tuple(differences))] if differences else tables


def _format(results: Results, name: str) -> str:
    return results.describe(name).format


def _summary(results: Results, best: BestSettings, row: Row, name: str) -> Summary:
    return summarise(list(values_on(results, row, name, best.report_on).values()))


def _difference(results: Results, best: BestSettings, row: Row, base: Row, name: str) -> Difference:
    return paired_difference(
        values_on(results, row, name, best.report_on), values_on(results, base, name, best.report_on)
    )


def _baseline(results: Results, one: Chosen, chosen: Sequence[Chosen]) -> Chosen | None:
    """The choice of the baseline at the same other axes; None for the baseline itself."""
    wanted = results.settings.matched
    if not wanted:
        labels = [row.labels for row in results.trained if row.label == results.settings.baseline]
        wanted = labels[0] if labels else {}
    axes = {axis for other in chosen for axis in other.labels}
    wanted = {axis: choice for axis, choice in wanted.items() if axis in axes}
    if not wanted:
        return None
    base = match_of(one.labels, wanted, [Row(other.label, other.labels, ()) for other in chosen])
    if base is None or base.label == one.label:
        return None
    return next(other for other in chosen if other.label == base.label)


def best_said(results: Results, best: BestSettings) -> list[str]:
    """How it was chosen, on what it is reported, and what is missing, a line each."""
    by = results.describe(best.by)
    said = [
        f"Of each {best.axis} the one with the {'highest' if by.better == 'higher' else 'lowest'} mean of {by.title} "
        f"over {_seeds_said(best.choose_on)}, the first of equal ones; the other values are means over "
        f"{_seeds_said(best.report_on)}, which have not decided."
        if best.report_on
        else f"Of each {best.axis} the one with the {'highest' if by.better == 'higher' else 'lowest'} mean of "
        f"{by.title}, the first of equal ones; the other values are of other prompts or rows, which have not decided."
    ]
    chosen = chosen_of(results, best)
    if any(one.at_end for one in chosen):
        said.append(f"(end): the first or last {best.axis} that was tried; a better one may lie beyond.")
    for one in chosen:
        if one.passed_over:
            said.append(
                f"{one.label}: {best.axis} {', '.join(one.passed_over)} passed over, without a {by.title} of every "
                "seed that decides."
            )
    return said


def _seeds_said(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
