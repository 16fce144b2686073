"""Run directories as `fit`, `measure` and `ablate` leave them, without having trained anything."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ts2_lightning.evaluation import check_spec, files_of, place_of

TOYWORLD = {"toyworld": {}}
REVISION = "0123456789abcdef0123456789abcdef01234567"


def config_of(loss: str = "TS2Loss", seed: int = 0, lr: float = 5e-4, **arguments: Any) -> dict[str, Any]:
    """A configuration as `fit` writes it, cut down; its seed reaches the rows too."""
    return {
        "seed_everything": seed,
        "trainer": {"max_epochs": 3, "callbacks": None},
        "model": {
            "loss": {"class_path": f"ts2_lightning.losses.{loss}", "init_args": arguments},
            "optimizer": {"lr": lr},
        },
        "data": {"train": f"toyworld:train?seed={seed}", "validation": "toyworld:validation", "seed": seed},
        "name": "whatever",
        "runs_dir": "runs",
        "ckpt_path": None,
    }


def make_run(
    run: Path,
    config: Mapping[str, Any] | None = None,
    values: Mapping[str, float] | None = None,
    curves: Mapping[str, Mapping[int, float]] | None = None,
    state: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    revision: str = REVISION,
) -> Path:
    """A run's directory, `RUNS_DIR/NAME/N`; what is not given is not there.

    Args:
        run: the directory.
        config: None: none, as of the base model.
        values: whole name -> value; a file for each measure that their names begin with.
        curves: logged name -> step -> value.
        state: of `state.json`; `finished` by default where there is a configuration.
        spec: what they were measured with; by default the measures without settings.
        revision: of the software.
    """
    run.mkdir(parents=True)
    if config is not None:
        (run / "config.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        software = {"version": "0.1", "revision": {"commit": revision, "dirty": False}}
        environment = {"time": "2026-01-02T03:04:05+00:00", "ts2_lightning": software}
        (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
        state = {"state": "finished", "step": 9, "steps": 9, "seconds": 60.0} if state is None else state
    if state:
        (run / "state.json").write_text(json.dumps(state), encoding="utf-8")
    if values is not None:
        write_measures(run, values, spec)
    if curves:
        write_curves(run, curves)
    return run


def write_measures(run: Path, values: Mapping[str, float], spec: Mapping[str, Any] | None = None) -> None:
    """The files of all measures that a spec asks for, with those of the values that are theirs."""
    asked = check_spec(spec or {name.partition("/")[0]: {} for name in values})
    for measure in asked.measures:
        file = place_of(run, asked, measure).with_suffix(".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in values.items() if name.startswith(f"{measure.name}/")}
        how = {"decoding": asked.decoding, "template": asked.template, "settings": asdict(measure)}
        document = {"name": measure.name, **how, "key": "k", "values": own}
        file.write_text(json.dumps(document), encoding="utf-8")


def write_curves(run: Path, curves: Mapping[str, Mapping[int, float]]) -> None:
    """`csv/metrics.csv`, a line for each step."""
    (run / "csv").mkdir(exist_ok=True)
    with (run / "csv" / "metrics.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["step", *curves])
        writer.writeheader()
        for step in sorted({step for curve in curves.values() for step in curve}):
            writer.writerow({"step": step} | {name: curve[step] for name, curve in curves.items() if step in curve})


def make_grid(
    directory: Path,
    axes: Mapping[str, Sequence[str]],
    rows: Sequence[Mapping[str, str]],
    seeds: Sequence[int] = (0, 1, 2),
    measure: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    base: bool = False,
) -> dict[tuple[int, int], Path]:
    """`grid.json`, and nothing that was run.

    Returns:
        (number of the row, seed) -> where the first attempt of the run belongs.
    """
    measure = dict(TOYWORLD if measure is None else measure)
    files = {name: str(file.relative_to("measures")) for name, file in files_of(Path(), check_spec(measure)).items()}
    names = {(i, seed): f"row{i}-s{seed}-0a1b2c3d" for i in range(len(rows)) for seed in seeds}
    plan = {
        "name": directory.name,
        "title": "A study",
        "paper": "Someone, table 1",
        "file": "configs/grid/study.yaml",
        "axes": {axis: list(choices) for axis, choices in axes.items()},
        "seeds": list(seeds),
        "report": dict(report or {}),
        "base_model": {"label": "base", "directory": "base", "measure": measure, "files": files} if base else None,
        "points": [
            {
                "labels": dict(rows[i]),
                "seed": seed,
                "run": name,
                "measure": measure,
                "files": files,
                "command": f"python cli.py fit -c base.yaml --name {directory.name}/{name}",
            }
            for (i, seed), name in names.items()
        ],
    }
    directory.mkdir(parents=True)
    (directory / "grid.json").write_text(json.dumps(plan), encoding="utf-8")
    return {place: directory / name / "1" for place, name in names.items()}
