"""What a grid file wants drawn along dials, and chosen of an axis: things that its runs will have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ts2_lightning.evaluation import describe
from ts2_lightning.studies.grid.entries import Entry
from ts2_lightning.studies.grid.rows import Axes, LabelledRow, Rule, read_rule

BASELINE = "baseline"
MOST_DIALS = 2
MOST_TARGETS = 8
"""Rows of a baseline, at most, each of whose qualities is a target where none is named."""


def _listed(entry: Entry) -> tuple[Entry, ...]:
    return tuple(entry.one_or_more("a quality such as 0.95, a row such as {objective: CE}, or a list of these"))


@dataclass(frozen=True, kw_only=True)
class FrontierPart:
    """Curves of quality against diversity along dials.

    Attributes:
        dials: one or two axes, such as the learning rate and the decoding temperature.
        quality: name of a value.
        diversity: name of a value.
        at: qualities at which diversities are compared: numbers, choices of a row whose quality it is, or `baseline`
            (the default), the quality of each row that is a baseline.
        where: choices of the rows that are meant; by default all rows.
    """

    entry: Entry
    dials: Annotated[tuple[Entry, ...], "a list of axes, such as [learning_rate]"]
    quality: Entry
    diversity: Entry
    at: Annotated[tuple[Entry, ...], _listed] = ()
    where: Entry | None = None

    def check(self, axes: Axes, rows: Iterable[LabelledRow], baseline: Rule | None) -> None:
        """Makes sure that there are curves, and a quality to compare them at.

        Args:
            axes: the choices of each axis.
            rows: rows of the grid.
            baseline: rows that are the baseline, where one is named.

        Raises:
            UserError: naming the line of what is wrong.
        """
        there = _rows_where(self.where, axes, rows)
        names = [dial.one_of(axes, "axis") for dial in self.dials]
        if len(names) > MOST_DIALS or len(set(names)) < len(names):
            raise self.entry.error(f"dials: expected one axis or two different ones, got {', '.join(names)}")
        for dial, name in zip(self.dials, names, strict=True):
            choices = {row.labels[name] for row in there if name in row.labels}
            if len(choices) < 2:
                raise dial.error(f"a dial needs at least two choices, {name} has {len(choices)} in these rows")
        for value in (self.quality, self.diversity):
            if describe(value.text).better is None and describe(value.text).title != value.text:
                raise value.error(f"{value.text}: neither direction is better, so that it has no front")
        for at in self.at or (None,):
            self._check_target(at, axes, there, baseline)

    def _check_target(self, at: Entry | None, axes: Axes, rows: Sequence[LabelledRow], baseline: Rule | None) -> None:
        if at is not None and isinstance(at.value, dict):
            rule = read_rule(at, axes, "{objective: CE, learning_rate: 5.0e-4}")
            meant = [row for row in rows if rule.matches(row.labels)]
            if len(meant) != 1 and not any(row.labels.keys() == rule.choices.keys() for row in meant):
                raise at.error(f"must mean one row of these, means {len(meant)}; name the choice of more axes")
        elif at is None or at.value == BASELINE:
            entry = self.entry if at is None else at
            count = sum(baseline.matches(row.labels) for row in rows) if baseline else 0
            if not 0 < count <= MOST_TARGETS:
                missing = "no baseline is named" if baseline is None else f"the baseline has {count} of these rows"
                raise entry.error(
                    f"at: {missing}; give a quality such as 0.95, or a row such as {{objective: CE, alpha: 1}}"
                )
        elif isinstance(at.value, bool) or not isinstance(at.value, int | float):
            raise at.unlike("a quality such as 0.95, choices of a row, or baseline")

    def record(self) -> dict[str, Any]:
        """Plain values for `grid.json`; choices as they are written."""
        return {
            "dials": [dial.text for dial in self.dials],
            "quality": self.quality.text,
            "diversity": self.diversity.text,
            "at": [_target(at) for at in self.at] or [BASELINE],
            "where": {} if self.where is None else _choices(self.where),
        }


def _rows_where(where: Entry | None, axes: Axes, rows: Iterable[LabelledRow]) -> list[LabelledRow]:
    """The rows that are meant; all where nothing is said."""
    if where is None:
        return list(rows)
    rule = read_rule(where, axes, "{temperature: 1}")
    there = [row for row in rows if rule.matches(row.labels)]
    if not there:
        raise where.error("no row of the grid is meant; mend it, or remove it")
    return there


def _target(at: Entry) -> Any:
    return _texts(at) if isinstance(at.value, dict) else at.value


def _texts(entry: Entry) -> dict[str, str]:
    return {axis: choice.text for axis, choice in entry.mapping().items()}


def _choices(entry: Entry) -> dict[str, list[str]]:
    parts = entry.mapping().items()
    return {axis: [item.text for item in choice.one_or_more("a choice or choices")] for axis, choice in parts}


# The best choice of an axis -------------------------------------------------------------------------------------------


def _seeds_listed(entry: Entry) -> tuple[Entry, ...]:
    return tuple(entry.items("a list of seeds, such as [0, 1]"))


@dataclass(frozen=True, kw_only=True)
class BestPart:
    """The best choice of an axis for each choice of the other axes.

    Attributes:
        axis: axis of which a choice is taken.
        by: name of the value that decides.
        choose_on: seeds that decide.
        report_on: seeds that are reported.
        columns: names of the values that are reported; by default those of the report.
        where: choices of the rows that are meant; by default all rows.
    """

    entry: Entry
    axis: Entry
    by: Entry
    choose_on: Annotated[tuple[Entry, ...], _seeds_listed] = ()
    report_on: Annotated[tuple[Entry, ...], _seeds_listed] = ()
    columns: tuple[Entry, ...] = ()
    where: Entry | None = None

    def check(self, axes: Axes, rows: Iterable[LabelledRow], seeds: Sequence[int], columns: Sequence[Entry]) -> None:
        """Makes sure that what is chosen on one set of numbers is reported on another.

        Args:
            axes: the choices of each axis.
            rows: rows of the grid.
            seeds: seeds of the grid.
            columns: values that the report shows.

        Raises:
            UserError: naming the line of what is wrong.
        """
        name = self.axis.one_of(axes, "axis")
        if len({row.labels[name] for row in _rows_where(self.where, axes, rows) if name in row.labels}) < 2:
            raise self.axis.error(f"nothing to choose: {name} has less than two choices in these rows")
        if describe(self.by.text).better is None and describe(self.by.text).title != self.by.text:
            raise self.by.error(f"{self.by.text}: neither direction is better, so that none is the best")
        for seed in (*self.choose_on, *self.report_on):
            if seed.value not in seeds:
                raise seed.error(f"the grid has no seed {seed.text}; it has {', '.join(map(str, seeds))}")
        if bool(self.choose_on) != bool(self.report_on):
            raise self.entry.error("choose_on and report_on belong together: seeds that decide, and others")
        both = [seed for seed in self.report_on if seed.value in [other.value for other in self.choose_on]]
        if both:
            raise both[0].error(
                f"seed {both[0].text} decides too: what is chosen and reported on the same numbers looks too good"
            )
        if not self.choose_on:
            self._check_places(self.columns or columns)

    def _check_places(self, columns: Sequence[Entry]) -> None:
        """Without seeds of their own the values that are reported must be of other prompts or rows."""
        if not columns:
            raise self.entry.error("give choose_on and report_on, or columns with values of other prompts or rows")
        for column in columns:
            if are_same_rows(self.by.text, column.text):
                raise self.entry.error(
                    f"chosen by {self.by.text} and reported on {column.text}, of the same rows and seeds; give "
                    "choose_on and report_on, or columns of other rows"
                )

    def record(self) -> dict[str, Any]:
        """Plain values for `grid.json`."""
        return {
            "axis": self.axis.text,
            "by": self.by.text,
            "choose_on": [seed.value for seed in self.choose_on],
            "report_on": [seed.value for seed in self.report_on],
            "columns": [column.text for column in self.columns],
            "where": {} if self.where is None else _choices(self.where),
        }


_LOGGED_AS: Mapping[str, str] = {"val": "validation"}


def are_same_rows(one: str, other: str) -> bool:
    """Whether two values are of the same rows or prompts, or one of a part of the other's, by their names.

    Example:
        >>> are_same_rows("toyworld/seen/validity_t1", "toyworld/seen/distinct_t1")
        True
        >>> are_same_rows("toyworld/seen/validity_t1", "toyworld/unseen/validity_t1")
        False
        >>> are_same_rows("val/entropy", "validation/chat/entropy")
        True
        >>> are_same_rows("toyworld/seen/validity_t1", "toyworld_decoded/seen/distinct")
        True
    """
    places = []
    for name in (one, other):
        first, *others = name.split("/")[:-1] or [name]
        places.append((_LOGGED_AS.get(first, first), *others))
    (first, *one_set), (second, *other_set) = places
    length = min(len(one_set), len(other_set))
    same_sets = one_set[:length] == other_set[:length]
    return same_sets and (first == second or length > 0)
