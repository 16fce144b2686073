"""What a run's directory says: its settings, its curves, its measures, and why it has none."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.results import DIRECTORY, Result, read_result
from ts2_lightning.json_files import read_json
from ts2_lightning.runs.checkpoints import newest_checkpoint
from ts2_lightning.runs.contents import read_curves
from ts2_lightning.runs.directory import ENVIRONMENT
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.runs.state import STATE
from ts2_lightning.studies.report.results import Curve, Run

LOGGED = ("val/", "train/")
"""Logged names whose last values are values of the run."""


def read_measures(directory: Path) -> list[Result]:
    """All measures in a directory, those that were made last behind the others.

    Raises:
        UserError: a file that is none.
    """
    results = [read_result(path) for path in sorted((directory / DIRECTORY).glob("*.json"))]
    return sorted(results, key=lambda result: result.changed)


def last_values(curves: Mapping[str, Curve]) -> dict[str, float]:
    """The last value of each curve that has to do with the model.

    Example:
        >>> last_values({"train/entropy": {2: 0.5, 1: 0.9}, "throughput/mfu": {1: 0.1}})
        {'train/entropy': 0.5}
    """
    return {name: curve[max(curve)] for name, curve in curves.items() if name.startswith(LOGGED)}


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
        name: name for people.
        directory: directory of the run.
        seed: None where it has none.
        measures: its measures; of several files of one measure the last counts, whole: values that were made with
            different settings do not stand beside each other.
        command: command that repeats it.

    Raises:
        UserError: a file in its directory cannot be read.
    """
    results = {result.name: result for result in measures}.values()
    curves = read_curves(directory)
    return Run(
        name,
        directory,
        seed,
        {key: value for result in results for key, value in result.values.items()} | last_values(curves),
        curves,
        {name: document for result in results for name, document in result.documents.items()},
        {result.name: _asked(result) for result in results},
        {key: value for result in results for key, value in result.described.items()},
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
