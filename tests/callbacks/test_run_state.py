"""What `state.json` says while a run goes on, when it ends in each way, and when it is resumed."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, RunState, Stopped
from ts2_lightning.runs.state import STATE, read_state

ROWS = make_rows([1] * 8)


class Observed(RunState):
    """Keeps every state that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def _write(self, trainer: Any, state: Any) -> None:
        super()._write(trainer, state)
        self.seen.append(json.loads((Path(trainer.default_root_dir) / STATE).read_text()))


def fit(directory: Path, module: Publisher, state: RunState, ckpt_path: str | None = None) -> None:
    """Two micro-batches a step: four steps, a validation, and a checkpoint in each epoch."""
    callbacks = [DistributionMonitor(), state, Checkpoints(every_n_steps=1)]
    trainer = make_trainer(
        directory, callbacks=callbacks, max_epochs=2, accumulate_grad_batches=2, enable_checkpointing=True
    )
    trainer.fit(module, loader(ROWS), loader(ROWS[:1]), ckpt_path=ckpt_path, weights_only=True)


class Clock:
    """Time that goes on by what it is told, and by a quarter of a second for each micro-batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


class Trains(Publisher):
    """Takes time, and ends in its own way at a step."""

    def __init__(self, clock: Clock, ends: BaseException | None = None, step: int = 6) -> None:
        super().__init__((2.5, 1.25, 1.0))
        self.clock, self.ends, self.step = clock, ends, step

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.clock.now += 0.25
        if self.ends is not None and self.global_step == self.step:
            raise self.ends
        return super().training_step(batch, batch_idx)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_run_tells_how_far_it_is(tmp_path: Path, clock: Clock) -> None:
    """A step takes half a second: every second step is told, each validation, the end of training and the end."""
    state = Observed()
    fit(tmp_path, Trains(clock), state)
    told = [(seen["state"], seen["step"], seen["val_cross_entropy"]) for seen in state.seen]
    assert told == [
        ("running", 0, None), ("running", 2, None), ("running", 4, None), ("running", 4, 2.5),
        ("running", 6, 2.5), ("running", 8, 2.5), ("running", 8, 1.25), ("running", 8, 1.25), ("finished", 8, 1.25),
    ]  # fmt: skip
    assert {seen["steps"] for seen in state.seen} == {8}
    last = read_state(tmp_path)
    assert last == state.seen[-1]
    assert last["seconds"] == 16 * 0.25
    rows = [float(value) for row in ROWS[6:8] for value in row["objective"]]
    assert last["objective"] == pytest.approx(sum(rows) / len(rows)), "of the last step"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing half-written stays"


@pytest.mark.parametrize(
    ("ends", "state"),
    [(Stopped(signal.SIGTERM), "stopped"), (KeyboardInterrupt(), "stopped"), (ValueError("a bug"), "failed")],
)
def test_each_end_is_told_and_the_time_goes_on(tmp_path: Path, clock: Clock, ends: BaseException, state: str) -> None:
    with pytest.raises(ValueError if state == "failed" else SystemExit):
        fit(tmp_path, Trains(clock, ends), RunState())
    told = read_state(tmp_path)
    assert (told["state"], told["step"], told["seconds"]) == (state, 6, 13 * 0.25)

    clock.now += 10_000  # between the starts
    checkpoint = str(tmp_path / "checkpoints" / "step-000006.ckpt")
    fit(tmp_path, Trains(clock), RunState(), checkpoint)
    told = read_state(tmp_path)
    assert (told["state"], told["step"], told["seconds"]) == ("finished", 8, 16 * 0.25), "the lost half step was lost"


def test_a_training_that_was_over_is_finished(tmp_path: Path, clock: Clock) -> None:
    """Killed between the last checkpoint and the export: the resumed run has nothing left to train."""
    fit(tmp_path, Trains(clock), RunState())
    (tmp_path / STATE).unlink()
    fit(tmp_path, Trains(clock), RunState(), str(tmp_path / "checkpoints" / "last.ckpt"))
    told = read_state(tmp_path)
    assert (told["state"], told["step"], told["seconds"]) == ("finished", 8, 16 * 0.25)


def test_an_end_before_the_first_step_leaves_the_state_of_the_run(tmp_path: Path, clock: Clock) -> None:
    """To give a finished run a wrong setting does not make it a failed one."""
    fit(tmp_path, Trains(clock), RunState())
    before = read_state(tmp_path)

    class Wrong(Trains):
        def setup(self, stage: str) -> None:
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fit(tmp_path, Wrong(clock), RunState(), str(tmp_path / "checkpoints" / "last.ckpt"))
    assert read_state(tmp_path) == before


def test_validating_alone_tells_nothing(tmp_path: Path, clock: Clock) -> None:
    trainer = make_trainer(tmp_path, callbacks=[RunState()])
    trainer.validate(Trains(clock), loader(ROWS[:1]), verbose=False)
    assert read_state(tmp_path) is None


def test_a_number_that_is_none_is_null(tmp_path: Path, clock: Clock) -> None:
    """JSON has no NaN."""
    module = Trains(clock)
    module.validation_losses = (float("nan"), float("inf"))
    state = Observed()
    fit(tmp_path, module, state)
    assert [seen["val_cross_entropy"] for seen in state.seen] == [None] * len(state.seen)


class Broken:
    """A value on a device that has failed: whoever asks for it gets the device's error."""

    def __float__(self) -> float:
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_an_error_of_the_device_is_the_one_that_is_told(tmp_path: Path, clock: Clock) -> None:
    """After it nothing can be read from there, and what was known before is written."""

    class Fails(Trains):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            if self.global_step == self.step:
                for name in ("train/objective", "val/cross_entropy"):
                    self.trainer.callback_metrics[name] = Broken()
                raise ValueError("the first error")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="the first error"):
        fit(tmp_path, Fails(clock), RunState())
    told = read_state(tmp_path)
    assert (told["state"], told["step"], told["val_cross_entropy"]) == ("failed", 6, 2.5)
    assert told["objective"] is not None


def test_a_state_that_cannot_be_written_ends_no_training(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full for a while: one warning. At the end it counts: the run would not be known as done."""
    known, full = os.replace, [True]

    def replace(source: Any, target: Any) -> None:
        if full[0] and Path(target).name == STATE:
            raise OSError(errno.ENOSPC, "No space left on device")
        known(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ValueError, match="the first error"):
        fit(tmp_path, Trains(clock, ValueError("the first error")), RunState())
    assert [record.message for record in caplog.records if STATE in record.message] == [
        "state.json: cannot be written ([Errno 28] No space left on device); how far the run is, is not seen"
    ]
    with pytest.raises(OSError, match="No space left on device"):
        fit(tmp_path / "full", Trains(clock), RunState())

    class Emptied(Trains):
        def on_train_end(self) -> None:
            full[0] = False

    full[0] = True
    fit(tmp_path / "emptied", Emptied(clock), RunState())
    told = read_state(tmp_path / "emptied")
    assert (told["state"], told["step"]) == ("finished", 8)


def test_what_is_not_whole_is_nothing(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text('{"state": "fini')
    assert read_state(tmp_path) is None
    assert read_state(tmp_path / "elsewhere") is None
