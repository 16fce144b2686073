"""From rows to token ids and the spans of tokens that are learnt."""

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ts2_lightning.data.counts import Counts, most_frequent
from ts2_lightning.data.encoded_rows import EncodedRows, from_columns, join_chunks
from ts2_lightning.data.formats import Conversation, FormatFunction, TokenRow, parse, row_weight
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.rendering import Rendering, Span
from ts2_lightning.data.rows import SourceRow
from ts2_lightning.data.templates import ChatTemplate, Encoded
from ts2_lightning.types import IGNORE_INDEX, RejectKind, RowError, UserError

Overlong = Literal["truncate", "truncate_left", "drop", "raise"]
"""Treatment of a row longer than the maximum: cut its end off, cut its beginning off, leave it out, or stop."""

_BATCH = 256  # rows per call of the tokenizer, which spreads them over its threads
_CHARACTERS = 1 << 20  # of the texts of a call, of which so many may be fewer: each takes the tokenizer 40 bytes
_MESSAGE = 64  # characters that a message counts as besides its own

T = TypeVar("T")
U = TypeVar("U")


def encode_rows(
    rows: Iterable[SourceRow | Reject],
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

    If a template writes a turn otherwise once others follow it (see `text_layout`), a row may become several texts.
    Each of them is a row of the result, with the same place; `counts.unrolled` is their number beyond one per row.

    A row that is too long by far (`largest_conversation`, and `rows.LARGEST_ROW` in its file) is not tokenised: it is
    dropped with `overlong` "drop", and rejected as too long where it would be cut.

    Args:
        rows: rows as they were read; rejects among them are passed on.
        template: chat template of the conversations; rows of the format `tokens` need none.
        format: function from fields to an example, for rows without a format of their own; None detects it row by row.
        max_length: tokens of a row, at most.
        overlong: treatment of longer rows: cut at their end or at their beginning, left out, or an error.

    Raises:
        UserError: if text comes without a template; if a row is too long and `overlong` is `raise`.

    Example:
        >>> row = SourceRow({"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9]}, "x.jsonl:1")
        >>> for overlong in ("truncate", "truncate_left"):
        ...     rows = encode_rows([row], None, max_length=4, overlong=overlong)
        ...     rows[0].ids.tolist(), rows[0].spans.tolist(), rows.counts.turns_lost
        ([5, 6, 7, 8], [[1, 2], [3, 4]], 0)
        ([6, 7, 8, 9], [[2, 4]], 1)
    """
    return join_chunks(encode_chunks(rows, template, format, max_length, overlong))


def encode_chunks(
    rows: Iterable[SourceRow | Reject],
    template: ChatTemplate | None,
    format: FormatFunction | None = None,
    max_length: int = 2048,
    overlong: Overlong = "truncate",
) -> Iterator[EncodedRows]:
    """Encode some rows at a time, as `encode_rows` does; yields at least one chunk, which may be empty."""
    # Once the tokenizer has used threads, a forked data worker would warn. One that tokenises does without threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    batches = _batches(_prepare(row, template, format, max_length) for row in rows)
    encode = partial(_encode_chunk, template=template, max_length=max_length, overlong=overlong)
    yield encode([])
    yield from _overlapped(encode, batches)


def _batches(rows: Iterable["_Prepared | Reject"]) -> Iterator[list["_Prepared | Reject"]]:
    batch, characters = list["_Prepared | Reject"](), 0
    for row in rows:
        batch.append(row)
        if isinstance(row, _Prepared):
            characters += sum(len(text.text) for text in row.contents if isinstance(text, Rendering))
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
        # An abandoned generator may be collected in the worker thread, which cannot wait for itself.
        thread.shutdown(wait=threading.get_ident() not in own, cancel_futures=True)


class _Prepared(NamedTuple):
    """A row that waits for the tokenizer.

    Attributes:
        origin: origin of the row, see `SourceRow`.
        weight: factor on the losses of its tokens.
        contents: its tokens, or the texts of a conversation, mostly one.
        thinks: whether its last learnt turn has a thought.
        masked: number of its assistant turns that are marked as not to be learnt.
        unused: names of its fields that are filled, but not used.
    """

    origin: str
    weight: float
    contents: tuple[TokenRow | Rendering, ...]
    thinks: bool = False
    masked: int = 0
    unused: tuple[str, ...] = ()


def largest_conversation(max_length: int) -> int:
    """Characters of a conversation that is tokenised at all: 64 for each of `max_length` tokens, at least a million.

    In any language 64 characters are about 10 tokens or more, so that nearly all of a longer one would be cut off.

    >>> largest_conversation(2048), largest_conversation(131_072)
    (1048576, 8388608)
    """
    return max(1 << 20, 64 * max_length)


def _prepare(
    row: SourceRow | Reject, template: ChatTemplate | None, format: FormatFunction | None, max_length: int
) -> _Prepared | Reject:
    if isinstance(row, Reject):
        return row
    try:
        weight = row_weight(row.fields)  # first: a user's format may change the fields
        example = parse(row.fields, row.format or format)
    except UserError as error:
        return _reject(row.origin, error, "other")
    if isinstance(example, TokenRow):
        return _Prepared(row.origin, weight, (example,), unused=example.unused)
    if template is None:
        raise UserError(f"{row.origin}: to encode text data.tokenizer must name a tokenizer")
    if (size := _size(example)) > (largest := largest_conversation(max_length)):
        reason = (
            f"the conversation has {size:,} characters, more than the {largest:,} that are tokenised for max_length "
            f"{max_length}, so that nearly all of it would be cut off; raise max_length or set overlong to drop"
        )
        return Reject(row.origin, "too long", reason)
    try:
        rendered = template.unroll(example)
    except UserError as error:
        return _reject(row.origin, error, "template")
    unused = (*example.unused, *rendered.unused)
    masked = sum(message.get("trained") is False for message in example.messages)
    return _Prepared(row.origin, weight, rendered.renderings, rendered.thinks, masked, unused)


def _size(conversation: Conversation) -> int:
    """Characters of all that a row hands to a template."""
    texts = sum(len(message["content"]) + _MESSAGE for message in conversation.messages)
    texts += sum(len(message.get("reasoning_content", "")) for message in conversation.messages)
    more = [conversation.tools, conversation.documents, conversation.arguments]
    calls = [message["tool_calls"] for message in conversation.messages if "tool_calls" in message]
    return texts + (len(json.dumps([more, calls])) if calls or any(more) else 0)


def _reject(origin: str, error: UserError, kind: RejectKind) -> Reject:
    """The reject for an error; of `kind` if the error has no kind of its own."""
    return Reject(origin, error.kind if isinstance(error, RowError) else kind, str(error))


def _encode_chunk(
    batch: Sequence[_Prepared | Reject], template: ChatTemplate | None, max_length: int, overlong: Overlong
) -> EncodedRows:
    columns: dict[str, list[Any]] = {"ids": [], "lengths": [], "spans": [], "turns": [], "weights": [], "places": []}
    kept, dropped, rejects = list[tuple[_Prepared, _Fitted]](), 0, list[Reject]()
    for place, (item, encoded) in enumerate(zip(batch, _tokenise(batch, template), strict=True)):
        fate = encoded if isinstance(encoded, Reject) else _fit(item.origin, encoded, max_length, overlong)
        if isinstance(fate, Reject) and fate.kind == "too long":
            fate = _too_long(fate, overlong)
        if isinstance(fate, Reject):
            rejects.append(fate)
        elif fate is None:
            dropped += 1
        else:
            assert isinstance(item, _Prepared)
            for cut in fate.texts:
                columns["ids"].append(cut.ids)
                columns["lengths"].append(len(cut.ids))
                columns["spans"] += cut.spans
                columns["turns"].append(len(cut.spans))
                columns["weights"].append(item.weight)
                columns["places"].append(place)
            kept.append((item, fate))
    kinds = Counter(reject.kind for reject in rejects)
    counts = replace(_counts_of(kept), read=len(batch), dropped=dropped, rejected=dict(kinds))
    return from_columns(
        {
            "ids": np.concatenate([np.zeros(0, dtype=np.int32), *columns["ids"]]),
            "lengths": np.array(columns["lengths"], dtype=np.int64),
            "spans": np.array(columns["spans"], dtype=np.int32),
            "turns": np.array(columns["turns"], dtype=np.int64),
            "weights": np.array(columns["weights"], dtype=np.float32),
            "places": np.array(columns["places"], dtype=np.int64),
        },
        counts,
        [reject for reject in rejects if reject.kind != "left out"],
    )


def _counts_of(kept: Sequence[tuple[_Prepared, "_Fitted"]]) -> Counts:
    """The counts of rows that are kept."""
    texts = [text for _, fitted in kept for text in fitted.texts]
    return Counts(
        kept=len(kept),
        unrolled=sum(len(fitted.texts) - 1 for _, fitted in kept),
        truncated=sum(fitted.truncated for _, fitted in kept),
        turns_lost=sum(fitted.turns_lost for _, fitted in kept),
        masked=sum(row.masked for row, _ in kept),
        thoughts=sum(row.thinks for row, _ in kept),
        unused=most_frequent(Counter(name for row, _ in kept for name in row.unused)),
        weighted=sum(bool(np.float32(row.weight) != 1) for row, _ in kept),
        tokens=sum(len(text.ids) for text in texts),
        supervised_tokens=sum(end - start for text in texts for start, end in text.spans),
    )


class _Fitted(NamedTuple):
    """A row whose texts were cut to the maximum length, with at least one text left."""

    texts: list["_Cut"]
    truncated: bool
    turns_lost: int


class _Cut(NamedTuple):
    """A text of a row, cut to the maximum length."""

    ids: NDArray[np.int32]
    spans: list[Span]
    truncated: bool
    turns_lost: int


def _too_long(reject: Reject, overlong: Overlong) -> Reject | None:
    """The reject of a row that is too long to be tokenised; None if it is dropped."""
    if overlong == "raise":
        raise UserError(f"{reject.origin}: {reject.reason}")
    return None if overlong == "drop" else reject


def _fit(origin: str, encoded: Sequence[Encoded], max_length: int, overlong: Overlong) -> _Fitted | Reject | None:
    """Cut the texts of a row that are too long; if none is left, the outcome for the last one, which is the longest."""
    fates = [_cut(origin, text, max_length, overlong) for text in encoded]
    texts = [fate for fate in fates if isinstance(fate, _Cut)]
    if not texts:
        fate = fates[-1]
        assert not isinstance(fate, _Cut)
        return fate
    lost = sum(len(text.spans) for text, fate in zip(encoded, fates, strict=True) if not isinstance(fate, _Cut))
    cut_away = len(texts) < len(fates) and overlong != "drop"  # a text that is dropped as a whole cuts no other
    truncated = cut_away or any(text.truncated for text in texts)
    return _Fitted(texts, truncated, lost + sum(text.turns_lost for text in texts))


def _cut(origin: str, encoded: Encoded, max_length: int, overlong: Overlong) -> _Cut | Reject | None:
    """Cut a text if it is too long; None if it is dropped."""
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


def _tokenise(batch: Sequence[_Prepared | Reject], template: ChatTemplate | None) -> Iterator[list[Encoded] | Reject]:
    """The tokens of each row of a batch."""
    chats = [row for row in batch if isinstance(row, _Prepared) and isinstance(row.contents[0], Rendering)]
    encoded = iter(_tokenise_chats(chats, template) if template is not None and chats else [])
    for row in batch:
        if isinstance(row, Reject):
            yield row
        elif isinstance(content := row.contents[0], TokenRow):
            yield [_encode_tokens(content)]
        else:
            yield next(encoded)


def _tokenise_chats(rows: Sequence[_Prepared], template: ChatTemplate) -> list[list[Encoded] | Reject]:
    renderings: list[Any] = [text for row in rows for text in row.contents]
    try:
        encoded = iter(template.encode(renderings))
        return [[next(encoded) for _ in row.contents] for row in rows]
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
