"""Exact resumption of the training plan: is it still the same plan, and does Lightning count as the plan does?

The rows' weights do not change which batches come, but what is learnt from them: with other weights it would not be
the same run, so they belong to the plan's identity. Packing, ranks and micro-batches do not: they only split a step.

Which batches come next follows from the optimizer steps done (see `loader.TrainLoader`). Lightning keeps counts of its
own, of micro-batches and of epochs, which decide when an epoch ends; they are set right here.
"""

import hashlib
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from ts2_lightning.data.encoding import EncodedRows
from ts2_lightning.types import UserError


def plan_state(
    rows: EncodedRows, seed: int, batch_size: int, times: NDArray[np.floating] | None = None
) -> dict[str, Any]:
    """What determines the plan and the weights of its rows, as plain values for a checkpoint."""
    return {
        "rows": len(rows),
        "lengths of rows": _digest(rows.lengths, rows.supervised),
        "weights of rows": _digest(rows.weights) if rows.weighted else None,
        "times of rows": None if times is None else _digest(np.asarray(times, dtype=np.float64)),
        "seed": seed,
        "batch_size": batch_size,
    }


def _digest(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def check_plan_state(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Make sure that a checkpoint's plan is the present one.

    Raises:
        UserError: naming what changed.
    """
    for name, value in now.items():
        if saved.get(name) != value:
            raise UserError(
                f"cannot resume: the checkpoint's training data has {name} {saved.get(name)}, this run's {value}; "
                "give the same data, or start a new run from the checkpoint's exported model"
            )


def align_progress(trainer: Trainer, epoch: int, step: int, steps: int, accumulation: int) -> None:
    """Set Lightning's counts, just restored from a checkpoint, to a position in the plan.

    They differ if the checkpoint was written
    - in the middle of a step: its gradients are lost, so the step is done again from its start;
    - by a run with another number of ranks or micro-batch size: other micro-batches make the same step;
    - after `max_steps` broke an epoch off: Lightning counts the epoch as done.

    Args:
        trainer: after its loops were restored, before it fetches the first batch.
        epoch: the plan's epoch.
        step: steps done in it.
        steps: steps in an epoch.
        accumulation: micro-batches per step.
    """
    epochs: Any = trainer.fit_loop.epoch_progress
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if step > 0 and epochs.current.processed > epoch:
        for tracker in (epochs.current, epochs.total):
            tracker.ready = tracker.started = epoch + 1
            tracker.processed = tracker.completed = epoch
        trainer.fit_loop.restarting = True  # the setter refuses while all epochs look complete
    current: Any = batches.current
    total: Any = batches.total
    done = (steps if step == 0 and batches.is_last_batch else step) * accumulation
    if current.processed != done:
        # Lightning adds one to `completed` itself when the checkpoint was written in `on_train_batch_end`.
        in_batch_end = total.ready == total.started == total.processed == total.completed + 1
        current.ready = current.started = current.processed = done
        current.completed = done - int(in_batch_end)
