"""Checkpoints that are written while training goes on: true copies, one at a time, none lost, and no failure unheard.

That there are the same checkpoints as without threads is tested in `test_checkpoints.py`, which runs both ways.
"""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils._pytree import tree_leaves

from tests.callbacks.held_writes import HeldWrites
from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.e2e.test_kill import assert_same_tensors
from tests.support.errors import refused
from tests.support.ranks import launch
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, Preemption, Stopped, background_save
from ts2_lightning.callbacks.background_save import BackgroundSave
from ts2_lightning.callbacks.checkpoint_writing import check_asynchronous
from ts2_lightning.callbacks.preemption import SIGNALS
from ts2_lightning.checkpoint_files import deferred, reading
from ts2_lightning.checkpoint_files.reading import read_checkpoint
from ts2_lightning.runs.checkpoints import newest_checkpoint

ROWS = make_rows([2] * 8)


@pytest.fixture
def held() -> Iterator[HeldWrites]:
    """All writes of threads wait."""
    writes = HeldWrites()
    writes.install()
    yield writes
    writes.remove()


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Learner(Publisher):
    """Its weights change in every step, and AdamW's moments with them."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class At(Callback):
    """Calls a function at one step, from a hook."""

    def __init__(self, hook: str, step: int, action: Callable[[], object]) -> None:
        def act(trainer: Any, *args: Any) -> None:
            if trainer.global_step == step:
                action()

        setattr(self, hook, act)


def fit(
    tmp_path: Path, *callbacks: Callback, losses: tuple[float, ...] = (), rows: int = 4, **settings: Any
) -> Checkpoints:
    """Epochs of some steps, of one row each, with a checkpoint after every second; a validation after each epoch."""
    defaults = {"every_n_steps": 2, "asynchronous": True}
    own = {name: settings.pop(name) for name in ("every_n_steps", "keep_last", "asynchronous") if name in settings}
    checkpoints = Checkpoints(**{**defaults, **own})
    settings = {"max_epochs": len(losses) or 2, **settings}
    trainer = make_trainer(tmp_path, callbacks=[*callbacks, checkpoints], **settings)
    trainer.fit(Learner(losses), loader(ROWS[:rows]), loader(ROWS[:1]) if losses else None)
    return checkpoints


def names(tmp_path: Path) -> list[str]:
    directory = tmp_path / "checkpoints"
    return sorted(os.listdir(directory)) if directory.exists() else []


def load(tmp_path: Path, name: str) -> dict[str, Any]:
    return torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)


def lines(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


# What is written -------------------------------------------------------------------------------------------------


def test_later_steps_do_not_leak_into_a_checkpoint(tmp_path: Path, held: HeldWrites) -> None:
    """Each is written one step later; the same run without threads has the same checkpoints, bit for bit."""

    class OneStepLater(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            in_flight = trainer.checkpoint_callback._in_flight
            if in_flight is not None and trainer.global_step % 2:
                assert not in_flight.has_ended
                held.released.set()
                in_flight.wait()
                held.released.clear()

        def on_train_end(self, *args: Any) -> None:
            held.released.set()

    fit(tmp_path / "thread", OneStepLater(), keep_last=9)
    fit(tmp_path / "plain", keep_last=9, asynchronous=False)
    assert names(tmp_path / "thread") == names(tmp_path / "plain")
    for step in (2, 4, 6, 8):
        found, wanted = (load(tmp_path / way, f"step-{step:06d}") for way in ("thread", "plain"))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step"):
            assert_same_tensors(found[part], wanted[part], part)
    assert not torch.equal(
        found["state_dict"]["weight"], load(tmp_path / "plain", "step-000006")["state_dict"]["weight"]
    )


@pytest.mark.slow
def test_every_strategys_copy_is_a_true_one(tmp_path: Path) -> None:
    """On two ranks all weights and moments are changed before the thread writes the first of them."""
    strategies = ("ddp", "fsdp2", "zero2", "zero3")
    launch("tests.callbacks.snapshots", tmp_path, *strategies, DS_ACCELERATOR="cpu")
    for strategy in strategies:
        held, plain = (tmp_path / strategy / way / "step-000001.ckpt" for way in ("held", "plain"))
        found, wanted = (read_checkpoint(path).weights for path in (held, plain))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name].read(), wanted[name].read()) for name in wanted), strategy
        for file in (path.relative_to(plain) for path in plain.rglob("*.distcp")):
            assert (held / file).read_bytes() == (plain / file).read_bytes(), strategy
        for file in (path.relative_to(plain) for path in plain.rglob("*_optim_states.pt")):
            states = [[*filter(torch.is_tensor, tree_leaves(reading._load(path / file)))] for path in (held, plain)]
            assert len(states[0]) == len(states[1]) > 2
            assert all(map(torch.equal, *states)), strategy
    assert (tmp_path / "ddp/held/step-000001.ckpt").read_bytes() == (
        tmp_path / "ddp/plain/step-000001.ckpt"
    ).read_bytes()


def test_only_one_is_written_at_a_time_and_it_is_told(
    tmp_path: Path, held: HeldWrites, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wait = BackgroundSave.wait
    seen: list[tuple[int, list[str]]] = []

    def waited(save: BackgroundSave, *args: Any) -> bool:
        seen.append((save.step, names(tmp_path)))
        held.released.set()
        return wait(save, *args)

    monkeypatch.setattr(BackgroundSave, "wait", waited)
    caplog.set_level("INFO", "lightning.pytorch")
    fit(tmp_path, max_epochs=1)
    assert seen[0] == (2, []), "the thread had not begun, and the checkpoint of step 4 was not begun either"
    assert lines(caplog, "waits until")[0] == "step 4 waits until the checkpoint of step 2 is written"
    assert names(tmp_path) == ["last.ckpt", "step-000004.ckpt"]


def test_the_last_whole_one_stays_while_a_newer_one_is_written(tmp_path: Path) -> None:
    writes = HeldWrites(first=2)
    there: list[list[str]] = []
    look = At("on_train_batch_end", 5, lambda: there.append(names(tmp_path)))
    let_go = At("on_train_batch_end", 5, writes.released.set)
    writes.install()
    try:
        fit(tmp_path, look, let_go)
    finally:
        writes.remove()
    assert there == [[".step-000004.ckpt.partial", "last.ckpt", "step-000002.ckpt"]] or there == [
        ["last.ckpt", "step-000002.ckpt"]
    ]
    assert names(tmp_path) == ["last.ckpt", "step-000008.ckpt"]


# The best --------------------------------------------------------------------------------------------------------


def test_the_best_gets_its_name_when_it_is_written(tmp_path: Path, held: HeldWrites) -> None:
    """All validations end before a thread writes the checkpoint that they have judged."""

    class HoldForTheValidation(Callback):
        def on_validation_start(self, *args: Any) -> None:
            held.released.clear()

        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            assert not (tmp_path / "checkpoints" / f"step-{trainer.global_step:06d}.ckpt").exists()
            held.released.set()

    held.released.set()
    fit(tmp_path, HoldForTheValidation(), losses=(3.0, 1.0, 2.0), every_n_steps=None)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "step-000008.ckpt", "step-000012.ckpt"]
    assert (load(tmp_path, "best")["global_step"], load(tmp_path, "last")["global_step"]) == (8, 12)


# What goes wrong -------------------------------------------------------------------------------------------------


def no_space(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """A disk on which the checkpoints of some steps find no room, half-way."""
    write = deferred.write_file

    def written(path: Any, content: Any) -> None:
        write(path, content)
        if content["global_step"] in steps:
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ts2_lightning.callbacks.checkpoint_writing.write_file", written)


def test_a_failure_is_told_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing half-written is left, nor is the one before lost."""
    told: list[tuple[int, int, list[str]]] = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Any, *args: Any) -> None:
            in_flight = trainer.checkpoint_callback._in_flight
            told.append((trainer.global_step, len(lines(caplog, "no checkpoint was written")), names(tmp_path)))
            if in_flight is not None:
                in_flight.wait()

    no_space(monkeypatch, 4)
    fit(tmp_path, Look(), rows=8, max_epochs=1)  # at the end of an epoch it would be tried a second time
    assert [count for _, count, _ in told] == [0, 0, 0, 0, 0, 1, 1, 1]
    [line] = lines(caplog, "no checkpoint was written")
    assert line.startswith(f"step 4: no checkpoint was written to {tmp_path}/checkpoints: No space left on device")
    assert line.endswith("the newest one is still step-000002.ckpt. Training goes on and will try again; make room")
    assert told[5][2] == ["last.ckpt", "step-000002.ckpt"]
    assert names(tmp_path) == ["last.ckpt", "step-000008.ckpt"]


def test_an_error_of_the_run_waits_for_the_checkpoint(
    tmp_path: Path, held: HeldWrites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("stop")

    release_when_waited_for(monkeypatch, held)
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, At("on_train_batch_end", 3, fail))
    assert names(tmp_path) == ["last.ckpt", "step-000002.ckpt"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_both_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: HeldWrites, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends with its own error, and a line tells of the other."""

    def fail() -> None:
        raise RuntimeError("stop")

    no_space(monkeypatch, 2)
    release_when_waited_for(monkeypatch, held)
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, At("on_train_batch_end", 3, fail))
    [line] = lines(caplog, "no checkpoint was written")
    assert line.endswith("No space left on device (rank 0); there is none yet")
    assert names(tmp_path) == []


def release_when_waited_for(monkeypatch: pytest.MonkeyPatch, held: HeldWrites) -> None:
    wait = BackgroundSave.wait

    def waited(save: BackgroundSave, *args: Any) -> bool:
        held.released.set()
        return wait(save, *args)

    monkeypatch.setattr(BackgroundSave, "wait", waited)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_waits(
    tmp_path: Path, held: HeldWrites, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    release_when_waited_for(monkeypatch, held)
    send = At("on_train_batch_end", 3, lambda: signal.raise_signal(number))
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, Preemption(), send)
    assert isinstance(end.value.__context__, Stopped)
    assert load(tmp_path, "last")["global_step"] == 3


@pytest.mark.usefixtures("signals")
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, held: HeldWrites) -> None:
    """The write is held until the test ends: had anyone waited, it would not end."""

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit) as end:
        fit(tmp_path, Preemption(), At("on_train_batch_end", 3, twice))
    stopped = end.value.__context__
    assert isinstance(stopped, Stopped)
    assert stopped.at_once
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_process_that_does_not_wait_ends_with_its_status(tmp_path: Path) -> None:
    """A thread that never ends writes files; an interpreter that ended around it would abort."""
    program = (
        "import sys, threading, torch; from pathlib import Path;"
        "from ts2_lightning.callbacks.background_save import BackgroundSave;"
        "from ts2_lightning.checkpoint_files.deferred import write_file;"
        "began, state = threading.Event(), torch.zeros(10**6);"
        "write = lambda: [(write_file(sys.argv[1], state), began.set()) for _ in iter(int, 1)];"
        "save = BackgroundSave(1, Path(sys.argv[1]), 1, write); began.wait();"
        "save.abandon(130); print('done', end=''); sys.exit(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "file"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "done"), done.stderr


def test_who_waits_sees_how_far_it_is(tmp_path: Path, held: HeldWrites, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar(background_save.tqdm):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "disable": True})
            bars.append((settings["desc"], settings["total"]))

        def update(self, n: float | None = 1) -> None:
            held.released.set()

    monkeypatch.setattr(background_save, "tqdm", Bar)
    monkeypatch.setattr(background_save, "_LOOK", 0.01)
    fit(tmp_path, max_epochs=1)
    assert bars[0][0] == "Checkpoint of step 2"
    assert bars[0][1] >= 3 * 3 * 4, "three numbers with two moments each"


# Who cannot ------------------------------------------------------------------------------------------------------


def test_a_strategy_that_writes_by_itself_is_refused() -> None:
    with refused(r"^Checkpoints\(asynchronous\): FSDPStrategy writes .*; take ts2_lightning\.strategies\.FSDP2"):
        check_asynchronous(FSDPStrategy())


def test_a_plugin_that_writes_by_itself_is_refused(tmp_path: Path) -> None:
    with refused(r"^Checkpoints\(asynchronous\): the trainer's plugin AsyncCheckpointIO .* trainer\.plugins, or set"):
        fit(tmp_path, plugins=[AsyncCheckpointIO()])
