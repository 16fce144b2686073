"""The results of a report as data: every value of every run with all its digits, and what is calculated from them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ts2_lightning.studies.report import published
from ts2_lightning.studies.report.baselines import baseline_of
from ts2_lightning.studies.report.frontier_tables import as_plain
from ts2_lightning.studies.report.frontiers import frontiers_of
from ts2_lightning.studies.report.results import Results, Row, Run
from ts2_lightning.studies.report.statistics import summarise

_DIGITS = 9  # of what is calculated


def as_json(results: Results, pictures: Sequence[str]) -> str:
    """Everything, as JSON; null stands for what is not there or not defined.

    Args:
        results: results with complete settings.
        pictures: stems of their files.
    """
    document = {
        "title": results.title,
        "paper": results.paper or None,
        "sources": [str(source) for source in results.sources],
        "seeds": results.seeds,
        "axes": results.axes,
        "settings": asdict(results.settings),
        "rows": [_row(results, row) for row in results.rows],
        "published": published.as_plain(results),
        "frontiers": as_plain(results, frontiers_of(results)),
        "pictures": list(pictures),
        "missing": [asdict(entry) for entry in results.missing],
    }
    return json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(results: Results, row: Row) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in row.runs for name in run.values))
    baseline = baseline_of(results, row)
    return {
        "label": row.label,
        "labels": row.labels,
        "base": row.is_base,
        "baseline": baseline and baseline.label,
        "runs": [_run(run) for run in row.runs],
        "means": {name: _rounded(asdict(results.summary(row, name))) for name in names},
        "differences": {name: _rounded(asdict(results.difference(row, baseline, name))) for name in names}
        if baseline
        else {},
    }


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}") for name, value in numbers.items()}


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
    head, lines = long_table(results)
    return pd.DataFrame(lines, columns=head).to_csv(index=False, lineterminator="\n")


def long_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Titles of the columns and lines of `as_csv`."""
    seeds: list[int | None] = [*results.seeds]
    if any(run.seed is None for row in results.rows for run in row.runs):
        seeds.append(None)
    labels = {row.label: [row.labels.get(axis, "") for axis in results.axes] for row in results.rows}
    lines = []
    for (row, name), values in results.by_seed.items():
        summary = _rounded(asdict(summarise(list(values.values()))))
        columns = [summary["mean"], summary["sd"], summary["n"], *map(values.get, seeds)]
        lines.append([row, *labels[row], name, *columns])
    titles = ["seed none" if seed is None else f"seed {seed}" for seed in seeds]
    return ["row", *results.axes, "metric", "mean", "sd", "n", *titles], lines
