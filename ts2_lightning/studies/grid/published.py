"""What a paper has published of the rows of a grid: facts, to be shown beside what the runs come to."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from ts2_lightning.evaluation import describe, described, registered_measures
from ts2_lightning.studies.grid.entries import Entry, read_part
from ts2_lightning.studies.grid.rows import ALL, Axes, LabelledRow, Labels, read_rule
from ts2_lightning.suggestions import did_you_mean

VARIANTS = ("paper", "papers_code")


@dataclass(frozen=True)
class OtherValue:
    """A published quantity that no measure of ours has.

    Attributes:
        title: what it is called in tables.
    """

    title: str


def _values(entry: Entry) -> tuple[tuple[Entry, str | None], ...]:
    """Names of values; and titles of quantities that have none, else None."""
    read = []
    for item in entry.items("a list of values, such as [gsm8k/accuracy]"):
        title = read_part(OtherValue, item).title if isinstance(item.value, dict) else None
        read.append((item, title))
    return tuple(read)


def _percent(entry: Entry) -> tuple[Entry, ...]:
    """Names of values, or `all`."""
    return tuple(entry.one_or_more("names of values of this table, or all"))


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table.

    Attributes:
        if_: the row of the grid, by choices of its axes; or the label of the base model.
        figures: numbers as they are printed, in the order of the values; null where there is none.
        row: what the paper calls it; empty where that is the row's own name.
    """

    entry: Entry
    if_: Entry
    figures: Annotated[tuple[Entry, ...], "a list of numbers"]
    row: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper, as far as a grid repeats it.

    Attributes:
        paper: name of the paper.
        table: number of the table or figure.
        values: names of our values that its columns are, and titles of others.
        rows: its rows.
        variant: whose numbers they are, one of the variants of their protocols: `paper`, what the text says;
            `papers_code`, what the public code does. By default `paper`.
        note: where text and public code differ, or what else readers have to know.
        percent: values that the paper prints in percent, and that are shares here; `all` of them.
    """

    entry: Entry
    paper: str
    table: str
    values: Annotated[tuple[tuple[Entry, str | None], ...], _values]
    rows: tuple[PublishedRow, ...]
    variant: Entry | None = None
    note: str = ""
    percent: Annotated[tuple[Entry, ...], _percent] = ()

    def check(self, axes: Axes, rows: Iterable[LabelledRow], base: str | None) -> None:
        """Makes sure that every figure is a number, of one row of the grid and of a value that there is.

        Args:
            axes: the choices of each axis.
            rows: rows of the grid.
            base: label of the base model; None if it is not measured.

        Raises:
            UserError: naming the line of what is none of these.
        """
        for entry, title in self.values:
            if title is None:
                check_value(entry)
        names = [entry.text for entry, title in self.values if title is None]
        if self.variant is not None:
            self.variant.one_of(_variants(names), "variant")
        for entry in self.percent:
            entry.one_of([ALL, *names], "value of this table")
        seen: dict[str, Entry] = {}
        for row in self.rows:
            labels = self._meant(row, axes, rows, base)
            if (twin := seen.setdefault(repr(labels), row.entry)) is not row.entry:
                raise row.entry.error(f"means the same row as line {twin.line}")
            if len(row.figures) != len(self.values):
                raise row.entry.error(f"{len(row.figures)} figures for {len(self.values)} values; null stands for none")
            for figure in row.figures:
                _number(figure)

    def _meant(self, row: PublishedRow, axes: Axes, rows: Iterable[LabelledRow], base: str | None) -> Labels | str:
        """The labels of the row of the grid; of the base model its label."""
        if row.if_.scalar is not None:
            if row.if_.text != base:
                said = f"the label of base_model, {base!r}" if base else "choices of axes, such as {objective: CE}"
                raise row.if_.error(f"expected {said}, got {row.if_.text!r}")
            return row.if_.text
        rule = read_rule(row.if_, axes, "{objective: TS2, alpha: 0.25}")
        meant = [one.labels for one in rows if rule.matches(one.labels)]
        if len(meant) > 1:  # the one without further axes, where there is one
            meant = [labels for labels in meant if labels.keys() == rule.choices.keys()] or meant
        if len(meant) != 1:
            raise row.if_.error(f"must mean one row of the grid, means {len(meant)}; name the choice of more axes")
        return meant[0]

    def record(self, axes: Axes, rows: Iterable[LabelledRow], base: str | None) -> dict[str, Any]:
        """Plain values for `grid.json`: numbers in our units, rows by their labels; null is the base model."""
        listed = list(rows)
        percent = {entry.text for entry in self.percent}
        whole = {entry.text for entry, _ in self.values if entry.scalar is not None} if ALL in percent else percent
        columns = [{"name": None if title else entry.text, "title": title} for entry, title in self.values]
        lines = []
        for row in self.rows:
            meant = self._meant(row, axes, listed, base)
            figures = [_number(figure) for figure in row.figures]
            scaled = [
                float(Decimal(str(figure)) / 100) if figure is not None and column["name"] in whole else figure
                for figure, column in zip(figures, columns, strict=True)
            ]
            labels = None if isinstance(meant, str) else meant
            lines.append({"labels": labels, "row": row.row, "figures": scaled, "printed": _printed(row)})
        return {
            "paper": self.paper,
            "table": self.table,
            "variant": VARIANTS[0] if self.variant is None else self.variant.text,
            "note": self.note,
            "values": columns,
            "rows": lines,
        }


def _variants(names: Iterable[str]) -> list[str]:
    """The variants of the protocols of values, and the two that most have."""
    measures = {name.partition("/")[0]: None for name in names}
    others = [name for measure in measures for name in getattr(registered_measures()[measure], "samplings", ())]
    return list(dict.fromkeys((*VARIANTS, *others)))


def check_value(entry: Entry) -> None:
    """Raises `UserError` unless it names a value that a registered measure describes."""
    name = entry.text
    measure = name.partition("/")[0]
    if measure not in registered_measures():
        near = did_you_mean(measure, registered_measures()) or f"; there are {', '.join(registered_measures())}"
        raise entry.error(f"{name}: no measure {measure!r}{near}")
    if describe(name).title == name:
        of_measure = [value for value in described() if value.startswith(f"{measure}/")]
        hint = did_you_mean(name, of_measure) or f"; there are {', '.join(of_measure)}"
        raise entry.error(f"{measure} has no value {name!r}{hint}")


def _number(entry: Entry) -> float | None:
    """A figure; None where there is none."""
    if entry.scalar is not None and entry.value is None:
        return None
    if isinstance(entry.value, bool) or not isinstance(entry.value, int | float) or not math.isfinite(entry.value):
        raise entry.unlike("a number, or null")
    return float(entry.value)


def _printed(row: PublishedRow) -> list[str | None]:
    """The figures as the paper prints them."""
    return [None if figure.value is None else figure.text for figure in row.figures]
