"""From rows to the tensors of a `Batch`. The shift by one is done here; `ops.labels` has it for labels of others."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ts2_lightning.data.encoded_rows import EncodedRow
from ts2_lightning.types import Batch

Packing = Literal["none", "packed", "padding_free"]
"""Layout of the rows of a micro-batch: one sequence each, several in a sequence, or all in one."""


def capacity_of(packing: Packing, max_length: int) -> float | None:
    """The largest number of tokens in a sequence, as `collate` takes it: infinite, or None if nothing is packed."""
    capacities: dict[Packing, float | None] = {"none": None, "packed": max_length, "padding_free": math.inf}
    return capacities[packing]


def collate(
    rows: Sequence[EncodedRow], indices: Sequence[int], divisor: int, pad_id: int = 0, capacity: float | None = None
) -> Batch:
    """Lay rows into sequences, pad those on the right, and list the supervised tokens.

    The token at place p of a row that starts at s in the flattened ids is predicted at s + p - 1, which is what
    `supervised` holds, and `labels` the token at p. Without rows the batch is one filler row of a single token of which
    nothing is learnt.

    Args:
        rows: R rows; an empty list makes a filler.
        indices: [R] their indices in the split.
        divisor: supervised tokens of the whole optimizer step.
        pad_id: token id of the padding.
        capacity: tokens of a sequence, at most, for packing; `math.inf` lays all rows into one. None gives each row
            a sequence of its own, and an attention mask.

    Returns:
        Tensors as `ts2_lightning.types.Batch` describes them: float32 `weights`, which are ones where no row has a
        weight of its own, and int64 the rest.

    Example:
        >>> row = EncodedRow(np.array([5, 6, 7, 8], dtype=np.int32), np.array([[2, 4]], dtype=np.int32), weight=0.5)
        >>> batch = collate([row], [0], divisor=2)
        >>> batch["supervised"].tolist(), batch["labels"].tolist(), batch["positions"].tolist()
        ([1, 2], [7, 8], [1, 2])
        >>> batch["weights"].tolist()
        [0.5, 0.5]

        Three rows, of which two share a sequence:

        >>> rows = [EncodedRow(np.full(n, n, dtype=np.int32), np.array([[1, n]], dtype=np.int32)) for n in (2, 4, 3)]
        >>> batch = collate(rows, [7, 8, 9], divisor=6, capacity=6)
        >>> batch["input_ids"].tolist(), batch["position_ids"].tolist()
        ([[4, 4, 4, 4, 0], [3, 3, 3, 2, 2]], [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]])
        >>> batch["row_index"].tolist(), batch["row_spans"].tolist()
        ([7, 8, 9], [[8, 10], [0, 4], [5, 8]])
    """
    if not rows:
        nothing = np.zeros((0, 2), dtype=np.int32)
        rows, indices = [EncodedRow(np.array([pad_id], dtype=np.int32), nothing)], [-1]
    lengths = np.array([len(row.ids) for row in rows])
    count, width, starts = _layout(lengths, capacity)
    input_ids = np.full(count * width, pad_id, dtype=np.int64)
    own_places = np.full_like(input_ids, -1)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        input_ids[start : start + length] = row.ids
        own_places[start : start + length] = np.arange(length)
    return {
        "input_ids": torch.from_numpy(input_ids.reshape(-1, width)),
        **_attention_inputs(own_places.reshape(-1, width), packed=capacity is not None),
        **_supervised(rows, starts, input_ids),
        "row_index": torch.tensor(indices, dtype=torch.int64),
        "row_spans": torch.from_numpy(np.stack([starts, starts + lengths], axis=1)),
        "divisor": torch.tensor(divisor, dtype=torch.int64),
    }


def _layout(lengths: NDArray[np.int64], capacity: float | None) -> tuple[int, int, NDArray[np.int64]]:
    """Number and width of the sequences of a batch, and where each row starts in the flattened ids, [R]."""
    if capacity is None:
        width = int(lengths.max())
        return len(lengths), width, np.arange(len(lengths)) * width
    sequences = pack(lengths, capacity)
    width = _width(sequences, lengths)
    return len(sequences), width, _starts(sequences, lengths, width)


def _supervised(rows: Sequence[EncodedRow], starts: NDArray[np.int64], flat_ids: NDArray[np.int64]) -> Batch:
    """The fields of a batch about its supervised tokens, row after row."""
    spans = np.concatenate([row.spans for row in rows]).astype(np.int64)  # [S, 2]
    turn_rows = np.repeat(np.arange(len(rows)), [len(row.spans) for row in rows])  # [S]
    turn_lengths = spans[:, 1] - spans[:, 0]
    # 1, 2, ..., n for each turn: count through, then take off what came before the turn.
    before = np.cumsum(turn_lengths) - turn_lengths
    positions = np.arange(1, turn_lengths.sum() + 1) - np.repeat(before, turn_lengths)
    token_rows = np.repeat(turn_rows, turn_lengths)
    places = starts[token_rows] + np.repeat(spans[:, 0], turn_lengths) + positions - 1
    weights = np.array([row.weight for row in rows], dtype=np.float32)  # [R]
    return {
        "supervised": torch.from_numpy(places - 1),
        "labels": torch.from_numpy(flat_ids[places]),
        "token_rows": torch.from_numpy(token_rows),
        "positions": torch.from_numpy(positions),
        "lengths": torch.from_numpy(np.repeat(turn_lengths, turn_lengths)),
        "weights": torch.from_numpy(weights[token_rows]),
    }


def pack(lengths: NDArray[np.int64], capacity: float) -> list[list[int]]:
    """Pack rows into sequences: as few as first-fit decreasing needs, and then as narrow as it can make so many.

    Source: Coffman, Garey and Johnson, "An Application of Bin-Packing to Multiprocessor Scheduling" (1978), MULTIFIT:
    the narrowest width is found by bisection. Wide sequences would leave the last one almost empty.

    Args:
        lengths: [R] tokens of each row, R > 0.
        capacity: tokens of a sequence, at most; a longer row gets one of its own.

    Returns:
        The rows of each sequence, in the order in which they lie there.

    Example:
        >>> pack(np.array([3, 6, 5, 2, 9, 4]), capacity=20)
        [[4, 1], [2, 5, 0, 3]]
    """
    packed = _first_fit_decreasing(lengths, capacity)
    low = max(math.ceil(lengths.sum() / len(packed)), int(lengths.max()))
    high = _width(packed, lengths)
    while low < high:
        middle = (low + high) // 2
        narrower = _first_fit_decreasing(lengths, middle)
        if len(narrower) <= len(packed):
            packed, high = narrower, _width(narrower, lengths)
        else:
            low = middle + 1
    return packed


def _first_fit_decreasing(lengths: NDArray[np.int64], capacity: float) -> list[list[int]]:
    """Longest rows first, each into the first sequence with room for it."""
    sequences: list[list[int]] = []
    rooms: list[float] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        place = next((place for place, room in enumerate(rooms) if length <= room), len(rooms))
        if place == len(rooms):
            sequences.append([])
            rooms.append(capacity)
        sequences[place].append(row)
        rooms[place] -= length
    return sequences


def _width(sequences: Sequence[Sequence[int]], lengths: NDArray[np.int64]) -> int:
    """Tokens of the longest sequence."""
    return max(int(lengths[sequence].sum()) for sequence in sequences)


def _starts(sequences: Sequence[Sequence[int]], lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """[R] start of each row in the flattened ids."""
    starts = np.empty(len(lengths), dtype=np.int64)
    for number, sequence in enumerate(sequences):
        ends = np.cumsum(lengths[sequence])
        starts[sequence] = number * width + ends - lengths[sequence]
    return starts


def _attention_inputs(own_places: NDArray[np.int64], packed: bool) -> Batch:
    """The inputs that tell attention which tokens belong together.

    Args:
        own_places: [B, T] place of each token in its row; -1 for padding.
        packed: whether rows share sequences: then positions tell them apart, else there is a mask.
    """
    if not packed:
        return {"attention_mask": torch.from_numpy((own_places >= 0).astype(np.int64))}
    # Padding, which ends a sequence, counts from 0 too, and so is apart from the row before it.
    padding = own_places < 0
    return {"position_ids": torch.from_numpy(np.where(padding, np.cumsum(padding, axis=1) - 1, own_places))}
