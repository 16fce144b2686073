"""Loaders that follow a plan; that of training starts at the step that the trainer stands at."""

import signal
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from ts2_lightning.data.batch_plan import (
    PlannedBatch,
    StepShape,
    epoch_plan,
    evaluation_plan,
    longest_step,
    rows_per_epoch,
    split_step,
    steps_per_epoch,
)
from ts2_lightning.data.collate import collate
from ts2_lightning.data.encoded_rows import EncodedRow, EncodedRows
from ts2_lightning.types import Batch


class _Batches(Dataset[Batch]):
    """Collates the rows of a micro-batch; this is what runs in the worker processes."""

    def __init__(self, rows: EncodedRows, pad_id: int, capacity: float | None) -> None:
        self._rows = rows
        self._pad_id = pad_id
        self._capacity = capacity

    def __getitem__(self, micro_batch: PlannedBatch) -> Batch:
        rows = [self._rows[index] for index in micro_batch.rows]
        return collate(rows, micro_batch.rows, micro_batch.divisor, self._pad_id, self._capacity)


class _Planned(Sampler[PlannedBatch]):
    """Asks for a new plan each time that it is iterated, in the main process."""

    def __init__(self, plan: Callable[[], Iterable[PlannedBatch]]) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[PlannedBatch]:
        return iter(self._plan())


def _identity(batch: Any) -> Any:
    return batch


def outlive_one_sigterm(worker: int) -> None:
    """Makes a worker process outlive its first SIGTERM by a minute.

    A scheduler that ends a job signals all of its processes. The run then saves and stops at the end of its step, for
    which it may need its workers; they end with it.

    Args:
        worker: number of the worker process.
    """

    def end_later(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(60)

    signal.signal(signal.SIGTERM, end_later)


class BatchLoader:
    """Yields the batches of a plan.

    It holds a DataLoader rather than being one, since Lightning rebuilds DataLoaders with samplers of its own.

    Args:
        rows: encoded rows of the split.
        plan: function that returns the micro-batches; called anew for each iteration.
        length: number of micro-batches in a whole epoch.
        pad_id: token id of the padding.
        num_workers: processes that collate; 0 collates in the main process.
        capacity: tokens of a sequence, at most, for packing (see `collate`); None does not pack.
    """

    def __init__(
        self,
        rows: EncodedRows,
        plan: Callable[[], Iterable[PlannedBatch]],
        length: int,
        pad_id: int = 0,
        num_workers: int = 0,
        capacity: float | None = None,
    ) -> None:
        self._length = length
        self._loader: DataLoader[Batch] = DataLoader(
            _Batches(rows, pad_id, capacity),
            sampler=_Planned(plan),
            batch_size=None,
            collate_fn=_identity,
            num_workers=num_workers,
            worker_init_fn=outlive_one_sigterm,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    @property
    def _iterator(self) -> Any:
        """The iterator with the worker processes, under the name by which Lightning stops them after a run.

        Left to the garbage collector they would be stopped out of order, which takes five seconds each.
        """
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator


FEW_STEPS = 20
"""Optimizer steps of an epoch below which a user is told how to have more."""


class TrainLoader(BatchLoader):
    """Yields the training plan from the step that the trainer stands at to the end of the epoch.

    Where an epoch starts follows from the number of optimizer steps done (`trainer.global_step`), which a checkpoint
    restores. So it does not matter how many batches workers had fetched ahead, nor how steps were split before.

    Args:
        rows: encoded rows of the split.
        shape: division of steps into micro-batches and ranks.
        rank: number of this rank.
        seed: seed of the order of the rows.
        trainer: trainer whose progress is followed; None always starts at the first epoch.
        pad_id: token id of the padding.
        num_workers: processes that collate.
        capacity: tokens of a sequence, at most, for packing; None does not pack.
        times: [R] number of times that each row comes in an epoch (see `batch_plan.epoch_order`); None is once.
    """

    def __init__(
        self,
        rows: EncodedRows,
        shape: StepShape,
        rank: int = 0,
        seed: int = 0,
        trainer: Trainer | None = None,
        pad_id: int = 0,
        num_workers: int = 0,
        capacity: float | None = None,
        times: NDArray[np.floating] | None = None,
    ) -> None:
        self._shape, self._rank, self._seed, self._trainer = shape, rank, seed, trainer
        self._lengths, self._supervised, self._times = rows.lengths, rows.supervised, times
        length = steps_per_epoch(rows_per_epoch(len(rows), times), shape.batch_size) * shape.accumulation
        # A loader in a cycle of references is collected in no order, and then waits five seconds for each worker.
        itself = weakref.ref(self)
        super().__init__(rows, lambda: itself()._plan(), length, pad_id, num_workers, capacity)  # type: ignore[union-attr]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps after which the trainer starts the next epoch."""
        limit: Any = 1.0 if self._trainer is None else self._trainer.limit_train_batches
        batches = min(len(self), limit) if isinstance(limit, int) else int(len(self) * limit)
        return max(1, -(-batches // self._shape.accumulation))

    @property
    def position(self) -> tuple[int, int]:
        """The epoch and the step within it that come next."""
        done = 0 if self._trainer is None else self._trainer.global_step
        return divmod(done, self.steps_per_epoch)

    def _plan(self) -> Iterator[PlannedBatch]:
        epoch, step = self.position
        return epoch_plan(
            self._lengths, self._supervised, self._shape, self._rank, self._seed, epoch, step, self._times
        )

    def state_dict(self) -> dict[str, Any]:
        """Empty; that the method exists shows Lightning that this loader can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignored: the position follows from the trainer's."""


def hint_at_few_steps(steps: int, batch_size: int) -> None:
    """Tells the user where an epoch has so few optimizer steps that the batch was hardly chosen for its rows.

    Args:
        steps: Optimizer steps of an epoch.
        batch_size: Rows of a step.
    """
    if steps < FEW_STEPS and batch_size > 1:
        count = f"{steps} optimizer step{'s' if steps > 1 else ''}"
        rank_zero_info(
            f"Data, train: an epoch has {count} of {batch_size} rows, which is few to learn in; a smaller "
            "data.batch_size has more"
        )


def evaluation_loader(
    rows: EncodedRows, batch_size: int, replica: tuple[int, int], pad_id: int, num_workers: int, capacity: float | None
) -> BatchLoader:
    """Every row once, in their order, divided between the ranks.

    Args:
        rows: rows of the set.
        batch_size: rows per batch on one rank, at most.
        replica: number of ranks that hold different rows, and which this is.
        pad_id: token id of the padding.
        num_workers: processes that collate.
        capacity: tokens of a sequence, at most, for packing; None does not pack.
    """
    plan = evaluation_plan(rows.supervised, batch_size, *replica)
    return BatchLoader(rows, lambda: plan, len(plan), pad_id, num_workers, capacity)


def first_batches(rows: EncodedRows, tokens: int, batch_size: int, pad_id: int, capacity: float | None) -> BatchLoader:
    """The first rows that together have at least so many supervised tokens (all rows, if they have fewer)."""
    count = int(np.searchsorted(np.cumsum(rows.supervised), tokens)) + 1
    plan = evaluation_plan(rows.supervised[:count], batch_size)
    return BatchLoader(rows, lambda: plan, len(plan), pad_id, capacity=capacity)


def largest_batch(
    rows: EncodedRows, shape: StepShape, times: NDArray[np.floating] | None, pad_id: int, capacity: float | None
) -> Batch:
    """The micro-batch of the most tokens that a training may have: the first of a step of the longest rows.

    Args:
        rows: encoded rows of the split.
        shape: division of steps into micro-batches and ranks.
        times: [R] number of times that each row comes in an epoch; None is once.
        pad_id: token id of the padding.
        capacity: tokens of a sequence, at most, for packing; None does not pack.
    """
    step = longest_step(rows.lengths, shape.batch_size, times)
    largest = split_step(step, rows.lengths, shape)[0][0]
    return collate([rows[row] for row in largest], largest, int(rows.supervised[step].sum()), pad_id, capacity)


def full_batch(rows: int, length: int, pad_id: int, capacity: float | None) -> Batch:
    """A micro-batch of so many rows of so many tokens each, all of them padding and all but the first supervised.

    It stands for streamed rows, of which nobody knows the longest.
    """
    row = EncodedRow(np.full(length, pad_id, dtype=np.int32), np.array([[1, length]], dtype=np.int32))
    return collate([row] * rows, range(rows), rows * (length - 1), pad_id, capacity)
