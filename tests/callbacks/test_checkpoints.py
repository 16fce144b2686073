"""Which checkpoints there are after a run, and what a save that fails leaves behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from publisher import Publisher, loader, make_rows, make_trainer

from ts2_lightning.callbacks import Checkpoints
from ts2_lightning.types import UserError

ROWS = make_rows([2, 2, 2, 2])


def fit(
    tmp_path: Path, *losses: float, resume: bool = False, checkpoints: Checkpoints | None = None, **settings: Any
) -> Trainer:
    """One epoch of four steps per validation loss."""
    callback = checkpoints or Checkpoints()
    settings = {"max_epochs": len(losses) or 1, **settings}
    trainer = make_trainer(tmp_path, callbacks=[callback], enable_checkpointing=True, **settings)
    validation = loader(ROWS[:1]) if losses else None
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer.fit(Publisher(losses), loader(ROWS), validation, ckpt_path=str(last) if resume else None)
    return trainer


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def names(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "checkpoints"))


def test_best_and_last(tmp_path: Path) -> None:
    fit(tmp_path, 3.0, 1.0, 2.0)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]
    assert load(tmp_path / "checkpoints/best.ckpt")["global_step"] == 8
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 12


def test_without_validation_only_last(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=2)
    assert names(tmp_path) == ["last.ckpt"]
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 8


def test_every_n_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 3, 6 and 9, the ends of the epochs at 4, 8 and 12, each once; and not at every micro-batch."""
    steps: list[tuple[str, int]] = []
    save = Trainer.save_checkpoint

    def recorded(trainer: Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        steps.append((os.path.basename(path), trainer.global_step))
        save(trainer, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", recorded)
    fit(tmp_path, checkpoints=Checkpoints(every_n_steps=3), max_epochs=3)
    assert [step for _, step in steps] == [3, 4, 6, 8, 9, 12]
    steps.clear()
    fit(tmp_path / "2", checkpoints=Checkpoints(every_n_steps=1), accumulate_grad_batches=2, max_epochs=2)
    assert [step for _, step in steps] == [1, 2, 3, 4]


def test_last_before_the_first_validation(tmp_path: Path) -> None:
    """Lightning's own class waits for a monitored metric, also with the checkpoint that monitors nothing."""
    module = Publisher((1.0,))
    module.on_validation_start = lambda: (_ for _ in ()).throw(RuntimeError("stop"))  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints(every_n_steps=3)], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(module, loader(ROWS), loader(ROWS[:1]))
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 3


def test_stops_within_an_epoch(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=3, max_epochs=-1)
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 3


def test_resumed_run_knows_the_best(tmp_path: Path) -> None:
    fit(tmp_path, 3.0, 1.0)
    fit(tmp_path, 9.0, 9.0, 2.0, resume=True)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]
    assert load(tmp_path / "checkpoints/best.ckpt")["global_step"] == 8
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 12
    trainer = fit(tmp_path, 9.0, 9.0, 9.0, 0.5, resume=True)
    assert load(tmp_path / "checkpoints/best.ckpt")["global_step"] == 16
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "checkpoints/best.ckpt")  # type: ignore


def test_moved_run_knows_the_best(tmp_path: Path) -> None:
    fit(tmp_path / "old", 3.0, 1.0)
    (tmp_path / "old").rename(tmp_path / "new")
    fit(tmp_path / "new", 9.0, 9.0, 2.0, resume=True)
    assert load(tmp_path / "new/checkpoints/best.ckpt")["global_step"] == 8
    assert not (tmp_path / "old").exists()


def test_fast_dev_run_saves_nothing(tmp_path: Path) -> None:
    fit(tmp_path, 1.0, fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()


class Unwritable:
    """An object that a checkpoint cannot hold: the save fails half-way through."""

    def __reduce__(self) -> Any:
        raise OSError("No space left on device")


class Poisoned(Publisher):
    """Its checkpoints cannot be written from step 8 on."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_step >= 8:
            checkpoint["poison"] = Unwritable()


def test_failed_save_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Checkpoints()], enable_checkpointing=True, max_epochs=3)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(Poisoned(), loader(ROWS))
    assert names(tmp_path) == ["last.ckpt"]
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 4


KILLED = """
import os, signal, sys
import torch
from lightning.pytorch import Trainer
sys.path.insert(0, sys.argv[2])
from publisher import *
from ts2_lightning.callbacks import Checkpoints

save = Trainer.save_checkpoint
def killed(trainer, path, *args, **kwargs):
    save(trainer, path, *args, **kwargs)
    if trainer.global_step == 8:
        with open(path, "r+b") as file:  # as if the write had come only so far
            file.truncate(100)
        os.kill(os.getpid(), signal.SIGKILL)
Trainer.save_checkpoint = killed
trainer = make_trainer(sys.argv[1], callbacks=[Checkpoints()], enable_checkpointing=True, max_epochs=3)
trainer.fit(Publisher(), loader(make_rows([2, 2, 2, 2])))
"""


def test_kill_within_a_save(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(here)], env=environment, timeout=120, capture_output=True
    )
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert names(tmp_path) == [".last.ckpt.partial", "last.ckpt"]
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 4
    fit(tmp_path, max_epochs=3, resume=True)
    assert names(tmp_path) == ["last.ckpt"]
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 12


def test_directories_are_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded strategies write a directory per checkpoint."""

    def save(trainer: Trainer, path: str, *args: Any, **kwargs: Any) -> None:
        os.makedirs(path)
        Path(path, f"shard-of-step-{trainer.global_step}").touch()

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    fit(tmp_path, max_epochs=2)
    assert names(tmp_path) == ["last.ckpt"]
    assert os.listdir(tmp_path / "checkpoints/last.ckpt") == ["shard-of-step-8"]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match=r"every_n_steps.* at least 1 or null, got 0"):
        Checkpoints(every_n_steps=0)
