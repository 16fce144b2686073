"""From a grid file to a grid: the parser of `fit` resolves every training's configuration before anything runs."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation import check_spec, files_of
from ts2_lightning.evaluation.results import DIRECTORY
from ts2_lightning.program import program
from ts2_lightning.runs.directory import run_name
from ts2_lightning.shipped_configs import shipped_config
from ts2_lightning.studies.grid.entries import Entry, from_here
from ts2_lightning.studies.grid.identity import digest_of, path_identity
from ts2_lightning.studies.grid.rows import LabelledRow, Labels, title_of
from ts2_lightning.studies.grid.schema import INTERPOLATE, GridFile, read_grid_file
from ts2_lightning.studies.grid.settings import Settings
from ts2_lightning.studies.names import slug
from ts2_lightning.types import UserError

GRID = "grid.json"
"""What `Grid.record` says, in the grid's directory."""

_DIGITS = 8
_LONGEST = 80  # characters of the labels in the name of a run
_SETTING = re.compile(r"(?:--)?([\w.]+)")

Read = Callable[[list[str]], dict[str, Any]]

# A grid -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One `fit`. Several points may share it: they differ in what is measured, or in their labels alone.

    Attributes:
        name: `--name` of the run: `GRID/LABELS-sSEED-DIGEST`, with the first 8 digits of the digest.
        digest: digest of everything that decides the result, see `identity.digest_of`.
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
        seed: seed of this repetition.
        training: the training whose model is measured.
        measure: specification of what is measured of it.
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
        label: name of the row.
        path: `model.lm.path` of the runs.
        measure: specification of what is measured of it.
        directory: directory of its measures, below that of the grid: another model's are never taken for its own.
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
        name: name of the grid, a directory below `runs_dir`.
        file: path of the grid file.
        runs_dir: directory of all runs.
        title: title of the report.
        paper: name of what it repeats, for the report; None if it repeats nothing.
        axes: axis -> choices, both in the order of the file.
        seeds: seeds of every row, in the order of the file.
        points: row by row, each with every seed.
        base_model: None if it is not measured.
        report: settings of the report, as in the file.
        slurm: submitit's parameters, as in the file; None if there are none.
        published: tables of papers, each as plain values with its figures by row and value.
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
    published: tuple[Mapping[str, Any], ...] = ()

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
            "published": [dict(table) for table in self.published],
            "base_model": base and {"label": base.label, "directory": base.directory, **_measured(base.measure)},
            "points": [
                {
                    "labels": dict(point.labels),
                    "seed": point.seed,
                    "run": point.training.run,
                    **_measured(point.measure),
                    "command": point.training.command,
                }
                for point in self.points
            ],
        }


def _measured(measure: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured, and the names of its files, so that a report needs no class of the user's."""
    files = {name: str(file.relative_to(DIRECTORY)) for name, file in files_of(Path(), check_spec(measure)).items()}
    return {"measure": dict(measure), "files": files}


# Reading one --------------------------------------------------------------------------------------------------------


def read_grid(file: str | Path, read: Read, runs_dir: str | Path = "runs", name: str | None = None) -> Grid:
    """A grid, with every row resolved.

    Args:
        file: path of the grid file.
        read: gives the whole configuration of a command line of `fit`, such as `cli.settings.SettingsReader().read`.
        runs_dir: directory of all runs. A run that is there already keeps its name, whatever its row is called now.
        name: name of the grid; by default its path below `configs/grid` with hyphens, else the stem of the file.

    Raises:
        UserError: for whatever is wrong, in one line with the file, its line and the row.
    """
    file = Path(from_here(Path(file).expanduser()))
    return resolve_grid(read_grid_file(file), file, name or grid_name(file), read, runs_dir)


def resolve_grid(grid: GridFile, file: Path, name: str, read: Read, runs_dir: str | Path = "runs") -> Grid:
    """A grid, with every row resolved, from what its file says.

    Args:
        grid: what is compared.
        file: path of the file that says so.
        name: name of the grid.
        read: see `read_grid`.
        runs_dir: see `read_grid`.

    Raises:
        UserError: see `read_grid`.
    """
    name, runs_dir = run_name(name, []), Path(runs_dir)
    resolver = _Resolver(grid, name, runs_dir, read)
    points = tuple(resolver.point(row, seed) for row in grid.rows for seed in grid.seeds)
    return Grid(
        name=name,
        file=file,
        runs_dir=runs_dir,
        title=file.stem if grid.title is None else grid.title,
        paper=grid.paper,
        axes={axis: tuple(choices) for axis, choices in grid.axes.items()},
        seeds=grid.seeds,
        points=points,
        base_model=_base_model(grid, points),
        report={} if grid.report is None else grid.report.record(),
        slurm=grid.slurm,
        published=tuple(table.record(grid.axes, grid.rows, _base_label(grid)) for table in grid.published),
    )


def _base_label(grid: GridFile) -> str | None:
    return None if grid.base_model is None else grid.base_model.label


def grid_name(file: Path) -> str:
    """The default name of a grid.

    >>> grid_name(Path("elsewhere/mine.yaml"))
    'mine'
    """
    shipped, whole = shipped_config("grid").resolve(), file.resolve()
    below = whole.relative_to(shipped) if whole.is_relative_to(shipped) else Path(whole.name)
    return "-".join(below.with_suffix("").parts)


class _Resolver:
    """Makes the points of a grid; rows with the same digest get the same training.

    Args:
        file: the grid file.
        name: name of the grid.
        runs_dir: directory of all runs.
        read: resolves the command line of a fit.
    """

    def __init__(self, file: GridFile, name: str, runs_dir: Path, read: Read) -> None:
        self._file = file
        self._name = name
        self._runs_dir = runs_dir
        self._read = read
        self._trainings: dict[str, Training] = {}
        self._resolved: dict[tuple[str, ...], Training] = {}  # rows that differ in their measures alone ask the same
        self._checked: list[Mapping[str, Any]] = []

    def point(self, row: LabelledRow, seed: int) -> Point:
        """One row with one seed.

        Raises:
            UserError: in the words of `fit` or of a measure, with the row in front; the line is that of the setting, if
                the file gives it.
        """
        layers = self._file.layers(row.labels, seed)
        measure: Mapping[str, Any] = {}
        for layer in layers:
            measure = merged(measure, layer.measure)
        try:
            if measure not in self._checked:
                check_spec(measure)
                self._checked.append(measure)
            return Point(row.labels, seed, self._training(row.labels, seed, command_line(layers)), measure)
        except UserError as error:
            entry = _setting_of(str(error), layers) or row.block
            raise entry.error(f"{title_of(row.labels)}, seed {seed}: {error}") from None

    def _training(self, labels: Labels, seed: int, options: tuple[str, ...]) -> Training:
        if options not in self._resolved:
            self._resolved[options] = self._resolve(labels, seed, options)
        return self._resolved[options]

    def _resolve(self, labels: Labels, seed: int, options: tuple[str, ...]) -> Training:
        config = self._read(list(options))
        digest = digest_of(config)
        if digest not in self._trainings:
            trained = {axis: choice for axis, choice in labels.items() if axis != INTERPOLATE}
            name = f"{self._name}/{self._run(trained, seed, digest[:_DIGITS])}"
            named = (*options, "--name", name, "--runs_dir", str(self._runs_dir))
            settled = {**config, "name": name, "runs_dir": str(self._runs_dir)}
            self._trainings[digest] = Training(name, digest, named, settled)
        return self._trainings[digest]

    def _run(self, labels: Labels, seed: int, digits: str) -> str:
        """The directory of a training: the one that there is, also from before its row was renamed, else a new one."""
        there = sorted(path for path in (self._runs_dir / self._name).glob(f"*-{digits}") if path.is_dir())
        return there[0].name if there else f"{run_slug(labels)}-s{seed}-{digits}"


def command_line(layers: Iterable[Settings]) -> tuple[str, ...]:
    """The command line of `fit` of several layers, of which a later one beats the earlier ones.

    All files come before all settings. A class is named before its settings, in whatever order the axes have them. Of
    settings that end in `+`, which append to a list, every one counts.

    >>> from ts2_lightning.studies.grid.settings import Argument
    >>> axis, choice = {"model.loss.alpha": Argument("1")}, {"model.loss": Argument("TS2Loss")}
    >>> command_line([Settings(("a.yaml",), axis), Settings(("b.yaml",), choice)])
    ('-c', 'a.yaml', '-c', 'b.yaml', '--model.loss', 'TS2Loss', '--model.loss.alpha', '1')
    """
    layers = list(layers)
    overrides: list[tuple[str, str]] = []
    for setting, value in ((setting, value.text) for layer in layers for setting, value in layer.set.items()):
        names = [name for name, _ in overrides]
        if setting in names and not setting.endswith("+"):
            overrides[names.index(setting)] = (setting, value)
        else:
            parts = (place for place, name in enumerate(names) if name.startswith(f"{setting}."))
            overrides.insert(next(parts, len(overrides)), (setting, value))
    files = (word for layer in layers for file in layer.config for word in ("-c", file))
    return (*files, *(word for setting, value in overrides for word in (f"--{setting}", value)))


def _setting_of(complaint: str, layers: list[Settings]) -> Entry | None:
    """Where the setting is given that a complaint begins with; None if none of the layers gives it."""
    named = _SETTING.match(complaint)
    values = [(setting.rstrip("+"), value.entry) for layer in layers for setting, value in layer.set.items()]
    return next((entry for setting, entry in reversed(values) if named and setting == named[1]), None)


def merged(specification: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A specification with some of its settings changed.

    >>> merged({"cost": {}, "diversity": {"samples": 16, "limit": 9}}, {"cost": False, "diversity": {"samples": 4}})
    {'cost': False, 'diversity': {'samples': 4, 'limit': 9}}
    """
    result = dict(specification)
    for key, value in change.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def run_slug(labels: Mapping[str, str]) -> str:
    """The labels as part of a directory's name.

    >>> run_slug({"objective": "CE, half rate", "alpha": "0.25"}), run_slug({})
    ('ce-half-rate-0.25', 'run')
    """
    parts = [slug(choice).strip(".") for choice in labels.values()]
    return "-".join(filter(None, parts))[:_LONGEST].strip("-.") or "run"


def _base_model(grid: GridFile, points: tuple[Point, ...]) -> BaseModel | None:
    """The model that all runs start from, if it is to be measured.

    Raises:
        UserError: if they do not start from the same one, as it is at its path, or its measures are wrong.
    """
    if grid.base_model is None:
        return None
    entry = grid.base_model.entry
    models = [point.training.config["model"]["lm"] for point in points]
    paths = {model["path"]: None for model in models}
    if len(paths) > 1:
        raise entry.error(f"the runs start from {' and '.join(paths)}; leave base_model out")
    if any(model.get("revision") or model.get("init") == "random" for model in models):
        raise entry.error(
            "it is measured as its path alone; leave base_model out where model.lm.revision is set or model.lm.init is "
            "random"
        )
    try:
        if check_spec(grid.base_measure).interpolate != 1:
            raise UserError("measure.interpolate: there is nothing between the base model and itself; leave it out")
    except UserError as error:
        raise entry.error(str(error)) from None
    path = next(iter(paths))
    digits = hashlib.sha256(json.dumps(path_identity(path)).encode()).hexdigest()[:_DIGITS]
    return BaseModel(grid.base_model.label, path, grid.base_measure, f"base-{digits}")
