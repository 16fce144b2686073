"""Exact resumption: is the training plan still the same, and where does training stand in it?

The rows' weights do not change which batches come, but what is learnt from them: with other weights it would not be
the same run, so they belong to the plan's identity. Packing, ranks and micro-batches do not: they only split a step.

Which batches come next follows from the optimizer steps done (see `loader.TrainLoader`, and `StreamPosition` where an
epoch's length is unknown).
"""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ts2_lightning.data.encoded_rows import EncodedRows
from ts2_lightning.types import UserError


def plan_state(
    rows: EncodedRows, seed: int, batch_size: int, times: NDArray[np.floating] | None = None
) -> dict[str, Any]:
    """The plain values that determine the plan and the weights of its rows, for a checkpoint."""
    return {
        "rows": len(rows),
        "lengths of rows": _digest(rows.lengths, rows.supervised),
        "weights of rows": _digest(rows.weights) if rows.counts.weighted else None,
        "times of rows": None if times is None else _digest(np.asarray(times, dtype=np.float64)),
        "seed": seed,
        "batch_size": batch_size,
    }


def _digest(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def digest(value: Any) -> str:
    """A short digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class StreamPosition:
    """The position of a training in epochs whose length becomes known only when they end.

    Args:
        epoch: number of the present epoch, from 0.
        began: optimizer steps that were done when the epoch began.

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
        """The epoch and the step in it that come after so many optimizer steps; they never go back."""
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
