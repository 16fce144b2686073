"""What a report is made of: runs, rows of runs that differ in their seeds, and what is missing."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ts2_lightning.experiments.report.statistics import Difference, Summary, paired_difference, summarise

Curve = Mapping[int, float]
"""Optimizer step -> logged value."""


@dataclass(frozen=True)
class Run:
    """A finished training, and what was measured of it.

    Attributes:
        name: of its directory, for people.
        directory: of the run itself, `RUNS_DIR/NAME/N`.
        seed: None where its configuration has none.
        values: name -> number. One that a measure has not left, though it was made, is not defined.
        curves: logged name -> curve.
        probes: probe -> what its `measure` returned, where that was kept.
        settings: measure -> the settings that it was made with.
        revision: of the software, for people; None where it is not known.
        time: when it began, ISO 8601; None where it is not known.
        seconds: of training; None where it is not known.
        command: repeats it.
    """

    name: str
    directory: Path
    seed: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    probes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    time: str | None = None
    seconds: float | None = None
    command: str = ""


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: in tables and pictures; no two rows of a report have the same, see `told_apart`.
        labels: axis -> choice, for those axes that the row has.
        runs: one per seed.
        is_base: a model as it was before any of the trainings: never the best, and compared with nothing.
    """

    label: str
    labels: Mapping[str, str]
    runs: tuple[Run, ...]
    is_base: bool = False

    def values(self, name: str) -> dict[int | None, float]:
        """Seed -> value, for the runs of which it was measured; nan where it was, and is not defined."""
        measure = name.partition("/")[0]
        there = [run for run in self.runs if name in run.values or measure in run.settings]
        return {run.seed: run.values.get(name, math.nan) for run in there}

    def summary(self, name: str) -> Summary:
        """Mean and standard deviation over the seeds."""
        return summarise(list(self.values(name).values()))

    def difference(self, other: "Row", name: str) -> Difference:
        """This row's values less another's, paired by seed."""
        return paired_difference(self.values(name), other.values(name))


@dataclass(frozen=True)
class Missing:
    """Something that should have been in the report and is not.

    Attributes:
        name: the run, for people.
        row: label of the row that it belongs to; empty where there is none.
        reason: why, and where to read more.
    """

    name: str
    row: str
    reason: str


@dataclass(frozen=True)
class Settings:
    """What is shown; what is left empty is chosen from what was measured.

    Attributes:
        baseline: label of the row that differences are taken against; empty: the first one.
        columns: names of the values in the tables.
        planes: (x, y) of the pictures of quality against diversity.
        against: axis -> names of the values drawn against it; None: every axis whose choices are numbers.
        curves: logged names.
    """

    baseline: str = ""
    columns: tuple[str, ...] = ()
    planes: tuple[tuple[str, str], ...] = ()
    against: Mapping[str, tuple[str, ...]] | None = None
    curves: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """A collection of runs.

    Attributes:
        title: of the report.
        paper: whose study it repeats; empty: nobody's.
        sources: the directories that it was collected from.
        rows: in the order of the table.
        axes: axis -> its choices in order.
        missing: what could not be shown, with the reason.
        settings: what the sources want shown.
        file: the grid's, where the sources are one grid; else empty.
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

    @property
    def names(self) -> list[str]:
        """The names of all values, in the order in which they are first met."""
        return list(dict.fromkeys(name for row in self.rows for run in row.runs for name in run.values))

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({run.seed for row in self.trained for run in row.runs if run.seed is not None})

    @property
    def runs(self) -> list[Run]:
        """Every training once, though several rows may share it."""
        return list({run.directory: run for row in self.trained for run in row.runs}.values())


def told_apart(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows with labels of which none occurs twice: marks, looks and places in pictures are found by them.

    Rows of trainings keep theirs before base models do.

    Example:
        >>> [row.label for row in told_apart([Row("CE", {}, (), is_base=True), Row("CE", {}, ()), Row("CE", {}, ())])]
        ['CE (3)', 'CE', 'CE (2)']
    """
    found = list(rows)
    taken: set[str] = set()
    for i in sorted(range(len(found)), key=lambda i: found[i].is_base):
        label = found[i].label
        numbered = (f"{found[i].label} ({n})" for n in itertools.count(2))
        while label in taken:
            label = next(numbered)
        taken.add(label)
        found[i] = replace(found[i], label=label)
    return tuple(found)


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
