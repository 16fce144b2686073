"""A run that makes no progress is ended, and says where it stood; a run that makes progress is left alone."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningDataModule

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.ranks import launch
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, Watchdog, watchdog
from ts2_lightning.callbacks.watchdog import STATUS, report_hang

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


class Hangs(Callback):
    """Waits in a hook, at a step, until the watchdog ends it; the watchdog has been asked before."""

    def __init__(self, ended: threading.Event, hook: str, step: int) -> None:
        self.ended, self.step = ended, step
        setattr(self, hook, self.hang)

    def hang(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            assert self.ended.wait(60)
            raise RuntimeError("over")


@pytest.mark.parametrize(
    ("hook", "step", "phase"),
    [
        ("setup", 0, "while the model is loaded"),
        ("on_fit_start", 0, "before the first step (a checkpoint is loaded, if there is one)"),
        ("on_train_batch_start", 0, "in step 1 (training)"),
        ("on_train_batch_start", 2, "in step 3 (training)"),
        ("on_save_checkpoint", 4, "since the checkpoint of step 4 was begun"),
        ("on_validation_batch_start", 4, "in step 4 (validation)"),
        ("on_train_end", 4, "after the last step"),
        ("on_fit_end", 4, "while the model is exported"),
    ],
)
def test_a_hang_is_named(
    tmp_path: Path, ended: Any, capfd: pytest.CaptureFixture[str], hook: str, step: int, phase: str
) -> None:
    callbacks = [Watchdog(timeout=0.5), Hangs(ended[0], hook, step)]
    if hook == "on_save_checkpoint":
        callbacks.append(Checkpoints())
    trainer = make_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=hook == "on_save_checkpoint")
    with pytest.raises(RuntimeError, match="over"):
        trainer.fit(Publisher((1.0, 1.0)), loader(ROWS), loader(ROWS[:1]))
    assert ended[1][0] == STATUS
    file = tmp_path / "hang-rank-0.txt"
    line = next(line for line in capfd.readouterr().err.splitlines() if "no progress" in line)
    assert line.startswith(f"[rank 0] error: no progress {phase}: stands at ")
    assert line.endswith(f"the stacks of all threads are in {file}")
    assert "in hang" in file.read_text()
    assert "most recent call first" in file.read_text()


def test_where_the_stacks_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report_hang(3, "in step 2 (training)", tmp_path / "gone" / "hang-rank-3.txt")
    stacks, line = capfd.readouterr().err.rstrip().rsplit("\n", 1)
    assert "most recent call first" in stacks
    assert line.startswith(
        "[rank 3] error: no progress in step 2 (training): stands at ts2_lightning/callbacks/watchdog"
    )
    assert line.endswith("hang-rank-3.txt cannot be written (No such file or directory)")


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, ended: Any) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Watchdog(timeout=300.0)], max_epochs=2)
    trainer.fit(Publisher((1.0, 1.0)), loader(ROWS), loader(ROWS[:1]))
    assert ended[1] == []
    assert not list(tmp_path.glob("hang*"))
    for thread in threading.enumerate():
        if thread.name == "watchdog":  # it may need a moment to see that it is not needed any more
            thread.join(timeout=30)
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_a_file_system_that_does_not_answer(tmp_path: Path, ended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be why there is no progress: the process ends all the same."""
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.2)
    monkeypatch.setattr(watchdog, "report_hang", lambda *args: ended[0].wait(60))
    trainer = make_trainer(tmp_path, callbacks=[Watchdog(timeout=0.5), Hangs(ended[0], "on_train_end", 4)])
    with pytest.raises(RuntimeError, match="over"):
        trainer.fit(Publisher((1.0, 1.0)), loader(ROWS))
    assert ended[1][0] == STATUS


class SlowData(LightningDataModule):
    """Of which a rank may tokenise for hours."""

    def prepare_data(self) -> None:
        time.sleep(1.0)

    def setup(self, stage: str) -> None:
        time.sleep(1.0)

    def train_dataloader(self) -> Any:
        return loader(ROWS)


def test_data_may_take_their_time(tmp_path: Path, ended: Any) -> None:
    callback = Watchdog(timeout=0.5)
    trainer = make_trainer(tmp_path, callbacks=[callback])
    callback.begin(trainer)
    trainer.fit(Publisher((1.0, 1.0)), datamodule=SlowData())
    assert trainer.global_step == 4
    assert ended[1] == []


class Suspends(Callback):
    """Stops the process for a while, as Ctrl-Z and SLURM do."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2:
            with subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"]):
                os.kill(os.getpid(), signal.SIGSTOP)


def test_the_time_in_which_it_is_stopped_does_not_count(tmp_path: Path, ended: Any) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Watchdog(timeout=1.0), Suspends()])
    trainer.fit(Publisher((1.0, 1.0)), loader(ROWS))
    assert trainer.global_step == 4
    assert ended[1] == []


TIMEOUT = 2.0


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How two gloo ranks ended, of which the second one died at a place: statuses, seconds and what was printed."""
    directory = tmp_path_factory.mktemp("deaths")
    launch("tests.callbacks.dying_ranks", directory, TIMEOUT)
    return json.loads((directory / "ended.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "phase"),
    [
        ("before it joins", "while the ranks find each other"),
        ("before the barrier of the data", "while the ranks find each other"),
        ("frozen while it loads", "while the model is loaded"),
        ("frozen at the end", "after the last step"),
    ],
)
def test_a_rank_waits_no_longer_for_one_that_is_gone(deaths: dict[str, Any], place: str, phase: str) -> None:
    """Without the watchdog it would wait half an hour, and in one case 10,000 days."""
    status, seconds, printed = deaths[place]
    assert status == STATUS, printed
    assert f"[rank 0] error: no progress {phase}: stands at torch/distributed/" in printed
    assert seconds < 4 * TIMEOUT + 10


@pytest.mark.slow
@pytest.mark.parametrize("place", ["after it has joined", "while it prepares data", "while it loads"])
def test_a_rank_sees_that_a_connection_closes(deaths: dict[str, Any], place: str) -> None:
    """It need not wait for the watchdog."""
    status, seconds, printed = deaths[place]
    assert status not in (0, STATUS), printed
    assert "by peer" in printed or "faulty rank" in printed
    assert seconds < TIMEOUT + 10
