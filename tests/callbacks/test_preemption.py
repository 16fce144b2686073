"""Signals: a flag while there is something to save, the end at once while there is not."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from publisher import Publisher, loader, make_rows, make_trainer
from torch.utils.data import DataLoader

from ts2_lightning.callbacks import Checkpoints, Preemption, Stopped

ROWS = make_rows([2, 2, 2, 2])


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A run that was stopped keeps its handlers, since its process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Signals(Callback):
    """Sends signals to this process from a hook, at a step."""

    def __init__(self, hook: str, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers
        setattr(self, hook, self.send)

    def send(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            for number in self.numbers:
                signal.raise_signal(number)


def fit(tmp_path: Path, *callbacks: Callback, train: Any = None, **settings: Any) -> BaseException | None:
    """Two epochs of four steps with a validation after each; why they ended."""
    callbacks = (Preemption(), *callbacks, Checkpoints())
    settings = {"max_epochs": 2, **settings}
    trainer = make_trainer(tmp_path, callbacks=list(callbacks), enable_checkpointing=True, **settings)
    try:
        trainer.fit(Publisher((2.0, 1.0)), train or loader(ROWS), loader(ROWS[:2]))
    except SystemExit as stop:
        return stop.__context__
    return None


def saved(tmp_path: Path) -> int | None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    return torch.load(last, weights_only=True)["global_step"] if last.exists() else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
def test_saves_between_two_steps(tmp_path: Path, number: int, hook: str) -> None:
    stopped = fit(tmp_path, Signals(hook, 2, number))
    assert isinstance(stopped, Stopped)
    assert (stopped.signal, stopped.requeued) == (number, False)
    assert saved(tmp_path) == (2 if hook == "on_train_batch_end" else 3)


def test_not_within_a_step_of_several_micro_batches(tmp_path: Path) -> None:
    assert isinstance(
        fit(tmp_path, Signals("on_train_batch_start", 0, signal.SIGTERM), accumulate_grad_batches=2), Stopped
    )
    assert saved(tmp_path) == 1


def test_within_a_validation(tmp_path: Path) -> None:
    """The checkpoint of the epoch's end is there; a resumed run does the validation."""
    assert isinstance(fit(tmp_path, Signals("on_validation_batch_start", 4, signal.SIGTERM)), Stopped)
    assert saved(tmp_path) == 4
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], enable_checkpointing=True, max_epochs=2)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    trainer.fit(Publisher((2.0, 1.0, 1.0)), loader(ROWS), loader(ROWS[:1]), ckpt_path=last)
    assert saved(tmp_path) == 8


def test_within_the_last_validation(tmp_path: Path) -> None:
    """Nothing but the validation is left to do: what was learnt is saved."""
    assert isinstance(fit(tmp_path, Signals("on_validation_batch_start", 8, signal.SIGTERM)), Stopped)
    assert saved(tmp_path) == 8


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stopped = fit(tmp_path, Signals("on_before_optimizer_step", 2, signal.SIGINT, signal.SIGINT))
    assert isinstance(stopped, Stopped)
    assert saved(tmp_path) is None
    assert "Ctrl-C: saves a checkpoint when this step is done, then stops; once more" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_before_the_first_step_it_ends_at_once(tmp_path: Path, number: int) -> None:
    stopped = fit(tmp_path, Signals("on_fit_start", 0, number))
    assert isinstance(stopped, Stopped)
    assert saved(tmp_path) is None


def test_the_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    class Look(Callback):
        def on_train_start(self, *args: Any) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    assert fit(tmp_path, Look()) is None
    assert seen != [before], "neither Lightning's handler nor the one before"
    assert isinstance(seen[0].__self__, Preemption)
    assert signal.getsignal(signal.SIGTERM) == before


class Workers(Callback):
    """Sends signals to the processes that load data: as Ctrl-C in a terminal, and SLURM, do to all of a job's."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            children = psutil.Process().children()
            assert children
            for number in (signal.SIGINT, signal.SIGUSR1):
                for child in children:
                    child.send_signal(number)
            signal.raise_signal(signal.SIGTERM)


def test_processes_that_load_data_go_on_until_the_step_is_done(tmp_path: Path) -> None:
    train = DataLoader(make_rows([2] * 40), batch_size=None, num_workers=1)  # type: ignore[arg-type]
    assert isinstance(fit(tmp_path, Workers(), train=train), Stopped)
    assert saved(tmp_path) == 2


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes down how it was called."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nexit ${{SCONTROL_STATUS:-0}}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "called"


@pytest.mark.parametrize(
    ("variables", "called"),
    [
        ({"SLURM_JOB_ID": "77"}, "requeue 77\n"),
        ({"SLURM_JOB_ID": "79", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "2"}, "requeue 77_2\n"),
    ],
)
def test_slurm_starts_the_job_again(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], called: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stopped = fit(tmp_path, Signals("on_before_optimizer_step", 2, signal.SIGUSR1))
    assert isinstance(stopped, Stopped)
    assert stopped.requeued
    assert scontrol.read_text() == called
    assert saved(tmp_path) == 3


@pytest.mark.parametrize(
    ("number", "variables"),
    [
        (signal.SIGTERM, {"SLURM_JOB_ID": "77"}),
        (signal.SIGUSR1, {}),
        (signal.SIGUSR1, {"SLURM_JOB_ID": "77; rm x"}),
        (signal.SIGUSR1, {"SLURM_JOB_ID": "77", "SCONTROL_STATUS": "1"}),
    ],
)
def test_the_job_is_not_started_again(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch, number: int, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stopped = fit(tmp_path, Signals("on_before_optimizer_step", 2, number))
    assert isinstance(stopped, Stopped)
    assert not stopped.requeued
    assert scontrol.exists() == ("SCONTROL_STATUS" in variables)


def test_without_a_command_that_requeues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PATH", str(tmp_path))
    stopped = fit(tmp_path, Signals("on_before_optimizer_step", 2, signal.SIGUSR1))
    assert isinstance(stopped, Stopped)
    assert not stopped.requeued
