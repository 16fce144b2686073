"""The results as data: `results.json` has everything, `table.csv` one line for each row and value."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ts2_lightning.experiments.report.results import Results, Row, Run


def as_json(results: Results, pictures: Sequence[str]) -> str:
    """Everything, as JSON; null stands for what is not there or not defined.

    Args:
        results: whose settings are settled.
        pictures: stems of their files.
    """
    baseline = next((row for row in results.trained if row.label == results.settings.baseline), None)
    document = {
        "title": results.title,
        "paper": results.paper or None,
        "sources": [str(source) for source in results.sources],
        "seeds": results.seeds,
        "axes": results.axes,
        "settings": asdict(results.settings),
        "rows": [_row(row, baseline) for row in results.rows],
        "pictures": list(pictures),
        "missing": [asdict(entry) for entry in results.missing],
    }
    return json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(row: Row, baseline: Row | None) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in row.runs for name in run.values))
    baseline = None if row.is_base or row is baseline else baseline
    return {
        "label": row.label,
        "labels": row.labels,
        "base": row.is_base,
        "runs": [_run(run) for run in row.runs],
        "means": {name: asdict(row.summary(name)) for name in names},
        "differences": {name: asdict(row.difference(baseline, name)) for name in names} if baseline else {},
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "seed": run.seed,
        "values": run.values,
        "settings": run.settings,
        "revision": run.revision,
        "time": run.time,
        "seconds": run.seconds,
        "command": run.command or None,
    }


def _plain(value: Any) -> Any:
    """Plain values of which JSON knows all."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(results: Results) -> str:
    """One line for each row and value: label, choices of the axes, value, mean, sd, n, and the value of each seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    seeds: list[int | None] = [*results.seeds]
    if any(run.seed is None for row in results.rows for run in row.runs):
        seeds.append(None)
    titles = ["seed none" if seed is None else f"seed {seed}" for seed in seeds]
    writer.writerow(["row", *results.axes, "metric", "mean", "sd", "n", *titles])
    for row in results.rows:
        for name in results.names:
            values = row.values(name)
            if values:
                found = row.summary(name)
                numbers = [found.mean, found.sd, found.n, *(values.get(seed, math.nan) for seed in seeds)]
                choices = [row.labels.get(axis, "") for axis in results.axes]
                writer.writerow([row.label, *choices, name, *map(_number, numbers)])
    return out.getvalue()


def _number(value: float) -> str:
    """Exact; empty where there is none."""
    return "" if math.isnan(value) else repr(value)
