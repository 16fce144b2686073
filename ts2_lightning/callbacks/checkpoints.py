"""The newest checkpoints of a run and its best one, none of which a killed run loses."""

import logging
import os
import signal
import warnings
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import proxy

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ts2_lightning import checkpoint_files as files
from ts2_lightning.callbacks.background_save import BackgroundSave
from ts2_lightning.callbacks.checkpoint_directory import BEST, LAST, CheckpointDirectory
from ts2_lightning.callbacks.checkpoint_writing import (
    FAILURES,
    Ranks,
    StraightToFile,
    check_asynchronous,
    deferring,
    errors_at_the_end,
    group_of_writers,
)
from ts2_lightning.callbacks.watchdog import Watchdog
from ts2_lightning.checkpoint_files.deferred import DeferredWrites
from ts2_lightning.ranges import COUNT, NULL, check_number
from ts2_lightning.strategies import nonfinite_weight
from ts2_lightning.types import SharedError, UserError

_LOG = logging.getLogger("lightning.pytorch")
_GOES_ON = ". Training goes on and will try again; make room"
_PATIENCE = 6000.0  # seconds for a write when a run fails: another rank, without which it cannot end, may hang


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

    With `asynchronous` a step waits only until all that a checkpoint holds has been copied into the host's memory, and
    training goes on while the copy is written. All of the above is as before: a checkpoint has no name until it is
    complete and on disk, the ones before stay until then, and a failure is told in a line, between two later steps. A
    checkpoint that is due while one is being written waits for it. The end of the training, a signal and an error wait
    for it too; a second Ctrl-C does not.

    Args:
        dirpath: directory of the checkpoints; null: `checkpoints` in the trainer's `default_root_dir`.
        monitor: name of the validation mean that decides which is best.
        mode: whether a smaller (`min`) or a larger (`max`) value is better.
        every_n_steps: number of optimizer steps after which there is a checkpoint too; null: only at ends of epochs.
        keep_last: number of newest checkpoints to keep.
        save_weights_only: whether to leave out optimizer, schedule and loops (such a checkpoint cannot be resumed).
        asynchronous: whether to write checkpoints while training goes on, from a copy in the host's memory.

    Raises:
        UserError: if `every_n_steps` or `keep_last` is smaller than 1; when training begins, if the strategy, or a
            plugin of the trainer, writes checkpoints in a way that cannot be asynchronous.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str = "val/cross_entropy",
        mode: Literal["min", "max"] = "min",
        every_n_steps: int | None = None,
        keep_last: int = 1,
        save_weights_only: bool = False,
        asynchronous: bool = False,
    ) -> None:
        check_number("Checkpoints: every_n_steps", every_n_steps, COUNT, NULL)
        check_number("Checkpoints: keep_last", keep_last, COUNT)
        super().__init__(
            dirpath=dirpath,
            filename=BEST,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_weights_only=save_weights_only,
            save_on_train_epoch_end=False,  # best: at the end of a validation
            enable_version_counter=False,  # one best.ckpt, replaced in place
        )
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.asynchronous = asynchronous
        self._saved_step = 0
        self._validation_is_due = False
        self._in_flight: BackgroundSave | None = None
        self._copies: DeferredWrites | None = None
        self._before_best: dict[str, Any] = {}

    # When -----------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the directory. That it is not empty when a run resumes is no reason for a warning."""
        if self.dirpath is None:
            self.dirpath = os.path.realpath(os.path.join(trainer.default_root_dir, "checkpoints"))
        self._directory = CheckpointDirectory(Path(self.dirpath), self.keep_last)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user has chosen
            trainer.strategy.checkpoint_io = StraightToFile()
        if self.asynchronous and stage == "fit":
            check_asynchronous(trainer.strategy)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the checkpoint that was resumed, and do the validation before which it was written."""
        super().on_train_start(trainer, pl_module)
        step = trainer.global_step
        self._saved_step = step if step == 0 or trainer.strategy.broadcast(self._directory.place(step).exists()) else -1
        if trainer.is_global_zero:
            files.remove_remains(self._directory.path)
        if self.asynchronous:
            self._copies = DeferredWrites(group_of_writers())
        if self._validation_is_due:
            _validate(trainer)
            self._validation_is_due = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write the checkpoint of the step that has just ended, if it is due."""
        if not is_between_steps(trainer, batch_idx):
            return
        if self._in_flight is not None and _all(trainer, self._in_flight.has_ended):
            self._settle(trainer)
        if self._is_due(trainer):
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
        """Write a checkpoint, if the training did not end with an epoch; wait for it, if it is being written."""
        if not self.save(trainer, wait=True):
            raise UserError(
                f"the training is over, but the checkpoint of its last step could not be written to {self.dirpath}; "
                "make room and resume with --ckpt_path last"
            )
        if self._copies is not None:
            self._copies.close()
            self._copies = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Wait for the checkpoint that is being written, unless the run is to end at once."""
        super().on_exception(trainer, pl_module, exception)
        ending, self._in_flight = self._in_flight, None
        if ending is None:
            return
        if getattr(exception, "at_once", False):
            ending.abandon(128 + signal.SIGINT)
            return
        self._announce(trainer, ending, "the run ends when")
        if not ending.wait(trainer.is_global_zero, _PATIENCE):
            _LOG.warning(f"step {ending.step}: its checkpoint is still not written, and is given up")
            ending.abandon(1)
        elif ending.error or ending.failure:
            self._report_failure(trainer, ending.step, ending.failure or repr(ending.error), "")

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
        best = str(self._directory.link(BEST))
        if state_dict.get("dirpath") != self.dirpath and os.path.exists(best):
            score = state_dict["best_model_score"]
            best_models = {} if score is None else {best: score}
            paths = {name: best for name in ("best_model_path", "kth_best_model_path") if state_dict.get(name)}
            state_dict = {**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": best_models}
        super().load_state_dict(state_dict)
        self._validation_is_due = state_dict.get("validation_is_due", False)

    # How ------------------------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer, wait: bool = False) -> bool:
        """Write the checkpoint of the present step, unless it has been written. Every rank must call.

        Args:
            trainer: trainer whose state it holds.
            wait: whether it has to be on disk in the end; else it may be in the hands of a thread.

        Returns:
            Whether it is there, or being written.

        Raises:
            SharedError: if weights are not finite.
        """
        step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return True
        if self._in_flight is not None and (wait or self._in_flight.step != step):
            self._settle(trainer)
        if self._saved_step == step:
            return True
        self._refuse_nonfinite_weights(trainer)
        if self._copies is not None and not wait:
            return self._begin(trainer)
        ranks = Ranks.of(trainer)
        failure = ranks.together(partial(self._write, trainer, errors_at_the_end(trainer.strategy)))
        return self._note(trainer, step, self._directory.complete(ranks, step, failure))

    def _begin(self, trainer: Trainer) -> bool:
        """Copy what the checkpoint holds, and have a thread write it."""
        step, ranks, writes = trainer.global_step, Ranks.of(trainer), self._copies
        assert writes is not None
        writes.clear()
        failure = ranks.together(partial(self._write, trainer, deferring(writes, trainer.strategy)))
        if failure is not None:
            return self._note(trainer, step, self._directory.complete(ranks, step, failure))
        size = sum(ranks.gathered(writes.size))
        writers, directory = ranks._replace(group=writes.group), self._directory

        def write() -> str | None:
            return directory.complete(writers, step, writers.together(writes.run))

        self._saved_step = step
        self._in_flight = BackgroundSave(step, directory.partial(step), size, write)
        return True

    def _settle(self, trainer: Trainer) -> None:
        """Wait for the checkpoint that is being written, and take over what has become of it. Every rank must call."""
        ending = self._in_flight
        assert ending is not None
        if not ending.has_ended:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Watchdog):
                    callback.expect_long(f"since the checkpoint of step {ending.step} was waited for")
            self._announce(trainer, ending, f"step {trainer.global_step} waits until")
        ending.wait(trainer.is_global_zero)
        self._in_flight = None
        if ending.error is not None:
            raise ending.error
        self._note(trainer, ending.step, ending.failure)
        if ending.failure is not None:
            self._directory.call_none_best()
            vars(self).update(self._before_best)
        self._before_best = {}

    def _announce(self, trainer: Trainer, ending: BackgroundSave, what_waits: str) -> None:
        if trainer.is_global_zero and not ending.has_ended:
            _LOG.info(f"{what_waits} the checkpoint of step {ending.step} is written")

    def _note(self, trainer: Trainer, step: int, failure: str | None) -> bool:
        """Remember that a checkpoint is there, or tell that it is not."""
        if failure is not None:
            self._saved_step = -1
            self._report_failure(trainer, step, failure)
            return False
        self._saved_step = step
        self._last_checkpoint_saved = str(self._directory.place(step))
        self.last_model_path = str(self._directory.link(LAST))
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
        return True

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Called by Lightning when this step is the best so far."""
        if not self.save(trainer):
            return
        step, in_flight = trainer.global_step, self._in_flight is not None
        if Ranks.of(trainer).first(lambda: self._directory.call_best(step, in_flight)) is None:
            self._last_global_step_saved = step

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """A checkpoint that could not be saved is not the best: another may become it."""
        if self._in_flight is not None and self._in_flight.step != trainer.global_step:
            self._settle(trainer)  # what was the best so far may not be there
        before = {**super().state_dict(), "best_k_models": dict(self.best_k_models)}
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if self._last_global_step_saved != trainer.global_step:
            vars(self).update(before)
        elif self._in_flight is not None:
            self._before_best = before

    def _write(self, trainer: Trainer, way: AbstractContextManager[None]) -> None:
        """Write under a hidden name, or copy, as the context `way` has it; sharded strategies need every rank.

        What was logged until then is on disk before the checkpoint has a name.
        """
        place = self._directory.partial(trainer.global_step)
        with way:
            try:
                trainer.save_checkpoint(str(place), self.save_weights_only)
            except FAILURES:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # at which the other ranks wait
                raise
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.save()

    def _refuse_nonfinite_weights(self, trainer: Trainer) -> None:
        name = nonfinite_weight(trainer.lightning_module.named_parameters())
        if name is not None:
            last = self._directory.link(LAST)
            good = f"go on from {last} with another setting" if last.exists() else "no checkpoint was written before"
            raise SharedError(
                f"step {trainer.global_step}: the update has left weights that are not finite ({name}), so no "
                f"checkpoint is written of it; lower model.optimizer.lr, or set trainer.gradient_clip_val; {good}"
            )

    def _report_failure(self, trainer: Trainer, step: int, failure: str, ending: str = _GOES_ON) -> None:
        """Log one line."""
        if trainer.is_global_zero:
            newest = self._directory.newest
            kept = f"the newest one is still {newest}" if newest else "there is none yet"
            _LOG.warning(f"step {step}: no checkpoint was written to {self.dirpath}: {failure}; {kept}{ending}")


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


def _all(trainer: Trainer, is_so: bool) -> bool:
    """Whether something is so on all ranks; all get the same answer."""
    if trainer.world_size == 1:
        return is_so
    answer = torch.tensor(int(is_so), device=trainer.strategy.root_device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MIN)
    return bool(answer)
