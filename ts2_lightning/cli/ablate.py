"""`ablate`: one file says what is compared; this runs what is not done yet, measures it and writes the report."""

import json
import shlex
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from ts2_lightning.callbacks import Stopped
from ts2_lightning.cli import program
from ts2_lightning.cli.errors.guard import Interrupted
from ts2_lightning.cli.evaluation_needs import needs_text
from ts2_lightning.cli.generation_plan import gpu_help, rendered
from ts2_lightning.cli.package_configs import of_config, tell
from ts2_lightning.cli.settings import SettingsReader
from ts2_lightning.cli.terminal import OptionParser, put, quieten
from ts2_lightning.config_files import find_config
from ts2_lightning.modules.places import resolve_model
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.runs.process_lock import is_taken
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.studies.execute import execute
from ts2_lightning.studies.execute.local import cores
from ts2_lightning.studies.execute.task import has_measures, is_trained, newest_attempt, read_failure, tasks_of
from ts2_lightning.studies.grid import GRID, Grid, Point, read_grid, read_sweep
from ts2_lightning.studies.grid.sweep import is_grid
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

_ABOUT = """Runs a grid, of a file or of --sweep: every training that is not done yet, then its measures, then the
report. What was cut short goes on where it was, what failed is tried again, and what is done is left alone."""

_SEED = "seed"


def run(argv: Sequence[str]) -> int:
    """Runs a grid, or shows what there is to run.

    Args:
        argv: the options after the command.

    Returns:
        The exit status: 0, or 1 if a run failed.

    Raises:
        UserError: for whatever is wrong with the grid file or an option, before anything runs.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    quieten("ablate")
    if options.parallel is not None:
        check_number("--parallel", options.parallel, COUNT)
    if options.parallel is not None and options.slurm:
        raise UserError("--parallel is of runs on this machine; with --slurm, give the grid `slurm.array_parallelism`")
    grid = _grid_of(options)
    tell(line for name in options.config for line in of_config(name))
    points = only(grid, options.only)
    if options.dry_run:
        put(plan(grid, points, options.gpu))
        return 0
    if options.gpu is not None:
        raise UserError("--gpu: is for --dry-run; leave it out, or add --dry-run")
    return execute_and_report(grid, points, options)


def _grid_of(options: Any) -> Grid:
    """The grid of a file, or of `--sweep`.

    Raises:
        UserError: for whatever is wrong with it, and for options that are of the other.
    """
    read = SettingsReader().read
    if options.sweep:
        seeds = options.seeds or [0]
        return read_sweep(options.config, options.sweep, options.set, seeds, read, options.runs_dir, options.name)
    for option, value in (("--set", options.set), ("--seeds", options.seeds)):
        if value:
            raise UserError(f"{option}: is for --sweep; a grid file has its own, `{option.removeprefix('--')}:`")
    if len(options.config) > 1:
        raise UserError(f"-c: one grid file is run at a time, got {', '.join(options.config)}")
    file = find_config(options.config[0]) or options.config[0]
    if Path(file).is_file() and is_grid(file) is False:
        hint = "name a grid, or give an axis, such as --sweep model.optimizer.lr=1e-3,5e-4"
        raise UserError(f"-c {file}: is the configuration of a fit, not a grid; {hint}")
    return read_grid(file, read, options.runs_dir, options.name)


def _parser() -> OptionParser:
    parser = OptionParser("ablate", _ABOUT)
    example = "configs/grid/paper/alpha.yaml"
    parser.add_argument(
        "-c",
        "--config",
        required=True,
        action="append",
        metavar="FILE",
        help=f"the grid file, such as {example}; with --sweep, files of fit",
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="SETTING=VALUE,VALUE,...",
        help="a grid without a file: these values of a setting of fit, such as model.optimizer.lr=1e-3,5e-4; several "
        "times for all combinations. What `measure` measures by default is measured",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="with --sweep: a setting of every run, such as data.train=rows.jsonl; several times for several",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", help="with --sweep: seeds of every row (default: 0)"
    )
    parser.add_argument("--runs_dir", default="runs", help="the directory of all runs (default: runs)")
    parser.add_argument("--name", help="of the grid, whose runs are in RUNS_DIR/NAME (default: follows from the file)")
    parser.add_argument("--dry-run", action="store_true", help="show the runs with their commands and states, run none")
    parser.add_argument("--gpu", metavar="NAME", help=f"with --dry-run: {gpu_help()}, for the hours of protocols")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="AXIS=CHOICE",
        help="run these rows only; seed=0 is one of them. Of one axis any of the choices, of several axes all",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="N",
        help="runs at a time (default: 1 on GPUs, else as many as cores); they share the cores",
    )
    parser.add_argument("--slurm", action="store_true", help="submit them as SLURM arrays, see `slurm:` of the file")
    parser.add_argument("--device", help="where models are measured: cpu, cuda (default: a GPU where there is one)")
    parser.add_argument("--latex", action="store_true", help="also write the report's table for LaTeX")
    return parser


def only(grid: Grid, wanted: Iterable[str]) -> tuple[Point, ...]:
    """The points that `--only` names.

    Args:
        grid: all of them.
        wanted: `AXIS=CHOICE`; of one axis any choice counts, of several axes all must.

    Raises:
        UserError: for an axis, a choice or a seed that the grid does not have, and if no point is left.
    """
    axes = {**grid.axes, _SEED: tuple(map(str, grid.seeds))}
    chosen: dict[str, set[str]] = {}
    for word in wanted:
        axis, equals, choice = word.partition("=")
        if not equals:
            raise UserError(f"--only {word}: expected AXIS=CHOICE, with an axis of {', '.join(axes)}")
        for name, names, what in ((axis, axes, "axis"), (choice, axes.get(axis, ()), f"choice of {axis}")):
            if name not in names:
                hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
                raise UserError(f"--only {word}: {grid.file} has no {what} {name!r}{hint}")
        chosen.setdefault(axis, set()).add(choice)

    def is_meant(point: Point) -> bool:
        labels = {**point.labels, _SEED: str(point.seed)}
        return all(labels.get(axis) in choices for axis, choices in chosen.items())

    points = tuple(filter(is_meant, grid.points))
    if not points:
        raise UserError(f"--only {' '.join(wanted)}: no row of {grid.file} has all of these")
    return points


# Showing ------------------------------------------------------------------------------------------------------------


def plan(grid: Grid, points: Sequence[Point], gpu: str | None = None) -> str:
    """What `--dry-run` prints: rows with the state of each, what their protocols need, the command of each training.

    Args:
        grid: all of it.
        points: points that are shown.
        gpu: kind of GPU for the hours of protocols; None for this machine's.

    Raises:
        UserError: no such GPU, or rows of a protocol's file that are no questions.
    """
    states = {id(point): state_of(grid, point) for point in points}
    needs = needs_text(grid, points, lambda point: states[id(point)] == "done", gpu)
    trainings: dict[str, int] = {}
    axes = [axis for axis in grid.axes if any(axis in point.labels for point in points)]
    table = Table(box=None, pad_edge=False, header_style="")
    for title in (*axes, _SEED, "training", "state"):
        table.add_column(title, no_wrap=True)
    for point in points:
        number = trainings.setdefault(point.training.digest, len(trainings) + 1)
        labels = [point.labels.get(axis, "-") for axis in axes]
        table.add_row(*labels, str(point.seed), f"{number}", states[id(point)])
    shared = len(points) - len(trainings)
    about = f"{grid.name}: {_counted(len(points), 'point')}, {_counted(len(trainings), 'training')}"
    if shared:
        about += f" ({_counted(shared, 'point')} measured on the training of another)"
    shown = [f"{about}, in {grid.directory}", rendered(table), *([] if needs is None else [needs]), _commands(points)]
    return "\n\n".join(shown)


def state_of(grid: Grid, point: Point) -> str:
    """How far a point is: `running`, `to do`, `to go on`, `to measure`, `done`, or at what it failed, which is tried
    again.
    """
    task = tasks_of(grid, [point])[-1]
    if is_taken(task.directory):
        return "running"
    if (failure := read_failure(task)) is not None:
        return f"failed to {failure.stage}"
    if not is_trained(task):
        return "to do" if newest_attempt(task) is None else "to go on"
    return "done" if has_measures(task) else "to measure"


def _commands(points: Sequence[Point]) -> str:
    """Every training once, with its points as a comment, to be pasted into a shell."""
    lines: dict[str, list[str]] = {}
    for point in points:
        titles = lines.setdefault(point.training.command, [])
        titles.append(f"{point.title}, seed {point.seed}".lstrip(", "))
    return "\n".join(
        f"# {number}: {' / '.join(titles)}\n{command}" for number, (command, titles) in enumerate(lines.items(), 1)
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# Running ------------------------------------------------------------------------------------------------------------


def execute_and_report(grid: Grid, points: Sequence[Point], options: Any) -> int:
    """Everything that is to be done of a grid.

    Args:
        grid: all of it, which `grid.json` tells the report.
        points: those that are run now.
        options: options of the command line.

    Returns:
        The exit status: 1 if a run failed.
    """
    from ts2_lightning.cli.report import report  # which draws

    write_record(grid)
    prepare(points)
    parallel = options.parallel or default_parallel(points)
    try:
        failures = execute(grid, points, parallel, options.slurm, options.device)
    except Stopped as stop:
        message = f"stopped by {stop.signal.name}: the same command goes on from here"
        raise Interrupted(message, 128 + stop.signal) from stop
    try:
        report([str(grid.directory)], latex=options.latex)
    except UserError as error:
        again = f"{program()} report {shlex.quote(str(grid.directory))}"
        message = f"the runs are in {grid.directory}, but not their report: {error}; mend it, then {again}"
        if not failures:
            raise UserError(message) from error
        put(message)  # of failed runs there may be nothing to report: that they failed is what counts
    return 1 if failures else 0


def write_record(grid: Grid) -> None:
    """Writes `grid.json`, and how the base model is measured: as the first training. Each is there whole or not at all.

    Raises:
        UserError: if it cannot be written there.
    """
    texts = {grid.directory / GRID: json.dumps(grid.record(), indent=2, ensure_ascii=False) + "\n"}
    if grid.base_model is not None:
        texts[grid.directory / grid.base_model.config] = yaml.safe_dump(
            dict(grid.points[0].training.config), sort_keys=False
        )
    try:
        for file, text in texts.items():
            write_whole(file, partial(Path.write_text, data=text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--runs_dir {grid.runs_dir}: {grid.directory} cannot be written ({error.strerror})") from error


def prepare(points: Sequence[Point]) -> None:
    """Makes what all runs share, once: the base model, where a plug-in makes it.

    The tokenised rows need no preparation: of runs that need the same the first tokenises, and the others wait for it
    (`ts2_lightning.data.cache`).
    """
    for path in dict.fromkeys(point.training.config["model"]["lm"]["path"] for point in points):
        directory = resolve_model(path)
        if directory != path:
            put(f"Base model: {path} is {directory}")


def default_parallel(points: Sequence[Point]) -> int:
    """How many runs at a time: one where a run has GPUs or several processes, else a run for every core."""
    import torch

    trainers = [point.training.config["trainer"] for point in points]
    alone = any(trainer["accelerator"] != "cpu" and torch.cuda.is_available() for trainer in trainers)
    if alone or any(trainer["devices"] not in ("auto", 1, "1") for trainer in trainers):
        return 1
    return min(cores(), len({point.training.digest for point in points}))
