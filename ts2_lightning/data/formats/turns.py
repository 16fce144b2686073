"""One turn of a conversation: from whatever the usual tools write to what a template is handed."""

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
_KNOWN_ROLES = (*ROLES, *_SYNONYMS, _CALL)
_PARTS = {"text": "text", "output_text": "text", "input_text": "text", "thinking": "thinking", "reasoning": "thinking"}
_ROLE_AND_TEXT = {"role", "content"}
_CALLS_REMEDY = 'write {"name": ..., "arguments": {...}} for each'


class Message(TypedDict):
    """One turn of a conversation.

    `trained`, if it is there, says whether a turn of the assistant is learnt; without it, it is. `reasoning_content` is
    what it thought, beside its content; `tool_calls` are in OpenAI's form, with arguments as objects.
    """

    role: str
    content: str
    trained: NotRequired[bool]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


def checked_turn(turn: Any, number: int, unused: set[str]) -> Message:
    """A turn with all that is used of it, checked.

    Args:
        turn: an object with `role` and `content`, or `from` and `value`, and the fields of `fields.TURN`.
        number: of the turn, from 1, for messages.
        unused: gets the names of filled fields that are not used.

    Raises:
        RowError: for a wrong shape or role, a content that is no text, an empty answer, a training flag that cannot be,
            and a field that is refused.

    Example:
        >>> checked_turn({"from": "gpt", "value": "Hi", "weight": 0}, 2, set())
        {'role': 'assistant', 'content': 'Hi', 'trained': False}
    """
    if (simple := _simple(turn, number)) is not None:
        return simple
    role, calls_in_content = _role(turn, number)
    what = f"message {number} ({role})"
    text, thought = _texts(turn, what)
    calls = _calls(turn, text if calls_in_content else None, what)
    message: Message = {"role": role, "content": "" if calls_in_content else text}
    if (trained := _trained(turn, role, what)) is not None:
        message["trained"] = trained
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    if role != "assistant" and (thought or calls):
        raise RowError(f"{what} has {'calls' if calls else 'a thought'}, but only the assistant has any", "other")
    for name in ("name", "tool_call_id"):
        if is_filled(turn.get(name)):
            message[name] = checked_text(turn[name], f"{what}: {name}")
    if role == "assistant" and not calls and not message["content"].strip():
        raise RowError(f"message {number}: the assistant's answer is empty", "empty answer")
    unused.update(f"turns.{name}" for name in sorted_out(turn, TURN, (), f"{what}: "))
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
        what = f"message {number} must be an object with role and content, or from and value"
        raise RowError(f"{what}, got {shown(turn)}", kind)
    if not isinstance(role, str) or role not in _KNOWN_ROLES:
        hint = did_you_mean(role[:40], _KNOWN_ROLES) if isinstance(role, str) else ""
        names = ", ".join(_KNOWN_ROLES)
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


def _one_of(turn: Mapping[str, Any], names: Iterable[str], what: str) -> Any:
    """The value of a field that has several names; None where none of them says anything.

    Raises:
        RowError: if two of them say different things.
    """
    said = {name: turn[name] for name in names if turn.get(name) is not None}
    values = list(said.values())
    if any(value != values[0] for value in values[1:]):
        raise RowError(f"{what} has different {' and '.join(said)}; remove one of them", "other")
    return values[0] if values else None


def _has_calls(turn: Mapping[str, Any]) -> bool:
    return any(is_filled(turn.get(name)) for name in ("tool_calls", "function_call"))


# Texts ---------------------------------------------------------------------------------------------------------


def _texts(turn: Mapping[str, Any], what: str) -> tuple[str, str]:
    """Content and thought."""
    content = _one_of(turn, ("content", "value"), what)
    if content is None and _has_calls(turn):
        content = ""
    text, thought = _parts(content, what) if isinstance(content, list) else (content, "")
    text = checked_text(text, f"{what}: content")
    thoughts = {name: turn.get(name) for name in THOUGHTS}
    beside = _one_of({name: value for name, value in thoughts.items() if is_filled(value)}, thoughts, what)
    beside = "" if beside is None else checked_text(beside, f"{what}: its thought")
    if beside and thought and beside != thought:
        raise RowError(f"{what} has different thoughts, in its content and beside it; remove one of them", "other")
    return text, beside or thought


def _parts(parts: list[Any], what: str) -> tuple[str, str]:
    """The text and the thought of a content that is given in parts."""
    texts: dict[str, list[str]] = {"text": [], "thinking": []}
    for place, part in enumerate(parts):
        where = f"{what}: content[{place}]"
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


def _trained(turn: Mapping[str, Any], role: str, what: str) -> bool | None:
    """Whether a turn is to be learnt; None if it does not say."""
    said: dict[str, bool] = {}
    for field in TURN:
        if field.fate is Fate.MASK:
            said |= {name: _flag(turn[name], field.names[0], f"{what}: {name}") for name in field.names if name in turn}
    said = {name: value for name, value in said.items() if value is not None}
    if len(set(said.values())) > 1:
        raise RowError(f"{what}: {' and '.join(said)} say different things of whether it is learnt", "other")
    if not said:
        return None
    learnt = next(iter(said.values()))
    if role == "assistant":
        return learnt
    if learnt:
        name = next(iter(said))
        raise RowError(
            f"{what}: {name} is {shown(turn[name])}, but only turns of the assistant are learnt; remove it", "other"
        )
    return None


def _flag(value: Any, kind: str, what: str) -> Any:
    """What a training flag of one of three kinds says; None for a null."""
    if value is None:
        return None
    if kind == "weight":
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(
                f"{what} is {shown(value)}: a turn is learnt (1) or not (0); for a factor write one row for each such "
                "turn, with the factor as the row's weight and 0 at its other turns",
                "other",
            )
        return bool(value)
    if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
        raise RowError(f"{what} must be true or false, got {shown(value)}", "wrong type")
    return not value if kind == "mask" else bool(value)


# Calls ---------------------------------------------------------------------------------------------------------


def _calls(turn: Mapping[str, Any], in_content: str | None, what: str) -> list[dict[str, Any]]:
    """The calls of a turn in OpenAI's form, with their arguments as objects."""
    raw = _one_of(turn, ("tool_calls", "function_call"), what) if _has_calls(turn) else in_content
    if raw is None:
        return []
    where = f"{what}: its calls"
    return [_call(call, f"{where}[{place}]") for place, call in enumerate(objects(raw, where, _CALLS_REMEDY))]


def _call(call: dict[str, Any], what: str) -> dict[str, Any]:
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise RowError(f"{what} has no name, got {shown(call)}; {_CALLS_REMEDY}", "wrong type")
    arguments = function.get("arguments", function.get("parameters", {}))
    is_text = isinstance(arguments, str)
    if is_text:
        arguments = from_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(f"{what}: arguments must be an object or its JSON text, got {shown(function)}", "wrong type")
    written = {"type": "function", "function": {"name": name, "arguments": plain(arguments, what, nulls=is_text)}}
    return {"id": call["id"], **written} if call.get("id") else written
