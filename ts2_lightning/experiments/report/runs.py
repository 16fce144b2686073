"""What a run's directory says: its settings, its curves, its measures, and why it has none."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.callbacks.run_state import FILE as STATE
from ts2_lightning.cli.run_directory import ENVIRONMENT, latest_config, newest_checkpoint
from ts2_lightning.evaluation.models import file_stamps
from ts2_lightning.experiments.measures.cost import METRICS
from ts2_lightning.experiments.measures.results import DIRECTORY, Result, read_result
from ts2_lightning.experiments.report.results import Curve, Run
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

LOGGED = ("val/", "train/")
"""Logged names whose last values are values of the run."""


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file of JSON.

    Raises:
        UserError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of the latest start of a run.

    Raises:
        UserError: it cannot be read.
    """
    path = latest_config(run)
    try:
        found = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected settings, got {type(found).__name__}")
    return found


def read_measures(directory: Path) -> list[Result]:
    """All measures in a directory, those that were made last behind the others.

    Raises:
        UserError: a file that is none.
    """
    found = [read_result(path) for path in sorted((directory / DIRECTORY).glob("*.json"))]
    return sorted(found, key=lambda result: result.changed)


def read_curves(run: Path) -> dict[str, Curve]:
    """What was logged while a run trained; nothing where there is no file. A last line that was cut short is left out.

    Raises:
        UserError: something in it is not a number.
    """
    path = run / METRICS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    curves: dict[str, dict[int, float]] = {}
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    for number, row in enumerate(rows, start=2):
        try:
            step = int(row.pop("step"))
            logged = {name: float(text) for name, text in row.items() if text}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}:{number}: not a row of numbers with a step ({error})") from error
        for name, value in logged.items():
            curves.setdefault(name, {})[step] = value
    return dict(curves)


def last_values(curves: Mapping[str, Curve]) -> dict[str, float]:
    """The last value of each curve that has to do with the model.

    Example:
        >>> last_values({"train/entropy": {2: 0.5, 1: 0.9}, "throughput/mfu": {1: 0.1}})
        {'train/entropy': 0.5}
    """
    return {name: curve[max(curve)] for name, curve in curves.items() if name.startswith(LOGGED)}


def why_unfinished(run: Path) -> str:
    """Why a run is not finished; empty if it is, or if nothing in its directory says that it is not.

    Raises:
        UserError: its `state.json` cannot be read.
    """
    if not (run / STATE).is_file():
        return ""
    found = read_json(run / STATE)
    state, step, steps = (found.get(key) for key in ("state", "step", "steps"))
    if state == "finished":
        return ""
    said = "still running, or killed," if state == "running" else str(state)
    return f"{said} at step {step}" + ("" if steps is None else f" of {steps}")


def outdated(run: Path, measures: Iterable[Result]) -> str:
    """Which of the measures that count were made of a model that the run no longer has; empty if none was.

    Args:
        run: its directory, with its export or else its checkpoints.
        measures: those made last behind the others.
    """
    export = run / "export"
    model = export if export.is_dir() else newest_checkpoint(run)
    changed = max((int(time) for _, _, time in file_stamps(model)), default=0) if model else 0
    last = {(result.name, result.decoding): result for result in measures}
    names = dict.fromkeys(result.name for result in last.values() if result.changed < changed)
    return f"{', '.join(names)}: measured before the model changed; measure again" if names else ""


def make_run(name: str, directory: Path, seed: int | None, measures: Iterable[Result], command: str = "") -> Run:
    """A run with the measures that count, and the last values that it has logged.

    Args:
        name: for people.
        directory: of the run.
        seed: None: none.
        measures: of several files of one measure the last counts, whole: values that were made with different settings
            do not stand beside each other.
        command: repeats it.

    Raises:
        UserError: a file in its directory cannot be read.
    """
    found = {result.name: result for result in measures}.values()
    curves = read_curves(directory)
    return Run(
        name,
        directory,
        seed,
        {key: value for result in found for key, value in result.values.items()} | last_values(curves),
        curves,
        {name: document for result in found for name, document in result.documents.items()},
        {result.name: _asked(result) for result in found},
        command=command,
        **_record(directory),
    )


def _asked(result: Result) -> dict[str, Any]:
    """The settings of a measure, with the template, and the decoding if it depends on that."""
    decoding = {} if result.decoding is None else {"decoding": result.decoding}
    return {**decoding, "template": result.template, **result.settings}


def _record(run: Path) -> dict[str, Any]:
    """`revision`, `time` and `seconds` of a `Run`, as far as its directory says."""
    environment = read_json(run / ENVIRONMENT) if (run / ENVIRONMENT).is_file() else {}
    state = read_json(run / STATE) if (run / STATE).is_file() else {}
    software = environment.get("ts2_lightning") or {}
    return {
        "revision": _revision(software),
        "time": environment.get("time"),
        "seconds": state.get("seconds"),
    }


def _revision(software: Mapping[str, Any]) -> str | None:
    """The commit, with a note on changes that it lacks; the version of an installed package."""
    revision = software.get("revision")
    if not revision:
        return software.get("version")
    return f"{revision['commit'][:12]}{' with changes' if revision.get('dirty') else ''}"
