"""A grid that was read: its rows, and the trainings behind them."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts2_lightning.experiments.grid.expansion import title_of
from ts2_lightning.program import program

GRID = "grid.json"
"""What `Grid.record` says, in the grid's directory."""


@dataclass(frozen=True)
class Training:
    """One `fit`. Several points may share it: they differ in what is measured, or in their labels alone.

    Attributes:
        name: `--name` of the run: `GRID/LABELS-sSEED-DIGEST`, with the first 8 digits of the digest.
        digest: of everything that decides the result, see `identity.digest_of`.
        options: the command line after `fit`.
        config: the resolved configuration, plain values.
    """

    name: str
    digest: str
    options: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def run(self) -> str:
        """The directory of the training below that of the grid."""
        return self.name.rpartition("/")[2]

    @property
    def command(self) -> str:
        """What repeats the training alone, as one types it into a shell."""
        return f"{program()} {shlex.join(['fit', *self.options])}"


@dataclass(frozen=True)
class Point:
    """One row of the report with one seed.

    Attributes:
        labels: axis -> choice, in the order of the grid's axes; axes that the row does not have are absent.
        seed: of this repetition.
        training: what is measured.
        measure: the specification of what is measured of it, see `evaluation.registry`.
    """

    labels: Mapping[str, str]
    seed: int
    training: Training
    measure: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The row in one line: `objective=TS2 alpha=0.25`."""
        return title_of(self.labels)


@dataclass(frozen=True)
class BaseModel:
    """The model that all runs of a grid start from, a row of the report of its own.

    Attributes:
        label: what it is called there.
        path: `model.lm.path` of the runs.
        measure: as of a `Point`.
        directory: of its measures, below that of the grid: another model's are never taken for its own.
    """

    label: str
    path: str
    measure: Mapping[str, Any]
    directory: str

    @property
    def config(self) -> str:
        """The configuration whose `data.*` says on which rows, and how, it is measured.

        It is beside the directory of its measures, which would otherwise look like a run.
        """
        return f"{self.directory}.yaml"


@dataclass(frozen=True)
class Grid:
    """A grid file with all of its rows resolved.

    Attributes:
        name: of the grid, a directory below `runs_dir`.
        file: where it was read.
        runs_dir: directory of all runs.
        title: of the report.
        paper: what it repeats, for the report; None if it repeats nothing.
        axes: axis -> choices, both in the order of the file.
        seeds: in the order of the file.
        points: row by row, each with every seed.
        base_model: None if it is not measured.
        report: settings of the report, as in the file.
        slurm: submitit's parameters, as in the file; None if there are none.
    """

    name: str
    file: Path
    runs_dir: Path
    title: str
    paper: str | None
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    points: tuple[Point, ...]
    base_model: BaseModel | None
    report: Mapping[str, Any]
    slurm: Mapping[str, Any] | None

    @property
    def directory(self) -> Path:
        """Where all of its runs and its report are."""
        return self.runs_dir / self.name

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Every training once, in the order of the points."""
        return tuple({point.training.digest: point.training for point in self.points}.values())

    def record(self) -> dict[str, Any]:
        """What `grid.json` says, JSON values: the report reads this, so that it has the rows of the last `ablate`."""
        base = self.base_model
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "file": str(self.file),
            "axes": {axis: list(choices) for axis, choices in self.axes.items()},
            "seeds": list(self.seeds),
            "report": dict(self.report),
            "base_model": base and {"label": base.label, "directory": base.directory, "measure": dict(base.measure)},
            "points": [
                {
                    "labels": dict(point.labels),
                    "seed": point.seed,
                    "run": point.training.run,
                    "measure": dict(point.measure),
                    "command": point.training.command,
                }
                for point in self.points
            ],
        }
