"""Exact resumption of the training plan: is it still the same plan, and does Lightning count as the plan does?

The rows' weights do not change which batches come, but what is learnt from them: with other weights it would not be
the same run, so they belong to the plan's identity. Packing, ranks and micro-batches do not: they only split a step.

Which batches come next follows from the optimizer steps done (see `loader.TrainLoader`, and `StreamPosition` where an
epoch's length is not known). Lightning keeps counts of its own, of micro-batches and of epochs, which decide when an
epoch ends; they are set right here.
"""

import hashlib
import json
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from ts2_lightning.data.encoded_rows import EncodedRows
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


def digest(value: Any) -> str:
    """A few digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class StreamPosition:
    """Where a training stands in epochs whose length is known only when they end.

    Args:
        epoch: 0-based.
        began: optimizer steps that were done when it began.

    Example:
        >>> position = StreamPosition()
        >>> position.at(3)
        (0, 3)
        >>> position.ends_after(step=4)
        >>> position.at(4), position.at(5), position.at(7)
        ((0, 4), (1, 0), (1, 2))
    """

    def __init__(self, epoch: int = 0, began: int = 0) -> None:
        self._epoch, self._began = epoch, began
        self._end: int | None = None

    def at(self, done: int) -> tuple[int, int]:
        """Epoch and step in it that come after so many optimizer steps; they never go back."""
        if self._end is not None and done >= self._end:
            self._epoch, self._began, self._end = self._epoch + 1, self._end, None
        return self._epoch, done - self._began

    def ends_after(self, step: int) -> None:
        """Note which step of the epoch is its last."""
        self._end = self._began + step + 1

    def state(self, done: int) -> dict[str, int]:
        """The arguments that make such a position again, after so many optimizer steps."""
        self.at(done)
        return {"epoch": self._epoch, "began": self._began}


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


def align_progress(trainer: Trainer, epoch: int, step: int, accumulation: int) -> None:
    """Set Lightning's counts, just restored from a checkpoint, to a position in the training.

    They differ if the checkpoint was written
    - in the middle of a step: its gradients are lost, so the step is done again from its start;
    - by a run with another number of ranks or micro-batch size: other micro-batches make the same step;
    - after `max_steps` broke an epoch off: Lightning counts the epoch as done;
    - at the end of an epoch: the next one has not begun, whatever was still to be done then.

    Args:
        trainer: after its loops were restored, before it fetches the first batch.
        epoch: 0-based.
        step: steps done in it.
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
