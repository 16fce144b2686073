"""From the axes and blocks of a grid file to its rows."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ts2_lightning.experiments.grid.entries import Entry, choose

ALL = "all"
"""Stands for every choice of an axis."""

Labels = dict[str, str]
"""Axis -> choice."""

Choices = Mapping[str, Mapping[str, object]]
"""Axis -> its choices by name."""


@dataclass(frozen=True)
class Row:
    """Labels in the order of the axes, and the block that they came from."""

    labels: Labels
    origin: Entry


@dataclass(frozen=True)
class Rule:
    """Matches the rows that have one of the choices on every axis that it names."""

    choices: Mapping[str, frozenset[str]]
    origin: Entry

    def matches(self, labels: Labels) -> bool:
        """Whether a row is meant; one that lacks an axis is not."""
        return all(labels.get(axis) in wanted for axis, wanted in self.choices.items())


def rows_of(runs: Entry | None, exclude: Iterable[Rule], axes: Choices, declared: Entry) -> list[Row]:
    """The rows of a grid.

    Args:
        runs: the blocks; None is the product of all axes.
        exclude: rows that are left out.
        axes: the choices of each axis.
        declared: the axes in the file, for messages.

    Raises:
        UserError: for what is wrong with a block, a row that comes twice, a rule that leaves out none, and no row left.
    """
    if runs is None:
        found = [Row(labels, declared) for labels in _product([_all(axis, choices) for axis, choices in axes.items()])]
    else:
        blocks = runs.items("a list of blocks, such as `- {objective: [CE, TS2]}`")
        found = [Row(labels, block) for block in blocks for labels in expand(block, axes)]
    _refuse_twins(found)
    kept = found
    for rule in exclude:
        remaining = [row for row in kept if not rule.matches(row.labels)]
        if len(remaining) == len(kept):
            raise rule.origin.error("leaves out no row; see --dry-run without it, or remove it")
        kept = remaining
    if not kept:
        raise (runs or declared).error("exclude leaves none of these rows")
    return [Row({axis: row.labels[axis] for axis in axes if axis in row.labels}, row.origin) for row in kept]


def expand(block: Entry, axes: Choices) -> list[Labels]:
    """The rows of one block: `{AXIS: CHOICES, ...}`, `{zip: [blocks]}` or `{product: [blocks]}`.

    In a product what comes last varies fastest.

    Raises:
        UserError: for an axis or a choice that there is not, an axis that comes twice, and a zip of unequal lengths.
    """
    parts = block.mapping("a block such as {objective: [CE, TS2]}, {zip: [...]} or {product: [...]}")
    joins: dict[str, Callable[[Entry, Choices], list[Labels]]] = {"zip": _zipped, "product": _multiplied}
    for name, join in joins.items():
        if name in parts:
            if len(parts) > 1:
                raise block.error(f"{name} stands alone in its block; write {{product: [{{{name}: ...}}, ...]}}")
            return join(parts[name], axes)
    return _product([_chosen(entry, axis, axes) for axis, entry in parts.items()])


def read_rule(entry: Entry, axes: Choices, example: str) -> Rule:
    """A condition on rows: axis -> a choice or a list of choices.

    Raises:
        UserError: for an axis or a choice that there is not.
    """
    parts = entry.mapping(f"axes with choices, such as {example}")
    found = {axis: _chosen(choices, axis, axes) for axis, choices in parts.items()}
    return Rule({axis: frozenset(row[axis] for row in rows) for axis, rows in found.items()}, entry)


def _chosen(entry: Entry, axis: str, axes: Choices) -> list[Labels]:
    choose(axis, axes.keys(), "axis", entry)
    if not entry.is_list and entry.text == ALL:
        return _all(axis, axes[axis])
    items = entry.one_or_more("a choice or choices")
    names = [choose(item.text, axes[axis].keys(), f"choice of {axis}", item) for item in items]
    for name in names:
        if names.count(name) > 1:
            raise entry.error(f"{name!r} comes twice")
    return [{axis: name} for name in names]


def _all(axis: str, choices: Mapping[str, object]) -> list[Labels]:
    return [{axis: name} for name in choices]


def _product(parts: list[list[Labels]]) -> list[Labels]:
    return [_united(combination) for combination in itertools.product(*parts)]


def _multiplied(entry: Entry, axes: Choices) -> list[Labels]:
    return _product(_parts(entry, axes))


def _zipped(entry: Entry, axes: Choices) -> list[Labels]:
    parts = _parts(entry, axes)
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise entry.error(f"the parts of a zip must be equally long, got {' and '.join(map(str, lengths))} rows")
    return [_united(combination) for combination in zip(*parts, strict=True)]


def _parts(entry: Entry, axes: Choices) -> list[list[Labels]]:
    """The rows of blocks that are joined, no two of which may have the same axis."""
    taken: set[str] = set()
    parts = []
    for block in entry.items("a list of blocks"):
        rows = expand(block, axes)
        own = {axis for row in rows for axis in row}
        if taken & own:
            raise block.error(f"axis {min(taken & own)!r} is in another part too; a row has one choice of each axis")
        taken |= own
        parts.append(rows)
    return parts


def _united(combination: Iterable[Labels]) -> Labels:
    return {axis: choice for labels in combination for axis, choice in labels.items()}


def _refuse_twins(rows: Iterable[Row]) -> None:
    seen: dict[frozenset[tuple[str, str]], Row] = {}
    for row in rows:
        first = seen.setdefault(frozenset(row.labels.items()), row)
        if first is not row:
            before = f", first on line {first.origin.line}" if first.origin.line != row.origin.line else ""
            raise row.origin.error(f"the row {title_of(row.labels)} comes twice{before}; keep one")


def title_of(labels: Mapping[str, str]) -> str:
    """A row in one line.

    >>> title_of({"objective": "CE, half rate", "seed": "1"})
    'objective=CE, half rate seed=1'
    """
    return " ".join(f"{axis}={choice}" for axis, choice in labels.items())
