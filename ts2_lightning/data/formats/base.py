"""What a format is, how a row finds its own, and what its result must be."""

import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ts2_lightning.data.files import reason_of
from ts2_lightning.data.naming import import_object, unknown_name
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import IGNORE_INDEX, RejectKind, RowError, UserError

ROLES = ("system", "user", "assistant", "tool")
WEIGHT = "weight"
"""The field of a row's weight, in every format."""

_LARGEST_ID = 2**31 - 1
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class TokenRow(NamedTuple):
    """A row that comes tokenised."""

    input_ids: list[int]
    labels: list[int]  # as input_ids, or IGNORE_INDEX where the token is not supervised


Example = list[Message] | TokenRow
"""What a row becomes: a conversation, which still needs a template, or tokens."""

FormatFunction = Callable[[Mapping[str, Any]], Example]


class Format(NamedTuple):
    """A registered format.

    Attributes:
        function: from a row's fields to an example; raises RowError without naming the row, the caller does.
        keys: fields that a row of this format has.
        fits: what else is true of a row of this format; its docstring says it, to follow the keys in a message.
    """

    function: FormatFunction
    keys: frozenset[str]
    fits: Callable[[Mapping[str, Any]], bool] | None = None

    def __str__(self) -> str:
        keys = " + ".join(sorted(self.keys))
        return f"{keys}, {self.fits.__doc__}" if self.fits and self.fits.__doc__ else keys


FORMATS: dict[str, Format] = {}
"""The known formats by name."""


def register_format(
    name: str, *keys: str, fits: Callable[[Mapping[str, Any]], bool] | None = None
) -> Callable[[FormatFunction], FormatFunction]:
    """Make a decorated function known as format `name`, found by `auto` in rows that have all `keys` and fit.

    Example:
        >>> @register_format("riddle", "riddle", "solution")
        ... def riddle(fields):
        ...     return [{"role": "user", "content": fields["riddle"]},
        ...             {"role": "assistant", "content": fields["solution"]}]
        >>> parse({"riddle": "What has keys?", "solution": "A piano."})[1]["content"]
        'A piano.'
        >>> _ = FORMATS.pop("riddle")
    """

    def register(function: FormatFunction) -> FormatFunction:
        FORMATS[name] = Format(function, frozenset(keys), fits)
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
        fields: the row.
        function: the format; None finds it by the row's fields.

    Raises:
        RowError: if no format or more than one fits, or the format gives no conversation that can be trained on.
    """
    function = function or detect(fields)
    try:
        example = function(fields)
        return checked_tokens(*example) if isinstance(example, TokenRow) else checked_messages(example)
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
        fields: the row as it was read, whatever its format makes of it.

    Returns:
        A finite float >= 0.

    Raises:
        RowError: without naming the row, the caller does; for anything else than a number that float32 can hold. True
            and false are no numbers.

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
    """The format that fits a row: of several, the one whose keys include those of all others.

    Raises:
        RowError: naming the keys found and the formats known if none fits, or the formats that fit if none of them
            includes the others.

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
    formats = ", ".join(f"{name} ({known})" for name, known in (fitting or FORMATS).items())
    if not fitting:
        raise RowError(f"no format fits a row with the keys {named(fields)}; known: {formats}", "missing field")
    if len(fitting) > 1:
        raise RowError(f"the row could be of several formats: {formats}; name the right one with format", "other")
    [known] = fitting.values()
    return known.function


def detected(fields: Mapping[str, Any]) -> Example:
    """The format `auto` as a function."""
    return detect(fields)(fields)


def _fitting(fields: Mapping[str, Any], present: Collection[str]) -> dict[str, Format]:
    """The formats whose keys are present and that fit; if the keys of one include those of all others, it alone."""
    fitting = {
        name: known
        for name, known in FORMATS.items()
        if known.keys.issubset(present) and (known.fits is None or known.fits(fields))
    }
    everything = frozenset().union(*(known.keys for known in fitting.values()))
    greatest = {name: known for name, known in fitting.items() if known.keys == everything}
    return greatest or fitting


def checked_tokens(ids: Any, labels: Any) -> TokenRow:
    """Token ids and their labels, checked.

    Raises:
        RowError: for anything else than token ids, and labels that neither repeat them nor are `IGNORE_INDEX`.
    """
    _check_integers("input_ids", ids)
    if labels is not ids:
        _check_integers("labels", labels)
    if not ids or min(ids) < 0 or max(ids) > _LARGEST_ID:
        raise RowError("input_ids must be at least one token id, none of them negative or above 2^31 - 1", "wrong type")
    if len(labels) != len(ids):
        raise RowError(f"labels must be as long as input_ids ({len(ids)}), got {len(labels)}", "wrong type")
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, IGNORE_INDEX):
            raise RowError(
                f"labels[{place}] is {shown(label)}: it must repeat input_ids[{place}] = {token} or be {IGNORE_INDEX} "
                "(labels are not shifted)",
                "wrong type",
            )
    return TokenRow(ids, labels)


def _check_integers(name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise RowError(f"{name} must be a list of integers, got {shown(value)}", "wrong type")


def checked_messages(value: Any) -> list[Message]:
    """The messages with only their roles and contents, checked.

    Raises:
        RowError: for a wrong shape or role, a content that is no text, no assistant turn, or an empty one; and for tool
            calls and weights of messages, which would be lost.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f"messages must be a list of at least one message, got {shown(value)}", "wrong type")
    messages = [_checked_message(message, number) for number, message in enumerate(value, start=1)]
    if all(message["role"] != "assistant" for message in messages):
        raise RowError("no message of the role assistant, so nothing to learn", "no supervised token")
    return messages


def _checked_message(message: Any, number: int) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        kind: RejectKind = "missing field" if isinstance(message, Mapping) else "wrong type"
        raise RowError(f"message {number} must be an object with role and content, got {shown(message)}", kind)
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in ROLES:
        hint = did_you_mean(role[:40], ROLES) if isinstance(role, str) else ""
        raise RowError(f"message {number}: unknown role {shown(role)}; known: {', '.join(ROLES)}{hint}", "unknown role")
    if message.get("tool_calls") or message.get(WEIGHT, 1) not in (1, None):
        lost = "tool_calls" if message.get("tool_calls") else f"a {WEIGHT} of its own"
        raise RowError(f"message {number} ({role}) has {lost}, which would be lost; write calls as content", "other")
    text = checked_text(content, f"message {number} ({role}): content")
    if role == "assistant" and not text.strip():
        raise RowError(f"message {number}: the assistant's answer is empty", "empty answer")
    return {"role": str.__str__(role), "content": text}


def checked_text(value: Any, what: str) -> str:
    """A string that UTF-8 can hold: JSON may write half of a surrogate pair, which no tokenizer takes.

    Raises:
        RowError: naming what it is.
    """
    if not isinstance(value, str):
        raise RowError(f"{what} must be a string, got {shown(value)}", "wrong type")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = shown(value[error.start])
            raise RowError(f"{what} has {half}, half of a surrogate pair and no character", "not UTF-8") from None
    return str.__str__(value)  # of a class of the user's it would have methods that a template may call


def shown(value: Any) -> str:
    """A value in one short line."""
    return _SHORT.repr(value)


def named(fields: Mapping[str, Any]) -> str:
    """The keys of a row in one short line."""
    keys = [key if key.isprintable() and len(key) <= 40 else shown(key) for key in map(str, fields)]
    return ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "") if keys else "(none)"
