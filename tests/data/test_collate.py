"""The batch against a plain reference: shifted labels in a padded matrix."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ts2_lightning.data.collate import collate
from ts2_lightning.data.encoding import EncodedRow
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
    assert batch["divisor"].item() == 7
    check_dtypes(batch)


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
        "divisor": 7,
    }
    check_dtypes(batch)


def test_weights_are_ones_where_rows_do_not_say() -> None:
    row = EncodedRow(np.array([1, 2, 3], dtype=np.int32), np.array([[1, 3]], dtype=np.int32))
    assert collate([row, row], [0, 1], divisor=4)["weights"].tolist() == [1.0] * 4
