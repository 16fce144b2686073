"""Frontiers and best choices in `report.html`: tables that can be sorted, and charts with hover."""

import math
from collections.abc import Sequence

from ts2_lightning.evaluation.style import place_of
from ts2_lightning.pages import Cell, Chart, Section, Series, Table
from ts2_lightning.studies.report.best import best_said, best_tables, best_title
from ts2_lightning.studies.report.frontier_tables import (
    front_said,
    front_table,
    frontier_title,
    marks_said,
    matched_table,
    rule_said,
)
from ts2_lightning.studies.report.frontiers import Cloud, Frontier, Place, frontiers_of
from ts2_lightning.studies.report.results import Results
from ts2_lightning.studies.report.statistics import Summary
from ts2_lightning.studies.report.tables import Mark, titled
from ts2_lightning.studies.report.tables import Table as TextTable

_MARKS: dict[Mark, str] = {"": "", "best": " *", "near": " °", "apart": " *"}


def frontier_sections(results: Results) -> list[Section]:
    """Of each frontier a chart of its curves, of two dials one of its settings too, and its tables."""
    sections: list[Section] = []
    for frontier in frontiers_of(results):
        title = frontier_title(results, frontier)
        sections += _charts(results, frontier, title)
        quality, diversity = (
            results.describe(name).title for name in (frontier.settings.quality, frontier.settings.diversity)
        )
        notes = [rule_said(results, frontier), *filter(None, [marks_said(frontier)])]
        for target, matched in frontier.at:
            table = matched_table(results, frontier, matched)
            means = [one.summary.mean for one in matched]
            differences = [math.nan if one.difference is None else one.difference.mean for one in matched]
            numbers = [means, differences] if "minus the baseline" in table.header else [means]
            sections.append(_sortable(f"{diversity} where {quality} is {target.said}", table, numbers, notes))
        places = [place for cloud in frontier.clouds for place in cloud.places if place.on_front]
        of_places = [[place.quality.mean for place in places], [place.diversity.mean for place in places]]
        remarks = [front_said(frontier), *frontier.remarks]
        sections.append(_sortable(f"Fronts: {title}", front_table(results, frontier), of_places, remarks, first=2))
    return sections


def best_sections(results: Results) -> list[Section]:
    """The tables of best choices."""
    sections: list[Section] = []
    for best in results.settings.best:
        for table, said in zip(best_tables(results, best), ("", ": differences"), strict=False):
            rows = [[cell.text for cell in row] for row in table.rows]
            shown = [[f"{cell.text}{_MARKS[cell.mark]}" for cell in row] for row in table.rows]
            title = f"{best_title(results, best)}{said}"
            sections.append(Table(title, table.header, rows, shown, (), best_said(results, best)))
    return sections


def _sortable(
    title: str, table: TextTable, numbers: Sequence[Sequence[float]], notes: Sequence[str], first: int = 1
) -> Table:
    """A table of texts, of which some columns are sorted by their numbers.

    Args:
        title: heading.
        table: table.
        numbers: numbers of the columns from the first one on.
        notes: remarks.
        first: first column that has numbers.
    """
    rows: list[list[Cell]] = [[cell.text for cell in row] for row in table.rows]
    for column, of_column in enumerate(numbers, start=first):
        for row, value in zip(rows, of_column, strict=True):
            row[column] = None if math.isnan(value) else value
    shown = [[f"{cell.text}{_MARKS[cell.mark]}" for cell in row] for row in table.rows]
    return Table(title, table.header, rows, shown, (), notes)


def _charts(results: Results, frontier: Frontier, title: str) -> list[Section]:
    """The curves along one dial; of two dials the fronts, and all settings."""
    x, y = (titled(results.describe(name)) for name in (frontier.settings.diversity, frontier.settings.quality))
    if len(frontier.settings.dials) == 1:
        curves = [_series(cloud, cloud.defined, place) for place, cloud in enumerate(frontier.clouds)]
        return [Chart(title, [series for series in curves if series.x], x, y, "paths")] if curves else []
    fronts, settings = [], []
    for place, cloud in enumerate(frontier.clouds):
        on_front = sorted((p for p in cloud.defined if p.on_front), key=lambda p: p.diversity.mean)
        fronts.append(_series(cloud, on_front, place))
        settings.append(_series(cloud, cloud.defined, place))
    return [
        Chart(f"Fronts: {title}", [series for series in fronts if series.x], x, y, "paths"),
        Chart(f"All settings: {title}", [series for series in settings if series.x], x, y, "points"),
    ]


def _series(cloud: Cloud, places: Sequence[Place], index: int) -> Series:
    labels = [f"{cloud.setting_said(p.setting) or 'no dial'} (n = {p.quality.n})" for p in places]
    low, high = _ends([place.quality for place in places])
    x_low, x_high = _ends([place.diversity for place in places])
    x, y = [place.diversity.mean for place in places], [place.quality.mean for place in places]
    return Series(cloud.label, x, y, low, high, labels, x_low, x_high, place_of(index))


def _ends(summaries: Sequence[Summary]) -> tuple[list[float] | None, list[float] | None]:
    """A standard deviation to both sides, where there are several seeds."""
    if not any(math.isfinite(summary.sd) for summary in summaries):
        return None, None
    spreads = [(summary.mean, summary.sd if math.isfinite(summary.sd) else 0.0) for summary in summaries]
    return [mean - sd for mean, sd in spreads], [mean + sd for mean, sd in spreads]
