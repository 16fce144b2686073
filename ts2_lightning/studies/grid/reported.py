"""What a grid file wants to have reported: something that its runs will have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ts2_lightning.evaluation import describe, described, registered_measures
from ts2_lightning.studies.grid.entries import Entry
from ts2_lightning.studies.grid.frontiers import BestPart, FrontierPart
from ts2_lightning.studies.grid.rows import Axes, LabelledRow, Rule, read_rule
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import TOKEN_STATISTICS

_LOGS = ("train", "val", "throughput", "drift", "samples")
_CURVES = [f"{log}/{name}" for log in ("train", "val") for name in ("objective", "perplexity", *TOKEN_STATISTICS)]

PAPER_COLUMNS = (1, 2)
"""Of the two columns of a paper's page, how many a picture may be as wide as."""


@dataclass(frozen=True)
class Plane:
    """A picture of one value against another."""

    x: Entry
    y: Entry


@dataclass(frozen=True)
class Against:
    """Pictures of values against the choices of an axis."""

    axis: Entry
    metrics: Annotated[tuple[Entry, ...], "a list of metrics"]


@dataclass(frozen=True)
class ReportPart:
    """Settings of the report."""

    entry: Entry
    baseline: Entry | None = None
    columns: tuple[Entry, ...] = ()
    planes: tuple[Plane, ...] = ()
    against: tuple[Against, ...] = ()
    curves: tuple[Entry, ...] = ()
    frontiers: tuple[FrontierPart, ...] = ()
    best: tuple[BestPart, ...] = ()
    paper_columns: Entry | None = None

    @property
    def values(self) -> list[Entry]:
        """Names of values of runs, wherever they stand."""
        planes = [value for plane in self.planes for value in (plane.x, plane.y)]
        frontiers = [value for frontier in self.frontiers for value in (frontier.quality, frontier.diversity)]
        best = [value for best in self.best for value in (best.by, *best.columns)]
        against = [value for against in self.against for value in against.metrics]
        return [*self.columns, *planes, *against, *frontiers, *best]

    def check(
        self,
        axes: Axes,
        rows: Sequence[LabelledRow],
        measured: list[str],
        seeds: Sequence[int],
    ) -> None:
        """Makes sure that what is to be reported is something that the runs will have.

        Args:
            axes: the choices of each axis.
            rows: rows of the grid.
            measured: the measures that are made of any row, or of the base model.
            seeds: seeds of the grid.

        Raises:
            UserError: for an axis or a row that there is not, and for names of values that no run can have.
        """
        columns = self.paper_columns
        if columns is not None and (isinstance(columns.value, bool) or columns.value not in PAPER_COLUMNS):
            raise columns.unlike("1 or 2, the columns of a paper that a picture is as wide as")
        for against in self.against:
            against.axis.one_of(axes, "axis")
        for value in self.values:
            _check_value(value, measured)
        for curve in self.curves:
            _check_curve(curve)
        baseline = None if self.baseline is None else self._read_baseline(self.baseline, axes, rows)
        for frontier in self.frontiers:
            frontier.check(axes, rows, baseline)
        for best in self.best:
            best.check(axes, rows, seeds, self.columns)

    def _read_baseline(self, baseline: Entry, axes: Axes, rows: Sequence[LabelledRow]) -> Rule:
        """The rows that others are compared with: one, or one for each setting of the other axes."""
        rule = read_rule(baseline, axes, "{objective: CE}")
        for axis, choices in rule.choices.items():
            if len(choices) > 1:
                raise baseline.error(f"expected one choice of {axis}, got {len(choices)}")
        if not any(rule.matches(row.labels) for row in rows):
            raise baseline.error("no row of the grid is meant; name the choice of fewer axes")
        return rule

    def record(self) -> dict[str, Any]:
        """Plain values for `grid.json`; the choices of the baseline as they are written."""
        record: dict[str, Any] = dict(self.entry.value)
        if self.baseline is not None:
            record["baseline"] = {axis: choice.text for axis, choice in self.baseline.mapping().items()}
        record["frontiers"] = [frontier.record() for frontier in self.frontiers]
        record["best"] = [best.record() for best in self.best]
        return record


def _check_value(entry: Entry, measured: list[str]) -> None:
    """A value is one of a measure that is made, or logged. Those of the user's own measures are not all known."""
    name = entry.text
    measure = name.partition("/")[0]
    if measure in _LOGS:
        return
    if measure not in measured:
        there = [value for value in described() if value.partition("/")[0] in measured]
        hint = did_you_mean(name, [*there, *_CURVES]) or f"; it measures {', '.join(measured) or 'nothing'}"
        raise entry.error(f"{name}: the grid does not measure {measure!r}{hint}")
    if describe(name).title == name:
        hint = did_you_mean(name, [value for value in described() if value.startswith(f"{measure}/")])
        if hint:
            raise entry.error(f"{measure} has no value {name!r}{hint}")


def _check_curve(entry: Entry) -> None:
    """Any name may be logged; what looks like one of ours is to be one."""
    name = entry.text
    log, slash, _ = name.partition("/")
    resembles = not slash or log in registered_measures() or bool(did_you_mean(log, _LOGS))
    if log not in _LOGS and resembles and (hint := did_you_mean(name, _CURVES)):
        raise entry.error(f"nothing is logged as {name!r}{hint}")
