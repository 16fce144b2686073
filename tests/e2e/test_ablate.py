"""A grid that is stopped, killed and run twice at once comes to what it would have come to undisturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.e2e.command_line import QUICKSTART, ROOT, empty_working_directory
from ts2_lightning.callbacks.run_state import read_state

STEPS = 60
LOSS = """
from ts2_lightning.losses import CrossEntropyLoss

class BrokenLoss(CrossEntropyLoss):
    def evaluate(self, rows, *args, **kwargs):
        raise FloatingPointError("the loss of a user is broken")
"""


def write_grid(blank: Path) -> None:
    """Two objectives and a broken one, small and quick, with a checkpoint of every step."""
    Path("my_losses.py").write_text(LOSS)
    settings = {
        "model.lm.path": str(blank), "model.lm.init": "random", "trainer.max_epochs": 3,
        "trainer.enable_progress_bar": False, "data.limit_train": 80, "data.limit_validation": 6,
        "data.batch_size": 4, "data.micro_batch_size": 4,
    }  # fmt: skip
    often = {"trainer": {"callbacks+": [{"class_path": "Checkpoints", "init_args": {"every_n_steps": 1}}]}}
    Path("often.yaml").write_text(yaml.safe_dump(often))
    grid = {
        "title": "A small grid",
        "base": [str(QUICKSTART), "often.yaml"],
        "set": settings,
        "axes": {
            "objective": {
                "CE": {"set": {"model.loss": "CrossEntropyLoss"}},
                "broken": {"set": {"model.loss": "my_losses.BrokenLoss"}},
                "TS2": {"set": {"model.loss": "TS2Loss"}},
            }
        },
        "seeds": [0],
        "measure": {"validation": {}},
    }
    Path("small.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))


class Ablate:
    """`ablate` on the small grid, with what it says in a file.

    Args:
        runs: directory of all runs.
    """

    def __init__(self, runs: str) -> None:
        self.log = Path(f"{runs}-{len(list(Path().glob(f'{runs}-*.log')))}.log")
        command = [sys.executable, str(ROOT / "cli.py"), "ablate", "-c", "small.yaml", "--runs_dir", runs]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--parallel", "2"],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits, while it runs, until something holds."""
        while not holds():
            assert self.process.poll() is None, self.said
            time.sleep(0.02)

    def wait(self) -> int:
        return self.process.wait(timeout=300)

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def run_of(runs: str, objective: str) -> Path:
    (directory,) = Path(runs, "small").glob(f"{objective.lower()}-s0-*")
    return directory


def step(runs: str, objective: str) -> int:
    """How far a run's first attempt is, while it runs."""
    found = [read_state(place / "1") for place in Path(runs, "small").glob(f"{objective.lower()}-s0-*")]
    state = next(filter(None, found), {})
    return state["step"] if state.get("state") == "running" else 0


def values(runs: str, objective: str) -> dict[str, Any]:
    (file,) = (run_of(runs, objective) / "1" / "measures").glob("validation-*.json")
    found: dict[str, Any] = json.loads(file.read_text())["values"]
    return found


def trainings(runs: str, objective: str) -> int:
    """How often `fit` was started."""
    return (run_of(runs, objective) / "fit.log").read_text().count("ts2_lightning.cli fit ")


@pytest.mark.slow
def test_a_grid_that_is_disturbed_comes_to_the_same(tmp_path: Path, cache: Path, blank: Path) -> None:
    with empty_working_directory(tmp_path, cache):
        write_grid(blank)
        undisturbed = Ablate("whole")
        assert undisturbed.wait() == 1, "a run has failed"
        assert_failure_is_told(undisturbed)

        stopped = Ablate("broken")
        stopped.until(lambda: step("broken", "TS2") > 2)  # the broken one has failed before, the first is under way
        left = stopped.children
        stopped.process.send_signal(signal.SIGINT)
        assert stopped.wait() == 130, stopped.said
        assert not any(child.is_running() and child.status() != "zombie" for child in left), "no process is left"
        state = read_state(run_of("broken", "TS2") / "1")
        assert state is not None
        assert (state["state"], 2 < state["step"] < STEPS) == ("stopped", True)
        assert (run_of("broken", "TS2") / "failed.json").exists() is False

        killed = Ablate("broken")
        killed.until(lambda: step("broken", "TS2") > state["step"])
        left = [child for child in killed.children if "fit" in child.cmdline()]
        killed.process.kill()
        killed.wait()
        victim = next(child for child in left if any("/ts2-s0" in word for word in child.cmdline()))
        os.killpg(victim.pid, signal.SIGKILL)

        both = [Ablate("broken"), Ablate("broken")]
        assert [one.wait() for one in both] == [1, 1], "\n".join(one.said for one in both)
        for objective in ("CE", "TS2"):
            assert values("broken", objective) == values("whole", objective), objective
            assert [place.name for place in run_of("broken", objective).glob("[0-9]*")] == ["1"], "it went on"
        assert trainings("broken", "TS2") == 3, "begun, resumed after Ctrl-C, resumed after the kill"


def assert_failure_is_told(ablate: Ablate) -> None:
    """The others are done, the report is there, and the run that failed has its log."""
    message = "FloatingPointError: the loss of a user is broken"
    directory = run_of("whole", "broken")
    failed = json.loads((directory / "failed.json").read_text())
    assert (failed["stage"], failed["status"], failed["message"]) == ("fit", 1, message)
    assert message in Path(failed["log"]).read_text()
    assert f"objective=broken, seed 0: failed: {message} ({directory}/fit.log)" in ablate.said
    assert "[2/3] objective=TS2, seed 0: done" in ablate.said or "[2/3] objective=CE, seed 0: done" in ablate.said
    assert values("whole", "CE").keys() == values("whole", "TS2").keys()
    assert Path("whole/small/report/report.md").is_file()
