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
from torch.utils.data import DataLoader

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.e2e import stand_in_slurm
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, Preemption, Stopped
from ts2_lightning.callbacks.preemption import SIGNALS
from ts2_lightning.callbacks.requeue import requeue

ROWS = make_rows([2, 2, 2, 2])


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A run that was stopped keeps its handlers, since its process ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:  # the tests themselves may run under nohup
            signal.signal(number, signal.SIG_DFL)
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
    trainer = make_trainer(tmp_path, callbacks=list(callbacks), **settings)
    try:
        trainer.fit(Publisher((2.0, 1.0)), train or loader(ROWS), loader(ROWS[:2]))
    except SystemExit as stop:
        return stop.__context__
    return None


def saved(tmp_path: Path) -> int | None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    return torch.load(last, weights_only=True)["global_step"] if last.exists() else None


@pytest.mark.parametrize("number", SIGNALS)
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
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=2)
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


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_step_it_ends_at_once(tmp_path: Path, number: int) -> None:
    stopped = fit(tmp_path, Signals("on_fit_start", 0, number))
    assert isinstance(stopped, Stopped)
    assert saved(tmp_path) is None


def test_signals_that_come_while_it_waits_for_the_step(tmp_path: Path) -> None:
    """SLURM sends SIGCONT and SIGTERM, and the latter again; the first one names the reason."""
    signals = Signals("on_before_optimizer_step", 2, signal.SIGUSR1, signal.SIGCONT, signal.SIGTERM, signal.SIGTERM)
    stopped = fit(tmp_path, signals)
    assert isinstance(stopped, Stopped)
    assert stopped.signal == signal.SIGUSR1
    assert saved(tmp_path) == 3


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_ignored_stays_ignored(tmp_path: Path, number: int) -> None:
    """As SIGHUP is under nohup, and Ctrl-C for what a script starts in the background."""
    signal.signal(number, signal.SIG_IGN)
    assert fit(tmp_path, Signals("on_before_optimizer_step", 2, number)) is None
    assert saved(tmp_path) == 8
    assert signal.getsignal(number) == signal.SIG_IGN


def test_before_the_trainer_begins(tmp_path: Path) -> None:
    """Data are prepared before a trainer asks its callbacks; what has begun then is given back all the same."""
    preemption = Preemption()
    trainer = make_trainer(tmp_path, callbacks=[preemption])
    before = signal.getsignal(signal.SIGTERM)
    preemption.begin(trainer)
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)
    preemption.begin(trainer)
    trainer.fit(Publisher((2.0, 1.0)), loader(ROWS), loader(ROWS[:2]))
    assert signal.getsignal(signal.SIGTERM) == before


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
            for number in set(SIGNALS) - {signal.SIGTERM}:
                for child in children:
                    child.send_signal(number)
            signal.raise_signal(signal.SIGTERM)


def test_processes_that_load_data_go_on_until_the_step_is_done(tmp_path: Path) -> None:
    train = DataLoader(make_rows([2] * 40), batch_size=None, num_workers=1)  # type: ignore[arg-type]
    assert isinstance(fit(tmp_path, Workers(), train=train), Stopped)
    assert saved(tmp_path) == 2


# --- SLURM ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of the stand-in for SLURM, which another test rehearses whole; the file that lists what was requeued."""
    stand_in_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_SLURM", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return tmp_path / "requeued.txt"


def stopped_in_a_job(tmp_path: Path, number: int) -> Stopped:
    stopped = fit(tmp_path, Signals("on_before_optimizer_step", 2, number))
    assert isinstance(stopped, Stopped)
    assert saved(tmp_path) == 3
    return stopped


GRACE = {"preempted": True}
ENDED = {
    name: {"state": [name, "COMPLETING"], "preempted": name == "PREEMPTED"}
    for name in ("CANCELLED", "PREEMPTED", "TIMEOUT")
}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_that_is_warned_runs_again(tmp_path: Path, slurm: Path, number: int) -> None:
    assert stopped_in_a_job(tmp_path, number).requeued
    assert slurm.read_text() == "77\n"


def test_a_task_of_an_array_runs_again(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "79", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert stopped_in_a_job(tmp_path, signal.SIGUSR1).requeued
    assert slurm.read_text() == "77_2\n"


@pytest.mark.parametrize(
    ("number", "job", "by_itself"),
    [
        (signal.SIGTERM, GRACE, True),
        (signal.SIGTERM, ENDED["PREEMPTED"], True),  # PreemptMode=CANCEL, after the grace time
        (signal.SIGUSR1, ENDED["TIMEOUT"], True),  # the step was longer than the time from the warning to the limit
        (signal.SIGTERM, {"state": ["PENDING", "COMPLETING"], "restarts": 1}, False),  # PreemptMode=REQUEUE
        (signal.SIGUSR1, {"state": ["PENDING", "COMPLETING"], "restarts": 1}, False),  # with send_user_signal
    ],
)
def test_a_job_that_is_preempted_runs_again(
    tmp_path: Path, slurm: Path, number: int, job: dict[str, Any], by_itself: bool
) -> None:
    """Once: either SLURM has requeued it, or it does it by itself."""
    stand_in_slurm.write_job("77", **job)
    assert stopped_in_a_job(tmp_path, number).requeued
    assert slurm.exists() is by_itself
    assert (stand_in_slurm.read_job("77")["state"][0], stand_in_slurm.read_job("77")["restarts"]) == ("PENDING", 1)


@pytest.mark.parametrize(
    ("number", "job"),
    [
        (signal.SIGTERM, ENDED["CANCELLED"]),
        (signal.SIGTERM, ENDED["CANCELLED"] | GRACE),  # while it was being preempted
        (signal.SIGUSR1, ENDED["CANCELLED"]),  # after it was warned
        (signal.SIGTERM, {}),  # scancel --signal=TERM, or kill
        (signal.SIGTERM, ENDED["TIMEOUT"]),  # it has not asked to be warned, so the limit is meant
        (signal.SIGHUP, GRACE),
        (signal.SIGXCPU, GRACE),
        (signal.SIGINT, GRACE),
        (signal.SIGUSR1, {"requeue": 0}),  # sbatch --no-requeue
    ],
)
def test_a_job_that_is_not_to_run_again(tmp_path: Path, slurm: Path, number: int, job: dict[str, Any]) -> None:
    stand_in_slurm.write_job("77", **job)
    before = stand_in_slurm.read_job("77")
    assert not stopped_in_a_job(tmp_path, number).requeued
    assert stand_in_slurm.read_job("77") == before


def test_a_job_that_was_requeued_before(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its earlier restarts do not count as one for this signal."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    stand_in_slurm.write_job("77", restarts=3)
    assert not stopped_in_a_job(tmp_path, signal.SIGTERM).requeued
    stand_in_slurm.write_job("77", restarts=4)
    assert requeue(signal.SIGTERM)


@pytest.mark.parametrize(("job", "back"), [(GRACE, True), (ENDED["PREEMPTED"], False), (ENDED["CANCELLED"], False)])
def test_an_old_slurm(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, job: dict[str, Any], back: bool
) -> None:
    """Without JSON nobody knows whether a job that has ended was cancelled: it stays as it is."""
    monkeypatch.setenv(stand_in_slurm.WITHOUT_JSON, "1")
    stand_in_slurm.write_job("77", **job)
    assert requeue(signal.SIGTERM) is back
    assert slurm.exists() is back


@pytest.mark.parametrize("variables", [{"SLURM_JOB_ID": "77; rm x"}, {"SLURM_JOB_ID": ""}, {"PATH": "/nowhere"}])
def test_no_job_or_no_slurm(slurm: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not requeue(signal.SIGUSR1)
    assert not slurm.exists()
