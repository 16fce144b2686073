"""The batch against a plain reference: shifted labels in a padded matrix."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ts2_lightning.data.collate import collate, pack
from ts2_lightning.data.encoded_rows import EncodedRow
from ts2_lightning.types import IGNORE_INDEX, Batch


@st.composite
def rows(draw: st.DrawFn) -> EncodedRow:
    length = draw(st.integers(2, 20))
    edges = sorted(draw(st.sets(st.integers(1, length), min_size=2, max_size=min(8, length))))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    ids = draw(st.lists(st.integers(1, 99), min_size=length, max_size=length))
    weight = draw(st.floats(0, 100, width=32))
    return EncodedRow(np.array(ids, dtype=np.int32), np.array(spans, dtype=np.int32), weight)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(rows(), min_size=1, max_size=5))
def test_against_shifted_labels(batch_rows: list[EncodedRow]) -> None:
    width = max(len(row.ids) for row in batch_rows)
    ids = torch.zeros(len(batch_rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    positions, lengths = torch.zeros_like(ids), torch.zeros_like(ids)
    weights = torch.zeros(len(batch_rows), width)
    for b, row in enumerate(batch_rows):
        for t, token in enumerate(row.ids.tolist()):
            ids[b, t], mask[b, t] = token, 1
        for start, end in row.spans.tolist():
            for t in range(start, end):
                labels[b, t - 1] = ids[b, t]  # predicted one place earlier
                positions[b, t - 1], lengths[b, t - 1] = t - start + 1, end - start
                weights[b, t - 1] = row.weight
    learnt = (labels != IGNORE_INDEX).flatten()

    batch = collate(batch_rows, range(len(batch_rows)), divisor=7)
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["attention_mask"], mask)
    assert torch.equal(batch["supervised"], learnt.nonzero().flatten())
    assert torch.equal(batch["labels"], labels.flatten()[learnt])
    assert torch.equal(batch["token_rows"], batch["supervised"] // width)
    assert torch.equal(batch["positions"], positions.flatten()[learnt])
    assert torch.equal(batch["lengths"], lengths.flatten()[learnt])
    assert torch.equal(batch["weights"], weights.flatten()[learnt])
    assert batch["row_index"].tolist() == list(range(len(batch_rows)))
    assert batch["row_spans"].tolist() == [[b * width, b * width + len(row.ids)] for b, row in enumerate(batch_rows)]
    assert batch["divisor"].item() == 7
    assert "position_ids" not in batch
    check_dtypes(batch)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(rows(), min_size=1, max_size=9), st.sampled_from([20, 25, 60, math.inf]))
def test_packed_rows_are_the_rows(batch_rows: list[EncodedRow], capacity: float) -> None:
    """Cut out again by their spans they are what each of them is in a batch by itself."""
    batch = collate(batch_rows, range(10, 10 + len(batch_rows)), divisor=7, pad_id=100, capacity=capacity)
    assert batch["row_index"].tolist() == list(range(10, 10 + len(batch_rows)))
    assert "attention_mask" not in batch
    ids, places = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    width, taken = batch["input_ids"].shape[1], torch.zeros_like(ids)
    for number, (row, (start, end)) in enumerate(zip(batch_rows, batch["row_spans"].tolist(), strict=True)):
        alone = collate([row], [number], divisor=7)
        assert torch.equal(ids[start:end], alone["input_ids"][0])
        assert places[start:end].tolist() == list(range(end - start))
        assert start // width == (end - 1) // width, "in one sequence"
        mine = batch["token_rows"] == number
        assert torch.equal(batch["supervised"][mine], alone["supervised"] + start)
        for name in ("labels", "positions", "lengths", "weights"):
            assert torch.equal(batch[name][mine], alone[name]), name
        taken[start:end] += 1
    assert taken.max() == 1
    assert (ids[taken == 0] == 100).all()
    check_padding(taken.view(-1, width), batch["position_ids"])
    assert width <= capacity
    assert len(batch["input_ids"]) == 1 or capacity < math.inf
    check_dtypes(batch)


def check_padding(taken: torch.Tensor, places: torch.Tensor) -> None:
    """At the end of its sequence, and with positions that start again, so that no row goes on in it."""
    for row, row_places in zip(taken, places, strict=True):
        tokens = int(row.sum())
        assert row[:tokens].all()
        assert row_places[tokens:].tolist() == list(range(len(row) - tokens))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(15, 60))
def test_packing_takes_few_and_narrow_sequences(lengths: list[int], capacity: int) -> None:
    plain: list[list[int]] = []  # widths of the rows in each sequence, by first-fit decreasing
    for length in sorted(lengths, reverse=True):
        open_ones = [sequence for sequence in plain if sum(sequence) + length <= capacity]
        if not open_ones:
            plain.append(open_one := [])
            open_ones = [open_one]
        open_ones[0].append(length)
    packed = pack(np.array(lengths), capacity)
    assert sorted(row for sequence in packed for row in sequence) == list(range(len(lengths)))
    widths = [sum(lengths[row] for row in sequence) for sequence in packed]
    assert len(packed) <= len(plain)
    assert max(max(lengths), sum(lengths) / len(plain)) <= max(widths) <= max(map(sum, plain))


@pytest.mark.parametrize(
    ("lengths", "capacity", "wanted"),
    [
        ([5], 5, [[0]]),
        ([7], 5, [[0]]),
        ([7, 7, 1], 5, [[0], [1], [2]]),
        ([4, 4, 4, 4], 8, [[0, 1], [2, 3]]),
        ([4, 4, 4, 4], 1000, [[0, 1, 2, 3]]),
        ([6, 3, 3, 2, 2, 2], 10, [[0, 1], [2, 3, 4, 5]]),
        ([9, 1, 1, 1, 8, 2], 20, [[0, 5], [4, 1, 2, 3]]),  # at 20 one would be full, and the other almost empty
        ([5, 5, 5], math.inf, [[0, 1, 2]]),
    ],
)
def test_packing_by_hand(lengths: list[int], capacity: float, wanted: list[list[int]]) -> None:
    assert pack(np.array(lengths), capacity) == wanted


def check_dtypes(batch: Batch) -> None:
    assert batch["weights"].dtype == torch.float32
    assert {value.dtype for name, value in batch.items() if name != "weights"} == {torch.int64}


def test_filler() -> None:
    batch = collate([], [], divisor=7, pad_id=3)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[3]],
        "attention_mask": [[1]],
        "supervised": [],
        "labels": [],
        "token_rows": [],
        "positions": [],
        "lengths": [],
        "weights": [],
        "row_index": [-1],
        "row_spans": [[0, 1]],
        "divisor": 7,
    }
    check_dtypes(batch)


@pytest.mark.parametrize("capacity", [5, math.inf])
def test_packed_filler(capacity: float) -> None:
    filler, plain = collate([], [], divisor=7, pad_id=3, capacity=capacity), collate([], [], divisor=7, pad_id=3)
    assert filler.pop("position_ids").tolist() == [[0]]
    plain.pop("attention_mask")
    assert {name: value.tolist() for name, value in filler.items()} == {n: v.tolist() for n, v in plain.items()}
    check_dtypes(filler)


def test_weights_are_ones_where_rows_do_not_say() -> None:
    row = EncodedRow(np.array([1, 2, 3], dtype=np.int32), np.array([[1, 3]], dtype=np.int32))
    assert collate([row, row], [0, 1], divisor=4)["weights"].tolist() == [1.0] * 4
