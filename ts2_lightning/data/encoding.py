"""From rows to token ids and the spans of them that are learnt."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ts2_lightning.data.encoded_rows import (
    Counts,
    EncodedRows,
    from_columns,
    join_chunks,
)
from ts2_lightning.data.formats import FormatFunction, TokenRow, parse, row_weight
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.rendering import Rendering, Span
from ts2_lightning.data.rows import Row
from ts2_lightning.data.templates import ChatTemplate, Encoded
from ts2_lightning.types import IGNORE_INDEX, RejectKind, RowError, UserError

Overlong = Literal["truncate", "truncate_left", "drop", "raise"]
"""What happens to a row longer than the maximum: cut its end off, cut its beginning off, leave it out, or stop."""

_BATCH = 256  # rows per call of the tokenizer, which spreads them over its threads
_CHARACTERS = 1 << 20  # of the texts of a call, of which so many may be fewer: each takes the tokenizer 40 bytes
_MESSAGE = 64  # characters that a message counts as besides its own

T = TypeVar("T")
U = TypeVar("U")


def encode_rows(
    rows: Iterable[Row | Reject],
    template: ChatTemplate | None,
    format: FormatFunction | None = None,
    max_length: int = 2048,
    overlong: Overlong = "truncate",
) -> EncodedRows:
    """Encode rows.

    A row that cannot be encoded, or has no supervised token, is no error here: it is in `rejects` of the result, and
    the caller decides (see `ts2_lightning.data.rejects`).

    Cut at its end (`truncate`), a row loses the end of its last turn, or whole turns. Cut at its beginning
    (`truncate_left`), it loses what the first turns answer to; so a turn of the assistant is supervised only if it is
    there from its first token on and at least one token comes before it. `counts.turns_lost` says how many turns
    of the assistant are not supervised for either reason. A row that loses all of them is rejected as too long.

    A row that is too long by far (`largest_conversation`, and `rows.LARGEST_ROW` in its file) is not tokenised: it is
    dropped with `overlong` "drop", and rejected as too long where it would be cut.

    Args:
        rows: as they were read; what could not be read is handed on.
        template: for conversations; rows of the format `tokens` do without.
        format: from fields to an example, for rows that name no format of their own; None finds it row by row.
        max_length: tokens of a row at most.
        overlong: cut longer rows at their end or at their beginning, leave them out, or raise.

    Raises:
        UserError: if text comes without a template; if a row is too long and `overlong` is `raise`.

    Example:
        >>> row = Row({"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9]}, "x.jsonl:1")
        >>> for overlong in ("truncate", "truncate_left"):
        ...     rows = encode_rows([row], None, max_length=4, overlong=overlong)
        ...     rows[0].ids.tolist(), rows[0].spans.tolist(), rows.counts.turns_lost
        ([5, 6, 7, 8], [[1, 2], [3, 4]], 0)
        ([6, 7, 8, 9], [[2, 4]], 1)
    """
    return join_chunks(encode_chunks(rows, template, format, max_length, overlong))


def encode_chunks(
    rows: Iterable[Row | Reject],
    template: ChatTemplate | None,
    format: FormatFunction | None = None,
    max_length: int = 2048,
    overlong: Overlong = "truncate",
) -> Iterator[EncodedRows]:
    """As `encode_rows`, some rows at a time: at least one chunk, which may be empty."""
    # Once the tokenizer has used threads, a forked data worker would warn. One that tokenises does without threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    prepared = (_prepare(row, template, format, max_length) for row in rows)
    batches = _batches(prepared)
    encode = partial(_encode_chunk, template=template, max_length=max_length, overlong=overlong)
    yield encode([])
    yield from _overlapped(encode, batches)


def _batches(rows: Iterable["_Prepared | Reject"]) -> Iterator[list["_Prepared | Reject"]]:
    batch, characters = list["_Prepared | Reject"](), 0
    for row in rows:
        batch.append(row)
        if isinstance(row, _Prepared) and isinstance(row.content, Rendering):
            characters += len(row.content.text)
        if len(batch) == _BATCH or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _overlapped(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Apply a function to items in a thread while the next item is made in this one; the results in their order.

    The tokenizer runs without Python's lock, on all cores; reading and rendering need it. Together they take the time
    of the longer of the two.
    """
    own: list[int] = []
    thread = ThreadPoolExecutor(1, initializer=lambda: own.append(threading.get_ident()))
    running: Future[U] | None = None
    try:
        for item in items:
            following = thread.submit(function, item)
            if running is not None:
                yield running.result()
            running = following
        if running is not None:
            yield running.result()
    finally:
        # Garbage is collected in whichever thread: given-up results maybe in their own, which cannot wait for itself.
        thread.shutdown(wait=threading.get_ident() not in own, cancel_futures=True)


class _Prepared(NamedTuple):
    """A row that waits for the tokenizer."""

    origin: str
    weight: float
    content: TokenRow | Rendering


def largest_conversation(max_length: int) -> int:
    """Characters of a conversation that is tokenised at all: 64 for each of `max_length` tokens, at least a million.

    In any language 64 characters are about 10 tokens or more, so that nearly all of a longer one would be cut off.

    >>> largest_conversation(2048), largest_conversation(131_072)
    (1048576, 8388608)
    """
    return max(1 << 20, 64 * max_length)


def _prepare(
    row: Row | Reject, template: ChatTemplate | None, format: FormatFunction | None, max_length: int
) -> _Prepared | Reject:
    if isinstance(row, Reject):
        return row
    try:
        weight = row_weight(row.fields)  # first: a user's format may change the fields
        example = parse(row.fields, row.format or format)
    except UserError as error:
        return _reject(row.origin, error, "other")
    if isinstance(example, TokenRow):
        return _Prepared(row.origin, weight, example)
    if template is None:
        raise UserError(f"{row.origin}: to encode text data.tokenizer must name a tokenizer")
    size = sum(len(message["content"]) + _MESSAGE for message in example)
    if size > (largest := largest_conversation(max_length)):
        reason = (
            f"the conversation has {size:,} characters, more than the {largest:,} that are tokenised for max_length "
            f"{max_length}, so that nearly all of it would be cut off; raise max_length or set overlong to drop"
        )
        return Reject(row.origin, "too long", reason)
    try:
        return _Prepared(row.origin, weight, template.render(example))
    except UserError as error:
        return _reject(row.origin, error, "template")


def _reject(origin: str, error: UserError, kind: RejectKind) -> Reject:
    """The reject for an error; `kind` if the error does not say its own."""
    return Reject(origin, error.kind if isinstance(error, RowError) else kind, str(error))


def _encode_chunk(
    batch: Sequence[_Prepared | Reject], template: ChatTemplate | None, max_length: int, overlong: Overlong
) -> EncodedRows:
    columns: dict[str, list[Any]] = {"ids": [], "lengths": [], "spans": [], "turns": [], "weights": [], "places": []}
    rejects: list[Reject] = []
    dropped = truncated = turns_lost = 0
    for place, (item, encoded) in enumerate(zip(batch, _tokenise(batch, template), strict=True)):
        cut = _cut(item.origin, encoded, max_length, overlong) if isinstance(encoded, Encoded) else encoded
        if isinstance(cut, Reject) and cut.kind == "too long":
            cut = _too_long(cut, overlong)
        if isinstance(cut, Reject):
            rejects.append(cut)
        elif cut is None:
            dropped += 1
        else:
            assert isinstance(item, _Prepared)
            columns["ids"].append(cut.ids)
            columns["lengths"].append(len(cut.ids))
            columns["spans"] += cut.spans
            columns["turns"].append(len(cut.spans))
            columns["weights"].append(item.weight)
            columns["places"].append(place)
            truncated += cut.truncated
            turns_lost += cut.turns_lost
    kept = len(batch) - dropped - len(rejects)
    kinds = Counter(reject.kind for reject in rejects)
    return from_columns(
        {
            "ids": np.concatenate([np.zeros(0, dtype=np.int32), *columns["ids"]]),
            "lengths": np.array(columns["lengths"], dtype=np.int64),
            "spans": np.array(columns["spans"], dtype=np.int32),
            "turns": np.array(columns["turns"], dtype=np.int64),
            "weights": np.array(columns["weights"], dtype=np.float32),
            "places": np.array(columns["places"], dtype=np.int64),
        },
        Counts(len(batch), kept, dropped, truncated, turns_lost, dict(kinds)),
        [reject for reject in rejects if reject.kind != "left out"],
    )


class _Cut(NamedTuple):
    """A row after its length was seen to."""

    ids: NDArray[np.int32]
    spans: list[Span]
    truncated: bool
    turns_lost: int


def _too_long(reject: Reject, overlong: Overlong) -> Reject | None:
    """What becomes of a row that is too long to be tokenised; None if it is dropped."""
    if overlong == "raise":
        raise UserError(f"{reject.origin}: {reject.reason}")
    return None if overlong == "drop" else reject


def _cut(origin: str, encoded: Encoded, max_length: int, overlong: Overlong) -> _Cut | Reject | None:
    """Cut a row if it is too long; None if it is dropped."""
    length = len(encoded.ids)
    too_long = length > max_length
    if too_long and overlong == "raise":
        raise UserError(
            f"{origin}: {length} tokens, more than max_length {max_length}; raise it, or set "
            "overlong to truncate, truncate_left or drop"
        )
    if too_long and overlong == "drop":
        return None
    first = length - max_length if too_long and overlong == "truncate_left" else 0
    last = min(length, first + max_length)
    whole, spans = _supervised_spans(encoded.spans, 0, length), _supervised_spans(encoded.spans, first, last)
    if not whole:
        return Reject(origin, "no supervised token", "the row has no supervised token")
    if not spans:
        return Reject(origin, "too long", _why_unsupervised(encoded, max_length, overlong))
    return _Cut(np.array(encoded.ids[first:last], dtype=np.int32), spans, too_long, len(whole) - len(spans))


def _supervised_spans(spans: Iterable[Span], first: int, last: int) -> list[Span]:
    """The spans inside the tokens from `first` to `last`, relative to `first`.

    A row's first token has nothing before it to be predicted from. A turn that the cut at `first` left without its
    first token, or without anything before it, would teach to begin an answer in its middle, or out of nothing.
    """
    whole = (span for span in spans if first == 0 or span[0] > first)
    clipped = ((max(start - first, 1), min(end, last) - first) for start, end in whole)
    return [(start, end) for start, end in clipped if start < end]


def _why_unsupervised(encoded: Encoded, max_length: int, overlong: Overlong) -> str:
    number = 0 if overlong == "truncate" else -1
    end = "first supervised one" if overlong == "truncate" else "last supervised turn's first one"
    return (
        f"truncation to max_length {max_length} removed all supervised tokens (the row has {len(encoded.ids)} tokens, "
        f"the {end} is number {encoded.spans[number][0] + 1}); raise max_length or set overlong to drop"
    )


def _tokenise(batch: Sequence[_Prepared | Reject], template: ChatTemplate | None) -> Iterator[Encoded | Reject]:
    """What each row of a batch is in tokens."""
    chats = [row for row in batch if isinstance(row, _Prepared) and not isinstance(row.content, TokenRow)]
    encoded = iter(_tokenise_chats(chats, template) if template is not None and chats else [])
    for row in batch:
        if isinstance(row, Reject):
            yield row
        elif isinstance(row.content, TokenRow):
            yield _encode_tokens(row.content)
        else:
            yield next(encoded)


def _tokenise_chats(rows: Sequence[_Prepared], template: ChatTemplate) -> list[Encoded | Reject]:
    renderings: list[Any] = [row.content for row in rows]
    try:
        return list(template.encode(renderings))
    except UserError as error:
        if len(rows) == 1:
            return [_reject(rows[0].origin, error, "template")]
    return [one for row in rows for one in _tokenise_chats([row], template)]  # to find the row


def _encode_tokens(row: TokenRow) -> Encoded:
    """Each run of supervised tokens counts as a turn."""
    learnt = np.concatenate([[0], np.asarray(row.labels) != IGNORE_INDEX, [0]]).astype(np.int8)
    edges = np.diff(learnt)
    return Encoded(
        row.input_ids,
        list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True)),
    )
