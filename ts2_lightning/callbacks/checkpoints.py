"""The newest checkpoints of a run and its best one, none of which a killed run loses."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from weakref import proxy

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from ts2_lightning import checkpoint_files as files
from ts2_lightning.ranges import COUNT, NULL, check_number
from ts2_lightning.strategies import nonfinite_weight
from ts2_lightning.types import SharedError, UserError

_LOG = logging.getLogger("lightning.pytorch")
_FAILURES = (Exception, CheckpointException)  # the latter is not an `Exception`


class Checkpoints(ModelCheckpoint):
    """Writes `step-000123.ckpt`, to which `last.ckpt` and `best.ckpt` are links.

    - A checkpoint is written every `every_n_steps` optimizer steps, at the end of every epoch and of the training. If
      there is a validation too, it comes after the checkpoint, and a run that is resumed there does it; only the last
      validation of the training comes before.
    - `best.ckpt` is the checkpoint of the validation whose `monitor` is the best so far; without validation there is
      none.
    - The newest `keep_last` checkpoints are kept, and the best one.

    A checkpoint is taken between two steps, when all that the first has to log is on disk. It is a file, or a
    directory where the strategy writes one, and gets its name when it is complete and on disk; only then older ones
    are removed. So a run that is killed, at whatever moment, loses no more than the steps since the newest checkpoint.

    If a checkpoint cannot be written (the disk is full), the ones before stay, a line says so, and training goes on:
    the next may succeed, while to stop would waste what has been reserved and done. Only if the last one of the
    training cannot be written, the run fails.

    Weights that are not finite are never written: a step's update can ruin them after all that was looked at before it,
    and the checkpoint would take the place of the last good one.

    A run directory may be moved: a run that is resumed from it still has the best value so far.

    Args:
        dirpath: directory of the checkpoints; null: `checkpoints` in the trainer's `default_root_dir`.
        monitor: name of the validation mean that decides which is best.
        mode: whether a smaller (`min`) or a larger (`max`) value is better.
        every_n_steps: number of optimizer steps after which there is a checkpoint too; null: only at ends of epochs.
        keep_last: number of newest checkpoints to keep.
        save_weights_only: whether to leave out optimizer, schedule and loops (such a checkpoint cannot be resumed).

    Raises:
        UserError: if `every_n_steps` or `keep_last` is smaller than 1.
    """

    BEST = "best"

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str = "val/cross_entropy",
        mode: Literal["min", "max"] = "min",
        every_n_steps: int | None = None,
        keep_last: int = 1,
        save_weights_only: bool = False,
    ) -> None:
        check_number("Checkpoints: every_n_steps", every_n_steps, COUNT, NULL)
        check_number("Checkpoints: keep_last", keep_last, COUNT)
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
        self.keep_last = keep_last
        self._saved_step = 0
        self._validation_is_due = False

    # When -----------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the directory. That it is not empty when a run resumes is no reason for a warning."""
        if self.dirpath is None:
            self.dirpath = os.path.realpath(os.path.join(trainer.default_root_dir, "checkpoints"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user has chosen
            trainer.strategy.checkpoint_io = StraightToFile()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the checkpoint that was resumed, and do the validation before which it was written."""
        super().on_train_start(trainer, pl_module)
        step = trainer.global_step
        self._saved_step = step if step == 0 or trainer.strategy.broadcast(self._place(step).exists()) else -1
        if trainer.is_global_zero:
            files.remove_remains(self._directory)
        if self._validation_is_due:
            _validate(trainer)
            self._validation_is_due = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write the checkpoint of the step that has just ended, if it is due."""
        if is_between_steps(trainer, batch_idx) and self._is_due(trainer):
            self.save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it before the validation, if it is due, or if the epoch ends, unless the training ends too."""
        self._validation_is_due = True
        within_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if within_fit and not _is_last_step(trainer) and (self._is_due(trainer) or trainer.is_last_batch):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call it the best, if it is."""
        self._validation_is_due = False
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint, if there was no validation before which it was written."""
        self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint, if the training did not end with an epoch."""
        if not self.save(trainer):
            raise UserError(
                f"the training is over, but the checkpoint of its last step could not be written to {self.dirpath}; "
                "make room and resume with --ckpt_path last"
            )

    def _is_due(self, trainer: Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    # What -----------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's counts to what they are between two steps: the next batch is fetched, but has not begun."""
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if batches["current"]["ready"] > batches["current"]["started"]:
            batches["is_last_batch"] = False
            for counts in (batches["current"], batches["total"]):
                counts["ready"] = counts["started"]

    def state_dict(self) -> dict[str, Any]:
        """The best checkpoints and their values, and whether a validation has begun that is not over."""
        return {**super().state_dict(), "validation_is_due": self._validation_is_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best value so far, also when the run directory has been moved."""
        best = str(self._path(self.BEST))
        if state_dict.get("dirpath") != self.dirpath and os.path.exists(best):
            score = state_dict["best_model_score"]
            best_models = {} if score is None else {best: score}
            paths = {name: best for name in ("best_model_path", "kth_best_model_path") if state_dict.get(name)}
            state_dict = {**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": best_models}
        super().load_state_dict(state_dict)
        self._validation_is_due = state_dict.get("validation_is_due", False)

    # How ------------------------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer) -> bool:
        """Write the checkpoint of the present step, unless it has been written. Every rank must call.

        Returns:
            Whether it is there.

        Raises:
            SharedError: if weights are not finite.
        """
        step = trainer.global_step
        if self._saved_step == step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return True
        self._refuse_nonfinite_weights(trainer)
        place = self._place(step)
        partial = files.hidden(place, "partial")
        checksums: dict[str, list[int]] = {}
        failure = _together(trainer, lambda: self._write(trainer, partial))
        failure = failure or _together(trainer, lambda: checksums.update(_own_checksums(trainer, partial)))
        if failure is None:
            checksums = _of_all_ranks(trainer, checksums)
            failure = _together(trainer, lambda: self._publish(trainer, place, checksums))
        if failure is not None:
            self._report_failure(trainer, failure)
            return False
        self._saved_step = step
        self._last_checkpoint_saved = str(place)
        self.last_model_path = str(self._path(self.CHECKPOINT_NAME_LAST))
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
        return True

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Called by Lightning when this step is the best so far."""

        def call_it_best() -> None:
            if trainer.is_global_zero:
                files.link(Path(filepath), self._place(trainer.global_step))
                self._remove_older()

        if self.save(trainer) and _together(trainer, call_it_best) is None:
            self._last_global_step_saved = trainer.global_step

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """A checkpoint that could not be saved is not the best: another may become it."""
        before = {**super().state_dict(), "best_k_models": dict(self.best_k_models)}
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if self._last_global_step_saved != trainer.global_step:
            vars(self).update(before)

    def _write(self, trainer: Trainer, partial: Path) -> None:
        """Write under a hidden name, and bring it to the disk; every rank takes part, as sharded strategies need it."""
        with _errors_at_the_end(trainer.strategy):
            try:
                trainer.save_checkpoint(str(partial), self.save_weights_only)
            except _FAILURES:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # at which the other ranks wait
                raise
        if trainer.local_rank == 0:  # one rank of each node, for what its ranks have written
            files.sync(partial)

    def _refuse_nonfinite_weights(self, trainer: Trainer) -> None:
        name = nonfinite_weight(trainer.lightning_module.named_parameters())
        if name is not None:
            last = self._path(self.CHECKPOINT_NAME_LAST)
            good = f"go on from {last} with another setting" if last.exists() else "no checkpoint was written before"
            raise SharedError(
                f"step {trainer.global_step}: the update has left weights that are not finite ({name}), so no "
                f"checkpoint is written of it; lower model.optimizer.lr, or set trainer.gradient_clip_val; {good}"
            )

    def _publish(self, trainer: Trainer, place: Path, checksums: dict[str, list[int]]) -> None:
        """Give the checkpoint its names, once what was logged until then is on disk, and remove older ones."""
        if not trainer.is_global_zero:
            return
        partial = files.hidden(place, "partial")
        if partial.is_dir():
            files.write_manifest(partial, trainer.world_size, checksums)
            files.sync(partial)
        for logger in trainer.loggers:
            logger.save()
        files.publish(partial, place)
        files.link(self._path(self.CHECKPOINT_NAME_LAST), place)
        self._remove_older()

    def _remove_older(self) -> None:
        """Keep the newest by their age: a run that goes on from an older checkpoint counts its steps again."""
        steps = sorted(self._directory.glob(f"step-*{files.SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path))
        best = self._path(self.BEST).resolve()
        for path in steps[: -self.keep_last]:
            if path.resolve() != best:
                files.remove(path)

    def _report_failure(self, trainer: Trainer, failure: str) -> None:
        """Log one line, and remove the unfinished checkpoint, which takes up space."""
        if not trainer.is_global_zero:
            return
        files.remove_remains(self._directory)
        last = self._path(self.CHECKPOINT_NAME_LAST)
        newest = f"the newest one is still {last.resolve().name}" if last.exists() else "there is none yet"
        _LOG.warning(
            f"step {trainer.global_step}: no checkpoint was written to {self.dirpath}: {failure}; {newest}. "
            "Training goes on and will try again; make room"
        )

    @property
    def _directory(self) -> Path:
        return Path(str(self.dirpath))

    def _place(self, step: int) -> Path:
        return self._path(f"step-{step:06d}")

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{files.SUFFIX}"


class StraightToFile(TorchCheckpointIO):
    """Writes a checkpoint where it belongs: Lightning collects it in memory, and then in the temporary directory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            torch.save(checkpoint, file)


def _own_checksums(trainer: Trainer, partial: Path) -> dict[str, list[int]]:
    """The checksums of the files that this rank has written, which are still in its node's memory."""
    return files.block_checksums(partial, trainer.global_rank, trainer.world_size)


def _of_all_ranks(trainer: Trainer, checksums: dict[str, list[int]]) -> dict[str, list[int]]:
    if trainer.world_size == 1:
        return checksums
    ranks: list[dict[str, list[int]]] = [{}] * trainer.world_size
    torch.distributed.all_gather_object(ranks, checksums)
    return {name: values for rank in ranks for name, values in rank.items()}


def is_between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a micro-batch that is about to begin is the first of its step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def _is_last_step(trainer: Trainer) -> bool:
    """Whether training ends with the present step; a run that is resumed there has nothing left to do."""
    epochs = trainer.max_epochs
    by_epochs = trainer.is_last_batch and epochs not in (None, -1) and trainer.current_epoch + 1 >= epochs
    return by_epochs or trainer.global_step == trainer.max_steps


def _validate(trainer: Trainer) -> None:
    """A validation, as Lightning does one between two steps; afterwards its loop counts as one that has not run."""
    connector: Any = trainer._logger_connector
    loop = trainer.fit_loop.epoch_loop.val_loop
    first = connector._first_loop_iter
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter, loop._has_run = first, False


def _together(trainer: Trainer, action: Callable[[], None]) -> str | None:
    """Run a rank's part of a common action, and learn whether the others failed: nobody waits for a rank that has.

    Returns:
        The reason of a failure that the disk has caused; None if all went well.

    Raises:
        Exception: another error, in the rank that has met it; a `RuntimeError` in the others.
    """
    error: BaseException | None = None
    try:
        action()
    except _FAILURES as caught:
        error = caught
    report = None if error is None else _report(error, trainer.global_rank)
    reports = [report]
    if trainer.world_size > 1:
        reports = [None] * trainer.world_size
        torch.distributed.all_gather_object(reports, report)
    failed = [report for report in reports if report is not None]
    serious = [(rank, reason) for rank, of_the_disk, reason in failed if not of_the_disk]
    if serious and error is not None:
        raise error
    if serious:
        raise RuntimeError("rank {} could not save the checkpoint: {}".format(*serious[0]))
    return f"{failed[0][2]} (rank {failed[0][0]})" if failed else None


def _report(error: BaseException, rank: int) -> tuple[int, bool, str]:
    """The rank of an error, whether the disk has caused it, and its message."""
    if isinstance(error, CheckpointException):  # of torch.distributed.checkpoint, which tells all ranks of the first
        rank, error = next((rank, failure[0]) for rank, failure in error.failures.items())
    cause = error if isinstance(error, OSError) else error.__context__
    reason = (isinstance(cause, OSError) and cause.strerror) or " ".join(str(error).split())
    # Torch's writer of zip archives, which is of C++, raises an error of its own.
    return rank, isinstance(error, OSError) or "inline_container.cc" in str(error), reason


@contextmanager
def _errors_at_the_end(strategy: Any) -> Iterator[None]:
    """Raise a rank's write error only after all ranks have written, since DeepSpeed's ranks wait for each other."""
    if not isinstance(strategy, DeepSpeedStrategy):
        yield
        return
    writer = strategy.deepspeed_engine.checkpoint_engine
    errors: list[Exception] = []
    write = writer.save

    def save(*args: Any, **kwargs: Any) -> None:
        try:
            write(*args, **kwargs)
        except Exception as error:
            errors.append(error)

    writer.save = save
    try:
        yield
    finally:
        del writer.save  # of the instance; the class has its own
    if errors:
        raise errors[0]
