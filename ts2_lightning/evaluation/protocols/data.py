"""The rows of protocols: files of documented fields, or data sets of the hub."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ts2_lightning.data.files import expanded, readable
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.rows import LARGEST_ROW, SourceRow
from ts2_lightning.data.sources import HUB, Source, file_digest, read_rows, resolve_source
from ts2_lightning.types import UserError

_CSV, _TXT = ".csv", ".txt"
HALF = re.compile("[\ud800-\udfff]")
"""What JSON can write and no tokenizer reads: a surrogate by itself."""


@dataclass(frozen=True)
class DataSet:
    """Where a protocol's rows come from if the user names no file, and what they look like.

    Attributes:
        hub: name on the hub, `ORG/NAME`; empty for rows that are not there, which the user has to name.
        split: split on the hub.
        rows: number of questions there, for the estimate of the cost.
        fields: fields that are wanted, for people; several layouts with "or" between them.
        name: configuration on the hub, if there are several.
        home: where a file of rows that are not on the hub is published, for people.
    """

    hub: str
    split: str
    rows: int
    fields: str
    name: str | None = None
    home: str = ""

    def source(self, file: str | None) -> Source:
        """What is read: the user's file or `hub:ORG/NAME`, else the documented data set."""
        if file is None:
            return Source(f"{HUB}{self.hub}", split=self.split, name=self.name)
        return Source(file, split=self.split if file == f"{HUB}{self.hub}" else None)


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: place among the rows, from 0.
        origin: file and line, for messages.
        fields: value by the name of its field.
    """

    number: int
    origin: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field that has to be text.

        Raises:
            KeyError: there is no such field.
            ValueError: it is no text.
        """
        value = self.fields[name]
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text, got {str(value)[:60]!r}")
        if HALF.search(value):
            raise ValueError(f"{name} has half a character, {HALF.search(value)[0]!r}")  # type: ignore[index]
        return value


def read_data(data_set: DataSet, file: str | None, option: str, limit: int | None = None) -> list[Row]:
    """The rows of a protocol, in their order.

    Args:
        data_set: what is wanted.
        file: file, folder or `hub:ORG/NAME` that the user has named; None for the documented data set.
        option: name of the setting, for messages.
        limit: largest number of rows; nothing is read behind them.

    Raises:
        UserError: there are none, or one cannot be read: in one line that names the fields that are wanted.
    """
    rows = list(islice(_rows(_files(data_set, file, option), option), limit))
    if not rows:
        raise UserError(f"{option}: no rows in {file or data_set.hub}; wanted are rows with {data_set.fields}")
    return rows


def data_identity(data_set: DataSet, file: str | None, option: str) -> list[str]:
    """The digests of the files with the rows, wherever they lie.

    Raises:
        UserError: they are not there.
    """
    return [file_digest(path) for path in _files(data_set, file, option)]


def _files(data_set: DataSet, file: str | None, option: str) -> list[Path]:
    if file is None and not data_set.hub:
        raise UserError(
            f"{option}: these rows are on no hub; name a file of rows with {data_set.fields}, such as that of "
            f"{data_set.home}"
        )
    if file is not None and file.endswith((_CSV, _TXT)) and os.path.isfile(expanded(file, option)):
        return [expanded(file, option)]
    try:
        return resolve_source(data_set.source(file))
    except UserError as error:
        if file is None:
            raise UserError(f"{option}: {error}; or name a file of rows with {data_set.fields}") from error
        raise UserError(f"{option}: {error}; wanted are rows with {data_set.fields}") from error


def _rows(files: Sequence[Path], option: str) -> Iterator[Row]:
    readers = {_CSV: _read_csv, _TXT: _read_txt}
    read = (row for file in files for row in readers.get(file.suffix, read_rows)(file))
    for number, row in enumerate(read):
        if isinstance(row, Reject):
            raise UserError(f"{option} {row.origin}: {row.reason}")
        yield Row(number, row.origin, row.fields)


def _read_csv(path: Path) -> Iterator[SourceRow]:
    """The rows of a table with a header, which may begin with a byte-order mark."""
    csv.field_size_limit(LARGEST_ROW)
    with readable(path, "CSV", csv.Error, UnicodeDecodeError), open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        for fields in reader:
            origin = f"{path}:{reader.line_num}"
            if None in fields or None in fields.values():
                raise UserError(f"{origin}: a row of {len(reader.fieldnames or ())} columns was expected")
            yield SourceRow(fields, origin)


def _read_txt(path: Path) -> Iterator[SourceRow]:
    """The lines of a text, each with the field `text`; empty ones are left out."""
    with readable(path, "text", UnicodeDecodeError), open(path, encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield SourceRow({"text": line.strip()}, f"{path}:{number}")
