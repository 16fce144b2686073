"""`report.html`: the tables, which can be sorted, and what the pictures show, with hover."""

import math
from collections.abc import Sequence

from ts2_lightning.evaluation import registered_measures
from ts2_lightning.pages import Cell, Chart, Page, Section, Series, Table, Text
from ts2_lightning.studies.report.baselines import baseline_said, compared_rows
from ts2_lightning.studies.report.data import long_table
from ts2_lightning.studies.report.figures import lines_along
from ts2_lightning.studies.report.frontier_page import best_sections, frontier_sections
from ts2_lightning.studies.report.learning_curves import POINTS, by_step_of, thinned
from ts2_lightning.studies.report.markdown import compares, notes, revisions_said, seeds_said, unmatched_said
from ts2_lightning.studies.report.published import HEAD, comparisons, line_of, said_of
from ts2_lightning.studies.report.results import Results, Row, by_runs
from ts2_lightning.studies.report.statistics import Summary, summarise
from ts2_lightning.studies.report.tables import Mark, differences_table, results_table, titled
from ts2_lightning.studies.report.tables import Table as TextTable

_MARKS: dict[Mark, str] = {"": "", "best": " *", "near": " °", "apart": " *"}


def as_page(results: Results) -> Page:
    """The page of results with complete settings."""
    sections: list[Section] = [*frontier_sections(results), *best_sections(results), _results(results)]
    sections += [*_differences(results), *_published(results), *_planes(results)]
    sections += [*_against(results), *_curves(results), _long(results), *_missing(results), _runs(results)]
    return Page(results.title, sections, _about(results))


def _about(results: Results) -> list[str]:
    shown = {name.partition("/")[0] for name in results.settings.columns}
    of_measures = [measure.note for name, measure in registered_measures().items() if name in shown and measure.note]
    return [
        *([f"Paper: {results.paper}"] if results.paper else []),
        f"From: {results.file or ', '.join(map(str, results.sources))}. {seeds_said(results)}",
        f"Software: {revisions_said(results.runs).replace('`', '')}.",
        *(f"Note: {note}" for note in notes(results)),
        *of_measures,
    ]


# Tables ---------------------------------------------------------------------------------------------------------------


def _results(results: Results) -> Section:
    names = results.settings.columns
    means = [[results.summary(row, name).mean for name in names] for row in results.rows]
    remarks = [
        "*: the best mean of its column, and equal ones as printed; °: not told apart from the best by the seeds; "
        "↑ more is better, ↓ less is; -: not defined with every seed.",
    ]
    return _table(results, "Results", "row", results_table(results, names), results.rows, means, remarks)


def _differences(results: Results) -> list[Section]:
    names = results.settings.columns
    if not names or not compares(results):
        return []
    pairs = compared_rows(results)
    means = [[results.difference(*pair, name).mean for name in names] for pair in pairs]
    remarks = [
        "Mean differences over the seeds that both rows have, with Student's interval where there are several. "
        "*: the interval excludes zero; the intervals are not corrected for their number.",
        *filter(None, [unmatched_said(results)]),
    ]
    table = differences_table(results, names)
    rows = [row for row, _ in pairs]
    return [_table(results, f"Against {baseline_said(results)}", "row", table, rows, means, remarks)]


def _table(
    results: Results,
    title: str,
    first: str,
    table: TextTable,
    rows: Sequence[Row],
    means: Sequence[Sequence[float]],
    remarks: Sequence[str],
) -> Table:
    """A table of texts with marks, sorted by its means."""
    cells: list[list[Cell]] = [
        [row.label, *(None if math.isnan(mean) else mean for mean in of_row)]
        for row, of_row in zip(rows, means, strict=True)
    ]
    shown = [[row[0].text, *(f"{cell.text}{_MARKS[cell.mark]}" for cell in row[1:])] for row in table.rows]
    described = [results.describe(name) for name in results.settings.columns]
    hints = ["", *(": ".join(filter(None, [value.name, value.meaning])) for value in described)]
    return Table(title, [first, *(titled(value) for value in described)], cells, shown, hints, remarks)


def _published(results: Results) -> list[Section]:
    """What papers have published of the rows, beside ours: a table for each of theirs."""
    sections: list[Section] = []
    for source, compared in comparisons(results).items():
        cells: list[list[Cell]] = []
        for one in compared:
            ours, less = (None if math.isnan(number) else number for number in (one.ours.mean, one.difference))
            cells.append([one.row.label, one.figure.name or one.figure.title, ours, one.figure.value, less])
        shown = [line_of(results, one) for one in compared]
        title = f"Beside the papers' figures: {source.paper}, {source.table}"
        sections.append(Table(title, ["row", *HEAD[1:]], cells, shown, (), said_of(source, compared)))
    return sections


def _long(results: Results) -> Table:
    """Every value of every row, as `table.csv` has them."""
    head, lines = long_table(results)
    rows = [[None if isinstance(cell, float) and math.isnan(cell) else cell for cell in line] for line in lines]
    return Table("All values", head, rows)


def _missing(results: Results) -> list[Section]:
    rows = [[entry.name, entry.row, entry.reason] for entry in results.missing]
    return [Table("What is missing", ["run", "row", "reason"], rows)] if rows else []


def _runs(results: Results) -> Section:
    rows: list[list[Cell]] = [
        [run.name, ", ".join(row.label for row in same), run.seed, run.revision, run.time, run.seconds, run.command]
        for same in by_runs(results.trained)
        for run in same[0].runs
    ]
    head = ["run", "row", "seed", "software", "began", "seconds", "command that repeats it"]
    return Table("Runs", head, rows) if rows else Text("Runs", ["No run has come to its end."])


# Charts ---------------------------------------------------------------------------------------------------------------


def _planes(results: Results) -> list[Section]:
    charts: list[Section] = []
    for x, y in results.settings.planes:
        across, up = results.describe(x), results.describe(y)
        series = []
        for place, row in enumerate(results.rows):
            of_x, of_y = results.summary(row, x), results.summary(row, y)
            if math.isfinite(of_x.mean) and math.isfinite(of_y.mean):
                series.append(Series(row.label, [of_x.mean], [of_y.mean], *_ends([of_y]), (), *_ends([of_x]), place))
        if len(series) > 1:
            charts.append(Chart(f"{up.title} against {across.title}", series, titled(across), titled(up), "points"))
    return charts


def _against(results: Results) -> list[Section]:
    """Values against a number: a line for each choice of the other axes."""
    charts: list[Section] = []
    for axis, names in (results.settings.against or {}).items():
        lines = lines_along(results, axis)
        for name in names:
            series = []
            for label, line in lines.items():
                summaries = [(at, results.summary(row, name)) for at, row in line]
                points = [(at, summary) for at, summary in summaries if math.isfinite(summary.mean)]
                if len(points) > 1:
                    of_points = [summary for _, summary in points]
                    means = [summary.mean for summary in of_points]
                    first = results.rows.index(line[0][1])
                    series.append(
                        Series(label or axis, [at for at, _ in points], means, *_ends(of_points), place=first)
                    )
            if series:
                value = results.describe(name)
                numbers = [at for one in series for at in one.x if isinstance(at, float)]
                wide = min(numbers) > 0 and max(numbers) / min(numbers) >= 10
                charts.append(Chart(f"{value.title} against {axis}", series, axis, titled(value), log_x=wide))
    return charts


def _ends(summaries: Sequence[Summary]) -> tuple[list[float] | None, list[float] | None]:
    """A standard deviation to both sides, where there are several seeds."""
    if not any(math.isfinite(summary.sd) for summary in summaries):
        return None, None
    spreads = [(summary.mean, summary.sd if math.isfinite(summary.sd) else 0.0) for summary in summaries]
    return [mean - sd for mean, sd in spreads], [mean + sd for mean, sd in spreads]


def _curves(results: Results) -> list[Section]:
    """Learning curves: mean over the seeds, in a band of a standard deviation; thinned as the picture is."""
    charts: list[Section] = []
    for name in results.settings.curves:
        series = []
        for label, steps in by_step_of(results, name).items():
            if steps.empty:
                continue
            width = -(-len(steps) // POINTS)
            x = thinned(steps.index.to_numpy(), width)
            runs = [thinned(steps[run].to_numpy(), width) for run in steps]
            summaries = [summarise(values) for values in zip(*runs, strict=True)]
            place = next(place for place, row in enumerate(results.rows) if row.label == label)
            means = [summary.mean for summary in summaries]
            series.append(Series(label, x, means, *_ends(summaries), place=place))
        if series:
            charts.append(Chart(f"Learning curve: {name}", series, "optimizer steps", name))
    return charts
