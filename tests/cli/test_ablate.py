"""`ablate`: what it shows and asks for. That its runs train, fail and go on is held in tests/e2e/test_ablate.py."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run
from tests.e2e.command_line import QUICKSTART
from tests.support.errors import refused
from ts2_lightning.cli import ablate, main
from ts2_lightning.cli.settings import SettingsReader
from ts2_lightning.evaluation.registry import check_spec
from ts2_lightning.evaluation.results import place_of
from ts2_lightning.runs.process_lock import ProcessLock
from ts2_lightning.studies.execute import Failure
from ts2_lightning.studies.execute.task import tasks_of
from ts2_lightning.studies.grid import Grid, Point, read_grid
from ts2_lightning.toyworld.measure import ToyWorld
from ts2_lightning.types import UserError

GRID: dict[str, Any] = {
    "base": str(QUICKSTART),
    "axes": {
        "objective": {
            "CE, plain": {"set": {"model.loss": "CrossEntropyLoss"}},
            "TS2": {"set": {"model.loss": "TS2Loss"}},
            "TS2 sparse": {"set": {"model.loss": "TS2Loss"}, "measure": {"decoding": "sparsemax"}},
        },
        "alpha": {"setting": "model.loss.alpha", "values": [0.25, 1]},
    },
    "runs": [{"objective": "CE, plain"}, {"objective": ["TS2", "TS2 sparse"], "alpha": "all"}],
    "seeds": [0, 3],
    "measure": {"toyworld": {}},
}


MEASURE = place_of(Path(), check_spec(GRID["measure"]), ToyWorld()).name + ".json"


@pytest.fixture
def here(here: Path) -> Path:
    """A working directory with a grid file."""
    Path("toy.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    return here


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """The grid of the file, whose runs lie below the working directory, whichever it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("grid"))
        Path("toy.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
        return read_grid("toy.yaml", SettingsReader().read, "runs")


# Showing ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_rows_and_commands_and_does_nothing(here: Path, real: Run) -> None:
    before = sorted(here.rglob("*"))
    out = real("ablate", "-c", "toy.yaml", "--dry-run", "--runs_dir", "my runs").done().out
    assert sorted(here.rglob("*")) == before
    head, table, commands = out.rstrip().split("\n\n")
    assert head == "toy: 10 points, 6 trainings (4 points measured on the training of another), in my runs/toy"
    titles, *rows = (re.split("  +", line) for line in table.splitlines())
    assert titles == ["objective", "alpha", "seed", "training", "state"]
    assert rows[1] == ["CE, plain", "-", "3", "2", "to do"]
    assert rows[-1] == ["TS2 sparse", "1", "3", "6", "to do"]
    assert len(rows) == 10
    lines = commands.splitlines()
    assert lines[0] == "# 1: objective=CE, plain, seed 0"
    assert lines[4] == "# 3: objective=TS2 alpha=0.25, seed 0 / objective=TS2 sparse alpha=0.25, seed 0"
    assert len(lines) == 12


def test_shares_of_the_way_count_as_measured(here: Path, real: Run) -> None:
    axes = {**GRID["axes"], "interpolate": [0.5, 1]}
    blocks = [{"objective": "TS2", "alpha": 1, "interpolate": "all"}, {"objective": "CE, plain"}]
    Path("toy.yaml").write_text(yaml.safe_dump({**GRID, "axes": axes, "runs": blocks}, sort_keys=False))
    out = real("ablate", "-c", "toy.yaml", "--dry-run").done().out
    head, table, _ = out.split("\n\n")
    assert head == "toy: 6 points, 4 trainings (2 points measured on the training of another), in runs/toy"
    assert [re.split("  +", line)[2:5] for line in table.splitlines()] == [
        ["interpolate", "seed", "training"],
        *(["0.5", "0", "1"], ["0.5", "3", "2"], ["1", "0", "1"], ["1", "3", "2"], ["-", "0", "3"], ["-", "3", "4"]),
    ]


def test_a_printed_command_is_the_training(grid: Grid) -> None:
    """What a user pastes is resolved to the very configuration that the grid would run."""
    reader = SettingsReader()
    for training in grid.trainings:
        words = shlex.split(training.command)
        assert reader.read(words[words.index("fit") + 1 :]) == training.config


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "to do"),
        ({"1/config.yaml": ""}, "to go on"),
        ({"1/state.json": '{"state": "stopped"}'}, "to go on"),
        ({"1/state.json": '{"state": "finished"}'}, "to measure"),
        ({"1/state.json": '{"state": "finished"}', f"1/measures/{MEASURE}": "{}"}, "done"),
        ({"1/state.json": '{"state": "stopped"}', f"1/measures/{MEASURE}": "{}"}, "to go on"),
        ({"1/state.json": '{"state": "finished"}', "2/state.json": '{"state": "running"}'}, "to go on"),
        (
            {
                "failed.json": '{"stage": "fit", "status": 1, "message": "no", "log": "x"}',
                "1/state.json": '{"state": "failed"}',
            },
            "failed to fit",
        ),
        ({"failed.json": '{"stage": "measure", "status": 1, "message": "no", "log": "x"}'}, "failed to measure"),
    ],
    ids=str,
)
def test_the_state_of_a_run(here: Path, grid: Grid, files: dict[str, str], state: str) -> None:
    point, other = grid.points[0], grid.points[1]
    for name, content in files.items():
        file = grid.runs_dir / point.training.name / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert ablate.state_of(grid, point) == state
    assert ablate.state_of(grid, other) == "to do"


def test_a_run_that_another_is_at(here: Path, grid: Grid, real: Run) -> None:
    point = grid.points[0]
    directory = grid.runs_dir / point.training.name
    lock = ProcessLock.take(directory)
    (directory / "failed.json").write_text('{"stage": "fit", "status": 1, "message": "no", "log": "x"}')
    before = (directory / ".lock").read_text()
    assert ablate.state_of(grid, point) == "running"
    assert real("ablate", "-c", "toy.yaml", "--dry-run").done().out.count(" running\n") == 1
    lock.release()
    assert ablate.state_of(grid, point) == "failed to fit"
    assert (directory / ".lock").read_text() == before, "whose it was stays known"


# Choosing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ([], 10),
        (["seed=3"], 5),
        (["objective=CE, plain"], 2),
        (["objective=TS2", "objective=CE, plain"], 6),
        (["objective=TS2", "alpha=1", "seed=0"], 1),
        (["alpha=0.25"], 4),
    ],
)
def test_only(grid: Grid, wanted: list[str], rows: int) -> None:
    chosen = ablate.only(grid, wanted)
    assert len(chosen) == rows
    assert list(chosen) == [point for point in grid.points if point in chosen]
    for word in wanted:
        axis, choice = word.split("=")
        assert any({**point.labels, "seed": str(point.seed)}[axis] == choice for point in chosen)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("alpa=1", "^--only alpa=1: toy.yaml has no axis 'alpa'; did you mean alpha"),
        ("alpha=2", "^--only alpha=2: toy.yaml has no choice of alpha '2'; there are 0.25, 1$"),
        ("seed=1", "no choice of seed '1'; there are 0, 3$"),
        ("TS2", "^--only TS2: expected AXIS=CHOICE, with an axis of objective, alpha, seed"),
    ],
)
def test_only_what_there_is(grid: Grid, wanted: str, message: str) -> None:
    with refused(message):
        ablate.only(grid, [wanted])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["-c", "toy.yaml", "--only", "objective=CE, plain", "alpha=1"],
            "--only objective=CE, plain alpha=1: no row of toy.yaml has all of these",
        ),
        (["-c", "toy.yaml", "--parallel", "0"], "--parallel must be a whole number of at least 1, got 0"),
        (["-c", "toy.yaml", "--parallel", "2", "--slurm"], "--parallel is of runs on this machine; with --slurm"),
        (["-c", "toy.yaml", "--parallel", "two"], "ablate: argument --parallel: invalid int value: 'two'"),
        (["-c", "{base: x, axes: y}"], "{base: x, axes: y}: no such file"),
        (["-c", "tyo.yaml"], "tyo.yaml: no such file; did you mean toy.yaml?"),
        ([], "ablate: the following arguments are required: -c/--config"),
        (["-c", "toy.yaml", "--name", "a/../b"], "--name 'a/../b': the name of a run is a directory below"),
        (["-c", "toy.yaml", "--runs_dir", "toy.yaml"], "--runs_dir toy.yaml: toy.yaml/toy cannot be written ("),
    ],
    ids=str,
)
def test_a_wrong_option_takes_one_line(here: Path, real: Run, options: list[str], message: str) -> None:
    assert message in real("ablate", *options).refusal
    assert not Path("runs").exists()


# Running ------------------------------------------------------------------------------------------------------------


def test_labels_are_shown_as_they_are(here: Path, real: Run) -> None:
    axes = {"a": {"[red]x[/red] :smile:": {}, "long " * 60: {"set": {"trainer.max_epochs": 9}}}}
    Path("odd.yaml").write_text(yaml.safe_dump({"base": str(QUICKSTART), "axes": axes}, width=9999))
    out = real("ablate", "-c", "odd.yaml", "--dry-run").done().out
    assert "\n[red]x[/red] :smile: " in out
    assert "\n" + ("long " * 60) in out


class Asked:
    """Stands for what trains and for what reports, and remembers what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.points: Sequence[Point] = ()
        self.options: tuple[Any, ...] = ()
        self.record: dict[str, Any] = {}
        self.report: tuple[list[str], bool] = ([], False)
        self.failures: list[Failure] = []
        self.complaint: UserError | None = None
        monkeypatch.setattr(ablate, "execute", self._execute)
        monkeypatch.setattr("ts2_lightning.cli.report.report", self._report)
        monkeypatch.setattr(ablate, "resolve_model", lambda path: "/cache/base")

    def _execute(self, grid: Grid, points: Sequence[Point], *options: Any) -> list[Failure]:
        self.points, self.options = points, options
        self.record = json.loads((grid.directory / "grid.json").read_text())
        return self.failures

    def _report(self, runs: list[str], *, latex: bool) -> None:
        self.report = (runs, latex)
        if self.complaint:
            raise self.complaint


@pytest.fixture
def asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_a_grid_is_recorded_run_and_reported(asked: Asked, real: Run) -> None:
    options = ("--only", "objective=CE, plain", "--parallel", "2", "--only", "objective=TS2")
    answer = real("ablate", "-c", "toy.yaml", *options, "--latex", "--device", "cpu").done()
    assert [point.seed for point in asked.points] == [0, 3] * 3
    assert asked.options == (2, False, "cpu")
    assert len(asked.record["points"]) == 10, "the record has the whole grid, also what is not run now"
    assert asked.record["axes"]["objective"] == ["CE, plain", "TS2", "TS2 sparse"]
    assert asked.report == (["runs/toy"], True)
    assert list(Path("runs/toy").glob("base*")) == [], "no base model is measured"
    assert "Base model: toyworld is /cache/base" in answer.out


def test_the_base_model_is_measured_as_the_first_training(asked: Asked) -> None:
    """The file is what `measure --config` takes, and does not make a run of the base model's directory."""
    rows = {"data.validation": "toyworld:test", "data.limit_validation": 7}
    more = {"base_model": {"label": "start"}, "set": rows}
    Path("more.yaml").write_text(yaml.safe_dump({**GRID, **more}, sort_keys=False))
    assert main(["ablate", "-c", "more.yaml", "--only", "seed=3"]) == 0
    (file,) = Path("runs/more").glob("base-*.yaml")
    config = yaml.safe_load(file.read_text())
    assert config == read_grid("more.yaml", SettingsReader().read).points[0].training.config
    assert (config["data"]["validation"], config["data"]["limit_validation"]) == ("toyworld:test", 7)
    task = tasks_of(read_grid("more.yaml", SettingsReader().read), asked.points)[0]
    assert (task.directory, task.config) == (file.with_suffix(""), str(file))


@pytest.mark.parametrize("complaint", [None, UserError("nothing to report")])
def test_a_failed_run_is_in_the_status(asked: Asked, complaint: UserError | None) -> None:
    asked.failures, asked.complaint = [Failure("fit", 1, "no", "log")], complaint
    assert main(["ablate", "-c", "toy.yaml", "--name", "other"]) == 1
    assert asked.report == (["runs/other"], False)


def test_a_report_that_cannot_be_written_costs_no_run(asked: Asked, real: Run) -> None:
    asked.complaint = UserError("no such column")
    told = "the runs are in runs/toy, but not their report: no such column; mend it, then ts2 report runs/toy"
    assert told in real("ablate", "-c", "toy.yaml").complaint
    assert len(asked.points) == 10


def with_trainer(grid: Grid, **trainer: Any) -> list[Point]:
    def changed(point: Point) -> Point:
        config = {**point.training.config, "trainer": {**point.training.config["trainer"], **trainer}}
        return replace(point, training=replace(point.training, config=config))

    return [changed(point) for point in grid.points]


def test_as_many_runs_at_a_time_as_there_are_cores(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "cores", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert ablate.default_parallel(grid.points) == 4
    assert ablate.default_parallel(grid.points[:3]) == 3
    assert ablate.default_parallel(grid.points[2:3] + grid.points[6:7]) == 1, "they share one training"
    assert ablate.default_parallel(with_trainer(grid, devices="auto")) == 4
    assert ablate.default_parallel(with_trainer(grid, devices=2)) == 1
    assert ablate.default_parallel(with_trainer(grid, accelerator="auto")) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert ablate.default_parallel(with_trainer(grid, accelerator="auto")) == 4
