"""Row formats: small pure functions from the fields of a row to a conversation (or to ready token ids).

A new format is a function `fields -> list of messages`: either register it with `register_format`, or name it by
its import path (`format: my_package.my_module.my_function`).

Whatever its format, a row may have a `weight`, a factor on its loss (`row_weight`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ts2_lightning.data.naming import import_object, unknown_name
from ts2_lightning.types import IGNORE_INDEX, UserError

ROLES = ("system", "user", "assistant")
WEIGHT = "weight"
"""The field of a row's weight, in every format."""

_LARGEST_WEIGHT = float(np.finfo(np.float32).max)


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
        function: from a row's fields to an example; raises UserError without naming the row, the caller does.
        keys: fields that a row of this format has; `auto` takes the first registered format whose keys it finds.
    """

    function: FormatFunction
    keys: frozenset[str]


FORMATS: dict[str, Format] = {}
"""The known formats by name, in the order in which `auto` tries them."""


def register_format(name: str, *keys: str) -> Callable[[FormatFunction], FormatFunction]:
    """Make a decorated function known as format `name`, found by `auto` in rows that have all `keys`.

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
        FORMATS[name] = Format(function, frozenset(keys))
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
        return import_object(name, "format")
    raise unknown_name("format", name, ["auto", *FORMATS])


def parse(fields: Mapping[str, Any], function: FormatFunction | None = None) -> Example:
    """Turn the fields of a row into a checked example.

    Args:
        fields: the row.
        function: the format; None finds it by the row's keys.

    Raises:
        UserError: if no format fits, or what the format gives is no conversation that can be trained on.
    """
    function = function or detect(fields)
    try:
        example = function(fields)
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a user's own function
        name = getattr(function, "__name__", str(function))
        raise UserError(f"the format {name} failed with {type(error).__name__}: {error}") from error
    if isinstance(example, TokenRow):
        return example
    return checked_messages(example)


def row_weight(fields: Mapping[str, Any]) -> float:
    """The factor on the loss of every supervised token of a row: its field `weight`, or 1.

    The divisor stays the number of supervised tokens of the optimizer step, whatever their weights: a row of weight 0
    teaches nothing, but its tokens still count in the divisor. A null is no weight (in Parquet every row has one).

    Args:
        fields: the row as it was read, whatever its format makes of it.

    Returns:
        A finite float >= 0.

    Raises:
        UserError: without naming the row, the caller does; for anything else than a number that float32 can hold. True
            and false are no numbers.

    Example:
        >>> row_weight({"prompt": "Hi", "completion": "Hello!", "weight": 0.5}), row_weight({"input_ids": [1, 2]})
        (0.5, 1.0)
    """
    value = fields.get(WEIGHT)
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LARGEST_WEIGHT:
        raise UserError(
            f"{WEIGHT}, the factor on the row's loss, must be a finite number of at least 0, got {_shown(value)}; "
            "rename the field if it means something else"
        )
    return float(value)


def detect(fields: Mapping[str, Any]) -> FormatFunction:
    """The first known format whose keys the row has.

    Raises:
        UserError: naming the keys found and the formats known.
    """
    for known in FORMATS.values():
        if known.keys <= fields.keys():
            return known.function
    formats = ", ".join(f"{name} ({' + '.join(sorted(known.keys))})" for name, known in FORMATS.items())
    raise UserError(f"no format fits a row with the keys {', '.join(fields) or '(none)'}; known: {formats}")


def checked_messages(value: Any) -> list[Message]:
    """The messages with only their roles and contents, checked.

    Raises:
        UserError: for a wrong shape or role, a content that is no string, no assistant turn, or an empty one.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"messages must be a list of at least one message, got {_shown(value)}")
    messages: list[Message] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(f"message {number} must be an object with role and content, got {_shown(message)}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(f"message {number}: " + str(unknown_name("role", str(role), ROLES)))
        if not isinstance(content, str):
            raise UserError(f"message {number} ({role}): content must be a string, got {_shown(content)}")
        if role == "assistant" and not content.strip():
            raise UserError(f"message {number}: the assistant's answer is empty")
        messages.append({"role": role, "content": content})
    if all(message["role"] != "assistant" for message in messages):
        raise UserError("no message of the role assistant, so nothing to learn")
    return messages


@register_format("tokens", "input_ids")
def tokens(fields: Mapping[str, Any]) -> TokenRow:
    """Rows already tokenised: `input_ids`, and `labels` that repeat them or are -100 where nothing is learnt.

    Without labels every token is supervised. No template is applied and nothing is added.
    """
    ids = _integers(fields, "input_ids")
    if not ids or min(ids) < 0:
        raise UserError("input_ids must be at least one token id, none of them negative")
    labels = _integers(fields, "labels") if fields.get("labels") is not None else ids
    if len(labels) != len(ids):
        raise UserError(f"labels must be as long as input_ids ({len(ids)}), got {len(labels)}")
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, IGNORE_INDEX):
            raise UserError(
                f"labels[{place}] is {label}: it must repeat input_ids[{place}] = {token} or be {IGNORE_INDEX} "
                "(labels are not shifted)"
            )
    return TokenRow(ids, labels)


@register_format("messages", "messages")
def messages(fields: Mapping[str, Any]) -> list[Message]:
    """`messages`: a list of objects with `role` (system, user, assistant) and `content`."""
    return _field(fields, "messages")


@register_format("prompt_completion", "prompt", "completion")
def prompt_completion(fields: Mapping[str, Any]) -> list[Message]:
    """`prompt` and `completion`: both strings, or both lists of messages."""
    prompt, completion = _field(fields, "prompt"), _field(fields, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion]
    return [_message("user", prompt, "prompt"), _message("assistant", completion, "completion")]


@register_format("alpaca", "instruction", "output")
def alpaca(fields: Mapping[str, Any]) -> list[Message]:
    """`instruction`, `output` and, if there is one, `input`, which follows the instruction after a blank line."""
    user = _message("user", _field(fields, "instruction"), "instruction")
    extra = fields.get("input")
    if extra:
        user["content"] += "\n\n" + _message("user", extra, "input")["content"]
    return [user, _message("assistant", _field(fields, "output"), "output")]


def _field(fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise UserError(f"the field {key} is missing; the row has {', '.join(fields) or 'no fields'}")
    return fields[key]


def _message(role: str, content: Any, field: str) -> Message:
    if not isinstance(content, str):
        raise UserError(f"{field} must be a string, got {_shown(content)}")
    return {"role": role, "content": content}


def _integers(fields: Mapping[str, Any], key: str) -> list[int]:
    value = _field(fields, key)
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise UserError(f"{key} must be a list of integers, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
