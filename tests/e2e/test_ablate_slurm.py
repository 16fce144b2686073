"""A grid on a cluster, rehearsed with a stand-in for SLURM and the real submitit."""

import io
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.e2e.command_line import QUICKSTART, empty_working_directory
from tests.e2e.stand_in_slurm import install
from ts2_lightning.callbacks.run_state import read_state
from ts2_lightning.experiments.execution import slurm
from ts2_lightning.experiments.execution.board import Board
from ts2_lightning.experiments.execution.task import Failure, tasks_of
from ts2_lightning.experiments.grid import Grid, Point, Training
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
        "srun_args": ["--kill-on-bad-exit=1"],
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


def test_without_slurm_nothing_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no srun here"):
        run(grid_of(training("one", tmp_path)))


@pytest.mark.slow
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
            Path("warn").touch()

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
        assert re.search(r"^srun .*--kill-on-bad-exit=1 .*submitit", script, flags=re.MULTILINE)
        assert json.loads(Path("runs/g/whole/job.json").read_text()) == {"id": "4711_0"}

        failures, _ = run(grid)
        assert [failure.title for failure in failures] == ["run=broken, seed 0"]
        assert "#SBATCH --array" not in Path("submitted-1.sh").read_text(), "what failed alone"
        assert not Path("submitted-2.sh").exists()
