"""What papers have published of a report's rows, beside what the runs have come to. It never enters a mean."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ts2_lightning.evaluation import registered_measures
from ts2_lightning.studies.report.results import Figure, Results, Row, Source
from ts2_lightning.studies.report.statistics import Summary
from ts2_lightning.studies.report.tables import UNDEFINED, Cell, Table, escape_markdown, markdown, mean_text, titled

HEAD = ("", "value", "ours", "published", "difference")
"""Titles of the columns."""

_CSV_HEAD = (
    "paper", "table", "variant", "row", "row of the paper", "value", "ours", "sd", "n", "variant of ours", "published",
    "difference", "printed",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A published figure beside ours.

    Attributes:
        row: row of the report.
        figure: what was published.
        ours: summary over the seeds of the row; of none where it was not measured.
        variants: variants of the protocol that ours was measured with; none where it has none.
    """

    row: Row
    figure: Figure
    ours: Summary
    variants: tuple[str, ...]

    @property
    def difference(self) -> float:
        """Ours less the published figure; nan where one of them is not there."""
        return self.ours.mean - self.figure.value if self.ours.n else math.nan


def figures_of(tables: Iterable[Mapping[str, Any]], labels: Mapping[str, str] | None) -> tuple[Figure, ...]:
    """The figures of a row, from what `grid.json` says.

    Args:
        tables: `published` of `grid.json`.
        labels: axis -> choice of the row; None for the base model.
    """
    figures = []
    for table in tables:
        source = Source(table["paper"], table["table"], table["variant"], table["note"])
        for line in table["rows"]:
            there = None if line["labels"] is None else {axis: str(choice) for axis, choice in line["labels"].items()}
            if there == (None if labels is None else dict(labels)):
                figures += [
                    Figure(source, line["row"], column["name"] or "", column["title"] or "", float(value), printed)
                    for column, value, printed in zip(table["values"], line["figures"], line["printed"], strict=True)
                    if value is not None
                ]
    return tuple(figures)


def comparisons(results: Results) -> dict[Source, list[Comparison]]:
    """All published figures beside ours, table by table, row by row in the order of the report."""
    by_source: dict[Source, list[Comparison]] = {}
    for row in results.rows:
        for figure in row.published:
            by_source.setdefault(figure.source, []).append(_compared(results, row, figure))
    return by_source


def _compared(results: Results, row: Row, figure: Figure) -> Comparison:
    ours = results.summary(row, figure.name) if figure.name else Summary(0, math.nan, math.nan)
    settings = [run.settings.get(figure.name.partition("/")[0], {}) for run in row.runs if figure.name in run.values]
    variants = dict.fromkeys(str(one["variant"]) for one in settings if "variant" in one)
    return Comparison(row, figure, ours, tuple(variants))


# Shown ----------------------------------------------------------------------------------------------------------


def as_markdown(results: Results) -> str:
    """A table for each table of a paper: ours, published, difference. Empty where nothing was published."""
    parts = []
    for source, compared in comparisons(results).items():
        table = Table(HEAD, tuple(tuple(map(Cell, line_of(results, one))) for one in compared))
        heading = escape_markdown(f"{source.paper}, {source.table}")
        parts += [f"### {heading}", markdown(table), escape_markdown(" ".join(said_of(source, compared)))]
    if parts:
        parts.append(
            "Published figures stand beside the runs' means, and enter none of them. -: not measured, or no value of "
            "ours. Papers report one training of each row, whose spread over seeds is not known."
        )
    return "\n\n".join(parts)


def line_of(results: Results, one: Comparison) -> list[str]:
    """Row, value, ours, published and difference, for people."""
    value, figure = results.describe(one.figure.name), one.figure
    title = titled(value) if figure.name else figure.title
    called = f"{one.row.label} ({figure.row})" if figure.row and figure.row != one.row.label else one.row.label
    ours = mean_text(one.ours, value.format, one.ours.n) or UNDEFINED
    less = UNDEFINED if math.isnan(one.difference) else format(one.difference, f"+{value.format}")
    published = format(figure.value, value.format) if figure.name else figure.printed
    return [called, title, ours, published, less]


def _whose(source: Source) -> str:
    """Whose numbers the published ones are."""
    said = {"paper": "by the paper's text", "papers_code": "by the paper's public code"}
    return f"{said.get(source.variant, 'its own way')} (variant {source.variant})"


def said_of(source: Source, compared: Sequence[Comparison]) -> list[str]:
    """Whose numbers a table has, its note, and what of ours is of another variant, or has a note of its own."""
    said = [f"Published: {_whose(source)}.", *([source.note] if source.note else [])]
    other: dict[str, list[str]] = {}
    for one in compared:
        for variant in one.variants:
            if variant != source.variant:
                other.setdefault(variant, []).append(one.figure.name.partition("/")[0])
    for variant, names in other.items():
        said.append(
            f"Ours of {', '.join(dict.fromkeys(names))} is of the variant {variant}, so the difference is one of "
            "measuring, too."
        )
    measures = dict.fromkeys(one.figure.name.partition("/")[0] for one in compared if one.figure.name)
    for name in measures:
        deviations = getattr(registered_measures().get(name), "deviations", ())
        if deviations:
            said.append(f"Where text, code and ours differ in {name}: `protocols {name}`.")
    return said


def as_csv(results: Results) -> str:
    """A line for each published figure, with all digits of ours; what is not there is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for source, compared in comparisons(results).items():
        for one in compared:
            numbers = ["" if math.isnan(number) else number for number in (one.ours.mean, one.ours.sd)]
            less = "" if math.isnan(one.difference) else one.difference
            writer.writerow([
                source.paper, source.table, source.variant, one.row.label, one.figure.row,
                one.figure.name or one.figure.title, *numbers, one.ours.n, " ".join(one.variants), one.figure.value,
                less, one.figure.printed,
            ])  # fmt: skip
    return stream.getvalue()


def as_plain(results: Results) -> list[dict[str, Any]]:
    """The same as plain values, for `results.json`."""
    return [
        {
            "paper": source.paper,
            "table": source.table,
            "variant": source.variant,
            "note": source.note or None,
            "row": one.row.label,
            "name": one.figure.name or None,
            "title": one.figure.title or None,
            "ours": one.ours.mean if one.ours.n else None,
            "published": one.figure.value,
            "printed": one.figure.printed,
            "difference": one.difference,
        }
        for source, compared in comparisons(results).items()
        for one in compared
    ]
