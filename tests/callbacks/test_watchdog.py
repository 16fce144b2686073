"""A run that makes no progress is ended, and says where it stood; a run that makes progress is left alone."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from publisher import Publisher, loader, make_rows, make_trainer

from ts2_lightning.callbacks import Watchdog
from ts2_lightning.callbacks.watchdog import STATUS
from ts2_lightning.types import UserError

ROWS = make_rows([2, 2, 2, 2])


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """In place of the process's end: what it would have ended with, and an event at which it would."""
    event, statuses = threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        event.set()

    monkeypatch.setattr(os, "_exit", end)
    return event, statuses


class Hangs(Publisher):
    """Waits in a step, or in a validation, until the watchdog ends it."""

    def __init__(self, ended: threading.Event, where: str, step: int) -> None:
        super().__init__((1.0, 1.0))
        self.ended, self.where, self.step = ended, where, step

    def _wait(self, where: str) -> None:
        if (where, self.global_step) == (self.where, self.step):
            assert self.ended.wait(60)
            raise RuntimeError("over")

    def on_train_batch_start(self, *args: Any) -> None:
        self._wait("training")

    def on_validation_batch_start(self, *args: Any) -> None:
        self._wait("validation")


@pytest.mark.parametrize(
    ("where", "step", "named"),
    [("training", 0, "step 1"), ("training", 2, "step 3"), ("validation", 4, "step 4")],
)
def test_a_hang_is_named(
    tmp_path: Path, ended: Any, capfd: pytest.CaptureFixture[str], where: str, step: int, named: str
) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Watchdog(timeout=1.5)])
    with pytest.raises(RuntimeError, match="over"):
        trainer.fit(Hangs(ended[0], where, step), loader(ROWS), loader(ROWS[:1]))
    assert ended[1][0] == STATUS
    file = tmp_path / "hang-rank-0.txt"
    line = next(line for line in capfd.readouterr().err.splitlines() if "no progress" in line)
    assert line.startswith(f"[rank 0] error: no progress in {named} ({where}): stands at lightning/pytorch/")
    assert line.endswith(f"the stacks of all threads are in {file}")
    assert "in _wait" in file.read_text()
    assert "most recent call first" in file.read_text()


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, ended: Any) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Watchdog(timeout=300.0)], max_epochs=2)
    trainer.fit(Publisher((1.0, 1.0)), loader(ROWS), loader(ROWS[:1]))
    assert ended[1] == []
    assert not list(tmp_path.glob("hang*"))
    for thread in threading.enumerate():
        if thread.name == "watchdog":  # it may need a moment to see that it is not needed any more
            thread.join(timeout=30)
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match=r"Watchdog: timeout must be a finite number above 0 .*, got 0"):
        Watchdog(timeout=0)
