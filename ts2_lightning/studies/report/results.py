"""What a report is made of: runs in rows, and one long table of their values, from which everything is calculated."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from ts2_lightning.evaluation import describe
from ts2_lightning.studies.report.statistics import Difference, Summary, paired_difference, summarise
from ts2_lightning.values import Value

Curve = Mapping[int, float]
"""Optimizer step -> logged value."""


@dataclass(frozen=True)
class Run:
    """A finished training, and what was measured of it.

    Attributes:
        name: name of its directory, for people.
        directory: directory of the run itself, `RUNS_DIR/NAME/N`.
        seed: None where its configuration has none.
        values: name -> number. One that a measure has not left, though it was made, is not defined.
        curves: logged name -> curve.
        probes: probe -> what its `measure` returned, where that was kept.
        settings: measure -> the settings that it was made with.
        described: descriptions of the values of measures that are not registered, by name.
        revision: revision of the software, for people; None where it was not recorded.
        time: when it began, ISO 8601; None where it was not recorded.
        seconds: duration of training; None where it was not recorded.
        command: command that repeats it.
    """

    name: str
    directory: Path
    seed: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    probes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Value] = field(default_factory=dict)
    revision: str | None = None
    time: str | None = None
    seconds: float | None = None
    command: str = ""

    def decoding(self, name: str) -> str | None:
        """The decoding that a value was measured with; None where it does not depend on that."""
        decoding: str | None = self.settings.get(name.partition("/")[0], {}).get("decoding")
        return decoding


class Source(NamedTuple):
    """Where a figure was published.

    Attributes:
        paper: name of the paper.
        table: number of the table.
        variant: whose numbers they are: `paper`, of its text; `papers_code`, of its public code.
        note: what readers have to know of them; empty for nothing.
    """

    paper: str
    table: str
    variant: str
    note: str


class Figure(NamedTuple):
    """A number that a paper has published of a row.

    Attributes:
        source: where.
        row: what the paper calls the row; empty for the row's own name.
        name: name of our value that it is one of; empty if it is none of ours.
        title: what the paper calls it, where it is none of ours.
        value: the number, in our unit.
        printed: the number as the paper prints it.
    """

    source: Source
    row: str
    name: str
    title: str
    value: float
    printed: str


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: name in tables and pictures; no two rows of a report have the same, see `told_apart`.
        labels: axis -> choice, for those axes that the row has.
        runs: one per seed.
        is_base: a model as it was before any of the trainings: never the best, and compared with nothing.
        published: what papers have published of it.
    """

    label: str
    labels: Mapping[str, str]
    runs: tuple[Run, ...]
    is_base: bool = False
    published: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Missing:
    """Something that should have been in the report and is not.

    Attributes:
        name: name of the run, for people.
        row: label of the row that it belongs to; empty where there is none.
        reason: why, and where to read more.
    """

    name: str
    row: str
    reason: str


@dataclass(frozen=True)
class FrontierSettings:
    """A curve of quality against diversity along dials, for each choice of the other axes.

    Attributes:
        dials: one or two axes, such as the learning rate and the decoding temperature.
        quality: name of a value.
        diversity: name of a value.
        at: qualities at which diversities are compared: numbers, rows (by axis -> choice) whose quality it is, or
            `baseline`, the quality of each row that is a baseline.
        where: axis -> choices of the rows that are meant; empty: all rows.
    """

    dials: tuple[str, ...]
    quality: str
    diversity: str
    at: tuple[float | Mapping[str, str] | Literal["baseline"], ...] = ("baseline",)
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class BestSettings:
    """The best choice of an axis for each choice of the other axes, chosen on some numbers and reported on others.

    Attributes:
        axis: axis of which a choice is taken.
        by: name of the value that decides.
        choose_on: seeds that decide; empty: all.
        report_on: seeds that are reported, others than those; empty: all, of values of other prompts or rows.
        columns: names of the values that are reported; empty: those of the tables.
        where: axis -> choices of the rows that are meant; empty: all rows.
    """

    axis: str
    by: str
    choose_on: tuple[int, ...] = ()
    report_on: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What is shown; what is left empty is chosen from what was measured.

    Attributes:
        baseline: label of the row that differences are taken against; empty: the first one.
        columns: names of the values in the tables.
        planes: (x, y) of the pictures of quality against diversity.
        against: axis -> names of the values drawn against it; None: every axis whose choices are numbers.
        curves: logged names.
        matched: axis -> choice, where several rows are the baseline: each row is compared with the one of these choices
            that has its own choices of the other axes; empty: `baseline` is one row.
        frontiers: curves of quality against diversity along dials.
        best: best choices of axes.
        paper_columns: columns of a paper, 1 or 2, that the pictures are as wide as.
    """

    baseline: str = ""
    columns: tuple[str, ...] = ()
    planes: tuple[tuple[str, str], ...] = ()
    against: Mapping[str, tuple[str, ...]] | None = None
    curves: tuple[str, ...] = ()
    matched: Mapping[str, str] = field(default_factory=dict)
    frontiers: tuple[FrontierSettings, ...] = ()
    best: tuple[BestSettings, ...] = ()
    paper_columns: int = 2


@dataclass(frozen=True)
class Results:
    """A collection of runs.

    Attributes:
        title: title of the report.
        paper: name of the study that it repeats; empty: none.
        sources: directories that it was collected from.
        rows: rows in the order of the table.
        axes: axis -> its choices in order.
        missing: what could not be shown, with the reason.
        settings: what the sources want shown.
        file: path of the grid file, where the sources are one grid; else empty.
    """

    title: str
    paper: str
    sources: tuple[Path, ...]
    rows: tuple[Row, ...]
    axes: Mapping[str, tuple[str, ...]]
    missing: tuple[Missing, ...] = ()
    settings: Settings = field(default_factory=Settings)
    file: str = ""

    @property
    def trained(self) -> tuple[Row, ...]:
        """The rows without the base models."""
        return tuple(row for row in self.rows if not row.is_base)

    @cached_property
    def names(self) -> list[str]:
        """The names of all values, in the order in which they are first met."""
        return list(dict.fromkeys(name for row in self.rows for run in row.runs for name in run.values))

    @cached_property
    def _described(self) -> dict[str, Value]:
        return {name: value for row in self.rows for run in row.runs for name, value in run.described.items()}

    def describe(self, name: str) -> Value:
        """The description of a value; of one whose measure is not registered, that of its file."""
        return describe(name, self._described)

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({run.seed for row in self.trained for run in row.runs if run.seed is not None})

    @property
    def runs(self) -> list[Run]:
        """Every training once, though several rows may share it."""
        return list({run.directory: run for row in self.trained for run in row.runs}.values())

    @cached_property
    def table(self) -> pd.DataFrame:
        """The values of all runs, one a line, by rows and then by names.

        Columns: `row` (its label), `axis/NAME` for each axis (its choice; None of a row without it), `name`, `seed`,
        `decoding` (None where the value does not depend on it) and `value`, which is nan where the measure was made
        and the value is not defined.

        Example:
            >>> run = Run("ts2/1", Path("ts2/1"), seed=0, values={"val/entropy": 0.5})
            >>> Results("", "", (), (Row("TS2", {"loss": "TS2"}, (run,)),), {"loss": ("TS2",)}).table.iloc[0].to_dict()
            {'row': 'TS2', 'axis/loss': 'TS2', 'name': 'val/entropy', 'seed': 0, 'decoding': None, 'value': 0.5}
        """
        lines = [
            (row.label, *map(row.labels.get, self.axes), name, run.seed, run.decoding(name), run.values.get(name, nan))
            for row in self.rows
            for name in self.names
            for run in row.runs
            if name in run.values or name.partition("/")[0] in run.settings
        ]
        columns = ["row", *(f"axis/{axis}" for axis in self.axes), "name", "seed", "decoding", "value"]
        return pd.DataFrame(lines, columns=columns, dtype=object)

    def curves(self, name: str) -> pd.DataFrame:
        """What was logged under a name, one value a line: `row` (its label), `run` (place there), `step`, `value`."""
        lines = [
            (row.label, place, step, value)
            for row in self.trained
            for place, run in enumerate(row.runs)
            for step, value in run.curves.get(name, {}).items()
        ]
        return pd.DataFrame(lines, columns=["row", "run", "step", "value"])

    @cached_property
    def by_seed(self) -> dict[tuple[str, str], dict[int | None, float]]:
        """(Row, name) -> seed -> value, in the order of the table."""
        groups = self.table.groupby(["row", "name"], sort=False)
        return {key: dict(zip(group["seed"], group["value"], strict=True)) for key, group in groups}

    def values(self, row: Row, name: str) -> dict[int | None, float]:
        """Seed -> value of a row, for the runs of which it was measured; nan where it was, and is not defined."""
        return self.by_seed.get((row.label, name), {})

    def summary(self, row: Row, name: str) -> Summary:
        """Mean and standard deviation of a row's values over its seeds."""
        return summarise(list(self.values(row, name).values()))

    def difference(self, row: Row, other: Row, name: str) -> Difference:
        """A row's values less another's, paired by seed."""
        return paired_difference(self.values(row, name), self.values(other, name))


def by_runs(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that share their trainings, together; none without a run."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.runs:
            alike.setdefault(tuple(str(run.directory) for run in row.runs), []).append(row)
    return list(alike.values())


def measured_along(rows: Sequence[Row]) -> tuple[str, tuple[str, ...]] | None:
    """The one axis in which rows of the same trainings differ, with their choices of it; None if they differ otherwise.

    Example:
        >>> measured_along([Row("", {"loss": "CE", "T": "0.6"}, ()), Row("", {"loss": "CE", "T": "1"}, ())])
        ('T', ('0.6', '1'))
    """
    axes = [axis for axis in rows[0].labels if len({row.labels.get(axis) for row in rows}) > 1]
    return (axes[0], tuple(str(row.labels.get(axes[0])) for row in rows)) if len(axes) == 1 else None


def told_apart(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows with labels of which none occurs twice: marks, styles and places in pictures go by them.

    Rows of trainings keep theirs before base models do.

    Example:
        >>> [row.label for row in told_apart([Row("CE", {}, (), is_base=True), Row("CE", {}, ()), Row("CE", {}, ())])]
        ['CE (3)', 'CE', 'CE (2)']
    """
    labelled = list(rows)
    taken: set[str] = set()
    for i in sorted(range(len(labelled)), key=lambda i: labelled[i].is_base):
        label = labelled[i].label
        numbered = (f"{labelled[i].label} ({n})" for n in itertools.count(2))
        while label in taken:
            label = next(numbered)
        taken.add(label)
        labelled[i] = replace(labelled[i], label=label)
    return tuple(labelled)


def number(text: str) -> float | None:
    """The number that a choice stands for, or None.

    Example:
        >>> number("2.5e-4"), number("TS2"), number("nan")
        (0.00025, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numeric_axes(axes: Mapping[str, Sequence[str]]) -> list[str]:
    """The axes with at least two choices that are numbers.

    Example:
        >>> numeric_axes({"objective": ["CE", "TS2"], "k": ["null", "3", "5"], "scale": ["1"]})
        ['k']
    """
    return [axis for axis, choices in axes.items() if sum(number(choice) is not None for choice in choices) > 1]
