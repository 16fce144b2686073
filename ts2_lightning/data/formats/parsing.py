"""From the fields of a row to a checked conversation or checked tokens; no field is lost in silence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ts2_lightning.data.formats.fields import QUESTION_FIELDS, ROW, THOUGHTS, sorted_out
from ts2_lightning.data.formats.tokens import TokenRow, checked_tokens
from ts2_lightning.data.formats.turns import Message, checked_turn
from ts2_lightning.data.formats.values import checked_text, from_json, is_filled, objects, plain, shown
from ts2_lightning.types import RowError

_FUNCTIONS_REMEDY = 'write {"type": "function", "function": {"name": ..., "parameters": {...}}} for each'


@dataclass(frozen=True)
class Conversation:
    """The contents of a row that a template writes.

    Attributes:
        messages: turns of the conversation.
        tools: functions that may be called, in OpenAI's form; None if there are none.
        documents: texts to answer from; None if there are none.
        arguments: arguments of the template.
        unused: names of fields of the row and its turns that are filled, but not used.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @classmethod
    def asking(cls, question: str) -> "Conversation":
        """A question alone."""
        return cls([{"role": "user", "content": question}])


Example = Conversation | TokenRow
"""A parsed row: a conversation, which still needs a template, or tokens."""

Result = list[Message] | TokenRow | Conversation
"""The results that the function of a format may return."""


def checked(result: Result) -> Example:
    """The checked result of a user's function, which alone decides which of the row's fields it uses.

    Raises:
        RowError: see `checked_messages` and `checked_tokens`.
    """
    if isinstance(result, TokenRow):
        return checked_tokens(*result)
    whole = result if isinstance(result, Conversation) else Conversation(result)
    messages, unused = checked_messages(whole.messages)
    return Conversation(
        messages,
        tools_of({"tools": whole.tools}),
        documents_of({"documents": whole.documents}),
        arguments_of(whole.arguments, "arguments"),
        tuple(sorted({*whole.unused, *unused})),
    )


def complete(result: Result, fields: Mapping[str, Any], read: frozenset[str], asks: bool) -> Example:
    """The result of a format of the package, with the row's further fields: a system text, functions, arguments.

    Args:
        result: result of the format.
        fields: fields of the row.
        read: names of the fields that the format reads.
        asks: whether the row is a question and an answer, so that other fields may belong to the question.

    Raises:
        RowError: see `checked_messages` and `checked_tokens`; and for a field that is refused.
    """
    if isinstance(result, TokenRow):
        return checked_tokens(*result)
    assert not isinstance(result, Conversation)
    thoughts = {name: fields[name] for name in THOUGHTS if is_filled(fields.get(name))}
    turns = _with_thoughts(result, thoughts) if asks else result
    messages, in_turns = checked_messages(_with_system(fields, turns))
    unused = {
        *in_turns,
        *(() if asks else thoughts),
        *sorted_out(fields, ROW, read, "", QUESTION_FIELDS if asks else ()),
    }
    documents, kwargs = documents_of(fields), fields.get("chat_template_kwargs")
    if documents is None and is_filled(fields.get("documents")):
        unused.add("documents")  # no list of objects, which may well be something else
    arguments = arguments_of(kwargs, "chat_template_kwargs")
    return Conversation(messages, tools_of(fields), documents, arguments, tuple(sorted(unused)))


def checked_messages(value: Any) -> tuple[list[Message], set[str]]:
    """The checked messages, and the names of their fields that are not used.

    Raises:
        RowError: see `turns.checked_turn`; for a wrong shape, and no assistant turn.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f"messages must be a list of at least one message, got {shown(value)}", "wrong type")
    unused: set[str] = set()
    messages = [checked_turn(message, number, unused) for number, message in enumerate(value, start=1)]
    if all(message["role"] != "assistant" for message in messages):
        raise RowError("no message of the role assistant, so nothing to learn", "no supervised token")
    if not any(message["role"] == "assistant" and message.get("trained", True) for message in messages):
        raise RowError("every turn of the assistant is marked as not to be learnt", "no supervised token")
    return messages, unused


def _with_thoughts(messages: list[Message], thoughts: Mapping[str, Any]) -> list[Message]:
    """The messages, the last of which, the answer, gets the thoughts that the row has beside it."""
    if not thoughts or not isinstance(messages[-1], Mapping):
        return messages
    answer: Any = {**messages[-1], **thoughts}
    return [*messages[:-1], answer]


def _with_system(fields: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages after the system turn of a row's own field, unless they begin with the same."""
    texts = {name: fields[name] for name in ("system", "system_prompt") if is_filled(fields.get(name))}
    if not texts or not isinstance(messages, list):
        return messages
    for name, value in texts.items():
        checked_text(value, name)
    if len(set(texts.values())) > 1:
        raise RowError(f"the row has different {' and '.join(texts)}; remove one of them", "other")
    name, text = next(iter(texts.items()))
    first: Any = messages[0] if messages else None
    if isinstance(first, Mapping) and (first.get("role") or first.get("from")) in ("system", "developer"):
        if (first.get("content") or first.get("value")) == text:
            return messages
        raise RowError(f"{name} and the system turn of the messages differ; remove one of them", "other")
    return [{"role": "system", "content": text}, *messages]


def tools_of(fields: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The functions of a row, in OpenAI's form; None if there are none.

    Example:
        >>> tools_of({"functions": [{"name": "sum"}]})
        [{'type': 'function', 'function': {'name': 'sum'}}]
    """
    filled = [name for name in ("tools", "functions") if is_filled(fields.get(name)) and not _says_none(fields[name])]
    if not filled:
        return None
    if len(filled) > 1:
        raise RowError("the row has both tools and functions; remove one of them", "other")
    tools = objects(fields[filled[0]], filled[0], _FUNCTIONS_REMEDY)
    bare = [{"type": "function", "function": tool} if _is_bare(tool) else tool for tool in tools]
    return bare or None


def _says_none(value: Any) -> bool:
    """Whether a text is the JSON of nothing: `[]`, as LLaMA-Factory's rows have it, or blank."""
    return isinstance(value, str) and (not value.strip() or from_json(value) == [] or value.strip() == "null")


def _is_bare(tool: Mapping[str, Any]) -> bool:
    return "function" not in tool and isinstance(tool.get("name"), str)


def documents_of(fields: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The documents of a row, where they are a list of objects; None if there are none."""
    value = fields.get("documents")
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        return None
    checked: list[dict[str, Any]] = plain(value, "documents")
    return checked


def arguments_of(value: Any, subject: str) -> dict[str, Any]:
    """Template arguments, checked; null is none, and so is a null argument.

    Args:
        value: object with the arguments, or its JSON text.
        subject: name of the value in messages.

    Raises:
        RowError: for anything else, and for an argument with the name of a variable of the template.
    """
    value = from_json(value) if isinstance(value, str) and value else value
    if not is_filled(value):
        return {}
    if not isinstance(value, Mapping):
        raise RowError(f"{subject} must be an object of template arguments, got {shown(value)}", "wrong type")
    arguments: dict[str, Any] = plain(value, subject)
    for name in arguments:
        if not name.isidentifier() or name in RESERVED or name.endswith(("_token", "_tokens")):
            raise RowError(
                f"{subject}: {shown(name)} is no name of an argument that a row or a setting may give", "other"
            )
    return arguments


RESERVED = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "raise_exception",
        "strftime_now", "range", "dict", "lipsum", "cycler", "joiner", "namespace", "loop", "self", "caller", "varargs",
        "kwargs", "context", "environment",
    }
)  # fmt: skip
"""Names that a template uses for other things than arguments of a row or a setting."""
