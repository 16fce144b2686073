"""Which checkpoints there are after a run, and what a save that fails leaves behind."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, checkpoint_writing
from ts2_lightning.runs.checkpoints import newest_checkpoint
from ts2_lightning.types import UserError

ROWS = make_rows([2, 2, 2, 2])


@pytest.fixture(autouse=True, params=["at once", "in a thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way checkpoints are written, there are the same ones in the end."""
    if request.param == "in a thread":
        monkeypatch.setattr(Checkpoints, "__init__", partialmethod(Checkpoints.__init__, asynchronous=True))


def fit(
    tmp_path: Path, *losses: float, resume: bool = False, checkpoints: Checkpoints | None = None, **settings: Any
) -> Trainer:
    """One epoch of four steps per validation loss."""
    callback = checkpoints or Checkpoints()
    settings = {"max_epochs": len(losses) or 1, **settings}
    trainer = make_trainer(tmp_path, callbacks=[callback], **settings)
    validation = loader(ROWS[:1]) if losses else None
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer.fit(Publisher(losses), loader(ROWS), validation, ckpt_path=str(last) if resume else None)
    return trainer


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def names(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "checkpoints"))


def step_of(tmp_path: Path, name: str) -> int:
    return load(tmp_path / "checkpoints" / f"{name}.ckpt")["global_step"]


def test_best_and_last(tmp_path: Path) -> None:
    fit(tmp_path, 3.0, 1.0, 2.0)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "step-000008.ckpt", "step-000012.ckpt"]
    assert (step_of(tmp_path, "best"), step_of(tmp_path, "last")) == (8, 12)


def test_without_validation_only_last(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=2)
    assert names(tmp_path) == ["last.ckpt", "step-000008.ckpt"]
    assert step_of(tmp_path, "last") == 8


def test_keep_last(tmp_path: Path) -> None:
    """The newest three, and the best."""
    fit(tmp_path, 1.0, 3.0, 2.0, checkpoints=Checkpoints(every_n_steps=2, keep_last=3))
    steps = [f"step-{step:06d}.ckpt" for step in (4, 8, 10, 12)]
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", *steps]
    assert (step_of(tmp_path, "best"), step_of(tmp_path, "last")) == (4, 12)


def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of the checkpoints that are written from now on."""
    steps: list[int] = []
    save = Trainer.save_checkpoint

    def recorded(trainer: Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        steps.append(trainer.global_step)
        save(trainer, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", recorded)
    return steps


def test_every_n_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 3, 6 and 9, the ends of the epochs at 4, 8 and 12, each once; and not at every micro-batch."""
    steps = saved_steps(monkeypatch)
    fit(tmp_path / "1", checkpoints=Checkpoints(every_n_steps=3), max_epochs=3)
    assert steps == [3, 4, 6, 8, 9, 12]
    steps.clear()
    fit(tmp_path / "2", 2.0, 1.0, checkpoints=Checkpoints(every_n_steps=3))
    assert steps == [3, 4, 6, 8], "what is best is a name, not another checkpoint"
    steps.clear()
    fit(tmp_path / "3", checkpoints=Checkpoints(every_n_steps=1), accumulate_grad_batches=2, max_epochs=2)
    assert steps == [1, 2, 3, 4]


class BreaksOff(Publisher):
    """Its validation fails, at first."""

    def on_validation_batch_start(self, *args: Any) -> None:
        raise RuntimeError("stop")


@pytest.mark.parametrize(("epochs", "step"), [(1, 3), (2, 4)])
def test_a_validation_that_breaks_off(tmp_path: Path, epochs: int, step: int) -> None:
    """A checkpoint is written before it, and a resumed run does it again, unless nothing else is left to do."""
    checkpoints = Checkpoints(every_n_steps=3)
    trainer = make_trainer(tmp_path, callbacks=[checkpoints], max_epochs=epochs)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(BreaksOff((1.0, 2.0)), loader(ROWS), loader(ROWS[:1]))
    assert step_of(tmp_path, "last") == step
    fit(tmp_path, 9.0, 1.0, 2.0, resume=True)
    assert (step_of(tmp_path, "best"), step_of(tmp_path, "last")) == (8, 12)


def test_a_validation_is_done_again_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=2)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(BreaksOff((1.0, 2.0)), loader(ROWS), loader(ROWS[:1]))
    validated: list[int] = []
    module = Publisher((1.0, 1.0, 2.0))
    module.on_validation_epoch_end = lambda: validated.append(module.global_step)  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=3)
    trainer.fit(module, loader(ROWS), loader(ROWS[:1]), ckpt_path=str(tmp_path / "checkpoints/last.ckpt"))
    assert validated == [4, 8, 12]


def test_a_run_that_starts_from_a_checkpoint_elsewhere(tmp_path: Path) -> None:
    """The validation that is due comes first, and finds the best: it needs a checkpoint here."""
    trainer = make_trainer(tmp_path / "old", callbacks=[Checkpoints()], max_epochs=2)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(BreaksOff((1.0, 2.0)), loader(ROWS), loader(ROWS[:1]))
    trainer = make_trainer(tmp_path / "new", callbacks=[Checkpoints()], max_epochs=2)
    elsewhere = str(tmp_path / "old" / "checkpoints" / "last.ckpt")
    trainer.fit(Publisher((1.0, 2.0)), loader(ROWS), loader(ROWS[:1]), ckpt_path=elsewhere)
    assert names(tmp_path / "new") == ["best.ckpt", "last.ckpt", "step-000004.ckpt", "step-000008.ckpt"]
    assert (step_of(tmp_path / "new", "best"), step_of(tmp_path / "new", "last")) == (4, 8)


def test_stops_within_an_epoch(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=3, max_epochs=-1)
    assert step_of(tmp_path, "last") == 3


def test_resumed_run_knows_the_best(tmp_path: Path) -> None:
    fit(tmp_path, 3.0, 1.0)
    fit(tmp_path, 9.0, 9.0, 2.0, resume=True)
    assert (step_of(tmp_path, "best"), step_of(tmp_path, "last")) == (8, 12)
    trainer = fit(tmp_path, 9.0, 9.0, 9.0, 0.5, resume=True)
    assert step_of(tmp_path, "best") == 16
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "checkpoints/best.ckpt")  # type: ignore


def test_moved_run_knows_the_best(tmp_path: Path) -> None:
    fit(tmp_path / "old", 3.0, 1.0)
    (tmp_path / "old").rename(tmp_path / "new")
    fit(tmp_path / "new", 9.0, 9.0, 2.0, resume=True)
    assert step_of(tmp_path / "new", "best") == 8
    assert not (tmp_path / "old").exists()


def test_a_run_that_goes_back_writes_its_steps_anew(tmp_path: Path) -> None:
    fit(tmp_path, checkpoints=Checkpoints(keep_last=9), max_epochs=3)
    first = tmp_path / "checkpoints" / "step-000004.ckpt"
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=2)
    trainer.fit(Publisher(), loader(ROWS), ckpt_path=str(first))
    assert names(tmp_path) == ["last.ckpt", "step-000008.ckpt"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_fast_dev_run_saves_nothing(tmp_path: Path) -> None:
    fit(tmp_path, 1.0, fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()


# What cannot be written ------------------------------------------------------------------------------------------


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, *steps: int) -> Iterator[None]:
    """A disk on which writes of some steps fail half-way, however often they are tried."""
    write = checkpoint_writing.write_file

    def written(path: Any, content: Any) -> None:
        write(path, content)
        if content["global_step"] in steps:
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_writing, "write_file", written)
        yield


def test_a_full_disk_keeps_the_previous_one_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with full_disk(monkeypatch, 8), pytest.raises(UserError, match=r"the training is over, but .* make room"):
        fit(tmp_path, checkpoints=Checkpoints(), max_steps=8, max_epochs=-1, limit_train_batches=4)
    lines = [record.getMessage() for record in caplog.records if "no checkpoint was written" in record.getMessage()]
    assert len(lines) == 2, "at the end of the epoch, and of the training"
    assert lines[0].startswith(f"step 8: no checkpoint was written to {tmp_path}/checkpoints: No space left on device")
    assert "the newest one is still step-000004.ckpt" in lines[0]
    assert "\n" not in lines[0]
    assert names(tmp_path) == ["last.ckpt", "step-000004.ckpt"], "nothing half-written takes what room there is"
    fit(tmp_path, resume=True, max_steps=8, max_epochs=-1)
    assert step_of(tmp_path, "last") == 8


def test_once_there_is_room_checkpoints_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(monkeypatch, 2, 6):
        fit(tmp_path, checkpoints=Checkpoints(every_n_steps=2), max_epochs=2)  # 2 and 6 fail; 4 and 8 do not
    assert names(tmp_path) == ["last.ckpt", "step-000008.ckpt"]


def test_what_could_not_be_saved_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best value comes when the disk is full: the next best one is kept."""
    with full_disk(monkeypatch, 8):  # before its validation, as the best, and at the end of its epoch
        fit(tmp_path, 3.0, 1.0, 2.0, 2.5, 2.7)
    assert (step_of(tmp_path, "best"), step_of(tmp_path, "last")) == (12, 20)


class FilesGrowNoLarger(Publisher):
    """At step 8 the system refuses files as large as a checkpoint."""

    def on_train_epoch_end(self) -> None:
        in_flight = self.trainer.checkpoint_callback._in_flight
        if in_flight is not None:  # it was begun under another limit
            in_flight.wait()
        limit = 1000 if self.global_step == 8 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_the_system_refuses_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=3)
    try:
        trainer.fit(FilesGrowNoLarger(), loader(ROWS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "step 8: no checkpoint was written" in caplog.text
    assert "File too large" in caplog.text
    assert names(tmp_path) == ["last.ckpt", "step-000012.ckpt"]


def test_a_disk_that_is_really_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = tmp_path / "checkpoints"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be made where the system lets one mount it")
    try:
        module = Publisher()
        module.large = torch.nn.Parameter(torch.zeros(9000))  # twice that, and the rest, has no room
        fit_module(tmp_path, module, max_epochs=1)
        with pytest.raises(UserError, match="make room"):
            fit_module(tmp_path, module, max_epochs=2, resume=True)
        assert "No space left on device" in caplog.text
        assert step_of(tmp_path, "last") == 4
        assert names(tmp_path) == ["last.ckpt", "step-000004.ckpt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fit_module(tmp_path: Path, module: Publisher, max_epochs: int, resume: bool = False) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=max_epochs)
    trainer.fit(module, loader(ROWS), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt") if resume else None)


class Unwritable:
    """An object that a checkpoint cannot hold."""

    def __reduce__(self) -> Any:
        raise TypeError("a mistake in the code")


class Poisoned(Publisher):
    """Its checkpoints cannot be written from step 8 on."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_step >= 8:
            checkpoint["poison"] = Unwritable()


def test_a_mistake_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], max_epochs=3)
    with pytest.raises(TypeError, match="a mistake in the code"):
        trainer.fit(Poisoned(), loader(ROWS))
    assert step_of(tmp_path, "last") == 4
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_directories_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded strategies write a directory per checkpoint."""

    def save(trainer: Trainer, path: str, *args: Any, **kwargs: Any) -> None:
        os.makedirs(path)
        Path(path, f"shard-of-step-{trainer.global_step}").touch()

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    fit(tmp_path, max_epochs=2)
    assert names(tmp_path) == ["last.ckpt", "step-000008.ckpt"]
    assert sorted(os.listdir(tmp_path / "checkpoints/last.ckpt")) == ["manifest.json", "shard-of-step-8"]
