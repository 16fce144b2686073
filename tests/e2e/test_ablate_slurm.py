"""A grid on a cluster, rehearsed with a stand-in for SLURM and the real submitit."""

import io
import json
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.e2e import stand_in_slurm
from tests.e2e.command_line import QUICKSTART, empty_working_directory
from tests.e2e.stand_in_slurm import install
from tests.support.errors import refused
from ts2_lightning.runs.state import read_state
from ts2_lightning.studies.execute import processes, slurm
from ts2_lightning.studies.execute.board import Board
from ts2_lightning.studies.execute.task import Failure, Task, read_failure, tasks_of, write_failure
from ts2_lightning.studies.grid import Grid, Point, Training
from ts2_lightning.types import UserError

STEPS = 60


def training(name: str, blank: Path, *options: str) -> Training:
    """Two processes."""
    settings = {
        "model.lm.path": blank, "model.lm.init": "random", "data.limit_train": 80, "data.limit_validation": 6,
        "data.batch_size": 4, "data.micro_batch_size": 1, "trainer.max_epochs": 3, "trainer.devices": 2,
        "trainer.enable_progress_bar": "false", "name": f"g/{name}", "runs_dir": "runs",
    }  # fmt: skip
    given = ["-c", str(QUICKSTART), *(f"--{key}={value}" for key, value in settings.items()), *options]
    return Training(f"g/{name}", name, tuple(given), {"trainer": {"accelerator": "cpu", "devices": 2}})


def grid_of(*trainings: Training, **settings: Any) -> Grid:
    points = tuple(Point({"run": one.run}, 0, one, {"validation": {}}) for one in trainings)
    return Grid("g", Path("g.yaml"), Path("runs"), "", None, {}, (0,), points, None, {}, settings)


def run(grid: Grid) -> tuple[list[Failure], list[str]]:
    log = io.StringIO()
    tasks = tasks_of(grid, grid.points, "cpu")
    with Board(tasks, len(tasks), Console(file=log)) as board:
        return slurm.run_on_slurm(tasks, grid, board), log.getvalue().splitlines()


def test_what_a_job_asks_for(tmp_path: Path) -> None:
    """What follows from the configuration, then what the grid file says; the wall time in any of SLURM's forms."""
    grid = grid_of(training("one", tmp_path), partition="gpu", account=None, time="1-00:00:00", cpus_per_task=4)
    (task,) = tasks_of(grid, grid.points)
    found = slurm.parameters(task, grid)
    assert found == {
        "job_name": "g", "nodes": 1, "ntasks_per_node": 2, "cpus_per_task": 4, "partition": "gpu",
        "srun_args": ["--kill-on-bad-exit=1", "--cpus-per-task=4"], "time": None,
        "additional_parameters": {"signal": "USR1@300", "requeue": True, "time": "1-00:00:00"},
    }  # fmt: skip
    config = {"trainer": {"accelerator": "gpu", "devices": 4, "num_nodes": 2}}
    large = Point({}, 0, Training("g/x", "x", (), config), {})
    (task,) = tasks_of(grid, [large])
    found = slurm.parameters(task, grid)
    assert (found["nodes"], found["ntasks_per_node"], found["gpus_per_node"]) == (2, 4, 4)
    (task,) = tasks_of(grid, [Point({}, 0, Training("g/x", "x", (), {"trainer": {"devices": "auto"}}), {})])
    with pytest.raises(UserError, match=r"g\.yaml: seed 0: for SLURM trainer\.devices must be a number"):
        slurm.parameters(task, grid)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where there is SLURM."""
    install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, []),
        ({"time": 90}, ["#SBATCH --time=90"]),
        ({"time": "1-00:00:00", "cpus_per_task": 4, "srun_args": ["-v"]}, ["#SBATCH --time=1-00:00:00"]),
    ],
)
def test_the_script(here: Path, given: dict[str, Any], found: list[str]) -> None:
    """Without a wall time it is the cluster's; srun is told of the cores, and of what the grid file adds."""
    grid = grid_of(training("one", here), **given)
    (task,) = tasks_of(grid, grid.points)
    executor = slurm.Queue(grid)._executor(slurm.parameters(task, grid))
    script = executor._make_submission_file_text("command", "id").splitlines()
    assert [line for line in script if "--time" in line] == found
    (srun,) = (line.split() for line in script if line.startswith("srun "))
    own = ["--kill-on-bad-exit=1", f"--cpus-per-task={given.get('cpus_per_task', 8)}", *given.get("srun_args", [])]
    assert srun[-len(own) - 1 :] == [*own, "command"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"setup": "module load cuda"}, r"slurm\.setup: expected a list, such as .*got 'module load cuda'"),
        ({"setup": [1]}, r"slurm: submitit cannot use these parameters: .*int"),
        ({"additional_parameters": "x"}, r"slurm\.additional_parameters: expected a mapping, got 'x'"),
        ({"array_parallelism": "4"}, r"slurm\.array_parallelism must be a whole number of at least 1, got '4'"),
        ({"partition": "gup"}, r"slurm: sbatch has not taken the jobs: .*invalid partition.*; sbatch: error: Batch"),
    ],
)
def test_jobs_that_are_refused(here: Path, given: dict[str, Any], complaint: str) -> None:
    """One line says why, and what failed before still stands failed."""
    refusal = "sbatch: error: invalid partition specified: gup\\nsbatch: error: Batch job submission failed\\n"
    (here / "bin" / "sbatch").write_text(f"#!/bin/sh\nprintf '{refusal}' >&2\nexit 1\n")
    grid = grid_of(training("one", here), training("two", here), **given)
    first, second = tasks_of(grid, grid.points)
    failure = Failure("fit", 1, "an earlier one", "fit.log", first.title)
    first.directory.mkdir(parents=True)
    write_failure(first, failure)
    with refused(r"^g\.yaml: " + complaint):
        run(grid)
    assert [read_failure(first), read_failure(second)] == [failure, None]
    assert [slurm.remembered(first), slurm.remembered(second)] == [None, None]


# --- in a job ---------------------------------------------------------------------------------------------------------


def task_in_a_job(monkeypatch: pytest.MonkeyPatch, rank: int, state: str, command: str) -> Task:
    """A run of which an attempt is there, in the process of a job where a piece of Python is `fit` and `measure`."""
    task = Task("one", Path("runs/g/one"), ("--name", "g/one"), "", ({},))
    (task.directory / "1").mkdir(parents=True)
    (task.directory / "1" / "config.yaml").touch()
    (task.directory / "1" / "state.json").write_text(json.dumps({"state": state}))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_PROCID", str(rank))
    monkeypatch.setattr(processes, "_COMMAND", (sys.executable, "-c", command))
    return task


def test_the_first_rank_says_whether_a_run_is_finished(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exports when the others have ended."""
    task = task_in_a_job(monkeypatch, 1, "running", "pass")
    assert slurm.run_task(task, []) == "done"
    assert read_failure(task) is None
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(RuntimeError, match=r"fit has ended .* runs/g/one/1/state\.json does not call the run finished"):
        slurm.run_task(task, [])
    assert read_failure(task) is not None


def test_a_job_that_is_done_has_not_failed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was started again after a failure."""
    task = task_in_a_job(monkeypatch, 0, "finished", "pass")
    write_failure(task, Failure("fit", 1, "the node has died", "fit.log", task.title))
    assert slurm.run_task(task, []) == "done"
    assert read_failure(task) is None


@pytest.mark.parametrize(
    ("number", "job_is", "requeued"),
    [
        (signal.SIGUSR1, {}, True),
        (signal.SIGTERM, {"preempted": True}, True),
        (signal.SIGTERM, {"state": ["CANCELLED", "COMPLETING"]}, False),
    ],
)
def test_a_job_that_is_stopped_while_it_measures(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, job_is: dict[str, Any], requeued: bool
) -> None:
    """When its time is over, or it is preempted, it gets another turn; when it is cancelled it gets none."""
    stand_in_slurm.write_job("4711", **job_is)
    heard = f"import os, signal; os.kill(os.getppid(), {int(number)}); signal.pause()"
    task = task_in_a_job(monkeypatch, 0, "finished", heard)
    assert slurm.run_task(task, []) == "stopped"
    assert read_failure(task) is None
    assert Path("requeued.txt").exists() is requeued


def test_without_slurm_nothing_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no srun here"):
        run(grid_of(training("one", tmp_path)))


@pytest.mark.long
def test_an_array_that_is_warned(tmp_path: Path, cache: Path, blank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two processes is warned that its time ends, saves, is queued again, goes on and is measured; a broken
    one fails by itself; and a second call submits nothing but what failed.
    """
    with empty_working_directory(tmp_path, cache):
        install(tmp_path / "bin")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        monkeypatch.setattr(slurm, "SECONDS", 0.1)
        grid = grid_of(training("whole", blank), training("broken", blank, "--model.loss=NoSuchLoss"), partition="gpu")
        over = threading.Event()

        def warn() -> None:
            while (read_state(Path("runs/g/whole/1")) or {"step": 0})["step"] < 3:
                if over.wait(0.05):
                    return
            stand_in_slurm.warn()

        warner = threading.Thread(target=warn)
        warner.start()
        failures, log = run(grid)
        over.set()
        warner.join()
        assert [(failure.title, failure.stage) for failure in failures] == [("run=broken, seed 0", "fit")], log
        assert "NoSuchLoss" in failures[0].message
        assert Path("requeued.txt").read_text() == "4711_0\n", "once, by the run itself"
        attempts = [place.name for place in Path("runs/g/whole").glob("[0-9]*")]
        assert attempts == ["1"]
        assert Path("runs/g/whole/1/config-resume-1.yaml").exists(), "it went on in its directory"
        assert (read_state(Path("runs/g/whole/1")) or {})["step"] == STEPS
        assert len(list(Path("runs/g/whole/1/measures").glob("*.json"))) == 1
        script = Path("submitted-0.sh").read_text()
        for line in ("--array=0-1%2", "--signal=USR1@300", "--requeue", "--partition=gpu", "--ntasks-per-node=2"):
            assert f"#SBATCH {line}\n" in script, line
        assert "--time" not in script, "the cluster's own"
        assert re.search(r"^srun .*--kill-on-bad-exit=1 --cpus-per-task=8 .*submitit", script, flags=re.MULTILINE)
        assert json.loads(Path("runs/g/whole/job.json").read_text()) == {"id": "4711_0"}

        failures, _ = run(grid)
        assert [failure.title for failure in failures] == ["run=broken, seed 0"]
        assert "#SBATCH --array" not in Path("submitted-1.sh").read_text(), "what failed alone"
        assert not Path("submitted-2.sh").exists()
