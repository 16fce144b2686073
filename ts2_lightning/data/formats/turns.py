"""One turn of a conversation: from the forms of the usual tools to the form that a template takes."""

from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

from ts2_lightning.data.formats.fields import THOUGHTS, TURN, Fate, sorted_out
from ts2_lightning.data.formats.values import checked_text, from_json, is_filled, objects, plain, shown
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import RejectKind, RowError

ROLES = ("system", "user", "assistant", "tool")

_SYNONYMS = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_CALL = "function_call"  # a role of LLaMA-Factory's ShareGPT: a turn of the assistant whose text is a call
_ALL_ROLES = (*ROLES, *_SYNONYMS, _CALL)
_PARTS = {"text": "text", "output_text": "text", "input_text": "text", "thinking": "thinking", "reasoning": "thinking"}
_ROLE_AND_TEXT = {"role", "content"}
_CALLS_REMEDY = 'write {"name": ..., "arguments": {...}} for each'


class Message(TypedDict):
    """One turn of a conversation.

    `trained` is false for a turn of the assistant that is not learnt; without the key it is. `reasoning_content` is the
    thought before the content; `tool_calls` are in OpenAI's form, with arguments as objects.
    """

    role: str
    content: str
    trained: NotRequired[bool]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


def checked_turn(turn: Any, number: int, unused: set[str]) -> Message:
    """A checked turn, with all of its fields that are used.

    Args:
        turn: object with `role` and `content`, or `from` and `value`, and the fields of `fields.TURN`.
        number: number of the turn, from 1, for messages.
        unused: set to which the names of filled fields that are not used are added.

    Raises:
        RowError: for a wrong shape or role, a content that is not text, an empty answer, an invalid training flag, and
            a field that is refused.

    Example:
        >>> checked_turn({"from": "gpt", "value": "Hi", "weight": 0}, 2, set())
        {'role': 'assistant', 'content': 'Hi', 'trained': False}
    """
    if (simple := _simple(turn, number)) is not None:
        return simple
    role, calls_in_content = _role(turn, number)
    subject = f"message {number} ({role})"
    text, thought = _texts(turn, subject)
    calls = _calls(turn, text if calls_in_content else None, subject)
    message: Message = {"role": role, "content": "" if calls_in_content else text}
    if (trained := _trained(turn, role, subject)) is not None:
        message["trained"] = trained
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    if role != "assistant" and (thought or calls):
        raise RowError(f"{subject} has {'calls' if calls else 'a thought'}, but only the assistant has any", "other")
    for name in ("name", "tool_call_id"):
        if is_filled(turn.get(name)):
            message[name] = checked_text(turn[name], f"{subject}: {name}")
    if role == "assistant" and not calls and not message["content"].strip():
        raise RowError(f"message {number}: the assistant's answer is empty", "empty answer")
    unused.update(f"turns.{name}" for name in sorted_out(turn, TURN, (), f"{subject}: "))
    return message


def _simple(turn: Any, number: int) -> Message | None:
    """A turn that is a role and a text, as nearly all are; None if it may be more, or wrong."""
    if type(turn) is not dict or turn.keys() != _ROLE_AND_TEXT:
        return None
    role, text = turn["role"], turn["content"]
    if type(role) is not str or role not in ROLES or type(text) is not str or not text.strip():
        return None
    return {"role": role, "content": checked_text(text, f"message {number} ({role}): content")}


def _role(turn: Any, number: int) -> tuple[str, bool]:
    """The role of a turn, and whether its content is a call."""
    is_object = isinstance(turn, Mapping)
    role = _one_of(turn, ("role", "from"), f"message {number}") if is_object else None
    if role is None or (not any(name in turn for name in ("content", "value")) and not _has_calls(turn)):
        kind: RejectKind = "missing field" if is_object else "wrong type"
        subject = f"message {number} must be an object with role and content, or from and value"
        raise RowError(f"{subject}, got {shown(turn)}", kind)
    if not isinstance(role, str) or role not in _ALL_ROLES:
        hint = did_you_mean(role[:40], _ALL_ROLES) if isinstance(role, str) else ""
        names = ", ".join(_ALL_ROLES)
        raise RowError(f"message {number}: unknown role {shown(role)}; known: {names}{hint}", "unknown role")
    if role == _CALL:
        return "assistant", True
    return _SYNONYMS.get(role, str.__str__(role)), False


def is_answer(turn: Mapping[str, Any]) -> bool:
    """Whether a turn, whatever else is wrong with it, is the assistant's.

    >>> is_answer({"from": "gpt", "value": "Hi"}), is_answer({"role": "user"}), is_answer({"role": ["?"]})
    (True, False, False)
    """
    role = turn.get("role") or turn.get("from")
    return isinstance(role, str) and (role in ("assistant", _CALL) or _SYNONYMS.get(role) == "assistant")


def _one_of(turn: Mapping[str, Any], names: Iterable[str], subject: str) -> Any:
    """The value of a field that has several names; None if none of them has a value.

    Raises:
        RowError: if two of them say different things.
    """
    filled = {name: turn[name] for name in names if turn.get(name) is not None}
    values = list(filled.values())
    if any(value != values[0] for value in values[1:]):
        raise RowError(f"{subject} has different {' and '.join(filled)}; remove one of them", "other")
    return values[0] if values else None


def _has_calls(turn: Mapping[str, Any]) -> bool:
    return any(is_filled(turn.get(name)) for name in ("tool_calls", "function_call"))


# Texts ---------------------------------------------------------------------------------------------------------


def _texts(turn: Mapping[str, Any], subject: str) -> tuple[str, str]:
    """Content and thought."""
    content = _one_of(turn, ("content", "value"), subject)
    if content is None and _has_calls(turn):
        content = ""
    text, thought = _parts(content, subject) if isinstance(content, list) else (content, "")
    text = checked_text(text, f"{subject}: content")
    thoughts = {name: turn.get(name) for name in THOUGHTS}
    beside = _one_of({name: value for name, value in thoughts.items() if is_filled(value)}, thoughts, subject)
    beside = "" if beside is None else checked_text(beside, f"{subject}: its thought")
    if beside and thought and beside != thought:
        raise RowError(f"{subject} has different thoughts, in its content and beside it; remove one of them", "other")
    return text, beside or thought


def _parts(parts: list[Any], subject: str) -> tuple[str, str]:
    """The text and the thought of a content that is a list of parts."""
    texts: dict[str, list[str]] = {"text": [], "thinking": []}
    for place, part in enumerate(parts):
        where = f"{subject}: content[{place}]"
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text" if isinstance(part, str) else None
        kind = _PARTS.get(kind) if isinstance(kind, str) else None
        if kind is None:
            raise RowError(f"{where} must be a text, got {shown(part)}; only text is learnt", "wrong type")
        if isinstance(part, str):
            texts["text"].append(checked_text(part, where))
            continue
        filled = {name: value for name, value in part.items() if name != "type" and is_filled(value)}
        text = filled.pop(kind, filled.pop("text", filled.pop("content", "")))
        if isinstance(text, list):  # as Mistral writes thoughts: again in parts
            text = _parts(text, where)[0]
        if filled:
            raise RowError(f"{where} has {shown(filled)}, which would be lost; write it beside the content", "other")
        texts[kind].append(checked_text(text, where))
    return "".join(texts["text"]), "".join(texts["thinking"])


# Whether a turn is learnt --------------------------------------------------------------------------------------


def _trained(turn: Mapping[str, Any], role: str, subject: str) -> bool | None:
    """Whether a turn is to be learnt; None if it does not say."""
    flags: dict[str, bool] = {}
    for field in TURN:
        if field.fate is Fate.MASK:
            flags |= {
                name: _flag(turn[name], field.names[0], f"{subject}: {name}") for name in field.names if name in turn
            }
    flags = {name: value for name, value in flags.items() if value is not None}
    if len(set(flags.values())) > 1:
        raise RowError(f"{subject}: {' and '.join(flags)} say different things of whether it is learnt", "other")
    if not flags:
        return None
    learnt = next(iter(flags.values()))
    if role == "assistant":
        return learnt
    if learnt:
        name = next(iter(flags))
        raise RowError(
            f"{subject}: {name} is {shown(turn[name])}, but only turns of the assistant are learnt; remove it", "other"
        )
    return None


def _flag(value: Any, kind: str, subject: str) -> Any:
    """The meaning of a training flag of one of three kinds; None for a null."""
    if value is None:
        return None
    if kind == "weight":
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(
                f"{subject} is {shown(value)}: a turn is learnt (1) or not (0); for a factor write one row for each "
                "such turn, with the factor as the row's weight and 0 at its other turns",
                "other",
            )
        return bool(value)
    if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
        raise RowError(f"{subject} must be true or false, got {shown(value)}", "wrong type")
    return not value if kind == "mask" else bool(value)


# Calls ---------------------------------------------------------------------------------------------------------


def _calls(turn: Mapping[str, Any], in_content: str | None, subject: str) -> list[dict[str, Any]]:
    """The calls of a turn in OpenAI's form, with their arguments as objects."""
    raw = _one_of(turn, ("tool_calls", "function_call"), subject) if _has_calls(turn) else in_content
    if raw is None:
        return []
    where = f"{subject}: its calls"
    return [_call(call, f"{where}[{place}]") for place, call in enumerate(objects(raw, where, _CALLS_REMEDY))]


def _call(call: dict[str, Any], subject: str) -> dict[str, Any]:
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise RowError(f"{subject} has no name, got {shown(call)}; {_CALLS_REMEDY}", "wrong type")
    arguments = function.get("arguments", function.get("parameters", {}))
    is_text = isinstance(arguments, str)
    if is_text:
        arguments = from_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(f"{subject}: arguments must be an object or its JSON text, got {shown(function)}", "wrong type")
    written = {"type": "function", "function": {"name": name, "arguments": plain(arguments, subject, nulls=is_text)}}
    return {"id": call["id"], **written} if call.get("id") else written
