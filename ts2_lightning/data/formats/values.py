"""Values of rows: texts that can be tokenised, plain JSON that a template can be handed, and short words for both."""

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from ts2_lightning.types import RowError

LARGEST_VALUE = 1 << 20
"""Characters of a value that is handed to a template; each object, list and number in it counts as 8."""

_DEEPEST = 32  # objects in objects
_EACH = 8
_LARGEST_NUMBER = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """A value in one short line."""
    return _SHORT.repr(value)


def named(fields: Iterable[Any]) -> str:
    """The keys of a row in one short line."""
    keys = [key if key.isprintable() and len(key) <= 40 else shown(key) for key in map(str, fields)]
    return ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "") if keys else "(none)"


def is_filled(value: Any) -> bool:
    """Whether a field has a value: null, an empty text, list or object do not count (in Parquet every row has them).

    >>> is_filled(0), is_filled(False), is_filled(""), is_filled([]), is_filled(None)
    (True, True, False, False, False)
    """
    return not (value is None or (isinstance(value, str | list | tuple | Mapping) and not value))


def checked_text(value: Any, subject: str) -> str:
    """A string that UTF-8 can hold: JSON may write half of a surrogate pair, which no tokenizer takes.

    Raises:
        RowError: for anything else; the message names the subject.
    """
    if not isinstance(value, str):
        raise RowError(f"{subject} must be a string, got {shown(value)}", "wrong type")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = shown(value[error.start])
            raise RowError(f"{subject} has {half}, half of a surrogate pair and no character", "not UTF-8") from None
    return str.__str__(value)  # of a class of the user's it would have methods that a template may call


def plain(value: Any, subject: str, nulls: bool = False) -> Any:
    """A copy of a value that consists of nothing but plain JSON, of bounded size, so that a template may have it.

    Args:
        value: value from a row, which is not trusted.
        subject: name of the value in messages.
        nulls: whether to keep keys of objects whose value is null. They are left out otherwise: a Parquet file fills
            all objects of a column with the keys that any of them has.

    Raises:
        RowError: for anything else, half of a character, an endless number, or too much of it.

    Example:
        >>> plain({"name": "sum", "arguments": {"a": [1, None], "b": None}}, "tools")
        {'name': 'sum', 'arguments': {'a': [1, None]}}
    """
    left = [LARGEST_VALUE]
    return _plain(value, subject, nulls, _DEEPEST, left)


def _plain(value: Any, subject: str, nulls: bool, deeper: int, left: list[int]) -> Any:
    left[0] -= _EACH + (len(value) if isinstance(value, str) else 0)
    if left[0] < 0:
        raise RowError(f"{subject} has more than {LARGEST_VALUE:,} characters; shorten it", "too long")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return checked_text(value, subject)
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) >= _LARGEST_NUMBER:
            raise RowError(f"{subject}: {shown(value)} is no number of JSON with at most 64 bits", "wrong type")
        return float(value) if isinstance(value, float) else int(value)
    if not isinstance(value, list | tuple | Mapping):
        raise RowError(f"{subject} must be plain JSON, got {shown(value)} in it", "wrong type")
    if not deeper:
        raise RowError(f"{subject} is nested more than {_DEEPEST} times", "wrong type")
    if isinstance(value, Mapping):
        kept = {
            checked_text(key, f"{subject}: a key"): item for key, item in value.items() if nulls or item is not None
        }
        return {key: _plain(item, subject, nulls, deeper - 1, left) for key, item in kept.items()}
    return [_plain(item, subject, nulls, deeper - 1, left) for item in value]


def objects(value: Any, subject: str, remedy: str) -> list[dict[str, Any]]:
    """A list of objects; also as the JSON text of one, as which it lies in a table whose rows differ.

    Raises:
        RowError: for anything else; the message names the subject and the remedy.

    Example:
        >>> objects('[{"name": "sum"}]', "tools", "list functions")
        [{'name': 'sum'}]
    """
    read = from_json(value) if isinstance(value, str) else value
    if isinstance(read, Mapping):
        read = [read]
    if not isinstance(read, list | tuple) or not all(isinstance(item, Mapping) for item in read):
        raise RowError(f"{subject} must be a list of objects, got {shown(value)}; {remedy}", "wrong type")
    checked: list[dict[str, Any]] = plain(read, subject)
    return checked


def from_json(text: str) -> Any:
    """The value of a JSON text; None if it is malformed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
