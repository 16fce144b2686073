"""Rows as token ids and the spans of tokens that are learnt, stored flat."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ts2_lightning.data.counts import Counts
from ts2_lightning.data.rejects import Reject


class EncodedRow(NamedTuple):
    """One row: views into the flat arrays."""

    ids: NDArray[np.int32]  # [T]
    spans: NDArray[np.int32]  # [S, 2] start and end of the learnt tokens of each turn of the assistant
    weight: float = 1.0  # factor on the loss of each of them


@dataclass(frozen=True)
class EncodedRows:
    """All rows of a split, flat: a worker process shares them without copying, and they can lie in a file.

    Attributes:
        ids: [all tokens] token ids, row after row.
        row_edges: [R + 1] start of each row in `ids`.
        spans: [all turns, 2] learnt tokens of each turn, relative to the row's start.
        span_edges: [R + 1] start of each row's turns in `spans`.
        weights: [R] factor on the loss of each row's tokens; ones where the rows do not say.
        places: [R] number of each row among the rows that were read, from 0; rows left out make gaps.
        counts: numbers of rows that were read, kept and left out.
        rejects: the bad rows, in the order in which they were read; without those that a format leaves out on purpose,
            which may be many and are only counted.
    """

    ids: NDArray[np.int32]
    row_edges: NDArray[np.int64]
    spans: NDArray[np.int32]
    span_edges: NDArray[np.int64]
    weights: NDArray[np.float32]
    places: NDArray[np.int64]
    counts: Counts
    rejects: tuple[Reject, ...] = ()

    def __len__(self) -> int:
        return len(self.row_edges) - 1

    def __getitem__(self, index: int) -> EncodedRow:
        first, last = self.row_edges[index : index + 2]
        first_span, last_span = self.span_edges[index : index + 2]
        return EncodedRow(self.ids[first:last], self.spans[first_span:last_span], float(self.weights[index]))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[R] tokens of each row."""
        return np.diff(self.row_edges)

    @property
    def supervised(self) -> NDArray[np.int64]:
        """[R] supervised tokens of each row."""
        total = np.concatenate([[0], np.cumsum(self.spans[:, 1] - self.spans[:, 0], dtype=np.int64)])
        return np.diff(total[self.span_edges])


Columns = dict[str, NDArray[Any]]
"""The parts of an `EncodedRows`, each of which grows at its end when rows are appended: `ids`, `lengths` of rows,
`spans`, `turns` per row, `weights` and `places`."""


def from_columns(columns: Columns, counts: Counts, rejects: Iterable[Reject]) -> EncodedRows:
    """Rows from their columns; the large ones are taken as they are, without a copy."""
    row_edges, span_edges = (
        np.concatenate([[0], np.cumsum(columns[name], dtype=np.int64)]) for name in ("lengths", "turns")
    )
    spans = columns["spans"].reshape(-1, 2)
    weights, places = columns["weights"], columns["places"]
    return EncodedRows(columns["ids"], row_edges, spans, span_edges, weights, places, counts, tuple(rejects))


def append_chunks(
    chunks: Iterable[EncodedRows], append: Callable[[str, NDArray[Any]], object]
) -> tuple[Counts, list[Reject]]:
    """Append the columns of all chunks, in order, with a function of the column's name and its values.

    Returns:
        Counts and rejects of all chunks together.
    """
    counts, rejects = Counts(), list[Reject]()
    for chunk in chunks:
        append("ids", chunk.ids)
        append("lengths", chunk.lengths)
        append("spans", chunk.spans)
        append("turns", np.diff(chunk.span_edges))
        append("weights", chunk.weights)
        append("places", chunk.places + counts.read)
        counts += chunk.counts
        rejects += chunk.rejects
    return counts, rejects


def join_chunks(chunks: Iterable[EncodedRows]) -> EncodedRows:
    """At least one chunk, joined in memory."""
    parts = defaultdict[str, list[NDArray[Any]]](list)
    counts, rejects = append_chunks(chunks, lambda name, column: parts[name].append(column))
    return from_columns({name: np.concatenate(part) for name, part in parts.items()}, counts, rejects)
