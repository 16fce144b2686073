"""Values that the datamodule reads from Lightning's trainer, and values that it sets in it."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.types import UserError


def replica_of(trainer: Trainer | None) -> tuple[int, int]:
    """Number of ranks that hold different rows, and which this is; ranks of a tensor-parallel group share rows."""
    kwargs = None if trainer is None else trainer.distributed_sampler_kwargs
    return (1, 0) if kwargs is None else (kwargs["num_replicas"], kwargs["rank"])


def limits_of_model(trainer: Trainer | None) -> ModelLimits | None:
    """The limits of the model that is trained; None if its module does not state any."""
    state_limits = getattr(getattr(trainer, "lightning_module", None), "model_limits", None)
    limits: ModelLimits | None = None if state_limits is None else state_limits()
    return limits


def path_of_model(trainer: Trainer | None) -> str | None:
    """The directory or hub name of the model that is trained; None if its module has none."""
    path = getattr(getattr(getattr(trainer, "lightning_module", None), "lm", None), "path", None)
    return None if path is None else str(path)


def reject_file(trainer: Trainer | None, name: str) -> Path | None:
    """The file of a set's bad rows in the run's directory; None on the ranks that do not write it."""
    if trainer is None or not trainer.is_global_zero:
        return None
    return Path(trainer.default_root_dir) / f"rejects-{name.replace('.', '-')}.jsonl"


def set_accumulation(trainer: Trainer, accumulation: int, before: int | None) -> int:
    """Tell the trainer how many micro-batches make a step.

    Args:
        trainer: the trainer.
        accumulation: micro-batches of a step.
        before: number that an earlier call has set; None if there was none.

    Returns:
        The number that the trainer has now.

    Raises:
        UserError: if the user has set another number.
    """
    present = trainer.accumulate_grad_batches
    if present not in (1, accumulation, before):
        raise UserError(
            f"trainer.accumulate_grad_batches is {present}, but follows from data.batch_size and "
            f"data.micro_batch_size ({accumulation} here); leave it out"
        )
    trainer.accumulate_grad_batches = accumulation
    return accumulation


def check_no_epoch_shares(trainer: Trainer) -> None:
    """Make sure that no setting of the trainer is a share of an epoch, whose length streamed rows do not tell.

    Raises:
        UserError: if one is.
    """
    for name in ("limit_train_batches", "val_check_interval"):
        value = getattr(trainer, name)
        if isinstance(value, float) and value != 1:
            raise UserError(
                f"trainer.{name} is {value}, a share of an epoch, whose length is not known with data.streaming; "
                "give a number of micro-batches"
            )


def align_progress(trainer: Trainer, epoch: int, step: int, accumulation: int) -> None:
    """Set Lightning's counts, just restored from a checkpoint, to a position in the training.

    They differ if the checkpoint was written
    - in the middle of a step: its gradients are lost, so the step is done again from its start;
    - by a run with another number of ranks or micro-batch size: other micro-batches make the same step;
    - after `max_steps` broke an epoch off: Lightning counts the epoch as done;
    - at the end of an epoch: the next one has not begun, whatever was still to be done then.

    Args:
        trainer: trainer whose loops were restored, and which has not fetched a batch yet.
        epoch: number of the epoch, from 0.
        step: steps of the epoch that are done.
        accumulation: micro-batches per step.
    """
    epochs: Any = trainer.fit_loop.epoch_progress
    loop: Any = trainer.fit_loop.epoch_loop
    batches: Any = loop.batch_progress
    for tracker in (epochs.current, epochs.total):
        tracker.ready = tracker.started = epoch + int(step > 0)
        tracker.processed = tracker.completed = epoch
    trainer.fit_loop.restarting = True  # the setter refuses where no epoch has begun
    current, total, done = batches.current, batches.total, step * accumulation
    # Lightning adds one to `completed` itself if the checkpoint was written in `on_train_batch_end`, but not between
    # epochs.
    in_batch_end = total.ready == total.started == total.processed == total.completed + 1
    if in_batch_end and step == 0:
        total.completed += 1
        loop._batches_that_stepped += 1
        in_batch_end = False
    current.ready = current.started = current.processed = done
    current.completed = done - int(in_batch_end)
    batches.is_last_batch = False
