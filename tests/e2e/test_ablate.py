"""A grid that is stopped, killed and run twice at once comes to what its runs come to alone."""

import json
import os
import shlex
import shutil
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
from transformers import AutoConfig, AutoModelForCausalLM

from tests.e2e.command_line import QUICKSTART, ROOT, empty_working_directory
from ts2_lightning.cli import main
from ts2_lightning.runs.state import read_state

STEPS = 120
LOSS = """
from ts2_lightning.losses import CrossEntropyLoss

class BrokenLoss(CrossEntropyLoss):
    def evaluate(self, rows, *args, **kwargs):
        raise FloatingPointError("the loss of a user is broken")
"""


def write_model(blank: Path) -> str:
    """A model that has learnt nothing."""
    shutil.copytree(blank, "start")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(blank)).save_pretrained("start")
    return "start"


def write_grid(model: str, **more: Any) -> None:
    """An objective and a broken one, small and quick, with a checkpoint of every step."""
    Path("my_losses.py").write_text(LOSS)
    settings = {
        "model.lm.path": model, "trainer.max_epochs": 6,
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
                "broken": {"set": {"model.loss": "my_losses.BrokenLoss"}},
                "TS2": {"set": {"model.loss": "TS2Loss"}},
            }
        },
        "seeds": [0],
        "measure": {"validation": {}},
        **more,
    }
    Path("small.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))


class Ablate:
    """`ablate` on the small grid, with what it says in a file."""

    def __init__(self) -> None:
        self.log = Path(f"ablate-{len(list(Path().glob('ablate-*.log')))}.log")
        command = [sys.executable, str(ROOT / "cli.py"), "ablate", "-c", "small.yaml", "--parallel", "2"]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command,
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


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def trains(process: psutil.Process, run: str) -> bool:
    try:
        return "fit" in process.cmdline() and any(f"/{run}" in word for word in process.cmdline())
    except psutil.NoSuchProcess:  # it has just ended
        return False


def run_of(objective: str) -> Path:
    (directory,) = Path("runs/small").glob(f"{objective.lower()}-s0-*")
    return directory


def step() -> int:
    """How far TS2 is, while it runs."""
    found = [read_state(place / "1") for place in Path("runs/small").glob("ts2-s0-*")]
    state = next(filter(None, found), {})
    return state["step"] if state.get("state") == "running" else 0


def values(run: Path) -> dict[str, Any]:
    (file,) = (run / "measures").glob("validation-*.json")
    return json.loads(file.read_text())["values"]


@pytest.mark.slow
def test_a_protocol_is_a_measure_of_a_grid(tmp_path: Path, cache: Path, blank: Path) -> None:
    with empty_working_directory(tmp_path, cache):
        model = write_model(blank)
        Path("sums.jsonl").write_text(
            '{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2?", "answer": "#### 2"}\n'
        )
        asked = {"data": "sums.jsonl", "n": 4, "ks": [1, 4], "max_new_tokens": 3, "batch_size": 8}
        write_grid(
            model,
            set={"model.lm.path": model, "trainer.max_steps": 2, "data.limit_train": 8, "data.limit_validation": 2},
            axes={"objective": {"TS2": {"set": {"model.loss": "TS2Loss"}}}},
            measure={"gsm8k": asked},
        )
        grid = Ablate()
        assert grid.wait() == 0, grid.said
        (file,) = (run_of("TS2") / "1/measures").glob("gsm8k-*.json")
        measured = json.loads(file.read_text())
        assert (measured["values"]["gsm8k/questions"], measured["values"]["gsm8k/samples"]) == (2, 4)
        assert list(measured["documents"]["curves"]["pass"]) == ["1", "4"]
        assert {place.name for place in (run_of("TS2") / "1").iterdir()} >= {"responses", "scores"}
        report = Path("runs/small/report/report.md").read_text()
        assert "accuracy" in report
        assert "truncated" in report


@pytest.mark.slow
def test_a_grid_that_is_disturbed_comes_to_the_same(tmp_path: Path, cache: Path, blank: Path) -> None:
    with empty_working_directory(tmp_path, cache):
        model = write_model(blank)
        write_grid(model)
        stopped = Ablate()
        stopped.until(lambda: step() > 2)
        left = psutil.Process(stopped.process.pid).children(recursive=True)
        stopped.process.send_signal(signal.SIGINT)
        assert stopped.wait() == 130, stopped.said
        assert left
        assert not any(map(is_alive, left)), "no process is left"
        state = read_state(run_of("TS2") / "1")
        assert (state["state"], 2 < state["step"] < STEPS) == ("stopped", True)
        assert not (run_of("TS2") / "failed.json").exists()

        killed = Ablate()
        killed.until(lambda: step() > state["step"])
        orphan = next(child for child in psutil.Process(killed.process.pid).children() if trains(child, "ts2-s0"))
        killed.process.kill()
        killed.wait()
        os.killpg(orphan.pid, signal.SIGKILL)

        write_grid(model, base_model={})  # which trains nothing anew
        both = [Ablate(), Ablate()]
        assert [one.wait() for one in both] == [1, 1], "\n".join(one.said for one in both)
        assert [place.name for place in run_of("TS2").glob("[0-9]*")] == ["1"], "it went on"
        starts = (run_of("TS2") / "fit.log").read_text().count("ts2_lightning.cli fit ")
        assert starts == 3, "begun, resumed after Ctrl-C, resumed after the kill"
        assert_failure_is_told(both)
        assert_is_what_its_command_comes_to()


def assert_failure_is_told(both: list[Ablate]) -> None:
    """The others are done, the report is there, and the run that failed has its log."""
    message = "fit in step 1 of the training: FloatingPointError: the loss of a user is broken"
    directory = run_of("broken")
    failed = json.loads((directory / "failed.json").read_text())
    assert (failed["stage"], failed["status"]) == ("fit", 1)
    assert failed["message"].startswith(f"{message}; the traceback is in ")
    assert message in Path(failed["log"]).read_text()
    for ablate in both:
        assert f"objective=broken, seed 0: failed: {message}; " in ablate.said
        assert f"({directory}/fit.log)" in ablate.said
        assert "/3] objective=TS2, seed 0: done" in ablate.said
        assert "/3] base: done" in ablate.said
    report = Path("runs/small/report/report.md").read_text()
    assert message in report
    assert "TS2" in report


def assert_is_what_its_command_comes_to() -> None:
    """The command that the grid prints, undisturbed and in this process, and the base model measured on the rows of the
    runs.
    """
    (point,) = (
        p for p in json.loads(Path("runs/small/grid.json").read_text())["points"] if "TS2" in p["labels"].values()
    )
    words = shlex.split(point["command"])
    assert main([*words[words.index("fit") :], "--runs_dir", "alone"]) == 0
    alone = Path("alone/small", point["run"], "1")
    assert main(["measure", str(alone), "--spec", json.dumps(point["measure"])]) == 0
    assert values(run_of("TS2") / "1") == values(alone)
    (base,) = (path for path in Path("runs/small").glob("base-*") if path.is_dir())
    assert values(base)["validation/tokens"] == values(alone)["validation/tokens"]
