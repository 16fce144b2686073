"""The registry of row formats, and the choice of a row's format."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ts2_lightning.data.files import reason_of
from ts2_lightning.data.formats.parsing import Example, Result, checked, complete
from ts2_lightning.data.formats.values import named, shown
from ts2_lightning.data.naming import import_object, unknown_name
from ts2_lightning.types import RejectKind, RowError, UserError

WEIGHT = "weight"
"""The field of a row's weight, in every format."""

_LARGEST_WEIGHT = float(np.finfo(np.float32).max)

FormatFunction = Callable[[Mapping[str, Any]], Result]


class Format(NamedTuple):
    """A registered format.

    Attributes:
        function: function from a row's fields to an example; its RowErrors do not name the row, which the caller does.
        keys: names of the fields that every row of this format has.
        fits: further condition on the fields; its docstring states it, and follows the keys in messages.
        reads: names of further fields that it reads; None for a function of the user, which alone decides what it uses.
            With a format of the package, fields that are not read are listed or refused (see `fields`).
        asks: whether a row is a question and an answer, so that other fields may belong to the question.
    """

    function: FormatFunction
    keys: frozenset[str]
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    reads: frozenset[str] | None = None
    asks: bool = False

    def __str__(self) -> str:
        keys = " + ".join(sorted(self.keys))
        return f"{keys}, {self.fits.__doc__}" if self.fits and self.fits.__doc__ else keys


FORMATS: dict[str, Format] = {}
"""The registered formats by name."""


def register_format(
    name: str,
    *keys: str,
    fits: Callable[[Mapping[str, Any]], bool] | None = None,
    reads: Collection[str] | None = None,
    asks: bool = False,
) -> Callable[[FormatFunction], FormatFunction]:
    """Register a decorated function as format `name`, which `auto` takes for rows that have all `keys` and fit.

    Args:
        name: name of the format.
        keys: names of the fields that every row of this format has.
        fits: further condition on the fields; its docstring states it, and follows the keys in messages.
        reads: names of further fields that it reads. With them, even none, the row's other fields are treated as
            `fields` says: a `system` text becomes a turn, `tools` go to the template. None lets the function decide.
        asks: whether a row is a question and an answer.

    Example:
        >>> @register_format("riddle", "riddle", "solution")
        ... def riddle(fields):
        ...     return [{"role": "user", "content": fields["riddle"]},
        ...             {"role": "assistant", "content": fields["solution"]}]
        >>> parse({"riddle": "What has keys?", "solution": "A piano."}).messages[1]["content"]
        'A piano.'
        >>> _ = FORMATS.pop("riddle")
    """

    def register(function: FormatFunction) -> FormatFunction:
        FORMATS[name] = Format(function, frozenset(keys), fits, None if reads is None else frozenset(reads), asks)
        return function

    return register


def get_format(name: str) -> FormatFunction | None:
    """The format of that name or import path; None for `auto`, which decides row by row.

    Raises:
        UserError: if there is none.
    """
    if name == "auto":
        return None
    if name in FORMATS:
        return FORMATS[name].function
    if "." in name:
        function = import_object(name, "format")
        if not callable(function):
            raise UserError(f"format {name!r} is no function from a row's fields to messages, but {shown(function)}")
        return function
    raise unknown_name("format", name, ["auto", *FORMATS])


def parse(fields: Mapping[str, Any], function: FormatFunction | None = None) -> Example:
    """Turn the fields of a row into a checked example.

    Args:
        fields: fields of the row.
        function: function of the format; None detects the format from the fields.

    Raises:
        RowError: if no format or more than one fits, or the format gives no conversation that can be trained on.
    """
    function = detect(fields) if function is None or function is detected else function
    registered = next((registered for registered in FORMATS.values() if registered.function is function), None)
    try:
        if registered is None or registered.reads is None:
            return checked(function(fields))
        return complete(function(fields), fields, registered.keys | registered.reads, registered.asks)
    except UserError:
        raise
    except Exception as error:  # a user's own function may fail in any way on a row that it does not expect
        name = getattr(function, "__name__", None) or shown(function)
        kind: RejectKind = "missing field" if isinstance(error, KeyError) else "other"
        raise RowError(f"the format {name} failed with {type(error).__name__}: {reason_of(error)}", kind) from error


def row_weight(fields: Mapping[str, Any]) -> float:
    """The factor on the loss of every supervised token of a row: its field `weight`, or 1.

    The divisor stays the number of supervised tokens of the optimizer step, whatever their weights: a row of weight 0
    teaches nothing, but its tokens still count in the divisor. A null is no weight (in Parquet every row has one).

    Args:
        fields: fields of the row as it was read, whatever its format makes of them.

    Returns:
        A finite float >= 0.

    Raises:
        RowError: for anything but a number that float32 can hold, without the row's name, which the caller adds. True
            and false are not numbers.

    Example:
        >>> row_weight({"prompt": "Hi", "completion": "Hello!", "weight": 0.5}), row_weight({"input_ids": [1, 2]})
        (0.5, 1.0)
    """
    value = fields.get(WEIGHT)
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LARGEST_WEIGHT:
        raise RowError(
            f"{WEIGHT}, the factor on the row's loss, must be a finite number of at least 0, got {shown(value)}; "
            "rename the field if it means something else",
            "wrong type",
        )
    return float(value)


def detect(fields: Mapping[str, Any]) -> FormatFunction:
    """The format that fits a row; of several formats, the one whose keys include those of all others.

    Raises:
        RowError: if none fits, with the row's keys and all formats; if none of several includes the others, with those.

    Example:
        >>> detect({"messages": [], "problem": "1 + 1?", "solution": "2"}).__name__
        'numina_math'
        >>> detect({"messages": [], "instruction": "1 + 1?", "output": "2"})
        Traceback (most recent call last):
        ts2_lightning.types.RowError: the row could be of several formats: messages (messages), alpaca \
(instruction + output); name the right one with format
    """
    present = {key for key, value in fields.items() if value is not None}
    fitting = _fitting(fields, present) or _fitting(fields, fields.keys())
    formats = ", ".join(f"{name} ({entry})" for name, entry in (fitting or FORMATS).items())
    if not fitting:
        raise RowError(f"no format fits a row with the keys {named(fields)}; known: {formats}", "missing field")
    if len(fitting) > 1:
        raise RowError(f"the row could be of several formats: {formats}; name the right one with format", "other")
    [entry] = fitting.values()
    return entry.function


def detected(fields: Mapping[str, Any]) -> Result:
    """The format `auto` as a function."""
    return detect(fields)(fields)


def _fitting(fields: Mapping[str, Any], present: Collection[str]) -> dict[str, Format]:
    """The formats whose keys are present and that fit; if the keys of one include those of all others, it alone."""
    fitting = {
        name: entry
        for name, entry in FORMATS.items()
        if entry.keys.issubset(present) and (entry.fits is None or entry.fits(fields))
    }
    everything = frozenset().union(*(entry.keys for entry in fitting.values()))
    greatest = {name: entry for name, entry in fitting.items() if entry.keys == everything}
    return greatest or fitting
