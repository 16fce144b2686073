"""Rows from tables: Parquet, and both layouts of Arrow. A file's own metadata are checked before they are used."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, types

from ts2_lightning.data.files import readable, reason_of
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.rows import LARGEST_ROW, SourceRow, as_row, too_large
from ts2_lightning.types import RejectKind, RowError, UserError

_BATCH = 1024  # rows that are turned into objects at once, if they have no more bytes than a single one may have
_DAMAGE = (pyarrow.ArrowException, UnicodeDecodeError)  # the latter: names of columns
_AGAIN = "fetch or write the file again"


def read_parquet(path: Path) -> Iterator[SourceRow | Reject]:
    """The rows of a Parquet file.

    Raises:
        UserError: naming the file, if it is damaged or has a column twice.
    """
    with readable(path, "Parquet", *_DAMAGE), _parquet(path) as file:
        about = file.metadata
        _check_count(path, about.num_rows)
        size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        rows = max(1, min(_BATCH, about.num_rows * LARGEST_ROW // max(size, 1)))
        yield from _rows(path, file.schema_arrow, file.iter_batches(batch_size=rows), about.num_rows)


def count_parquet(path: Path) -> int:
    """The number of rows that a Parquet file states."""
    with readable(path, "Parquet", *_DAMAGE), _parquet(path) as file:
        return int(file.metadata.num_rows)


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path, page_checksum_verification=True)


def read_arrow(path: Path) -> Iterator[SourceRow | Reject]:
    """The rows of an Arrow file of either layout: with contents listed at its end, or a stream, as `datasets` writes.

    Raises:
        UserError: naming the file, if it is damaged, ends too early, goes on behind its end, or has a column twice.
    """
    # Not mapped into memory: a file that is cut while it is read would end the process.
    with readable(path, "Arrow", *_DAMAGE), pyarrow.OSFile(str(path)) as file:
        yield from _rows(path, *_arrow(path, file))


def count_arrow(path: Path) -> int:
    """The number of rows of an Arrow file."""
    with readable(path, "Arrow", *_DAMAGE), pyarrow.memory_map(str(path)) as file:
        return sum(batch.num_rows for batch in _arrow(path, file)[1])


def _arrow(path: Path, file: Any) -> tuple[Any, Iterator[Any]]:
    """Schema and batches."""
    if file.read(6) == b"ARROW1":
        reader = ipc.open_file(file)
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    file.seek(0)
    stream = ipc.open_stream(file)
    return stream.schema, _stream_batches(path, file, stream)


def _stream_batches(path: Path, file: Any, stream: Any) -> Iterator[Any]:
    place, batches = file.tell(), 0
    for batch in stream:
        yield batch
        place, batches = file.tell(), batches + 1
    # Only this shows that a stream was cut between two batches.
    if file.tell() == place:
        raise UserError(f"{path}: the Arrow stream ends after batch {batches}, without its end marker; {_AGAIN}")
    if behind := file.size() - file.tell():
        raise UserError(f"{path}: {behind:,} bytes follow the end of the Arrow stream; {_AGAIN}")


# Checks of a table ----------------------------------------------------------------------------------------------------


def _check_count(path: Path, rows: int) -> None:
    """Rows of nothing take no place in a file, so that a damaged number could keep us reading for ever."""
    if rows > 10**6 + 1000 * path.stat().st_size:
        raise UserError(f"{path}: {rows:,} rows cannot be in {path.stat().st_size:,} bytes; {_AGAIN}")


def _check_columns(path: Path, fields: Iterable[Any], inside: str = "") -> None:
    fields = list(fields)
    [(name, times)] = Counter(field.name for field in fields).most_common(1) or [("", 1)]
    if times > 1:
        raise UserError(
            f"{path}: the column {inside + name!r} comes {times} times; write each once, under its own name"
        )
    for field in fields:
        kind = field.type
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        _check_columns(path, (kind.field(number) for number in range(kind.num_fields)), f"{inside}{field.name}.")


def _check_batch(path: Path, number: int, first: int, batch: Any) -> None:
    """Check a batch as a whole: offsets that lead out of its memory would end the process."""
    _check_count(path, batch.num_rows)
    try:
        for column in batch.columns:
            column.validate()
            _as_bytes(column).validate(full=True)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: batch {number}, from row {first} on, is damaged ({reason_of(error)}); {_AGAIN}"
        ) from None


def _as_bytes(column: Any) -> Any:
    """A column in which a text is any bytes: one that is not UTF-8 makes a bad row, not a damaged file."""
    try:
        return column.view(_bytes_type(column.type))
    except pyarrow.ArrowException:  # a layout that has no views
        return column


def _bytes_type(kind: Any) -> Any:
    if types.is_string(kind) or types.is_large_string(kind):
        return pyarrow.large_binary() if types.is_large_string(kind) else pyarrow.binary()
    if types.is_struct(kind):
        return pyarrow.struct([_bytes_field(kind.field(number)) for number in range(kind.num_fields)])
    if types.is_list(kind) or types.is_large_list(kind):
        make = pyarrow.large_list if types.is_large_list(kind) else pyarrow.list_
        return make(_bytes_field(kind.value_field))
    return kind


def _bytes_field(field: Any) -> Any:
    return field.with_type(_bytes_type(field.type))


# Rows -----------------------------------------------------------------------------------------------------------------


def _rows(path: Path, schema: Any, batches: Iterable[Any], count: int | None = None) -> Iterator[SourceRow | Reject]:
    _check_columns(path, schema)
    decode = _decoder(path, schema)
    first = 1
    for number, batch in enumerate(batches, start=1):
        _check_batch(path, number, first, batch)
        for start in range(0, batch.num_rows, _BATCH):
            for value in _values(batch.slice(start, _BATCH), decode):
                yield as_row(f"{path}, row {first}", value)
                first += 1
    if count is not None and first - 1 != count:
        raise UserError(f"{path}: says that it has {count:,} rows, but has {first - 1:,}; {_AGAIN}")


def _decoder(path: Path, schema: Any) -> Callable[[Any], Any]:
    """The function that undoes `datasets`' feature `Json`, which keeps objects of varying fields as JSON texts."""
    if b'"Json"' not in (schema.metadata or {}).get(b"huggingface", b""):
        return lambda value: value
    from datasets import Features

    try:
        return Features.from_arrow_schema(schema).decode_example
    except Exception as error:  # whatever the text about the features is
        raise UserError(f"{path}: what it says of its features is damaged ({reason_of(error)}); {_AGAIN}") from None


def _values(batch: Any, decode: Callable[[Any], Any]) -> Iterator[Any]:
    """The fields of each row, or a RowError for a bad one."""
    many = batch.num_rows > 1
    if batch.nbytes > LARGEST_ROW:
        yield from _halves(batch, decode) if many else [too_large(batch.nbytes)]
        return
    try:
        values = [decode(value) for value in batch.to_pylist()]
    # A text that is not UTF-8, a date that Python does not have, a JSON text of `datasets` that is none.
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        kind: RejectKind = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "wrong type"
        yield from _halves(batch, decode) if many else [RowError(reason_of(error), kind)]
    else:
        yield from values


def _halves(batch: Any, decode: Callable[[Any], Any]) -> Iterator[Any]:
    half = batch.num_rows // 2
    return itertools.chain(_values(batch.slice(0, half), decode), _values(batch.slice(half), decode))
