"""From a grid file to a grid: the parser of `fit` resolves every training's configuration before anything runs."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.experiments.configs import shipped_config
from ts2_lightning.experiments.grid.expansion import Labels, Row, title_of
from ts2_lightning.experiments.grid.form import Form, read_form
from ts2_lightning.experiments.grid.identity import digest_of, path_identity
from ts2_lightning.experiments.grid.objects import BaseModel, Grid, Point, Training
from ts2_lightning.experiments.grid.paths import nearer
from ts2_lightning.experiments.grid.settings import merged, options_of, origin_of, with_seed
from ts2_lightning.experiments.names import slug
from ts2_lightning.runs.directory import run_name
from ts2_lightning.types import UserError

_DIGITS = 8
_LONGEST = 80  # characters of the labels in the name of a run

Read = Callable[[list[str]], dict[str, Any]]


def read_grid(file: str | Path, read: Read, runs_dir: str | Path = "runs", name: str | None = None) -> Grid:
    """A grid, with every row resolved.

    Args:
        file: the grid file.
        read: gives the whole configuration of a command line of `fit`, such as `cli.settings.SettingsReader().read`.
        runs_dir: directory of all runs. A run that is there already keeps its name, whatever its row is called now.
        name: of the grid; by default its path below `configs/grid` with hyphens, else the stem of the file.

    Raises:
        UserError: for whatever is wrong, in one line with the file, its line and the row.
    """
    file, runs_dir = Path(nearer(Path(file).expanduser())), Path(runs_dir)
    form = read_form(file)
    name = run_name(name or grid_name(file), [])
    resolver = _Resolver(form, name, runs_dir, read)
    points = tuple(resolver.point(row, seed) for row in form.rows for seed in form.seeds)
    return Grid(
        name=name,
        file=file,
        runs_dir=runs_dir,
        title=form.title,
        paper=form.paper,
        axes={axis: tuple(choices) for axis, choices in form.axes.items()},
        seeds=form.seeds,
        points=points,
        base_model=_base_model(form, points),
        report=form.report,
        slurm=form.slurm,
    )


def grid_name(file: Path) -> str:
    """The name of a grid that is given none.

    >>> grid_name(Path("elsewhere/mine.yaml"))
    'mine'
    """
    shipped, whole = shipped_config("grid").resolve(), file.resolve()
    below = whole.relative_to(shipped) if whole.is_relative_to(shipped) else Path(whole.name)
    return "-".join(below.with_suffix("").parts)


class _Resolver:
    """Makes the points of a grid; rows with the same digest get the same training.

    Args:
        form: the grid file.
        name: of the grid.
        runs_dir: directory of all runs.
        read: resolves the command line of a fit.
    """

    def __init__(self, form: Form, name: str, runs_dir: Path, read: Read) -> None:
        self._form = form
        self._name = name
        self._runs_dir = runs_dir
        self._read = read
        self._trainings: dict[str, Training] = {}
        self._specifications: set[str] = set()

    def point(self, row: Row, seed: int) -> Point:
        """One row with one seed.

        Raises:
            UserError: in the words of `fit` or of a measure, with the row in front; the line is that of the setting, if
                the file gives it.
        """
        layers = self._form.layers(row.labels)
        measure: dict[str, Any] = {}
        for layer in layers:
            measure = merged(measure, layer.measure)
        try:
            check_measure(measure, self._specifications)
            options = options_of([*layers, with_seed(self._form.seeded, seed)])
            return Point(row.labels, seed, self._training(row.labels, seed, options), measure)
        except UserError as error:
            origin = origin_of(str(error), layers) or row.origin
            raise origin.error(f"{title_of(row.labels)}, seed {seed}: {error}") from None

    def _training(self, labels: Labels, seed: int, options: tuple[str, ...]) -> Training:
        config = self._read(list(options))
        digest = digest_of(config)
        if digest not in self._trainings:
            name = f"{self._name}/{self._run(labels, seed, digest[:_DIGITS])}"
            named = (*options, "--name", name, "--runs_dir", str(self._runs_dir))
            settled = {**config, "name": name, "runs_dir": str(self._runs_dir)}
            self._trainings[digest] = Training(name, digest, named, settled)
        return self._trainings[digest]

    def _run(self, labels: Labels, seed: int, digits: str) -> str:
        """The directory of a training: the one that there is, also from before its row was renamed, else a new one."""
        there = sorted(path for path in (self._runs_dir / self._name).glob(f"*-{digits}") if path.is_dir())
        return there[0].name if there else f"{run_slug(labels)}-s{seed}-{digits}"


def check_measure(measure: Mapping[str, Any], known: set[str]) -> None:
    """Makes sure that a specification can be measured, unless it is known to be."""
    key = json.dumps(measure, sort_keys=True, default=str)
    if key not in known:
        from ts2_lightning.evaluation.registry import check_spec

        check_spec(measure)
        known.add(key)


def run_slug(labels: Mapping[str, str]) -> str:
    """The labels as part of a directory's name.

    >>> run_slug({"objective": "CE, half rate", "alpha": "0.25"}), run_slug({})
    ('ce-half-rate-0.25', 'run')
    """
    parts = [slug(choice).strip(".") for choice in labels.values()]
    return "-".join(filter(None, parts))[:_LONGEST].strip("-.") or "run"


def _base_model(form: Form, points: tuple[Point, ...]) -> BaseModel | None:
    """The model that all runs start from, if it is to be measured.

    Raises:
        UserError: if they do not start from the same one, as it is at its path, or its measures are wrong.
    """
    if form.base_model is None:
        return None
    entry, label, measure = form.base_model
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
        check_measure(measure, set())
    except UserError as error:
        raise entry.error(str(error)) from None
    path = next(iter(paths))
    identity = json.dumps(path_identity(path))
    digits = hashlib.sha256(identity.encode()).hexdigest()[:_DIGITS]
    return BaseModel(label, path, measure, f"base-{digits}")
