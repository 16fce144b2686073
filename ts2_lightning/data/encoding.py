"""From rows to token ids and the spans of them that are learnt, stored flat."""

import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ts2_lightning.data.formats import Example, FormatFunction, TokenRow, parse, row_weight
from ts2_lightning.data.rendering import Span
from ts2_lightning.data.sources import Row
from ts2_lightning.data.templates import ChatTemplate, Encoded
from ts2_lightning.types import IGNORE_INDEX, UserError

Overlong = Literal["truncate", "drop", "raise"]
"""What happens to a row longer than the maximum."""

_BATCH = 256  # rows per call of the tokenizer, which spreads them over its threads


class EncodedRow(NamedTuple):
    """One row: views into the flat arrays."""

    ids: NDArray[np.int32]  # [T]
    spans: NDArray[np.int32]  # [S, 2] start and end of the learnt tokens of each turn of the assistant
    weight: float = 1.0  # factor on the loss of each of them


class Counts(NamedTuple):
    """What became of the rows that were read."""

    read: int
    kept: int
    dropped: int
    truncated: int


@dataclass(frozen=True)
class EncodedRows:
    """All rows of a split, flat: a worker process shares them without copying, and they can lie in a file.

    Attributes:
        ids: [all tokens] token ids, row after row.
        row_edges: [R + 1] where each row starts in `ids`.
        spans: [all turns, 2] learnt tokens of each turn, relative to the row's start.
        span_edges: [R + 1] where each row's turns start in `spans`.
        weights: [R] factor on the loss of each row's tokens; ones where the rows do not say.
        counts: what became of the rows that were read.
    """

    ids: NDArray[np.int32]
    row_edges: NDArray[np.int64]
    spans: NDArray[np.int32]
    span_edges: NDArray[np.int64]
    weights: NDArray[np.float32]
    counts: Counts

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

    @property
    def weighted(self) -> int:
        """Number of rows whose weight is not 1."""
        return int((self.weights != 1).sum())


def encode_rows(
    rows: Iterable[Row],
    template: ChatTemplate | None,
    format: FormatFunction | None = None,
    max_length: int = 2048,
    overlong: Overlong = "truncate",
) -> EncodedRows:
    """Encode rows.

    Args:
        rows: as they were read.
        template: for conversations; rows of the format `tokens` do without.
        format: from fields to an example; None finds it row by row.
        max_length: tokens of a row at most.
        overlong: cut longer rows at their end, leave them out, or raise.

    Raises:
        UserError: naming file and line, for a row that cannot be encoded or has no supervised token.
    """
    # Once the tokenizer has used threads, a forked data worker would warn; it never tokenises.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    ids, row_edges, spans, span_edges = array("i"), array("q", [0]), array("i"), array("q", [0])
    weights = array("f")
    read = dropped = truncated = 0
    for origin, weight, encoded in _encoded(rows, template, format):
        read += 1
        length = len(encoded.ids)
        if length > max_length:
            if overlong == "raise":
                raise UserError(
                    f"{origin}: {length} tokens, more than max_length {max_length}; raise it, or set "
                    "overlong to truncate or drop"
                )
            if overlong == "drop":
                dropped += 1
                continue
            truncated += 1
        kept = _supervised_spans(encoded.spans, max_length)
        if not kept:
            raise UserError(f"{origin}: {_why_unsupervised(encoded, max_length)}")
        ids.extend(encoded.ids[:max_length])
        row_edges.append(len(ids))
        spans.extend(itertools.chain.from_iterable(kept))
        span_edges.append(len(spans) // 2)
        weights.append(weight)
    return EncodedRows(
        np.array(ids, dtype=np.int32),
        np.array(row_edges, dtype=np.int64),
        np.array(spans, dtype=np.int32).reshape(-1, 2),
        np.array(span_edges, dtype=np.int64),
        np.array(weights, dtype=np.float32),
        Counts(read, read - dropped, dropped, truncated),
    )


def _supervised_spans(spans: Iterable[Span], length: int) -> list[Span]:
    """The spans inside the first `length` tokens. A row's first token has nothing before it to be predicted from."""
    clipped = ((max(start, 1), min(end, length)) for start, end in spans)
    return [(start, end) for start, end in clipped if start < end]


def _why_unsupervised(encoded: Encoded, max_length: int) -> str:
    if _supervised_spans(encoded.spans, len(encoded.ids)):
        return (
            f"truncation to max_length {max_length} removed all supervised tokens (the row has "
            f"{len(encoded.ids)} tokens, the first supervised one is number {encoded.spans[0][0] + 1}); "
            "raise max_length or set overlong to drop"
        )
    return "the row has no supervised token"


def _encoded(
    rows: Iterable[Row], template: ChatTemplate | None, format: FormatFunction | None
) -> Iterator[tuple[str, float, Encoded]]:
    """Origin, weight and encoding of every row."""
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, _BATCH)):
        weights, examples = [], []
        for row in batch:
            weights.append(_named(row.origin, row_weight, row.fields))  # first: a user's format may change the fields
            examples.append(_named(row.origin, parse, row.fields, format))
        origins = [row.origin for row in batch]
        yield from zip(origins, weights, _encode_batch(batch, examples, template), strict=True)


def _encode_batch(rows: Sequence[Row], examples: Sequence[Example], template: ChatTemplate | None) -> list[Encoded]:
    places = [place for place, example in enumerate(examples) if not isinstance(example, TokenRow)]
    if places and template is None:
        raise UserError(f"{rows[places[0]].origin}: to encode text data.tokenizer must name a tokenizer")
    encoded: list[Encoded] = [
        _encode_tokens(example) if isinstance(example, TokenRow) else Encoded([], []) for example in examples
    ]
    if template is None or not places:
        return encoded
    renderings = [_named(rows[place].origin, template.render, examples[place]) for place in places]
    try:
        chats = template.encode(renderings)
    except UserError:  # one by one to find the row
        chats = [
            _named(rows[place].origin, template.encode, [rendering])[0]
            for place, rendering in zip(places, renderings, strict=True)
        ]
    for place, chat in zip(places, chats, strict=True):
        encoded[place] = chat
    return encoded


def _encode_tokens(row: TokenRow) -> Encoded:
    """Each run of supervised tokens counts as a turn."""
    learnt = np.concatenate([[0], np.asarray(row.labels) != IGNORE_INDEX, [0]]).astype(np.int8)
    edges = np.diff(learnt)
    return Encoded(
        row.input_ids,
        list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True)),
    )


def _named(origin: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function so that its complaint names the row."""
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error.__cause__
