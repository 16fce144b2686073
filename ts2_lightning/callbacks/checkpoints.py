"""Best and last checkpoint of a run, each replaced only by a complete one."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal
from weakref import proxy

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ts2_lightning.types import UserError


class Checkpoints(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, set up to keep `best.ckpt` and `last.ckpt`.

    - `best.ckpt` is written after a validation whose `monitor` is the best so far; without validation there
      is none.
    - `last.ckpt` is written at the end of every epoch, of the training, and every `every_n_steps` optimizer
      steps.

    Plain `ModelCheckpoint(monitor="val/...", every_n_train_steps=n)` waits with both for the next validation,
    and cannot save at epoch ends too, hence the two hooks of this class. Both files are written beside their
    place under a hidden name and renamed when they are complete (and on disk), so that a killed save costs
    that save and never the previous checkpoint. Lightning alone moves them out of the temporary directory,
    which copies over the old file when that is another file system.

    A run directory may be moved: on resume from it, the best value so far is still known.

    Args:
        dirpath: directory of the two files; null: `checkpoints` in the trainer's `default_root_dir`.
        monitor: the validation mean that decides which is best.
        mode: whether a smaller (`min`) or a larger (`max`) value is better.
        every_n_steps: also write `last.ckpt` every this many optimizer steps; null: at epoch ends only.
        save_weights_only: leave out optimizer, schedule and loop state (such a checkpoint cannot be resumed).

    Raises:
        UserError: if `every_n_steps` is smaller than 1.
    """

    BEST = "best"

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str = "val/cross_entropy",
        mode: Literal["min", "max"] = "min",
        every_n_steps: int | None = None,
        save_weights_only: bool = False,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"Checkpoints(every_n_steps) must be at least 1 or null, got {every_n_steps}")
        super().__init__(
            dirpath=dirpath,
            filename=self.BEST,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_weights_only=save_weights_only,
            save_on_train_epoch_end=False,  # best: at the end of a validation
            enable_version_counter=False,  # one best.ckpt, replaced in place
        )
        self.every_n_steps = every_n_steps
        self._step_of_last = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the directory. That it is not empty when a run resumes is no reason for a warning."""
        if self.dirpath is None:
            self.dirpath = os.path.realpath(os.path.join(trainer.default_root_dir, "checkpoints"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the checkpoint that was resumed."""
        super().on_train_start(trainer, pl_module)
        self._step_of_last = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` every `every_n_steps` optimizer steps."""
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and not trainer.is_last_batch:  # the epoch's end writes it in a moment
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt`; validation is over, so that it also knows what is best."""
        self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt`, if the training did not end with an epoch."""
        self._save_last(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best value so far, also when the run directory has been moved."""
        best = os.path.join(str(self.dirpath), self.BEST + self.FILE_EXTENSION)
        if state_dict.get("dirpath") != self.dirpath and os.path.exists(best):
            score = state_dict["best_model_score"]
            known = {} if score is None else {best: score}
            paths = {name: best for name in ("best_model_path", "kth_best_model_path") if state_dict.get(name)}
            state_dict = {**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": known}
        super().load_state_dict(state_dict)

    def _save_last(self, trainer: Trainer) -> None:
        saved = self._step_of_last == trainer.global_step
        if saved or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.last_model_path = os.path.join(str(self.dirpath), self.CHECKPOINT_NAME_LAST + self.FILE_EXTENSION)
        step_of_best = self._last_global_step_saved
        self._save_checkpoint(trainer, self.last_model_path)
        self._last_global_step_saved = step_of_best  # or a best one of the same step would be thought saved
        self._step_of_last = trainer.global_step

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write beside, then rename; every rank takes part, as sharded strategies need it."""
        partial = os.path.join(os.path.dirname(filepath), f".{os.path.basename(filepath)}.partial")
        if trainer.is_global_zero:
            _remove(partial)  # what a killed run may have left
        try:
            trainer.save_checkpoint(partial, self.save_weights_only)  # ends with a barrier
            if trainer.is_global_zero:
                _replace(partial, filepath)
        except BaseException:
            if trainer.is_global_zero:
                _remove(partial)
            raise
        trainer.strategy.barrier("Checkpoints")
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))


def _replace(partial: str, place: str) -> None:
    """Rename a complete checkpoint (a file, or a sharded strategy's directory) into its place."""
    if os.path.isdir(partial) or os.path.isdir(place):
        # No rename replaces a directory that is not empty: the old one steps aside until the new one is in
        # place.
        old = os.path.join(os.path.dirname(place), f".{os.path.basename(place)}.old")
        _remove(old)
        if os.path.exists(place):
            os.rename(place, old)
        os.rename(partial, place)
        _remove(old)
        return
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, place)
    if os.name == "posix":
        directory = os.open(os.path.dirname(place), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
