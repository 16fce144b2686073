"""A row as it was read, before it has a format."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ts2_lightning.data.formats import FormatFunction
from ts2_lightning.data.rejects import Reject
from ts2_lightning.types import RowError

LARGEST_ROW = 1 << 25
"""Bytes of a row as it lies in a file, with all of its fields; a longer one is refused before it is read whole."""


class SourceRow(NamedTuple):
    """One row as it was read."""

    fields: Mapping[str, Any]
    origin: str  # "file:line", 1-based; for tables and for JSON lists the row's number instead of the line
    format: FormatFunction | None = None  # the source's own format; None: that of the other rows


def as_row(origin: str, value: Any) -> SourceRow | Reject:
    """The row of a value that was read; a reject if the value is a RowError or no object."""
    if isinstance(value, RowError):
        return Reject(origin, value.kind, str(value))
    if not isinstance(value, dict):
        return Reject(origin, "not an object", f"a row must be a JSON object with fields, got {kind_of(value)}")
    return SourceRow(value, origin)


def kind_of(value: Any) -> str:
    """The type of a JSON value, in words."""
    names = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def too_large(size: int) -> RowError:
    """The error for a row of so many bytes."""
    most = f"more than the {LARGEST_ROW:,} that a row may have"
    return RowError(f"the row has {size:,} bytes, {most}; shorten it or set overlong to drop", "too long")
