"""Finding runs, and putting them into rows."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ts2_lightning.evaluation.results import DIRECTORY
from ts2_lightning.experiments.grid import GRID
from ts2_lightning.experiments.report.grids import read_grid_results
from ts2_lightning.experiments.report.results import Missing, Results, told_apart
from ts2_lightning.experiments.report.rows import base_row, endings, rows_of
from ts2_lightning.runs.directory import CONFIG
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def collect(paths: Iterable[str | Path]) -> Results:
    """Reads runs, and puts them into rows.

    Args:
        paths: directories of grids, of runs (`runs/NAME/1`), of all runs of a name (the newest finished one of
            each configuration counts), of measured models, or directories that have any of these below them; also
            patterns such as `runs/ts2-*`.

    Raises:
        UserError: there is none of these, or none has anything to show.
    """
    given = [place for path in paths for place in _matching(str(path))]
    found = list(dict.fromkeys(place for path in given for place in _below(path)))
    if not found:
        raise UserError(f"{_listed(given)}: no run there: no {CONFIG}, no {GRID}, no {DIRECTORY}")
    grids = [read_grid_results(place) for place in found if (place / GRID).is_file()]
    others = [place for place in found if not (place / GRID).is_file()]
    results = grids[0] if len(grids) == 1 and not others else _together(given, grids, others)
    if not results.names and not grids:  # of a grid it is worth telling why there is nothing
        raise UserError(_nothing(given, results.missing))
    return results


def _matching(path: str) -> list[Path]:
    """The directory of that name, or those that fit a pattern.

    Raises:
        UserError: there is none.
    """
    if Path(path).is_dir():
        return [Path(path)]
    if Path(path).exists():
        raise UserError(
            f"{path}: not a directory; name a run, such as runs/ts2/1, or a grid, such as runs/toyworld-alpha"
        )
    fitting = [Path(match) for match in sorted(glob.glob(path), key=_natural) if Path(match).is_dir()]
    if fitting:
        return fitting
    parent = Path(path).parent
    near = [str(parent / entry.name) for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    raise UserError(f"{path}: no such run{did_you_mean(path, near)}")


def _below(directory: Path) -> Iterator[Path]:
    """The directory, or those below it, that can be reported; nothing is looked for inside of one."""
    if any((directory / sign).is_file() for sign in (GRID, CONFIG)) or (directory / DIRECTORY).is_dir():
        yield directory
        return
    for entry in sorted(directory.iterdir(), key=lambda entry: _natural(entry.name)):
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _below(entry)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 10 behind 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _together(given: Sequence[Path], grids: Sequence[Results], others: Sequence[Path]) -> Results:
    """One report of several grids and runs; rows of the same name are told apart by the grid's."""
    bases = [base_row(place) for place in others if not (place / CONFIG).is_file()]
    rows, axes, missing = rows_of(place for place in others if (place / CONFIG).is_file())
    taken = Counter(row.label for grid in grids for row in grid.rows) + Counter(row.label for row in [*bases, *rows])
    together = [*bases]
    names = endings([str(grid.sources[0]) for grid in grids])
    for name, grid in zip(names, grids, strict=True):
        together += [row if taken[row.label] == 1 else replace(row, label=f"{name}: {row.label}") for row in grid.rows]
        missing += grid.missing
        for axis, choices in grid.axes.items():
            axes[axis] = tuple(dict.fromkeys((*axes.get(axis, ()), *choices)))
    every = told_apart([*together, *rows])
    return Results(f"Report on {_listed(given)}", "", tuple(given), every, axes, tuple(missing))


def _nothing(given: Sequence[Path], missing: Sequence[Missing]) -> str:
    first = "; ".join(f"{entry.name}: {entry.reason}" for entry in missing[:2])
    more = f" (and {len(missing) - 2} more)" if len(missing) > 2 else ""
    return f"{_listed(given)}: nothing to report: {first or 'no values'}{more}"


def _listed(paths: Sequence[Path]) -> str:
    """A few paths, by name."""
    return ", ".join(map(str, paths[:4])) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
