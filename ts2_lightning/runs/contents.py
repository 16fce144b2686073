"""The contents of a run's files: its settings, its logged values, and the reason why it is not finished."""

import csv
from pathlib import Path
from typing import Any

from ts2_lightning.json_files import read_json
from ts2_lightning.runs.directory import latest_config
from ts2_lightning.runs.state import STATE
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

METRICS = Path("csv", "metrics.csv")
"""The log of a run, in its directory."""


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of the latest start of a run.

    Raises:
        UserError: if it cannot be read.
    """
    path = latest_config(run)
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected settings, got {type(content).__name__}")
    return content


def read_curves(run: Path) -> dict[str, dict[int, float]]:
    """The logged values of a run, name -> step -> value; empty without a file. An unfinished last line is left out.

    Raises:
        UserError: if a value is not a number.
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


def why_unfinished(run: Path) -> str:
    """The reason why a run is not finished; empty if it is, or if its directory has no state.

    Raises:
        UserError: if its `state.json` cannot be read.
    """
    if not (run / STATE).is_file():
        return ""
    record = read_json(run / STATE)
    state, step, steps = (record.get(key) for key in ("state", "step", "steps"))
    if state == "finished":
        return ""
    words = "still running, or killed," if state == "running" else str(state)
    return f"{words} at step {step}" + ("" if steps is None else f" of {steps}")
