"""From rows to the tensors of a `Batch`. The shift by one is done here and nowhere else."""

from collections.abc import Sequence

import numpy as np
import torch

from ts2_lightning.data.encoding import EncodedRow
from ts2_lightning.types import Batch


def collate(rows: Sequence[EncodedRow], indices: Sequence[int], divisor: int, pad_id: int = 0) -> Batch:
    """Pad rows on the right and list their supervised tokens.

    The token at place p of a row is predicted at place p - 1, so `supervised` holds `row * T + p - 1` and `labels`
    the token at p. Without rows the batch is one filler row of a single token of which nothing is learnt.

    Args:
        rows: B rows; none for a filler.
        indices: [B] their indices in the split.
        divisor: supervised tokens of the whole optimizer step.
        pad_id: token id of the padding, which is masked.

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
    """
    if not rows:
        nothing = np.zeros((0, 2), dtype=np.int32)
        rows, indices = [EncodedRow(np.array([pad_id], dtype=np.int32), nothing)], [-1]
    width = max(len(row.ids) for row in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for place, row in enumerate(rows):
        input_ids[place, : len(row.ids)] = row.ids
    lengths = np.array([len(row.ids) for row in rows])

    spans = np.concatenate([row.spans for row in rows]).astype(np.int64)  # [S, 2]
    turn_rows = np.repeat(np.arange(len(rows)), [len(row.spans) for row in rows])  # [S]
    turn_lengths = spans[:, 1] - spans[:, 0]
    # 1, 2, ..., n for each turn: count through, then take off what came before the turn.
    before = np.cumsum(turn_lengths) - turn_lengths
    positions = np.arange(1, turn_lengths.sum() + 1) - np.repeat(before, turn_lengths)
    token_rows = np.repeat(turn_rows, turn_lengths)
    places = np.repeat(spans[:, 0], turn_lengths) + positions - 1
    weights = np.array([row.weight for row in rows], dtype=np.float32)  # [B]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64)),
        "supervised": torch.from_numpy(token_rows * width + places - 1),
        "labels": torch.from_numpy(input_ids[token_rows, places]),
        "token_rows": torch.from_numpy(token_rows),
        "positions": torch.from_numpy(positions),
        "lengths": torch.from_numpy(np.repeat(turn_lengths, turn_lengths)),
        "weights": torch.from_numpy(weights[token_rows]),
        "row_index": torch.tensor(indices, dtype=torch.int64),
        "divisor": torch.tensor(divisor, dtype=torch.int64),
    }
