"""Finding runs, and putting them into rows: by what a grid has recorded, or by their configurations (`rows`)."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.registry import check_spec
from ts2_lightning.evaluation.results import DIRECTORY, Result, files_of, read_result
from ts2_lightning.json_files import read_json
from ts2_lightning.runs.contents import why_unfinished
from ts2_lightning.runs.directory import CONFIG, numbers
from ts2_lightning.runs.state import STATE
from ts2_lightning.studies.execute.task import FAILED
from ts2_lightning.studies.grid import GRID
from ts2_lightning.studies.grid.frontiers import BASELINE
from ts2_lightning.studies.report.baselines import named_baseline
from ts2_lightning.studies.report.published import figures_of
from ts2_lightning.studies.report.results import (
    BestSettings,
    FrontierSettings,
    Missing,
    Results,
    Row,
    Run,
    Settings,
    told_apart,
)
from ts2_lightning.studies.report.rows import base_row, endings, label_of, named_axes, rows_of
from ts2_lightning.studies.report.runs import LOGGED, make_run, outdated
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

# Finding runs ---------------------------------------------------------------------------------------------------------


def collect(paths: Iterable[str | Path]) -> Results:
    """Reads runs, and puts them into rows.

    Args:
        paths: directories of grids, of runs (`runs/NAME/1`), of all runs of a name (the newest finished one of
            each configuration counts), of measured models, or directories that have any of these below them; also
            patterns such as `runs/ts2-*`.

    Raises:
        UserError: there is none of these, or none has anything to show.
    """
    sources = [place for path in paths for place in _matching(str(path))]
    places = list(dict.fromkeys(place for path in sources for place in _below(path)))
    if not places:
        raise UserError(f"{_listed(sources)}: no run there: no {CONFIG}, no {GRID}, no {DIRECTORY}")
    grids = [read_grid_results(place) for place in places if (place / GRID).is_file()]
    others = [place for place in places if not (place / GRID).is_file()]
    results = grids[0] if len(grids) == 1 and not others else _together(sources, grids, others)
    if not results.names and not grids:  # of a grid it is worth telling why there is nothing
        raise UserError(_nothing(sources, results.missing))
    return results


def _matching(path: str) -> list[Path]:
    """The directory of that name, or those that fit a pattern.

    Raises:
        UserError: there is none.
    """
    if Path(path).is_dir():
        return [Path(path)]
    if Path(path).exists():
        raise UserError(f"{path}: not a directory; name a run, such as runs/ts2/1, or a grid, such as runs/alpha")
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


def _together(sources: Sequence[Path], grids: Sequence[Results], others: Sequence[Path]) -> Results:
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
    return Results(f"Report on {_listed(sources)}", "", tuple(sources), every, axes, tuple(missing))


def _nothing(sources: Sequence[Path], missing: Sequence[Missing]) -> str:
    first = "; ".join(f"{entry.name}: {entry.reason}" for entry in missing[:2])
    more = f" (and {len(missing) - 2} more)" if len(missing) > 2 else ""
    return f"{_listed(sources)}: nothing to report: {first or 'no values'}{more}"


def _listed(paths: Sequence[Path]) -> str:
    """A few paths, by name."""
    return ", ".join(map(str, paths[:4])) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


# Grids ----------------------------------------------------------------------------------------------------------------


def read_grid_results(directory: Path) -> Results:
    """What a grid has come to so far.

    Args:
        directory: `RUNS_DIR/GRID`.

    Raises:
        UserError: its `grid.json` cannot be read.
    """
    file = directory / GRID
    plan = read_json(file)
    try:
        axes = {axis: tuple(map(str, choices)) for axis, choices in plan["axes"].items()}
        rows, missing = _rows(directory, plan, named_axes(axes))
        return Results(
            plan["title"] or plan["name"],
            plan.get("paper") or "",
            (directory,),
            rows,
            axes,
            missing,
            _settings(plan.get("report") or {}, rows, file),
            plan.get("file") or "",
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not what `ablate` writes ({error!r}); run ablate again, it repeats no run") from error


def _rows(directory: Path, plan: Mapping[str, Any], named: list[str]) -> tuple[tuple[Row, ...], tuple[Missing, ...]]:
    runs: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    missing: list[Missing] = []
    base: list[Row] = []
    tables = plan.get("published") or ()
    if plan.get("base_model"):
        run, problem = _base(directory, plan["base_model"])
        base.append(Row(plan["base_model"]["label"], {}, (run,), is_base=True, published=figures_of(tables, None)))
        missing += [Missing(run.name, base[0].label, problem)] if problem else []
    for point in plan["points"]:
        choices = {axis: str(choice) for axis, choice in point["labels"].items()}
        run_of_point, problem = _point(directory, point)
        runs.setdefault(tuple(choices.items()), []).extend([run_of_point] if run_of_point else [])
        label = label_of(choices, named)
        missing += [Missing(f"{directory.name}/{point['run']}", label, problem)] if problem else []
    trained = [
        Row(label_of(dict(choices), named), dict(choices), tuple(of_row), published=figures_of(tables, dict(choices)))
        for choices, of_row in runs.items()
    ]
    return told_apart([*base, *trained]), tuple(missing)


def _base(directory: Path, base: Mapping[str, Any]) -> tuple[Run, str]:
    """The model that the runs start from, and what is lacking of it."""
    place = directory / base["directory"]
    try:
        results, problem = results_of(place, base)
    except UserError as error:
        results, problem = [], str(error)
    return make_run(f"{directory.name}/{place.name}", place, None, results), _failure(place) or problem


def _point(directory: Path, point: Mapping[str, Any]) -> tuple[Run | None, str]:
    """One run, if it is finished, and what is lacking."""
    parent = directory / point["run"]
    failed = _failure(parent)
    attempts = numbers(parent)
    if not attempts:
        return None, failed or "has not been started"
    newest = parent / str(attempts[-1])
    try:
        unfinished = why_unfinished(newest) if (newest / STATE).is_file() else "has not made a step"
        if unfinished:
            return None, failed or unfinished
        results, problem = results_of(newest, point)
        problem = "; ".join(filter(None, (problem, outdated(newest, results))))
        name = f"{directory.name}/{point['run']}/{newest.name}"
        run = make_run(name, newest, point["seed"], results, point["command"])
        if point.get("measure", {}).get("interpolate", 1) != 1:  # what was logged is of the training's own weights
            run = replace(run, values={key: run.values[key] for key in run.values if not key.startswith(LOGGED)})
    except UserError as error:
        return None, failed or str(error)
    return run, failed or problem


def _failure(parent: Path) -> str:
    """What `failed.json` says; empty where there is none."""
    file = parent / FAILED
    if not file.is_file():
        return ""
    try:
        failed = read_json(file)
    except UserError as error:
        return str(error)
    what = {"fit": "the training", "measure": "the measurement"}.get(failed.get("stage", ""), "it")
    return f"{what} failed (status {failed.get('status')}): {failed.get('message')}; see {failed.get('log')}"


def results_of(directory: Path, recorded: Mapping[str, Any]) -> tuple[list[Result], str]:
    """The measures of a run that a grid has recorded as asked for, and what is lacking."""
    if "files" in recorded:
        files = {name: directory / DIRECTORY / file for name, file in recorded["files"].items()}
    else:  # of a version before 0.2
        files = files_of(directory, check_spec(recorded["measure"]))
    lacking = [name for name, file in files.items() if not file.is_file()]
    results = [read_result(file) for name, file in files.items() if name not in lacking]
    return results, f"not measured: {', '.join(lacking)}" if lacking else ""


def _settings(report: Mapping[str, Any], rows: tuple[Row, ...], file: Path) -> Settings:
    """The grid file's `report`."""
    against = report.get("against")
    baseline, matched = _baseline(report.get("baseline") or {}, rows, file)
    return Settings(
        baseline,
        tuple(report.get("columns") or ()),
        tuple((plane["x"], plane["y"]) for plane in report.get("planes") or ()),
        None if against is None else {entry["axis"]: tuple(entry.get("metrics") or ()) for entry in against},
        tuple(report.get("curves") or ()),
        matched,
        tuple(_frontier(frontier) for frontier in report.get("frontiers") or ()),
        tuple(_best(best) for best in report.get("best") or ()),
        report.get("paper_columns") or Settings.paper_columns,
    )


def _frontier(frontier: Mapping[str, Any]) -> FrontierSettings:
    at = (dict(one) if isinstance(one, Mapping) else one if one == BASELINE else float(one) for one in frontier["at"])
    dials = tuple(frontier["dials"])
    return FrontierSettings(dials, frontier["quality"], frontier["diversity"], tuple(at), _where(frontier))


def _best(best: Mapping[str, Any]) -> BestSettings:
    choose_on, report_on = (tuple(map(int, best[name])) for name in ("choose_on", "report_on"))
    return BestSettings(best["axis"], best["by"], choose_on, report_on, tuple(best["columns"]), _where(best))


def _where(part: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {axis: tuple(choices) for axis, choices in part["where"].items()}


def _baseline(choices: Mapping[str, Any], rows: tuple[Row, ...], file: Path) -> tuple[str, dict[str, str]]:
    """The baseline that a grid names, as `named_baseline` gives it; both empty where it names none."""
    if not choices:
        return "", {}
    wanted = {axis: str(choice) for axis, choice in choices.items()}
    if (baseline := named_baseline(rows, wanted)) is None:
        raise UserError(f"{file}: report.baseline: no row with {', '.join(f'{a}: {c}' for a, c in wanted.items())}")
    return baseline
