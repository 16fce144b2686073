"""The results of a grid: what its `grid.json` asks for, and nothing that an older version of it left behind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.registry import check_spec
from ts2_lightning.evaluation.results import Result, files_of, read_result
from ts2_lightning.experiments.execution.task import FAILED
from ts2_lightning.experiments.grid import GRID
from ts2_lightning.experiments.report.grouping import label_of, named_axes
from ts2_lightning.experiments.report.results import Missing, Results, Row, Run, Settings, told_apart
from ts2_lightning.experiments.report.runs import make_run, outdated
from ts2_lightning.json_files import read_json
from ts2_lightning.runs.contents import why_unfinished
from ts2_lightning.runs.directory import numbers
from ts2_lightning.runs.state import STATE
from ts2_lightning.types import UserError


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
    if plan.get("base_model"):
        run, problem = _base(directory, plan["base_model"])
        base.append(Row(plan["base_model"]["label"], {}, (run,), is_base=True))
        missing += [Missing(run.name, base[0].label, problem)] if problem else []
    for point in plan["points"]:
        choices = {axis: str(choice) for axis, choice in point["labels"].items()}
        found, problem = _point(directory, point)
        runs.setdefault(tuple(choices.items()), []).extend([found] if found else [])
        label = label_of(choices, named)
        missing += [Missing(f"{directory.name}/{point['run']}", label, problem)] if problem else []
    trained = [Row(label_of(dict(choices), named), dict(choices), tuple(found)) for choices, found in runs.items()]
    return told_apart([*base, *trained]), tuple(missing)


def _base(directory: Path, base: Mapping[str, Any]) -> tuple[Run, str]:
    """The model that the runs start from, and what is lacking of it."""
    place = directory / base["directory"]
    try:
        found, problem = of_spec(place, base["measure"])
    except UserError as error:
        found, problem = [], str(error)
    return make_run(f"{directory.name}/{place.name}", place, None, found), _failure(place) or problem


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
        found, problem = of_spec(newest, point["measure"])
        problem = "; ".join(filter(None, (problem, outdated(newest, found))))
        name = f"{directory.name}/{point['run']}/{newest.name}"
        run = make_run(name, newest, point["seed"], found, point["command"])
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


def of_spec(directory: Path, spec: Mapping[str, Any]) -> tuple[list[Result], str]:
    """The measures of a run that a spec asks for, and what is lacking."""
    files = files_of(directory, check_spec(spec))
    lacking = [name for name, file in files.items() if not file.is_file()]
    found = [read_result(file) for name, file in files.items() if name not in lacking]
    return found, f"not measured: {', '.join(lacking)}" if lacking else ""


def _settings(report: Mapping[str, Any], rows: tuple[Row, ...], file: Path) -> Settings:
    """The grid file's `report`."""
    against = report.get("against")
    return Settings(
        _baseline(report.get("baseline") or {}, rows, file),
        tuple(report.get("columns") or ()),
        tuple((plane["x"], plane["y"]) for plane in report.get("planes") or ()),
        None if against is None else {entry["axis"]: tuple(entry.get("metrics") or ()) for entry in against},
        tuple(report.get("curves") or ()),
    )


def _baseline(choices: Mapping[str, Any], rows: tuple[Row, ...], file: Path) -> str:
    """The label of the row with these choices, and as few others as possible; empty where none are named."""
    if not choices:
        return ""
    wanted = {axis: str(choice) for axis, choice in choices.items()}
    fitting = [row for row in rows if not row.is_base and wanted.items() <= row.labels.items()]
    if not fitting:
        raise UserError(f"{file}: report.baseline: no row with {', '.join(f'{a}: {c}' for a, c in wanted.items())}")
    return min(fitting, key=lambda row: len(row.labels)).label
