"""From the axes and blocks of a grid file to the rows of its report."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ts2_lightning.studies.grid.entries import Entry

ALL = "all"
"""Stands for every choice of an axis."""

Labels = dict[str, str]
"""Axis -> choice."""

Axes = Mapping[str, Mapping[str, object]]
"""Axis -> its choices by name."""


@dataclass(frozen=True)
class LabelledRow:
    """Labels in the order of the axes, and the block that they came from."""

    labels: Labels
    block: Entry


@dataclass(frozen=True)
class Rule:
    """Matches the rows that have one of the choices on every axis that it names."""

    choices: Mapping[str, frozenset[str]]
    entry: Entry

    def matches(self, labels: Labels) -> bool:
        """Whether a row is meant; one that lacks an axis is not."""
        return all(labels.get(axis) in choices for axis, choices in self.choices.items())


def rows_of(runs: Sequence[Entry], exclude: Iterable[Rule], axes: Axes, whole: Entry) -> list[LabelledRow]:
    """The rows of a grid.

    Args:
        runs: the blocks; none is the product of all axes.
        exclude: rows that are left out.
        axes: the choices of each axis.
        whole: entry of the blocks, or of the axes where there are no blocks, for messages.

    Raises:
        UserError: for what is wrong with a block, a row that comes twice, a rule that leaves out none, and no row left.
    """
    rows = [LabelledRow(labels, block) for block in runs for labels in expand(block, axes)]
    if not runs:
        every = [[{axis: name} for name in choices] for axis, choices in axes.items()]
        rows = [LabelledRow(labels, whole) for labels in _product(every)]
    _refuse_twins(rows)
    for rule in exclude:
        left = [row for row in rows if not rule.matches(row.labels)]
        if len(left) == len(rows):
            raise rule.entry.error("leaves out no row; see --dry-run without it, or remove it")
        rows = left
    if not rows:
        raise whole.error("exclude leaves none of these rows")
    return [LabelledRow({axis: row.labels[axis] for axis in axes if axis in row.labels}, row.block) for row in rows]


def expand(block: Entry, axes: Axes) -> list[Labels]:
    """The rows of one block: `{AXIS: CHOICES, ...}`, `{zip: [blocks]}` or `{product: [blocks]}`.

    In a product what comes last varies fastest.

    Raises:
        UserError: for an axis or a choice that there is not, an axis that comes twice, and a zip of unequal lengths.
    """
    parts = block.mapping("a block such as {objective: [CE, TS2]}, {zip: [...]} or {product: [...]}")
    for name, join in (("zip", _zip), ("product", _product)):
        if name in parts:
            if len(parts) > 1:
                raise block.error(f"{name} stands alone in its block; write {{product: [{{{name}: ...}}, ...]}}")
            inner = _disjoint(parts[name], axes)
            lengths = [len(rows) for rows in inner]
            if name == "zip" and len(set(lengths)) > 1:
                got = " and ".join(map(str, lengths))
                raise parts[name].error(f"the parts of a zip must be equally long, got {got} rows")
            return join(inner)
    return _product([[{axis: name} for name in _choices(entry, axis, axes)] for axis, entry in parts.items()])


def read_rule(entry: Entry, axes: Axes, example: str) -> Rule:
    """A condition on rows: axis -> a choice or a list of choices.

    Raises:
        UserError: for an axis or a choice that there is not.
    """
    parts = entry.mapping(f"axes with choices, such as {example}")
    return Rule({axis: frozenset(_choices(part, axis, axes)) for axis, part in parts.items()}, entry)


def _choices(entry: Entry, axis: str, axes: Axes) -> list[str]:
    """The choices of an axis that an entry names."""
    entry.one_of(axes, "axis", axis)
    if entry.scalar == ALL:
        return list(axes[axis])
    names = [item.one_of(axes[axis], f"choice of {axis}") for item in entry.one_or_more("a choice or choices")]
    for name in names:
        if names.count(name) > 1:
            raise entry.error(f"{name!r} comes twice")
    return names


def _disjoint(entry: Entry, axes: Axes) -> list[list[Labels]]:
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


def _product(parts: Iterable[Iterable[Labels]]) -> list[Labels]:
    return [_united(combination) for combination in itertools.product(*parts)]


def _zip(parts: Iterable[Iterable[Labels]]) -> list[Labels]:
    return [_united(combination) for combination in zip(*parts, strict=True)]


def _united(combination: Iterable[Labels]) -> Labels:
    return {axis: choice for labels in combination for axis, choice in labels.items()}


def _refuse_twins(rows: Iterable[LabelledRow]) -> None:
    first: dict[frozenset[tuple[str, str]], LabelledRow] = {}
    for row in rows:
        twin = first.setdefault(frozenset(row.labels.items()), row)
        if twin is not row:
            before = f", first on line {twin.block.line}" if twin.block.line != row.block.line else ""
            raise row.block.error(f"the row {title_of(row.labels)} comes twice{before}; keep one")


def title_of(labels: Mapping[str, str]) -> str:
    """A row in one line.

    >>> title_of({"objective": "CE, half rate", "seed": "1"})
    'objective=CE, half rate seed=1'
    """
    return " ".join(f"{axis}={choice}" for axis, choice in labels.items())
