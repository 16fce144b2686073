"""The batch plan, which says which rows form which batch: pure functions.

The rows of optimizer step k of an epoch depend only on the number of rows, the seed, the epoch and the rows per
step, and on how often each row comes. Ranks, micro-batches and packing only split those rows, so any split of a step
sums the same losses over the same divisor, and a run resumed with another split replays exactly the steps that it has
not done.
"""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class PlannedBatch(NamedTuple):
    """Rows of one forward pass on one rank.

    Attributes:
        rows: indices of rows; none if the rank has nothing to do but keep step with the others.
        divisor: supervised tokens of the whole optimizer step (in evaluation: of the whole split).
    """

    rows: tuple[int, ...]
    divisor: int


class StepShape(NamedTuple):
    """Division of steps into micro-batches and ranks.

    Attributes:
        batch_size: rows per optimizer step.
        micro_batch_size: rows per forward pass on one rank, at most; with packing, on average over a step.
        world_size: number of ranks that hold different rows.
        packed: whether rows are packed. Then the cost of a micro-batch is its tokens, and those are balanced.
    """

    batch_size: int
    micro_batch_size: int
    world_size: int = 1
    packed: bool = False

    @property
    def accumulation(self) -> int:
        """Micro-batches per step on every rank."""
        return _divided_up(self.batch_size, self.micro_batch_size * self.world_size)


def _divided_up(count: int, size: int) -> int:
    return -(-count // size)


def epoch_order(rows: int, seed: int, epoch: int, times: NDArray[np.floating] | None = None) -> NDArray[np.int64]:
    """The order of the rows in an epoch.

    Args:
        rows: number of rows.
        seed: seed of the order.
        epoch: number of the epoch, from 0; each has another order.
        times: [rows] number of times that each row comes, >= 0: the whole part in every epoch, and for the fraction
            once more in some epochs, drawn anew for each. None is once.

    Returns:
        [`rows_per_epoch`] indices; without `times` each once.

    Example:
        >>> times = np.array([0.5, 0.5, 0.5, 0.5, 1, 2])
        >>> [sorted(epoch_order(6, seed=0, epoch=epoch, times=times).tolist()) for epoch in (0, 1)]
        [[2, 3, 4, 5, 5], [1, 3, 4, 5, 5]]
    """
    generator = np.random.default_rng([seed, epoch])
    if times is None:
        return generator.permutation(rows)
    whole = np.repeat(np.arange(rows), np.floor(times).astype(np.int64))
    extra = [generator.choice(group, count, replace=False) for group, count in _fractions(times)]
    return generator.permutation(np.concatenate([whole, *extra]))


def rows_per_epoch(rows: int, times: NDArray[np.floating] | None = None) -> int:
    """The number of rows of an epoch, repetitions counted: the same in every epoch.

    Of the rows with the same `times`, n x fraction come once more in an epoch, rounded.
    """
    if times is None:
        return rows
    return int(np.floor(times).astype(np.int64).sum()) + sum(count for _, count in _fractions(times))


def _fractions(times: NDArray[np.floating]) -> list[tuple[NDArray[np.int64], int]]:
    """Groups of rows with the same fraction of a time, each with the number of its rows that an epoch has."""
    times = np.asarray(times, dtype=np.float64)
    groups = [np.flatnonzero(times == value) for value in np.unique(times[times % 1 > 0])]
    return [(group, round(len(group) * float(times[group[0]] % 1))) for group in groups]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in which every row comes once; the last may be short."""
    return _divided_up(rows, batch_size)


def step_rows(order: NDArray[np.int64], step: int, batch_size: int) -> NDArray[np.int64]:
    """The rows of one step of an epoch."""
    return order[step * batch_size : (step + 1) * batch_size]


def longest_step(
    lengths: NDArray[np.int64], batch_size: int, times: NDArray[np.floating] | None = None
) -> NDArray[np.int64]:
    """The rows of the step with the most tokens that an epoch may have: its longest rows.

    Args:
        lengths: [R] tokens of each row.
        batch_size: rows per optimizer step.
        times: [R] number of times that each row comes in an epoch (see `epoch_order`); None is once.

    Returns:
        [at most `batch_size`] indices, a row as often as one epoch may have it.

    Example:
        >>> longest_step(np.array([3, 9, 5, 7]), batch_size=3, times=np.array([1, 1.5, 1, 0.5])).tolist()
        [1, 1, 3]
    """
    rows = np.arange(len(lengths))
    if times is not None:
        rows = np.repeat(rows, np.ceil(times).astype(np.int64))
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")]
    return longest_first[: min(batch_size, rows_per_epoch(len(lengths), times))]


def split_step(rows: NDArray[np.int64], lengths: NDArray[np.int64], shape: StepShape) -> list[list[tuple[int, ...]]]:
    """Split the rows of a step over micro-batches and ranks.

    Rows of like length share a micro-batch, and the ranks' micro-batches of the same turn are neighbours, so there is
    little padding and little waiting. Rows that are packed cost their tokens, however many they are; then all
    micro-batches get equally many tokens: no two differ by more than the shortest row of the larger one. The largest
    come first: what does not fit in memory fails at once.

    Args:
        rows: indices of the step's rows.
        lengths: [R] tokens of every row of the split.
        shape: division of steps into micro-batches and ranks.

    Returns:
        `[micro-batch][rank]`: row indices. Not packed they are at most `micro_batch_size`, as evenly spread as can be.
    """
    longest_first = rows[np.lexsort((rows, -lengths[rows]))]
    count = shape.accumulation * shape.world_size
    if shape.packed:
        groups = _balanced(longest_first.tolist(), lengths, count)
    else:
        groups = [tuple(part.tolist()) for part in np.array_split(longest_first, count)]
    return [groups[start : start + shape.world_size] for start in range(0, len(groups), shape.world_size)]


def _balanced(longest_first: list[int], lengths: NDArray[np.int64], count: int) -> list[tuple[int, ...]]:
    """Rows in groups of almost equally many tokens: each goes to the group that has the fewest. Largest group first."""
    groups: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]  # a heap
    for row in longest_first:
        load, number = loads[0]
        groups[number].append(row)
        heapq.heapreplace(loads, (load + int(lengths[row]), number))
    return [tuple(groups[number]) for _, number in sorted(loads, key=lambda entry: (-entry[0], entry[1]))]


def epoch_plan(
    lengths: NDArray[np.int64],
    supervised: NDArray[np.int64],
    shape: StepShape,
    rank: int = 0,
    seed: int = 0,
    epoch: int = 0,
    first_step: int = 0,
    times: NDArray[np.floating] | None = None,
) -> Iterator[PlannedBatch]:
    """The micro-batches of one rank from a step of an epoch to the epoch's end.

    Args:
        lengths: [R] tokens of each row.
        supervised: [R] supervised tokens of each row.
        shape: division of steps into micro-batches and ranks.
        rank: number of this rank.
        seed: seed of the order.
        epoch: number of the epoch, from 0; each has another order.
        first_step: number of steps of the epoch that are done already.
        times: [R] number of times that each row comes (see `epoch_order`).

    Yields:
        `shape.accumulation` micro-batches per step, on every rank equally many.
    """
    order = epoch_order(len(lengths), seed, epoch, times)
    for step in range(first_step, steps_per_epoch(len(order), shape.batch_size)):
        rows = step_rows(order, step, shape.batch_size)
        divisor = int(supervised[rows].sum())
        for ranks in split_step(rows, lengths, shape):
            yield PlannedBatch(ranks[rank], divisor)


def evaluation_plan(
    supervised: NDArray[np.int64], batch_size: int, world_size: int = 1, rank: int = 0
) -> list[PlannedBatch]:
    """The batches of one rank that together with those of the other ranks hold every row exactly once, in order.

    Args:
        supervised: [R] supervised tokens of each row.
        batch_size: rows per batch, at most.
        world_size: number of ranks.
        rank: number of this rank.

    Returns:
        On every rank equally many batches; some may be empty.
    """
    divisor = int(supervised.sum())
    batches = _divided_up(_divided_up(len(supervised), batch_size), world_size)
    starts = [(batch * world_size + rank) * batch_size for batch in range(batches)]
    rows = range(len(supervised))
    return [PlannedBatch(tuple(rows[start : start + batch_size]), divisor) for start in starts]
