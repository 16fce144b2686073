"""A run in a terminal that closes: an ssh session that drops. It saves and ends; under nohup it goes on."""

import os
import pty
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.command_line import QUICKSTART, ROOT, empty_working_directory
from ts2_lightning.runs.checkpoints import newest_checkpoint
from ts2_lightning.runs.state import read_state

pytestmark = pytest.mark.slow

STEPS = 150
OPTIONS = (
    *("--model.lm.init=random", "--data.limit_train=80", "--data.validation=null", "--data.batch_size=4"),
    *("--trainer.max_epochs=-1", f"--trainer.max_steps={STEPS}", "--name=run"),
)


def start(command: list[str]) -> tuple[int, int]:
    """A process with a terminal of its own, and the other end of the terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        os.execvp(command[0], command)
    return child, terminal


def close_at(terminal: int, step: int) -> str:
    """Reads what is shown until some steps are done, and closes the terminal."""
    shown = b""
    deadline = time.monotonic() + 120
    while (read_state(Path("runs/run/1")) or {"step": 0})["step"] < step:
        assert time.monotonic() < deadline, shown.decode()
        time.sleep(0.05)
        with suppress(OSError):  # nohup has left it
            while select.select([terminal], [], [], 0)[0]:
                shown += os.read(terminal, 65536)
    os.close(terminal)
    return shown.decode()


@pytest.mark.parametrize(("before", "status"), [([], 128 + signal.SIGHUP), (["nohup"], 0)])
def test_a_terminal_that_closes(before: list[str], status: int, tmp_path: Path, cache: Path, blank: Path) -> None:
    with empty_working_directory(tmp_path, cache):
        fit = [sys.executable, str(ROOT / "cli.py"), "fit", "-c", str(QUICKSTART), f"--model.lm.path={blank}", *OPTIONS]
        child, terminal = start([*before, *fit])
        shown = close_at(terminal, 5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status, shown
        state = read_state(Path("runs/run/1")) or {}
        newest = newest_checkpoint(Path("runs/run/1"))
        assert newest.resolve().name == f"step-{state['step']:06d}.ckpt"
        if before:
            assert (state["state"], state["step"]) == ("finished", STEPS)
        else:
            assert state["state"] == "stopped"
            assert 5 <= state["step"] < STEPS
