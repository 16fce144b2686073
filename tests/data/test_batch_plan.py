"""The plan against brute force over many shapes."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ts2_lightning.data.batch_plan import (
    PlannedBatch,
    StepShape,
    epoch_order,
    epoch_plan,
    evaluation_plan,
    longest_step,
    rows_per_epoch,
    split_step,
    steps_per_epoch,
)

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)
ROWS = st.integers(1, 70)
SHAPES = st.builds(StepShape, st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.booleans())
TIMES = st.lists(st.sampled_from([0, 0.3, 0.5, 1, 1.25, 2, 3.5]), min_size=1, max_size=60).map(np.array)


def facts(rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(rows)
    lengths = generator.integers(2, 30, rows)
    return lengths, np.minimum(lengths - 1, generator.integers(1, 20, rows))


def steps_of(rows: int, shape: StepShape, seed: int, epoch: int, first_step: int = 0) -> list[list[list]]:
    """`[step][rank]` lists of micro-batches."""
    plans = [list(epoch_plan(*facts(rows), shape, rank, seed, epoch, first_step)) for rank in range(shape.world_size)]
    assert len({len(plan) for plan in plans}) == 1
    size = shape.accumulation
    return [[plan[start : start + size] for plan in plans] for start in range(0, len(plans[0]), size)]


@PROPERTY
@given(ROWS, SHAPES, st.integers(0, 3), st.integers(0, 3))
def test_every_row_once_and_every_divisor_right(rows: int, shape: StepShape, seed: int, epoch: int) -> None:
    lengths, supervised = facts(rows)
    steps = steps_of(rows, shape, seed, epoch)
    assert len(steps) == -(-rows // shape.batch_size) == steps_per_epoch(rows, shape.batch_size)
    seen = []
    for number, step in enumerate(steps):
        micro_batches = list(itertools.chain(*step))
        in_step = [row for micro_batch in micro_batches for row in micro_batch.rows]
        assert len(in_step) == (shape.batch_size if number < len(steps) - 1 else rows - number * shape.batch_size)
        assert {micro_batch.divisor for micro_batch in micro_batches} == {supervised[in_step].sum()}
        assert [len(rank) for rank in step] == [shape.accumulation] * shape.world_size
        check_balance(micro_batches, shape, lengths)
        seen += in_step
    assert sorted(seen) == list(range(rows))


def check_balance(micro_batches: list[PlannedBatch], shape: StepShape, lengths: np.ndarray) -> None:
    """By rows, or where they are packed by tokens: no two differ by more than the shortest row of the larger."""
    if not shape.packed:
        sizes = [len(micro_batch.rows) for micro_batch in micro_batches]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= shape.micro_batch_size
        return
    loads = [lengths[list(micro_batch.rows)].sum() for micro_batch in micro_batches]
    for micro_batch, load in zip(micro_batches, loads, strict=True):
        assert load - min(loads) <= min((lengths[row] for row in micro_batch.rows), default=0)


@PROPERTY
@given(ROWS, SHAPES, SHAPES, st.integers(0, 3), st.integers(0, 3))
def test_the_split_does_not_change_what_a_step_holds(
    rows: int, one: StepShape, two: StepShape, seed: int, epoch: int
) -> None:
    two = two._replace(batch_size=one.batch_size)
    for left, right in zip(steps_of(rows, one, seed, epoch), steps_of(rows, two, seed, epoch), strict=True):
        flat = [sorted(row for rank in step for micro in rank for row in micro.rows) for step in (left, right)]
        assert flat[0] == flat[1]
        assert left[0][0].divisor == right[0][0].divisor


@PROPERTY
@given(ROWS, SHAPES, st.integers(0, 5))
def test_a_plan_can_start_at_any_step(rows: int, shape: StepShape, first_step: int) -> None:
    assert steps_of(rows, shape, 1, 2, first_step) == steps_of(rows, shape, 1, 2)[first_step:]


def test_orders_differ_by_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(epoch_order(50, 1, 2)) in orders


@PROPERTY
@given(TIMES, st.integers(0, 3), st.integers(0, 3))
def test_rows_come_as_often_as_their_times_say(times: np.ndarray, seed: int, epoch: int) -> None:
    order = epoch_order(len(times), seed, epoch, times)
    assert len(order) == rows_per_epoch(len(times), times)
    counts = np.bincount(order, minlength=len(times))
    for value in set(times.tolist()):
        alike = counts[times == value]
        assert set(alike) <= {int(value), int(np.ceil(value))}
        assert abs(alike.sum() - value * len(alike)) <= 0.5


@PROPERTY
@given(ROWS, st.integers(0, 3), st.integers(0, 3))
def test_once_is_what_no_times_are(rows: int, seed: int, epoch: int) -> None:
    assert np.array_equal(epoch_order(rows, seed, epoch, np.ones(rows)), epoch_order(rows, seed, epoch))
    assert np.array_equal(epoch_order(rows, seed, epoch), np.random.default_rng([seed, epoch]).permutation(rows))
    assert rows_per_epoch(rows, np.ones(rows)) == rows_per_epoch(rows) == rows


def test_a_fraction_is_drawn_anew_in_every_epoch() -> None:
    times = np.repeat([0.25, 1], [400, 10])
    draws = [set(epoch_order(410, 0, epoch, times)) for epoch in range(40)]
    assert {len(draw) for draw in draws} == {110}
    assert len({frozenset(draw) for draw in draws}) == 40
    assert len(set.union(*draws)) == 410, "all of them come in the end"


@PROPERTY
@given(TIMES.filter(lambda times: rows_per_epoch(len(times), times) > 0), SHAPES, SHAPES)
def test_plans_with_times(times: np.ndarray, one: StepShape, two: StepShape) -> None:
    """Whatever the split, the same rows make a step, and the divisor counts a row as often as it comes."""
    two = two._replace(batch_size=one.batch_size)
    lengths, supervised = facts(len(times))
    contents = []
    for shape in (one, two):
        plans = [list(epoch_plan(lengths, supervised, shape, rank, 1, 2, 0, times)) for rank in range(shape.world_size)]
        steps = [
            list(zip(*plans, strict=True))[s : s + shape.accumulation]
            for s in range(0, len(plans[0]), shape.accumulation)
        ]
        flat = [[micro for turn in step for micro in turn] for step in steps]
        contents.append([sorted(row for micro in step for row in micro.rows) for step in flat])
        for rows, step in zip(contents[-1], flat, strict=True):
            assert {micro.divisor for micro in step} == {supervised[rows].sum()}
    assert contents[0] == contents[1]
    assert len(contents[0]) == steps_per_epoch(rows_per_epoch(len(times), times), one.batch_size)
    assert np.array_equal(
        np.bincount(np.concatenate(contents[0]), minlength=len(times)),
        np.bincount(epoch_order(len(times), 1, 2, times), minlength=len(times)),
    )


def test_tokens_are_balanced_where_rows_are_packed() -> None:
    """The largest first, and what the ranks do in the same turn is of neighbouring size."""
    lengths = np.array([90, 30, 30, 30, 20, 20, 10, 10])
    shape = StepShape(batch_size=8, micro_batch_size=2, world_size=2, packed=True)
    plans = [list(epoch_plan(lengths, lengths - 1, shape, rank)) for rank in range(2)]
    of = [[sorted(lengths[list(micro.rows)].tolist()) for micro in plan] for plan in plans]
    assert of == [[[90], [20, 30]], [[20, 30], [10, 10, 30]]]


def test_rows_of_like_length_share_a_micro_batch() -> None:
    lengths = np.array([5, 50, 6, 51, 7, 52, 8, 53])
    shape = StepShape(batch_size=8, micro_batch_size=2, world_size=2)
    plans = [list(epoch_plan(lengths, lengths - 1, shape, rank)) for rank in range(2)]
    of = [[sorted(lengths[list(micro.rows)].tolist()) for micro in plan] for plan in plans]
    assert of == [[[52, 53], [7, 8]], [[50, 51], [5, 6]]]


@PROPERTY
@given(ROWS, st.integers(1, 12), st.integers(1, 6))
def test_evaluation_holds_every_row_once(rows: int, batch_size: int, world_size: int) -> None:
    _, supervised = facts(rows)
    plans = [evaluation_plan(supervised, batch_size, world_size, rank) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    assert (len(plans[0]) - 1) * batch_size * world_size < rows, "no batch that is empty on all ranks"
    seen = [row for turn in zip(*plans, strict=True) for micro_batch in turn for row in micro_batch.rows]
    assert seen == list(range(rows))
    assert {micro_batch.divisor for plan in plans for micro_batch in plan} == {supervised.sum()}
    assert all(len(micro_batch.rows) <= batch_size for plan in plans for micro_batch in plan)


@pytest.mark.parametrize(("shape", "accumulation"), [((128, 8, 4), 4), ((10, 8, 1), 2), ((3, 8, 4), 1)])
def test_accumulation(shape: tuple[int, int, int], accumulation: int) -> None:
    assert StepShape(*shape).accumulation == accumulation


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("times", [None, np.array([0.5, 1, 2.5, 0.2] * 6)])
def test_no_micro_batch_has_more_tokens_than_that_of_the_longest_step(
    packed: bool, times: NDArray[np.float64] | None
) -> None:
    lengths = np.random.default_rng(7).integers(1, 40, 24)
    shape = StepShape(batch_size=7, micro_batch_size=3, packed=packed)

    def tokens(rows: Sequence[int]) -> int:
        if packed:
            return int(lengths[list(rows)].sum())
        return int(lengths[list(rows)].max()) * len(rows)  # padded

    step = longest_step(lengths, shape.batch_size, times)
    largest = tokens(split_step(step, lengths, shape)[0][0])
    assert len(step) == shape.batch_size
    for epoch in range(20):
        for batch in epoch_plan(lengths, lengths, shape, epoch=epoch, times=times):
            assert tokens(batch.rows) <= largest
    few = longest_step(lengths[:4], 100, None if times is None else times[:4])
    assert len(few) == rows_per_epoch(4, None if times is None else times[:4])


def test_a_row_that_comes_several_times_may_do_so_in_one_step() -> None:
    """So the longest step has all of its times, and in some epoch it comes about."""
    lengths, times = np.array([9, 1, 1, 1]), np.array([3.0, 1.0, 1.0, 1.0])
    shape = StepShape(batch_size=3, micro_batch_size=3, packed=True)
    plans = [epoch_plan(lengths, lengths, shape, epoch=epoch, times=times) for epoch in range(40)]
    most = max(int(lengths[list(batch.rows)].sum()) for plan in plans for batch in plan)
    assert most == lengths[longest_step(lengths, 3, times)].sum() == 27
